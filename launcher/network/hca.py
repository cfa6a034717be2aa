"""Which RDMA ports the pod's collectives may use, and what kind of pod this is. Pure.

Kept are the ports that are active, on a device that opens, and reach the fabric: any InfiniBand port, and an Ethernet
port whose GID table holds an IP of this pod as RoCE v2. Slower ports (management, storage) and ports of a second link
layer are left out: NCCL would put a share of the traffic on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from launcher.network.addresses import Interface, holder
from launcher.network.gid import own_gids
from launcher.network.rdma import Allocated, Device, Fabric, RdmaPort, natural

# Interfaces of other pods or of the node's own bridges: only a pod on the host network sees them.
_OF_A_NODE = ("veth", "cali", "lxc", "cilium_", "docker", "cni", "flannel", "kube-ipvs", "br-")


class Kind(str, Enum):
    """How RDMA gets into the pod; the value is what a person reads."""

    NONE = "no RDMA device"
    NOT_GIVEN = "RDMA devices of the node that this pod was not given"
    DOWN = "RDMA devices without an active port"
    NO_GID = "RDMA devices that are not on the pod's network (veth): RoCE is impossible"
    NO_IP = "RoCE devices without an IP of this pod"
    FOREIGN = "RDMA devices that are neither InfiniBand nor RoCE (AWS EFA?)"
    INFINIBAND = "InfiniBand"
    HOST = "RoCE on the host network"
    SRIOV_SHARED = "RoCE, SR-IOV (devices of the node are visible)"
    SRIOV_EXCLUSIVE = "RoCE, SR-IOV (only the pod's own devices are visible)"
    MACVLAN = "RoCE, an interface over a shared device (macvlan, ipvlan)"


@dataclass(frozen=True)
class HcaChoice:
    """``ports`` is empty where RDMA is impossible; ``left_out`` says why each other port is not in it."""

    kind: Kind
    ports: tuple[RdmaPort, ...] = ()
    able: tuple[RdmaPort, ...] = ()  #: every port that NCCL can use, also those that are left out for a faster fabric
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def fix(self) -> str:
        """What makes RDMA possible where it is not."""
        return {
            Kind.NONE: "schedule the pod on a node with RDMA and mount the node's devices by a device plugin",
            Kind.NOT_GIVEN: "request the device plugin's resource (rdma/..., nvidia.com/...) in the container's limits",
            Kind.DOWN: "bring the links of the node's adapters up (ibstat), or use another node",
            Kind.NO_IP: "give the ports an IP, or pods an interface over them (Multus), where traffic must be routed",
            Kind.NO_GID: "give the pod an interface over the device (Multus with SR-IOV or macvlan), or hostNetwork",
            Kind.FOREIGN: "leave --rdma at auto: such devices have a NCCL plugin of their own (aws-ofi-nccl)",
        }.get(self.kind, "")


def choose_ports(fabric: Fabric, given: Allocated, among: Sequence[Interface]) -> HcaChoice:
    """Of all ports that sysfs shows, those to use, in natural order of their names."""
    devices = sorted(fabric.devices, key=lambda d: natural(d.name))
    left_out: dict[str, str] = {d.name: d.why_not for d in devices if not d.usable}
    usable = _given([d for d in devices if d.usable], given, left_out)
    active = _keep(
        [p for d in usable for p in sorted(d.ports, key=lambda p: p.number)],
        lambda p: "" if p.active else f"the port is {p.state or 'in no known state'}",
        left_out,
    )
    reaching = _keep(active, lambda p: _no_way(p, among), left_out)
    ports = _fastest(_one_link_layer(reaching, left_out), left_out)
    able = tuple(p for p in active if p in reaching or within_segment(p, among))
    return HcaChoice(_kind(fabric, usable, active, ports, among), tuple(ports), able, MappingProxyType(left_out))


def _given(usable: list[Device], given: Allocated, left_out: dict[str, str]) -> list[Device]:
    """A privileged pod can open every device: then only what was given to it counts, where that is told."""
    kept = [d for d in usable if given.holds(d)]
    if not kept:
        return usable
    for device in usable:
        if device not in kept:
            left_out[device.name] = f"not among the devices given to this pod ({', '.join(given.said_by)})"
    return kept


def _keep(ports: Iterable[RdmaPort], why_not: Callable[[RdmaPort], str], left_out: dict[str, str]) -> list[RdmaPort]:
    kept: list[RdmaPort] = []
    for port in ports:
        reason = why_not(port)
        if reason:
            left_out[str(port)] = reason
        else:
            kept.append(port)
    return kept


def within_segment(port: RdmaPort, among: Sequence[Interface]) -> bool:
    """Whether an entry that is not routed may be this pod's: link-local, or its IP as RoCE v1.

    What holds the addresses of other pods only is not: the kernel gives a pod no GID of another's interface.
    """
    names = {i.name for i in among}
    addresses = {a for i in among for a in i.addresses}
    only_local = bool(port.gids) and all(g.link_local for g in port.gids)
    return only_local or any(g.address in addresses or (g.link_local and g.netdev in names) for g in port.gids)


def _no_way(port: RdmaPort, among: Sequence[Interface]) -> str:
    if port.link_layer == "InfiniBand":
        return ""
    if not port.roce:
        return f"its link layer is {port.link_layer or 'not known'}"
    if own_gids(port, among):
        return ""
    if not port.gids:
        return "its GID table is empty: no interface of this pod is on it"
    names = {i.name for i in among}
    own = sorted({g.netdev for g in port.gids if g.netdev in names})
    if all(g.link_local for g in port.gids):
        return f"no IP on {', '.join(own) or 'its interface'}: its GID table holds link-local entries only"
    addresses = {a for i in among for a in i.addresses}
    if any(g.address in addresses for g in port.gids):
        return "its GID table holds this pod's IP as RoCE v1 only"
    others = ", ".join(sorted({g.address for g in port.gids if not g.link_local})[:3])
    return f"no RoCE v2 entry of its GID table holds an IP of this pod{f' (it holds {others})' if others else ''}"


def _one_link_layer(ports: list[RdmaPort], left_out: dict[str, str]) -> list[RdmaPort]:
    """InfiniBand and Ethernet do not reach each other: the layer with more bandwidth is the fabric."""
    total = {layer: sum(p.gbps for p in ports if p.link_layer == layer) for layer in {p.link_layer for p in ports}}
    if len(total) < 2:
        return ports
    best = max(total, key=lambda layer: (total[layer], layer == "InfiniBand"))
    return _keep(ports, lambda p: "" if p.link_layer == best else f"the faster fabric here is {best}", left_out)


def _fastest(ports: list[RdmaPort], left_out: dict[str, str]) -> list[RdmaPort]:
    fastest = max((p.gbps for p in ports), default=0.0)
    return _keep(
        ports,
        lambda p: "" if p.gbps * 2 >= fastest else f"{p.gbps:g} Gb/s, less than half of the fastest ({fastest:g})",
        left_out,
    )


def _kind(
    fabric: Fabric, usable: list[Device], active: list[RdmaPort], ports: list[RdmaPort], among: Sequence[Interface]
) -> Kind:
    if not fabric.devices:
        return Kind.NONE
    if not usable:
        return Kind.NOT_GIVEN
    if not active:
        return Kind.DOWN
    if not ports:
        if any(p.roce and within_segment(p, among) for p in active):
            return Kind.NO_IP
        return Kind.NO_GID if any(p.roce for p in active) else Kind.FOREIGN
    if not ports[0].roce:
        return Kind.INFINIBAND
    if any(i.name.startswith(_OF_A_NODE) for i in among):
        return Kind.HOST
    carriers = {holder(own_gids(p, among)[0].address, among) for p in ports}
    if not any(c and c.name == interface for c in carriers for interface, _ in fabric.functions):
        return Kind.MACVLAN
    return Kind.SRIOV_SHARED if len(usable) < len(fabric.devices) else Kind.SRIOV_EXCLUSIVE
