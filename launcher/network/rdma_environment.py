"""What NCCL, NVSHMEM, UCX and Mooncake are told of RDMA in this pod, and what of the user's own words cannot work.

Whatever the user or the image set is kept, also in NCCL's own files. Without RDMA nothing is set, with one exception:
where a device opens and its GID table is empty, RoCE is impossible; NCCL would choose the device and fail, so it is
switched off for it. A table with link-local or RoCE v1 entries only works within one network segment: what is known is
said, and NCCL is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from launcher.errors import ConfigError
from launcher.network.addresses import Interface
from launcher.network.environment import Surroundings, Variable, quoted
from launcher.network.gid import GidChoice, choose_gid, own_gids
from launcher.network.hca import HcaChoice, Kind, choose_ports
from launcher.network.nccl import NameRule, is_number, names, unmatched
from launcher.network.nccl import number as nccl_number
from launcher.network.rdma import ROCE_V2, Allocated, Fabric, RdmaPort

MODES = ("auto", "off", "require")
DISABLE = "NCCL_IB_DISABLE"
HCA = "NCCL_IB_HCA"
INDEX = "NCCL_IB_GID_INDEX"
#: Each of these is a choice of the user's that an index of ours would overrule.
OWN_CHOICE = ("NCCL_IB_ADDR_RANGE", "NCCL_IB_ADDR_FAMILY", "NCCL_IB_ROCE_VERSION_NUM")
#: Traffic class (an octet of the IP header) and service level; what they mean is the switches' setting: only checked.
QUALITY = {"NCCL_IB_TC": 255, "NCCL_IB_SL": 15}
OTHER_INDEXES = ("NVSHMEM_IB_GID_INDEX", "UCX_IB_GID_INDEX", "MC_GID_INDEX")


@dataclass(frozen=True)
class Rdma:
    """What was found and what follows from it. ``ports`` are those that collectives will use; none: TCP."""

    kind: Kind
    ports: tuple[str, ...]
    variables: tuple[Variable, ...]
    warnings: tuple[str, ...]
    why: tuple[str, ...]


def rdma_environment(
    around: Surroundings,
    mode: str,
    fabric: Fabric,
    given: Allocated,
    among: Sequence[Interface],
    interface: Interface | None,
    nccl: str | None,
) -> Rdma:
    """The variables for one rank.

    ``mode`` is ``--rdma``: ``auto`` uses what is there, ``off`` keeps to TCP, ``require`` raises ConfigError where RDMA
    is impossible. ``interface`` is the one of the pod's address; ``nccl`` the engine's NCCL version, None if unknown.
    """
    if mode not in MODES:
        raise ConfigError(f"--rdma {mode} is not one of {', '.join(MODES)}", "give one of them; auto is the default")
    disabled = nccl_number(around.env.get(DISABLE, "")) != 0
    choice = choose_ports(fabric, given, among)
    if mode == "require":
        _require(around, choice, disabled)
    if mode == "off":
        return _off(around, choice, interface)
    if disabled:
        said = f"{DISABLE}={around.env[DISABLE]} in {around.files.get(DISABLE, 'the environment')}"
        return Rdma(choice.kind, (), (_as_it_is(around, DISABLE),), (), (f"RDMA is left alone: {said}",))
    found = _enabled(around, mode, choice, fabric, among, interface, nccl)
    return replace(found, warnings=(*_switch_warnings(around), *found.warnings))


def _enabled(
    around: Surroundings,
    mode: str,
    choice: HcaChoice,
    fabric: Fabric,
    among: Sequence[Interface],
    interface: Interface | None,
    nccl: str | None,
) -> Rdma:
    ports, warnings = _by_user(around, choice, fabric)
    if choice.kind is Kind.NO_IP or (ports and not any(_reaches(p, among) for p in ports)):
        return _one_segment(around, choice, ports, warnings, among)
    if not choice.ports:
        return _impossible(around, choice, interface)
    return _possible(around, mode, choice, ports, warnings, among, interface, nccl)


def _reaches(port: RdmaPort, among: Sequence[Interface]) -> bool:
    return not port.roce or bool(own_gids(port, among))


def _one_segment(
    around: Surroundings, choice: HcaChoice, ports: Sequence[RdmaPort], warnings: list[str], among: Sequence[Interface]
) -> Rdma:
    """Ports without a routable GID of this pod. People use them on one switch, by an index of their own."""
    shown = [_as_it_is(around, n) for n in (HCA, INDEX, *OWN_CHOICE, *QUALITY) if around.given(n)]
    index = around.env.get(INDEX, "")
    if is_number(index) and nccl_number(index) >= 0:
        wrong = _wrong_gid(nccl_number(index), ports, among)
        warnings += [f"{INDEX}={index} cannot work: {wrong}"] if wrong else []
    elif not any(around.given(n) for n in OWN_CHOICE):
        warnings.append(
            f"{_found(choice)}; they reach one network segment at most, and NCCL is left alone; {choice.fix}"
        )
    warnings += _quality_warnings(around)
    return Rdma(choice.kind, (), tuple(shown), tuple(warnings), (f"RDMA: {_found(choice)}",))


def _switch_warnings(around: Surroundings) -> Iterator[str]:
    value = around.env.get(DISABLE, "")
    if value and not is_number(value):
        yield f"{DISABLE}={value} is read as 0 by NCCL, which takes numbers: InfiniBand and RoCE stay on; write 1 or 0"


def _require(around: Surroundings, choice: HcaChoice, disabled: bool) -> None:
    if disabled:
        raise ConfigError(f"--rdma require contradicts {DISABLE}={around.env[DISABLE]}", "take one of them out")
    if not choice.ports and choice.kind is not Kind.NO_IP:
        raise ConfigError(f"--rdma require, but this pod has {_found(choice)}", choice.fix)


def _off(around: Surroundings, choice: HcaChoice, interface: Interface | None) -> Rdma:
    why = "--rdma off"
    variables = [around.variable(DISABLE, "1", why)]
    if interface:
        variables.append(around.variable("UCX_NET_DEVICES", interface.name, why))
    warnings: list[str] = []
    if around.given(DISABLE) and nccl_number(around.env[DISABLE]) == 0:
        warnings.append(f"{DISABLE}={around.env[DISABLE]} is set, so {why} does not hold for NCCL")
    elif around.given(HCA):
        warnings.append(f"{HCA}={around.env[HCA]} has no effect: {why}")
    return Rdma(choice.kind, (), tuple(variables), tuple(warnings), (f"RDMA is off: {why}",))


def _impossible(around: Surroundings, choice: HcaChoice, interface: Interface | None) -> Rdma:
    if choice.kind in (Kind.NONE, Kind.FOREIGN):
        return Rdma(choice.kind, (), (), (), (f"RDMA: {choice.kind.value}",))
    warnings = [f"no RDMA: this pod has {_found(choice)}; {choice.fix}"]
    variables: list[Variable] = []
    insisted = [name for name in (HCA, INDEX, *OWN_CHOICE) if around.given(name)]
    if insisted:
        warnings.append(f"{', '.join(f'{n}={around.env[n]}' for n in insisted)} cannot work here: kept")
    elif choice.kind is Kind.NO_GID:
        why = "NCCL would choose the RDMA device, but RoCE is impossible here"
        variables.append(around.variable(DISABLE, "1", why))
        if interface:
            variables.append(around.variable("UCX_NET_DEVICES", interface.name, why))
    return Rdma(choice.kind, (), tuple(variables), tuple(warnings), (f"RDMA: {_found(choice)}",))


def _possible(
    around: Surroundings,
    mode: str,
    choice: HcaChoice,
    ports: tuple[RdmaPort, ...],
    warnings: list[str],
    among: Sequence[Interface],
    interface: Interface | None,
    nccl: str | None,
) -> Rdma:
    if not ports:
        if mode == "require":
            raise ConfigError(f"--rdma require, but {warnings[0]}", f"correct {HCA}, or take it out")
        return Rdma(choice.kind, (), (_as_it_is(around, HCA),), tuple(warnings), (f"RDMA: {choice.kind.value}",))
    names = ",".join(str(p) for p in ports)
    variables = [around.variable(HCA, f"={names}", "active, openable, and on the fabric")]
    tcp = [interface.name] if interface else []
    variables.append(around.variable("UCX_NET_DEVICES", ",".join([names, *tcp]), "the same, and TCP to connect"))
    # A list costs NVSHMEM its own choice of the nearest device, so it gets one only where that could choose wrongly.
    if choice.left_out or len(ports) < len(choice.ports) or around.given("NVSHMEM_HCA_LIST"):
        why = "not every device that NVSHMEM would see can be used"
        variables.append(around.variable("NVSHMEM_ENABLE_NIC_PE_MAPPING", "1", "NVSHMEM_HCA_LIST needs it"))
        variables.append(around.variable("NVSHMEM_HCA_LIST", names, why))
    warnings += _ucx_warnings(around, choice, among)
    variables += [_as_it_is(around, name) for name in QUALITY if around.given(name)]
    warnings += _quality_warnings(around)
    gid = GidChoice(why="InfiniBand needs no GID index")
    roce = [p for p in ports if p.roce]
    if roce:
        gid = choose_gid(roce, among, nccl)
        variables += _gid_variables(around, gid, roce, among)
        warnings += _gid_warnings(around, gid, roce, among, nccl)
    why_not = tuple(f"{name} is left out: {reason}" for name, reason in choice.left_out.items())
    said = (f"RDMA: {choice.kind.value}: {names}", *((gid.why,) if gid.why else ()), *why_not)
    return Rdma(choice.kind, tuple(str(p) for p in ports), tuple(variables), tuple(warnings), said)


def _by_user(around: Surroundings, choice: HcaChoice, fabric: Fabric) -> tuple[tuple[RdmaPort, ...], list[str]]:
    """The ports that the user's own NCCL_IB_HCA means, or those chosen, and what is wrong with the list."""
    rule = around.env.get(HCA, "")
    if not rule:
        return choice.ports, []
    listed = names(rule)
    among = choice.able if not listed.exclude else choice.ports or choice.able
    ports = tuple(p for p in among if listed.match(p.device, p.number))
    has = ", ".join(str(p) for p in choice.able) or "none"
    if not ports:
        return (), [f"{HCA}={rule} matches no usable port of this pod, which has {has}"] if choice.able else []
    warnings = []
    everywhere = [(d.name, p.number) for d in fabric.devices for p in d.ports]
    if missed := unmatched(rule, everywhere):
        what = f"which has {', '.join(f'{name}:{n}' for name, n in everywhere)}"
        warnings.append(f"{HCA}={rule}: {quoted(missed)} matches no device of this pod, {what}")
    if ambiguous := _ambiguous(listed, everywhere):
        warnings.append(
            f"{HCA}={rule} is a list of prefixes and so also means {', '.join(ambiguous[0])}; write {HCA}="
            f"={','.join(ambiguous[1])}"
        )
    if len({p.link_layer for p in ports}) > 1:
        layers = "; ".join(
            f"{layer}: {', '.join(str(p) for p in ports if p.link_layer == layer)}"
            for layer in sorted({p.link_layer for p in ports})
        )
        warnings.append(f"{HCA}={rule} mixes link layers that do not reach each other ({layers})")
    return ports, warnings


