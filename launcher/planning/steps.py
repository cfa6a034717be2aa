"""From settings to a plan: the steps that `launcher plan` and the agent take alike, in the order of taking them.

The agent takes them with real addresses and asks the engine's interpreter through the guard; `launcher plan` takes them
with names in the place of addresses. Each step is small and calls one room.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from launcher.common import files
from launcher.common.addresses import is_loopback
from launcher.engines.base import Engine
from launcher.errors import ConfigError
from launcher.model import Epoch, Identity, NodeFacts, Plan, Shared, SourceReport
from launcher.planning import rank_variables
from launcher.settings import Settings, flag_of

if TYPE_CHECKING:
    from launcher.group.proof import Secrets
    from launcher.network.connections import Requests
    from launcher.network.environment import Variable

Ask = Callable[[Sequence[str], float], Awaitable[tuple[int, str]]]
#: What the guard tells the agent, and what goes no further.
OF_THE_GUARD = ("LAUNCHER_REPLACES", "LAUNCHER_PREVIOUS_AGENT", "LAUNCHER_LAST_EPOCH")
NETWORK_STATUS_FILE = "/etc/podinfo/network-status"
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

_versions: dict[tuple[Any, ...], Mapping[str, str]] = {}


# ---------------------------------------------------------------------------------------------------- who am I


def identity_of(
    settings: Settings, environ: Mapping[str, str], hostname: str | None = None
) -> tuple[Identity, tuple[SourceReport, ...], tuple[str, ...]]:
    """This pod's identity, what each source said, and warnings. Raises ConfigError.

    ``hostname``: that of a pod elsewhere, of whose files nothing is known; None: this one.
    """
    from launcher.identity import identify

    if hostname is not None:
        return identify(settings, environ, hostname)
    here = (_text_of(path) for path in (NAMESPACE_FILE, "/etc/resolv.conf", "/etc/hosts"))
    return identify(settings, environ, os.uname().nodename, *here)


def secret_of(settings: Settings) -> Secrets | None:
    """The group's secret, from ``--token-file``."""
    if settings.token_file is None:
        return None
    from launcher.group.proof import Secrets

    return Secrets(settings.token_file, settings.said("token_file"))


def secret_warnings(settings: Settings) -> tuple[str, ...]:
    """What is wrong with the way the secret is kept, in words."""
    if settings.token_file is None:
        return ()
    from launcher.group.proof import exposure

    text = exposure(settings.token_file, settings.said("token_file"))
    return (text,) if text else ()


def engine_of(settings: Settings) -> Engine:
    from launcher.engines.registry import load

    return load(settings)


def engine_environment(environ: Mapping[str, str], rank: int) -> dict[str, str]:
    """The environment that the engine of ``rank`` starts from: what plans lay over it is not in it yet."""
    own = rank_variables.environment(environ, rank)
    return {name: value for name, value in own.items() if name not in OF_THE_GUARD}


# ------------------------------------------------------------------------------------------------- what is here


async def learn(settings: Settings, engine: Engine, environ: Mapping[str, str], ask: Ask) -> NodeFacts:
    """GPUs of this pod and the versions in the engine's interpreter. Both are asked at the same time."""
    import asyncio

    versions, gpus = await asyncio.gather(
        _ask_versions(settings, engine, ask), _ask_gpus(settings, engine, environ, ask)
    )
    count, model = gpus
    return NodeFacts(versions=versions[0], versions_known=versions[1], gpus=count, gpu_model=model)


def known(settings: Settings, engine: Engine, environ: Mapping[str, str]) -> NodeFacts | None:
    """What :func:`learn` would find, where that takes no question to a program; else None."""
    if engine.distributions(settings) or has_nvidia():
        return None
    gpus, model = _gpus(settings, environ, None)
    return NodeFacts(gpus=gpus, gpu_model=model)


async def _ask_versions(settings: Settings, engine: Engine, ask: Ask) -> tuple[Mapping[str, str], bool]:
    wanted = engine.distributions(settings)
    if not wanted:
        return {}, False
    from launcher.engines import versions

    interpreter = engine.interpreter(settings)
    key = (*versions.cache_key(interpreter), wanted)
    if key not in _versions:
        code, output = await ask(versions.argv(interpreter, wanted), versions.TIMEOUT)
        if code == 127:
            raise ConfigError(
                f"the engine's interpreter {interpreter} cannot be started: {output}",
                "name the Python that the engine is installed in with --python",
            )
        _versions[key] = versions.parse(output, interpreter)
    return _versions[key], True


async def _ask_gpus(settings: Settings, engine: Engine, environ: Mapping[str, str], ask: Ask) -> tuple[int | None, str]:
    smi = None
    if has_nvidia():
        code, output = await ask(("nvidia-smi", "-L"), 10.0)
        smi = output if code == 0 else None
    return _gpus(settings, environ, smi)


