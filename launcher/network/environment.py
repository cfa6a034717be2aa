"""What collectives need to be told of the network, and who said it.

Each library finds an interface in its own way and most find the wrong one in a pod with two: NCCL takes every
interface it sees, gloo the address of the hostname (127.0.0.1 in many pods), vLLM and SGLang the route to 8.8.8.8. So
the launcher says it, on every rank from that rank's own interfaces, and never over what the user said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from launcher.common.addresses import is_ipv6, is_localhost
from launcher.model import EMPTY
from launcher.network import nccl
from launcher.network.addresses import Interface, holder

Setter = Literal["user", "image", "launcher"]

NCCL = "NCCL_SOCKET_IFNAME"
GLOO = "GLOO_SOCKET_IFNAME"
TENSORPIPE = "TP_SOCKET_IFNAME"
FAMILY = "NCCL_SOCKET_FAMILY"
HOSTS = ("VLLM_HOST_IP", "SGLANG_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST")


@dataclass(frozen=True)
class Variable:
    """A variable of the engine's environment. One that the user or the image set is shown and left as it is."""

    name: str
    value: str
    setter: Setter
    why: str


@dataclass(frozen=True)
class Surroundings:
    """The environment that the launcher was started in, and what NCCL's own files add to it.

    ``image`` is what is known to come from the image's ENV; ``files`` tells which file a setting stands in.
    """

    env: Mapping[str, str]
    image: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    files: Mapping[str, str] = field(default_factory=lambda: EMPTY)

    @classmethod
    def here(cls, env: Mapping[str, str], image: Mapping[str, str] = EMPTY) -> Surroundings:
        """With NCCL's files of this machine."""
        found = {n: v for n, v in nccl.file_settings(env).items() if n not in env}
        merged = {**{name: value for name, (value, _) in found.items()}, **env}
        return cls(merged, image, {name: path for name, (_, path) in found.items()})

    def given(self, name: str) -> bool:
        """Set on purpose. An empty value is that too: some libraries read it as "no"."""
        return name in self.env

    def variable(self, name: str, value: str, why: str) -> Variable:
        """What holds for a name: the value that is already set, else the launcher's."""
        if not self.given(name):
            return Variable(name, value, "launcher", why)
        if name in self.files:
            return Variable(name, self.env[name], "user", f"set in {self.files[name]}: kept")
        by_image = self.image.get(name) == self.env[name]
        return Variable(name, self.env[name], "image" if by_image else "user", "set in the environment: kept")


def collective_environment(
    around: Surroundings, address: str, among: Sequence[Interface], interface: Interface | None = None
) -> tuple[tuple[Variable, ...], tuple[str, ...]]:
    """The variables for one rank, and warnings in words about those of the user's that cannot work here.

    ``address`` is this pod's own (`addresses.own_address`), ``among`` its interfaces, ``interface`` the one that
    ``--interface`` names; without it, the one that holds the address.
    """
    chosen = interface or holder(address, among)
    variables: list[Variable] = []
    warnings: list[str] = []
    if chosen is None:
        warnings.append(
            f"no interface of this pod holds its address {address} (NAT, or a wrong --address or POD_IP?): "
            f"{NCCL}, {GLOO} and {TENSORPIPE} are left to the engine's own guess"
        )
    else:
        why = "named by --interface" if interface else f"it holds {address}, from where the leader is reached"
        # "=" is NCCL's exact match: a bare eth1 would match eth10 too.
        variables.append(around.variable(NCCL, f"={chosen.name}", why))
        variables.append(around.variable(GLOO, chosen.name, why))
        variables.append(around.variable(TENSORPIPE, chosen.name, why))
        warnings += _interface_warnings(around, chosen, interface is not None, among)
    family = "AF_INET6" if is_ipv6(address) else "AF_INET"
    variables.append(around.variable(FAMILY, family, f"this pod's address is {address}"))
    variables += [around.variable(name, address, "this pod's address") for name in HOSTS]
    warnings += _address_warnings(around, address, among)
    warnings += [
        f"{v.name} is set but empty: kept; take it out of the environment to have the launcher set it"
        for v in variables
        if not v.value
    ]
    return tuple(variables), tuple(warnings)


def quoted(entries: Iterable[str]) -> str:
    """Entries of a list; one with a blank in it is quoted, for the blank is why it matches nothing."""
    return ", ".join(repr(e) if e != e.strip() else e for e in entries)


def _interface_warnings(
    around: Surroundings, chosen: Interface, chosen_by_user: bool, among: Sequence[Interface]
) -> Iterable[str]:
    present = [i.name for i in among]
    has = f"this pod has {', '.join(sorted(present)) or 'none'}"
    rule = around.env.get(NCCL, "")
    missed = nccl.unmatched(rule, [(n, -1) for n in present])
    if rule and not any(nccl.names(rule).match(n) for n in present):
        yield f"{NCCL}={rule} matches no interface: {has}"
    elif missed:
        yield f"{NCCL}={rule}: {quoted(missed)} matches no interface: {has}"
    if chosen_by_user and rule and not nccl.names(rule).match(chosen.name):
        yield f"{NCCL}={rule} leaves out {chosen.name}, which --interface names; the variable holds"
    for name in (GLOO, TENSORPIPE):
        value = around.env.get(name, "")
        if not value:
            continue
        if value[0] in "=^":
            yield f"{name}={value} uses NCCL's signs, which this variable does not know: give plain names"
            continue
        missing = [n for n in (value.split(",") if name == GLOO else [value]) if n not in present]
        if missing:
            yield f"{name}={value} names {', '.join(missing)}, which is no interface: {has}"
        elif chosen_by_user and chosen.name not in value.split(","):
            yield f"{name}={value} leaves out {chosen.name}, which --interface names; the variable holds"


def _address_warnings(around: Surroundings, address: str, among: Sequence[Interface]) -> Iterable[str]:
    family = around.env.get(FAMILY, "")
    if family and family not in ("AF_INET", "AF_INET6"):
        yield f"{FAMILY}={family} is neither AF_INET nor AF_INET6"
    elif family and (family == "AF_INET6") != is_ipv6(address):
        yield f"{FAMILY}={family} does not fit this pod's address {address}"
    for name in HOSTS:
        value = around.env.get(name, "")
        if not value or value == address:
            continue
        if is_localhost(value):
            yield f"{name}={value} cannot be reached by the other pods; this pod's address is {address}"
        elif holder(value, among) is None:
            yield (
                f"{name}={value} is not an address of this pod ({address}): one fixed value for all pods cannot work; "
                "take it out, or set it from status.podIP"
            )
