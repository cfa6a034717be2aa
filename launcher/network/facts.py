"""What of a pod's network the group compares: rails, their rates, MTU, GID versions. Short texts, for information only.

An engine runs where they differ, at the pace of its slowest pod: so the odd one out is named, and nothing waits for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.network.addresses import Interface, holder
from launcher.network.gid import own_gids
from launcher.network.rdma import ROCE_V2, Fabric, RdmaPort
from launcher.network.rdma_environment import INDEX, Rdma


def of(
    interface: Interface | None, found: Rdma, fabric: Fabric, among: Sequence[Interface], sysfs: Path
) -> dict[str, str]:
    """Facts by name; those that have no value are left out.

    ``found`` is what collectives will use, ``fabric`` all that was read, ``interface`` the one of the own address.
    """
    used = [p for d in fabric.devices for p in d.ports if str(p) in found.ports]
    facts = {
        "interface": interface.name if interface else "",
        "mtu": mtu(interface.name, sysfs) if interface else "",
        "rdma.kind": found.kind.value.split(" (")[0],
        "rdma.rails": str(len(used)),
        "rdma.rates": _counted(f"{p.gbps:g} Gb/s" for p in used),
        "rdma.layer": _counted(p.link_layer for p in used),
        "rdma.mtu": _counted(filter(None, (_rail_mtu(p, among, sysfs) for p in used))),
        "rdma.gids": _counted(_gid_version(p, found) for p in used if p.roce),
    }
    return {name: value for name, value in facts.items() if value}


def mtu(interface: str, sysfs: Path) -> str:
    """Bytes of the largest packet, from sysfs; empty where it does not tell."""
    try:
        return (sysfs / "class/net" / interface / "mtu").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _rail_mtu(port: RdmaPort, among: Sequence[Interface], sysfs: Path) -> str:
    own = own_gids(port, among)
    carrier = holder(own[0].address, among) if own else None
    return mtu(carrier.name, sysfs) if carrier else ""


def _gid_version(port: RdmaPort, found: Rdma) -> str:
    """The RoCE version of the entry that NCCL will use: the one at the index, else its own choice, which is v2."""
    index = next((v.value for v in found.variables if v.name == INDEX), "")
    entry = port.gid(int(index)) if index.isdecimal() else None
    return (entry.type or "unknown") if entry else ("none" if index.isdecimal() else ROCE_V2)


def _counted(texts: Iterable[str]) -> str:
    """``400 Gb/s`` where all are alike, else ``7 x 400 Gb/s, 1 x 100 Gb/s``."""
    found = Counter(texts)
    if len(found) < 2:
        return next(iter(found), "")
    return ", ".join(f"{count} x {text}" for text, count in sorted(found.items()))