def _gpus(settings: Settings, environ: Mapping[str, str], smi: str | None) -> tuple[int | None, str]:
    from launcher.node.gpus import visible_gpus

    found = visible_gpus(environ, "/dev", smi)
    return (found.count if settings.gpus_per_pod is None else settings.gpus_per_pod), found.model


def has_nvidia() -> bool:
    from launcher.node.gpus import device_files

    return bool(device_files("/dev"))


def fingerprint(settings: Settings, engine: Engine, facts: NodeFacts) -> dict[str, str]:
    """Everything that must be equal on all ranks."""
    from launcher.engines.fingerprint import model_identity

    found = dict(engine.fingerprint(settings, facts))
    if settings.model:
        found |= model_identity(settings.model)
    found["lease"] = f"{settings.lease:g}"
    found["handoff"] = str(settings.handoff).lower()
    if settings.require_same_revision:
        found["revision"] = settings.revision or ""
    return {k[:64]: v[:600] for k, v in found.items()}


# ------------------------------------------------------------------------------------------------- the network


@dataclass(frozen=True)
class Network:
    """What this pod's network is, and what collectives are told of it."""

    address: str
    why: str
    variables: tuple[Variable, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  #: short texts that the group may compare; they bind nobody

    @property
    def ours(self) -> dict[str, str]:
        """The variables that the launcher sets; the others are there already."""
        return {v.name: v.value for v in self.variables if v.setter == "launcher"}


def network(
    settings: Settings,
    identity: Identity,
    environ: Mapping[str, str],
    leader: Sequence[str],
    nccl: str | None = None,
) -> Network:
    """Own address and the environment of collectives, from this pod's interfaces and RDMA devices.

    ``leader``: what the leader's name resolves to; ``nccl``: version of the engine's NCCL. Raises ConfigError.
    """
    from launcher.network import addresses, rdma
    from launcher.network import facts as network_facts
    from launcher.network.environment import Surroundings, collective_environment
    from launcher.network.rdma_environment import rdma_environment

    among = addresses.interfaces()
    chosen = addresses.named(settings.interface, settings.said("interface"), among) if settings.interface else None
    address, why = addresses.own_address(identity.address, identity.leader, leader, chosen)
    around = Surroundings.here(environ)
    variables, warnings = collective_environment(around, address, among, chosen)
    if is_loopback(address):  # `launcher local`: all ranks are on this machine
        return Network(address, why, variables, warnings)
    sysfs, dev = rdma.roots(environ)
    fabric, interface = rdma.read(sysfs, dev), chosen or addresses.holder(address, among)
    given = rdma.allocated(environ, _network_status(environ))
    found = rdma_environment(around, settings.rdma, fabric, given, among, interface, nccl)
    facts = network_facts.of(interface, found, fabric, among, sysfs)
    return Network(address, why, (*variables, *found.variables), (*warnings, *found.warnings), found.why, facts)


def network_alone(settings: Settings, identity: Identity, environ: Mapping[str, str]) -> Network | None:
    """The same for a group of one: its engine's KV connector, say, is reached by other groups. No RDMA is looked for.

    None where neither --address or POD_IP nor a default route tells an address.
    """
    from launcher.network import addresses
    from launcher.network.environment import Surroundings, collective_environment

    address, why = identity.address or "", "told by --address or POD_IP"
    if not address:
        address, why = addresses.default_source(), "the default route starts there"
    if not address:
        return None
    among = addresses.interfaces()
    chosen = addresses.named(settings.interface, settings.said("interface"), among) if settings.interface else None
    variables, warnings = collective_environment(Surroundings.here(environ), address, among, chosen)
    return Network(address, why, variables, warnings if identity.address else ())


def on_host_network(environ: Mapping[str, str]) -> bool:
    """Whether this pod has ``hostNetwork``, for all that can be seen from inside."""
    from launcher.api import access
    from launcher.network import rdma

    return access.shares_host_network(_text_of("/etc/hosts"), str(rdma.roots(environ)[0]))


def reachable_address(address: str) -> str:
    """The pod's own address, where an interface other than loopback holds it; empty for others (behind NAT, say)."""
    from launcher.network import addresses

    held = not is_loopback(address) and addresses.holder(address, addresses.interfaces()) is not None
    return address if held else ""


def _network_status(environ: Mapping[str, str]) -> str:
    """Multus' annotation, from a downwardAPI volume (as a variable it is empty at the first start)."""
    return _text_of(environ.get("LAUNCHER_NETWORK_STATUS") or NETWORK_STATUS_FILE)


def _text_of(path: str) -> str:
    """What a file that the platform may have put there says; empty without it."""
    try:
        return files.read(path).decode("utf-8", "replace")
    except OSError:
        return ""


def nccl_version(facts: NodeFacts) -> str | None:
    """NCCL's version, from the distribution that brings it."""
    return next((v for name, v in sorted(facts.versions.items()) if name.startswith("nvidia-nccl")), None)


def bind(settings: Settings, address: str = "") -> str:
    """Where an engine listens for callers by default: everywhere; under ``launcher local`` on the rank's address.

    ``address``: this pod's own. Services reach the pod by its family: ``::`` on IPv6, since some servers then take no
    IPv4 (asyncio's), and those that are not told take IPv4 only.
    """
    own = settings.address or ""
    if is_loopback(own):
        return own
    return "::" if ":" in (own or address) else "0.0.0.0"


def listen_host(settings: Settings) -> str | None:
    """Where the launcher's own ports listen; None: on all addresses."""
    own = bind(settings)
    return None if own in ("0.0.0.0", "::") else own


def port_error(name: str, settings: Settings, error: OSError) -> ConfigError:
    flag = flag_of(name)
    return ConfigError(
        f"{settings.said(name)} cannot be used: {os.strerror(error.errno) if error.errno else error}",
        f"is another launcher running here? Give another {flag} on every pod of the group",
    )


# ----------------------------------------------------------------------------------------------------- the plan


def sketch(identity: Identity, addresses: Sequence[str] = ()) -> Shared:
    """An epoch before there is one, with names in angle brackets where addresses are not known."""
    names = tuple(addresses) or tuple(address_of(identity, r) for r in range(identity.size))
    if identity.alone and not addresses:
        names = (identity.address or "127.0.0.1",)
    return Shared(Epoch(1, "0"), names)


def address_of(identity: Identity, rank: int) -> str:
    """A rank's address where it is known before the pods run: it was given as one, or is this pod's own."""
    from launcher.network.names import is_literal

    if rank == identity.rank and identity.address:
        return identity.address
    name = identity.name_of(rank)
    return name if is_literal(name) else f"<ip of {name}>"


def outline(identity: Identity, address: str) -> Shared:
    """An epoch before there is one, as a pod sees it that knows its own address and nobody else's."""
    return sketch(identity, [address if r == identity.rank else f"<rank {r}>" for r in range(identity.size)])


def with_environment(plan: Plan, variables: Mapping[str, str]) -> Plan:
    """The per-node variables under each process's own; what the user set in the environment stays."""
    if not variables:
        return plan
    stages = tuple(
        replace(s, processes=tuple(replace(p, defaults={**variables, **p.defaults}) for p in s.processes))
        for s in plan.stages
    )
    return replace(plan, stages=stages)


def with_token(shared: Shared, secrets: Secrets | None, group: str, wanted: bool) -> Shared:
    """With a secret the epoch's token is derived from it on every rank: the one that the leader names.

    Raises LauncherError where this pod does not have that one: it is being replaced, and is not here yet.
    """
    if secrets is None or not wanted:
        return shared
    from launcher.group.proof import epoch_token

    secret = secrets.named(shared.token)
    if secret is None:
        raise ConfigError(
            "the leader uses another secret than this pod's --token-file holds",
            "while a Secret is being replaced, wait until the kubelet has brought it to every pod",
        )
    return replace(shared, token=epoch_token(secret, group, shared.epoch))


def taken_ports(plan: Plan, address: str) -> str:
    """The first port of the plan that somebody listens on already, in words; empty: all are free."""
    if not plan.ports:
        return ""
    from launcher.node import leftovers

    for port in plan.ports:
        if leftovers.busy_ports([port.number], address):
            return f"port {port.number} ({port.name})"
    return ""


# ------------------------------------------------------------------------------------------------ while it serves


def api_traffic(plan: Plan | None) -> Callable[[bool], bool]:
    """A question: has an open connection of the API port moved bytes since it was asked last?

    Or, if it is asked with True: does one wait for its answer? Where the engine counts its requests, that count is
    better: a connection may hold a request that will never be whole.
    """
    from launcher.network import connections

    port = next((p.number for p in plan.ports if p.external), None) if plan else None
    before: connections.Counters | None = None

    def moved(or_owes: bool) -> bool:
        nonlocal before
        if port is None:
            return False
        now = connections.counters(port)
        answer = connections.busy(before, now, or_owes)
        before = now
        return answer

    return moved


def api_requests(plan: Plan | None) -> Callable[[], Requests | None]:
    """A question: what have the connections of the API port to say of requests since it was asked last?"""
    from launcher.network import connections

    port = next((p.number for p in plan.ports if p.external), None) if plan else None
    before: connections.Counters | None = None

    def requests() -> Requests | None:
        nonlocal before
        if port is None:
            return None
        now = connections.counters(port)
        answer = connections.requests(before, now)
        before = now
        return answer

    return requests
