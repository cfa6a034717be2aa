"""Addresses as text: which are loopback ones, and how they stand beside a port."""

from __future__ import annotations

import pytest

from launcher.common import addresses


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.8.7", "127.1", "::1", "::ffff:127.0.0.1", "::FFFF:127.0.0.1"])
def test_loopback_addresses(address: str) -> None:
    assert addresses.is_loopback(address)
    assert addresses.is_localhost(address)


@pytest.mark.parametrize("address", ["", "10.0.0.1", "127.evil.example", "127.0.0.1.example", "::2", "::ffff:10.0.0.1"])
def test_other_addresses(address: str) -> None:
    assert not addresses.is_loopback(address)
    assert not addresses.is_localhost(address)


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "localhost.", " 127.0.0.1 "])
def test_names_of_this_machine(name: str) -> None:
    assert addresses.is_localhost(name)


def test_only_ipv6_is_bracketed() -> None:
    assert addresses.host_port("10.0.0.1", 80) == "10.0.0.1:80"
    assert addresses.host_port("pod-0.svc", 80) == "pod-0.svc:80"
    assert addresses.host_port("fd00::1", 80) == "[fd00::1]:80"


@pytest.mark.parametrize(
    ("bind", "reached"), [("", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::2", "::2")]
)
def test_where_a_server_is_reached(bind: str, reached: str) -> None:
    assert addresses.from_inside(bind) == reached