def _ambiguous(listed: NameRule, there: Sequence[tuple[str, int]]) -> tuple[list[str], list[str]] | None:
    """Where an entry is a device's whole name and the prefix of another's: what else it means, and an exact list."""
    if listed.exact or listed.exclude:
        return None
    more: list[str] = []
    exact: list[str] = []
    for entry in listed.entries:
        hit = [(name, port) for name, port in there if listed.hits(entry, name, port)]
        whole = [(name, port) for name, port in hit if name == entry[0]]
        if whole:
            more += [f"{name}:{port}" for name, port in hit if name != entry[0]]
            exact.append(entry[0] if entry[1] == -1 else f"{entry[0]}:{entry[1]}")
        else:
            exact += dict.fromkeys(name if entry[1] == -1 else f"{name}:{port}" for name, port in hit)
    wanted = {e.partition(":")[0] for e in exact}
    more = [m for m in dict.fromkeys(more) if m.partition(":")[0] not in wanted]
    return (more, exact) if more else None


def _quality_warnings(around: Surroundings) -> Iterator[str]:
    for name, most in QUALITY.items():
        value = around.env.get(name, "")
        if value and not (is_number(value) and -1 <= nccl_number(value) <= most):
            yield f"{name}={value} is not a number from 0 to {most}"


