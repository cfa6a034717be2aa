"""Own address and interfaces: pure choices, and the real routes of the machine's loopback."""

from __future__ import annotations

import pytest

from launcher.errors import ConfigError
from launcher.network.addresses import (
    Interface,
    _prefix,
    holder,
    interfaces,
    named,
    own_address,
    route_source,
)

LO = Interface("lo", ("127.0.0.1/8", "::1/128"))
ETH0 = Interface("eth0", ("10.0.0.5/24", "fd00::5/64", "fe80::1/64"))
NET1 = Interface("net1", ("192.168.7.5/16",))
POD = (ETH0, LO, NET1)


def test_the_machines_own_interfaces() -> None:
    lo = holder("127.0.0.1", interfaces())
    assert lo
    assert "127.0.0.1/8" in lo.networks


def test_the_holder_of_an_address() -> None:
    assert holder("10.0.0.5", POD) == ETH0
    assert holder("FD00:0::5", POD) == ETH0
    assert holder("127.0.0.2", POD) == LO
    assert holder("10.0.0.6", POD) is None


def test_lo_is_the_last_to_hold_a_pods_address() -> None:
    lo = Interface("lo", ("127.0.0.1/8", "10.9.0.1/32"))
    eth = Interface("zeth", ("10.9.0.1/32",))
    assert holder("10.9.0.1", (lo, eth)) == eth


def test_an_interface_by_name() -> None:
    assert named("net1", "--interface net1", POD) == NET1
    with pytest.raises(
        ConfigError, match=r"--interface ib0: there is no interface ib0 in this pod, which has eth0, lo"
    ):
        named("ib0", "--interface ib0", POD)


def test_what_was_told_wins() -> None:
    assert own_address("10.0.0.5", "lead", ("10.0.0.1",))[0] == "10.0.0.5"
    assert own_address("10.0.0.5", "lead", (), NET1)[0] == "10.0.0.5"


def test_loopback_is_refused_unless_the_leader_is_one() -> None:
    with pytest.raises(ConfigError, match=r"said to be 127\.0\.0\.1, which the other pods cannot reach"):
        own_address("127.0.0.1", "vllm-0.vllm", ("10.0.0.1",))
    assert own_address("127.0.0.2", "127.0.0.1", ("127.0.0.1",))[0] == "127.0.0.2"
    assert own_address(None, "127.0.0.1", ("127.0.0.1",))[0] == "127.0.0.1"
    assert own_address(None, "localhost", ("::1", "127.0.0.1"))[0] in ("::1", "127.0.0.1")


def test_a_name_that_is_loopback_here_never_gives_loopback() -> None:
    try:
        address, _ = own_address(None, "my-own-name", ("127.0.1.1",))
    except ConfigError as error:  # a machine with no default route
        assert "127.0.1.1" in str(error)
    else:
        assert not address.startswith("127.")


def test_the_named_interface_gives_an_address_of_the_leaders_family() -> None:
    assert own_address(None, "lead", ("10.0.0.1",), ETH0)[0] == "10.0.0.5"
    assert own_address(None, "lead", ("fd00::1",), ETH0)[0] == "fd00::5"
    assert own_address(None, "lead", ("fd00::1", "10.0.0.1"), NET1)[0] == "192.168.7.5"
    with pytest.raises(ConfigError, match="no address of the leader's family"):
        own_address(None, "lead", ("fd00::1",), NET1)


def test_no_way_to_the_leader() -> None:
    with pytest.raises(
        ConfigError, match=r"cannot be told by its route to the leader lead .255\.255\.255\.255: Permission"
    ):
        own_address(None, "lead", ("255.255.255.255",))  # no broadcast without SO_BROADCAST


def test_the_route_to_loopback_starts_there() -> None:
    assert route_source("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("address", "netmask", "length"),
    [
        ("10.0.0.1", "255.255.240.0", 20),
        ("10.0.0.1", "255.255.255.255", 32),
        ("10.0.0.1", None, 32),
        ("fd00::1", "ffff:ffff:ffff:ffff::", 64),
        ("fd00::1", None, 128),
    ],
)
def test_netmasks(address: str, netmask: str | None, length: int) -> None:
    assert _prefix(address, netmask) == length
