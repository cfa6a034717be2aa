"""The RDMA devices of this pod, read from sysfs as the kernel writes it. Nothing is decided here.

What is in sysfs is not what the pod may use: with RDMA in shared network namespace mode every device of the node is
listed in every pod, and only those that were given to the pod have a character device that opens. Sources: the kernel's
Documentation/ABI/stable/sysfs-class-infiniband, and drivers/infiniband/core/sysfs.c and cache.c.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROCE_V2 = "RoCE v2"


@dataclass(frozen=True)
class Gid:
    """One entry of a port's GID table. Entries that are all zero are left out: they are empty."""

    index: int
    address: str  #: its IP; IPv4 where it is a mapped one
    type: str  #: ``RoCE v2`` or ``IB/RoCE v1``; empty where the kernel answers EINVAL
    netdev: str

    @property
    def link_local(self) -> bool:
        return ":" in self.address and ipaddress.ip_address(self.address).is_link_local


@dataclass(frozen=True)
class RdmaPort:
    device: str
    number: int
    state: str  #: ``ACTIVE``, ``DOWN``, ``INIT``
    link_layer: str  #: ``Ethernet``, ``InfiniBand`` or ``Unknown``
    gbps: float = 0.0
    gids: tuple[Gid, ...] = ()  #: of active Ethernet ports of usable devices only

    @property
    def active(self) -> bool:
        return self.state == "ACTIVE"

    @property
    def roce(self) -> bool:
        return self.link_layer == "Ethernet"

    def gid(self, index: int) -> Gid | None:
        return next((g for g in self.gids if g.index == index), None)

    def __str__(self) -> str:
        return f"{self.device}:{self.number}"


@dataclass(frozen=True)
class Device:
    name: str
    ports: tuple[RdmaPort, ...]
    pci: str = ""
    why_not: str = ""  #: why this pod cannot use it; empty: its character device opens

    @property
    def usable(self) -> bool:
        return not self.why_not


@dataclass(frozen=True)
class Fabric:
    """All that was read. ``functions`` are the interfaces that are a function of an RDMA device, with that device;
    veth, macvlan and bonds are not.
    """

    devices: tuple[Device, ...] = ()
    functions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Allocated:
    """RDMA devices that a device plugin or Multus says were given to this pod, and who said it."""

    devices: frozenset[str] = frozenset()
    pci: frozenset[str] = frozenset()
    said_by: tuple[str, ...] = ()

    def holds(self, device: Device) -> bool:
        return device.name in self.devices or (bool(device.pci) and device.pci in self.pci)


def roots(env: Mapping[str, str]) -> tuple[Path, Path]:
    """``/sys`` and ``/dev``, or where LAUNCHER_SYSFS and LAUNCHER_DEV say."""
    return Path(env.get("LAUNCHER_SYSFS") or "/sys"), Path(env.get("LAUNCHER_DEV") or "/dev")


def read(sysfs: Path, dev: Path) -> Fabric:
    """The RDMA devices in sysfs. What cannot be read counts as absent: devices come and go."""
    devices = tuple(_device(sysfs / "class/infiniband" / name, dev) for name in _names(sysfs / "class/infiniband"))
    functions = tuple(
        (interface, device)
        for interface in _names(sysfs / "class/net")
        for device in _names(sysfs / "class/net" / interface / "device/infiniband")
    )
    return Fabric(devices, functions)


def allocated(env: Mapping[str, str], network_status: str = "") -> Allocated:
    """What the SR-IOV device plugin (PCIDEVICE_*) and Multus' network-status annotation tell.

    The annotation is empty at the first start of a container where it is an environment variable; from a downwardAPI
    volume it is not. What is no JSON is ignored: these are hints, and the devices themselves were read.
    """
    names: set[str] = set()
    pci: set[str] = set()
    said_by: list[str] = []
    for variable, value in sorted(env.items()):
        if not variable.startswith("PCIDEVICE_") or not value.strip():
            continue
        if variable.endswith("_INFO"):
            found = {str(v) for key, v in _walk(_json(value)) if key == "rdma_dev"}
            names |= found
        else:
            found = {address.strip() for address in value.split(",")}
            pci |= found
        if found:
            said_by.append(f"{variable}={value}" if not variable.endswith("_INFO") else variable)
    from_status = {str(v) for key, v in _walk(_json(network_status)) if key == "rdma-device"}
    if from_status:
        names |= from_status
        said_by.append("k8s.v1.cni.cncf.io/network-status")
    return Allocated(frozenset(names), frozenset(pci), tuple(said_by))


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts mlx5_2 before mlx5_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _device(path: Path, dev: Path) -> Device:
    why_not = _why_not(path, dev)
    pci = os.path.basename(os.path.realpath(path / "device"))
    numbers = sorted(int(n) for n in _names(path / "ports") if n.isdecimal())
    return Device(path.name, tuple(_port(path, n, not why_not) for n in numbers), pci, why_not)


def _why_not(path: Path, dev: Path) -> str:
    """Opening a uverbs device makes no RDMA object; it is the one sure test of the pod's device cgroup."""
    names = [n for n in _names(path / "device/infiniband_verbs") if n.startswith("uverbs")]
    if not names:
        return "it has no uverbs device"
    node = dev / "infiniband" / names[0]
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return f"{node}: {error.strerror}"
    return ""


def _port(device: Path, number: int, usable: bool) -> RdmaPort:
    path = device / "ports" / str(number)
    state = _text(path / "state").partition(": ")[2]
    link_layer = _text(path / "link_layer")
    rate = re.match(r"[0-9.]+", _text(path / "rate"))
    wanted = usable and state == "ACTIVE" and link_layer == "Ethernet"
    return RdmaPort(
        device=device.name,
        number=number,
        state=state,
        link_layer=link_layer,
        gbps=float(rate[0]) if rate else 0.0,
        gids=tuple(_gids(path)) if wanted else (),
    )


def _gids(port: Path) -> Iterator[Gid]:
    for index in sorted(int(n) for n in _names(port / "gids") if n.isdecimal()):
        address = _address(_text(port / "gids" / str(index)))
        if address:
            yield Gid(
                index,
                address,
                _text(port / "gid_attrs/types" / str(index)),
                _text(port / "gid_attrs/ndevs" / str(index)),
            )


def _address(gid: str) -> str:
    try:
        parsed = ipaddress.IPv6Address(gid)
    except ValueError:
        return ""
    if int(parsed) == 0:
        return ""
    return str(parsed.ipv4_mapped or parsed)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder), key=natural)
    except OSError:
        return []


def _text(file: Path) -> str:
    """A sysfs file without its newline. The attributes of an empty GID entry answer EINVAL: that is "nothing" too."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        return None


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys with plain values, at any depth: the plugins nest them differently from release to release."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                yield key, inner
            else:
                yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)