def _ucx_warnings(around: Surroundings, choice: HcaChoice, among: Sequence[Interface]) -> Iterator[str]:
    value = around.env.get("UCX_NET_DEVICES", "")
    if not value or value == "all" or any(sign in value for sign in "^*?["):
        return
    here = {str(p) for p in choice.ports} | {i.name for i in among}
    missing = [entry for entry in value.split(",") if entry not in here]
    if missing:
        yield f"UCX_NET_DEVICES={value} names {', '.join(missing)}; usable here are {', '.join(sorted(here))}"


def _gid_variables(
    around: Surroundings, gid: GidChoice, ports: Sequence[RdmaPort], among: Sequence[Interface]
) -> Iterator[Variable]:
    own = around.env.get(INDEX, "")
    if own:
        yield _as_it_is(around, INDEX)
        index = nccl_number(own)
        if is_number(own) and index >= 0 and not _wrong_gid(index, ports, among):
            for name in OTHER_INDEXES:
                yield around.variable(name, str(index), f"the same as {INDEX}")
        return
    chosen = [name for name in OWN_CHOICE if around.given(name)]
    if chosen:
        yield from (_as_it_is(around, name) for name in chosen)
    elif gid.index is not None:
        for name in (INDEX, *OTHER_INDEXES):
            yield around.variable(name, str(gid.index), gid.why)
    elif gid.range:
        for prefix in ("NCCL", "NVSHMEM"):
            yield around.variable(f"{prefix}_IB_ADDR_RANGE", gid.range, gid.why)
            if gid.family:
                yield around.variable(f"{prefix}_IB_ADDR_FAMILY", gid.family, "the GIDs are IPv6")


