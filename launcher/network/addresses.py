"""This pod's own address, and the interface that holds it.

The right interface is the one that routes to the leader; a guess by name or by 8.8.8.8 fails where a pod has several
(vllm#7815), and a lookup of the own hostname gives 127.0.0.1 (sglang#3226).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.common.addresses import is_ipv6, is_localhost, is_loopback
from launcher.errors import ConfigError

NOWHERE = ("192.0.2.1", "2001:db8::1")  # RFC 5737 and 3849: documentation, so only the default route leads there


@dataclass(frozen=True)
class Interface:
    """A network interface with its addresses, each with its prefix length: ``10.0.0.5/24``."""

    name: str
    networks: tuple[str, ...]
    up: bool = True

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(n.split("/", 1)[0] for n in self.networks)


def interfaces() -> tuple[Interface, ...]:
    """All interfaces of this network namespace, by name."""
    import psutil

    stats = psutil.net_if_stats()
    return tuple(
        Interface(
            name,
            tuple(
                f"{a.address.split('%', 1)[0]}/{_prefix(a.address, a.netmask)}"
                for a in addresses
                if a.family in (socket.AF_INET, socket.AF_INET6)
            ),
            stats[name].isup if name in stats else True,
        )
        for name, addresses in sorted(psutil.net_if_addrs().items())
    )


def holder(address: str, among: Iterable[Interface]) -> Interface | None:
    """The interface that holds an address. Loopback last: some networks put a pod's address on ``lo`` too."""
    holding = [i for i in among if any(same_address(address, a) for a in i.addresses)]
    if not holding and is_loopback(address):
        holding = [i for i in among if any(is_loopback(a) for a in i.addresses)]  # all of 127.0.0.0/8 is lo's
    return min(holding, key=lambda i: (i.name == "lo", not i.up, i.name), default=None)


def named(name: str, said: str, among: Sequence[Interface]) -> Interface:
    """The interface that the user named; ConfigError where there is none."""
    for interface in among:
        if interface.name == name:
            return interface
    raise ConfigError(
        f"{said}: there is no interface {name} in this pod, which has {', '.join(sorted(i.name for i in among))}",
        "give one of these, or leave it out to use the one that routes to the leader",
    )


def own_address(
    told: str | None, leader: str, leader_addresses: Sequence[str], interface: Interface | None = None
) -> tuple[str, str]:
    """This pod's address in a group of two and more, and why it is that one.

    ``told`` is ``--address`` or POD_IP; ``leader`` is the leader's configured name and ``leader_addresses`` what it
    resolves to; ``interface`` is the one that ``--interface`` names. A loopback address is never the answer unless the
    leader was configured as one (``launcher local``): the other pods could not reach it.
    """
    local = is_localhost(leader)
    if told:
        if is_loopback(told) and not local:
            raise ConfigError(
                f"this pod's address is said to be {told}, which the other pods cannot reach (the leader is {leader})",
                "set POD_IP by the downward API (fieldPath: status.podIP), or give --address",
            )
        return told, "told by --address or POD_IP"
    if interface:
        return _of_interface(interface, leader_addresses), f"on the interface {interface.name} that --interface names"
    failures: list[str] = []
    for target in leader_addresses:
        try:
            source = route_source(target)
        except OSError as error:
            failures.append(f"{target}: {error.strerror or error}")
            continue
        if local or not is_loopback(source):
            return source, f"the route to the leader {leader} ({target}) starts there"
        failures.append(f"{target}: the route starts at {source}")
    # Debian's /etc/hosts gives a machine's own name as 127.0.1.1: the leader itself may see only that.
    if all(is_loopback(a) for a in leader_addresses) and (source := default_source()):
        return source, "the default route starts there (the leader's name is a loopback address here)"
    raise ConfigError(
        f"this pod's own address cannot be told by its route to the leader {leader} "
        f"({'; '.join(failures) or 'which has no address'})",
        "set POD_IP by the downward API (fieldPath: status.podIP), or give --address",
    )


def route_source(target: str) -> str:
    """The source address of the route to an IP. Nothing is sent: connecting a UDP socket only asks the kernel.

    Raises OSError where there is no route.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        target, 9, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0]).split("%", 1)[0]


def default_source() -> str:
    """The source address of the default route, IPv4 before IPv6; empty where there is none."""
    found = (_try_source(target) for target in NOWHERE)
    return next((source for source in found if source and not is_loopback(source)), "")


def _of_interface(interface: Interface, leader_addresses: Sequence[str]) -> str:
    families = [is_ipv6(a) for a in leader_addresses] or [False]
    usable = [a for a in interface.addresses if not a.lower().startswith("fe80:")]
    for family in families:
        for address in usable:
            if is_ipv6(address) == family:
                return address
    raise ConfigError(
        f"--interface {interface.name} has no address of the leader's family ({', '.join(leader_addresses)}); it has "
        f"{', '.join(interface.addresses) or 'none'}",
        "name another interface, or give --address",
    )


def _try_source(target: str) -> str:
    try:
        return route_source(target)
    except OSError:
        return ""


def same_address(one: str, other: str) -> bool:
    """Whether two texts are one IP address."""
    if one == other:
        return True
    if not (is_ipv6(one) and is_ipv6(other)):
        return False
    import ipaddress

    try:
        return ipaddress.ip_address(one) == ipaddress.ip_address(other)
    except ValueError:
        return False


def _prefix(address: str, netmask: str | None) -> int:
    """``255.255.255.0`` or ``ffff:ffff::`` to its length; without a netmask the address is a network of its own."""
    family = socket.AF_INET6 if is_ipv6(address) else socket.AF_INET
    if not netmask:
        return 128 if family == socket.AF_INET6 else 32
    return sum(bin(byte).count("1") for byte in socket.inet_pton(family, netmask))
