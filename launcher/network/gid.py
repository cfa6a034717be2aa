"""Which GID of each RoCE port is this pod's, and how NCCL is told so.

A port's GID table has an entry for each address of each interface over it and for each RoCE version, and may show those
of other pods, whose interfaces bear the same name (``net1``). So an entry is this pod's where it holds an IP of this
pod and is RoCE v2; the name of the interface only breaks ties. NCCL takes one index for all devices, or, where they
differ, chooses by itself within an address range (2.26.2 and later: earlier ones abort on sparse tables, nccl#1573).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.common.addresses import is_ipv6, is_loopback
from launcher.network.addresses import Interface
from launcher.network.rdma import ROCE_V2, Gid, RdmaPort

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CHOOSES_WELL = (2, 26, 2)  #: the first NCCL whose own choice survives a sparse GID table


@dataclass(frozen=True)
class GidChoice:
    """``index`` where all ports agree; else ``range`` and ``family`` for NCCL's own choice; else why neither works."""

    index: int | None = None
    range: str = ""
    family: str = ""  #: ``AF_INET6`` where the GIDs are IPv6: NCCL looks at IPv4 only unless told
    why: str = ""
    problem: str = ""


def own_gids(port: RdmaPort, among: Sequence[Interface]) -> tuple[Gid, ...]:
    """The entries of a port that are RoCE v2 and hold an IP of this pod; of one family, IPv4 if there is any.

    The surest first: its interface is the one that holds the IP, then the lowest index.
    """
    holders = {str(ipaddress.ip_address(a)): i.name for i in among for a in i.addresses if not is_loopback(a)}
    mine = [g for g in port.gids if g.type == ROCE_V2 and g.address in holders and not g.link_local]
    family = [g for g in mine if not is_ipv6(g.address)] or mine
    return tuple(sorted(family, key=lambda g: (holders[g.address] != g.netdev, g.index)))


def choose_gid(ports: Sequence[RdmaPort], among: Sequence[Interface], nccl: str | None) -> GidChoice:
    """For RoCE ports that each have an own GID (`own_gids`). ``nccl`` is the engine's version, None if not known."""
    own = {port: own_gids(port, among) for port in ports}
    common = set.intersection(*({g.index for g in gids} for gids in own.values()))
    if common:
        index = _surest(common, own.values())
        return GidChoice(index, why=f"entry {index} is RoCE v2 with this pod's own IP on {_list(ports)}")
    where = ", ".join(f"{port}: {gids[0].index} ({gids[0].address})" for port, gids in own.items())
    version = parse_version(nccl)
    if version and version < CHOOSES_WELL:
        return GidChoice(
            problem=f"the RDMA devices of this pod have their GIDs at different indexes ({where}), and NCCL {nccl} "
            "takes one for all: use NCCL 2.26.2 or later, or name with NCCL_IB_HCA only devices that agree"
        )
    return _by_range(own, among, where)


def nccl_auto_index(port: RdmaPort, family: str, within: Network | None) -> int:
    """The index that NCCL chooses by itself for RoCE (transport/net_ib, ncclUpdateGidIndex, as of 2.26.2).

    It walks the table once. The first entry of the family within the range is taken whatever its RoCE version; after
    that only a valid RoCE v2 one replaces one that is not. An empty entry counts as IPv6.
    """
    gids = {g.index: g for g in port.gids}
    present: Gid | None = gids.get(0)
    current = 0
    for index in range(1, max(gids, default=0) + 1):
        candidate = gids.get(index)
        if _family(candidate) != family or not _within(candidate, within):
            continue
        if _family(present) != family or (_good(candidate) and not _good(present)):
            present, current = candidate, index
    return current


def parse_version(text: str | None) -> tuple[int, ...] | None:
    """``2.27.3`` or ``2.21.5+cuda12.4`` to numbers; None where it is none."""
    found = re.match(r"([0-9]+)\.([0-9]+)(?:\.([0-9]+))?", text or "")
    return tuple(int(n or 0) for n in found.groups()) if found else None


def _by_range(own: dict[RdmaPort, tuple[Gid, ...]], among: Sequence[Interface], where: str) -> GidChoice:
    targets = [gids[0].address for gids in own.values()]
    families = {_family(gids[0]) for gids in own.values()}
    if len(families) == 1:
        family = families.pop()
        for within in (_supernet(_subnet(a, among) for a in targets), _supernet(_host(a) for a in targets)):
            if all(_mine(nccl_auto_index(port, family, within), gids) for port, gids in own.items()):
                return GidChoice(
                    range=str(within),
                    family=family if family == "AF_INET6" else "",
                    why=f"the devices have this pod's GIDs at different indexes ({where}): NCCL finds them by address",
                )
    return GidChoice(
        problem=f"the RDMA devices of this pod have their GIDs at different indexes ({where}), and no address range "
        "makes NCCL choose them, since the GIDs of others lie between: set NCCL_IB_HCA to devices that agree"
    )


def _mine(index: int, gids: Iterable[Gid]) -> bool:
    return any(g.index == index for g in gids)


def _surest(common: set[int], own: Iterable[tuple[Gid, ...]]) -> int:
    """Of the indexes that all ports share, the one that stands foremost on each; the lowest of equals."""
    orders = [[g.index for g in gids] for gids in own]
    return min(common, key=lambda i: (max(order.index(i) for order in orders), i))


def _family(gid: Gid | None) -> str:
    return "AF_INET" if gid and not is_ipv6(gid.address) else "AF_INET6"


def _within(gid: Gid | None, network: Network | None) -> bool:
    return network is None or ipaddress.ip_address(gid.address if gid else "::") in network


def _good(gid: Gid | None) -> bool:
    return gid is not None and gid.type == ROCE_V2 and not gid.link_local


def _host(address: str) -> Network:
    return ipaddress.ip_network(address)


def _subnet(address: str, among: Sequence[Interface]) -> Network:
    """The network of the interface that holds an address."""
    for interface in among:
        for network in interface.networks:
            if ipaddress.ip_interface(network).ip == ipaddress.ip_address(address):
                return ipaddress.ip_network(network, strict=False)
    return _host(address)


def _supernet(networks: Iterable[Network]) -> Network:
    """The smallest network that holds them all; they are of one family."""
    found = list(networks)
    lowest = min(int(n.network_address) for n in found)
    highest = max(int(n.broadcast_address) for n in found)
    length = found[0].max_prefixlen - (lowest ^ highest).bit_length()
    return type(found[0])((lowest, length), strict=False)


def _list(ports: Iterable[RdmaPort]) -> str:
    return ", ".join(str(p) for p in ports)