def _gid_warnings(
    around: Surroundings, gid: GidChoice, ports: Sequence[RdmaPort], among: Sequence[Interface], nccl: str | None
) -> Iterator[str]:
    for name in (INDEX, *OTHER_INDEXES):
        value = around.env.get(name, "")
        if not value or (name == "UCX_IB_GID_INDEX" and value == "auto"):
            continue
        if not is_number(value):
            yield f"{name}={value} is not a number"
        elif nccl_number(value) < 0:
            continue  # the library chooses
        elif wrong := _wrong_gid(nccl_number(value), ports, among):
            instead = f"; {gid.index} would" if gid.index is not None else ""
            yield f"{name}={value} cannot work: {wrong}{instead}"
        elif gid.index is not None and (narrow := _one_segment_only(nccl_number(value), ports)):
            yield f"{name}={value}: {narrow}, which reaches one network segment only; {gid.index} holds this pod's IP"
    if around.env.get(INDEX, "") or any(around.given(n) for n in OWN_CHOICE):
        return
    if gid.problem:
        yield gid.problem
    elif gid.range and nccl is None:
        yield f"{gid.why}, which needs NCCL 2.26.2 or later; the engine's version is not known"


def _wrong_gid(index: int, ports: Sequence[RdmaPort], among: Sequence[Interface]) -> str:
    """What is wrong with a GID index on the first port where something is; empty: nothing."""
    for port in ports:
        entry = port.gid(index)
        if entry is None:
            return f"entry {index} of {port} is empty"
        if not entry.type:
            return f"entry {index} of {port} is of no type"
        if not entry.link_local and entry.address not in {g.address for g in own_gids(port, among)}:
            ours = {a for i in among for a in i.addresses}
            if entry.address not in ours:
                return f"entry {index} of {port} holds {entry.address}, which is not an IP of this pod"
    return ""


def _one_segment_only(index: int, ports: Sequence[RdmaPort]) -> str:
    """Whether an entry that works is not routed: link-local, or RoCE v1."""
    for port in ports:
        entry = port.gid(index)
        if entry is not None and entry.link_local:
            return f"entry {index} of {port} is link-local"
        if entry is not None and entry.type != ROCE_V2:
            return f"entry {index} of {port} is {entry.type}, not {ROCE_V2}"
    return ""


def _as_it_is(around: Surroundings, name: str) -> Variable:
    return around.variable(name, around.env[name], "")


def _found(choice: HcaChoice) -> str:
    reasons = "; ".join(f"{name}: {why}" for name, why in list(choice.left_out.items())[:4])
    more = len(choice.left_out) - 4
    return choice.kind.value + (f" ({reasons}{f'; and {more} more' if more > 0 else ''})" if reasons else "")
