"""This pod's address, and the variables that point collectives at its interfaces and RDMA devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from launcher.common import files
from launcher.common.addresses import is_loopback
from launcher.model import Identity, NodeFacts
from launcher.settings import Settings

if TYPE_CHECKING:
    from launcher.network.environment import Variable

NETWORK_STATUS_FILE = "/etc/podinfo/network-status"


@dataclass(frozen=True)
class Network:
    """This pod's network, and the variables that describe it to collectives."""

    address: str
    why: str
    variables: tuple[Variable, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  #: short texts that the group compares; they may differ

    @property
    def ours(self) -> dict[str, str]:
        """The variables that the launcher sets; the others are already set."""
        return {v.name: v.value for v in self.variables if v.setter == "launcher"}


def find(
    settings: Settings,
    identity: Identity,
    environ: Mapping[str, str],
    leader: Sequence[str],
    nccl: str | None = None,
) -> Network:
    """This pod's address and the environment of collectives, from its interfaces and RDMA devices.

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


def find_alone(settings: Settings, identity: Identity, environ: Mapping[str, str]) -> Network | None:
    """Like :func:`find` for a group of one, whose engine other groups may reach (by its KV connector, say). Skips RDMA.

    None if neither --address, POD_IP nor a default route gives an address.
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
    """Whether this pod has ``hostNetwork``, as far as can be seen from inside."""
    from launcher.api import access
    from launcher.network import rdma

    return access.shares_host_network(files.text_of("/etc/hosts"), str(rdma.roots(environ)[0]))


def reachable_address(address: str) -> str:
    """``address`` if a non-loopback interface of this pod has it, else empty (behind NAT, say)."""
    from launcher.network import addresses

    held = not is_loopback(address) and addresses.holder(address, addresses.interfaces()) is not None
    return address if held else ""


def _network_status(environ: Mapping[str, str]) -> str:
    """Multus' annotation, from a downwardAPI volume (a variable would be empty at the first start)."""
    return files.text_of(environ.get("LAUNCHER_NETWORK_STATUS") or NETWORK_STATUS_FILE)


def nccl_version(facts: NodeFacts) -> str | None:
    """NCCL's version, from the distribution that ships it."""
    return next((v for name, v in sorted(facts.versions.items()) if name.startswith("nvidia-nccl")), None)
