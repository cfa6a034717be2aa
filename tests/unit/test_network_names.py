"""Names to addresses, with the machine's own resolver."""

from __future__ import annotations

import asyncio
import socket

import pytest

from launcher.errors import ConfigError, UnavailableError
from launcher.network.names import is_literal, resolve, wait_for_address


def test_literals_pass_through() -> None:
    assert resolve("10.1.2.3") == ("10.1.2.3",)
    assert resolve("fd00::1") == ("fd00::1",)
    assert resolve("127.0.0.1", socket.AF_INET) == ("127.0.0.1",)


@pytest.mark.parametrize("name", ["10.1.2.3", "::1", "fd00::1", "fe80::1%eth0"])
def test_literals(name: str) -> None:
    assert is_literal(name)


@pytest.mark.parametrize("name", ["vllm-0", "10.1.2", "10.1.2.3%eth0", "vllm-0.vllm.ns.svc", ""])
def test_names(name: str) -> None:
    assert not is_literal(name)


def test_a_literal_of_the_other_family_does_not_resolve() -> None:
    with pytest.raises(OSError):
        resolve("127.0.0.1", socket.AF_INET6)


def test_localhost_without_duplicates() -> None:
    found = resolve("localhost")
    assert len(set(found)) == len(found)
    assert set(found) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("name", ["a..b", "x" * 64])
def test_what_can_never_be_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a DNS name"):
        resolve(name)


def test_waiting_ends_at_once_where_the_name_resolves() -> None:
    said: list[str] = []
    assert "127.0.0.1" in asyncio.run(wait_for_address("localhost", None, said.append, socket.AF_INET))
    assert said == []


def test_waiting_says_what_is_missing_after_each_try_and_ends_at_the_deadline() -> None:
    said: list[str] = []

    async def wait() -> float:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        # An IPv4 address never resolves as IPv6, and no DNS server is asked.
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1 did not resolve in time"):
            await wait_for_address("127.0.0.1", begin + 1.5, said.append, socket.AF_INET6)
        return loop.time() - begin

    assert 1.4 < asyncio.run(wait()) < 60
    assert said and {text.partition(": ")[0] for text in said} == {"waiting"}


def test_a_name_that_can_never_be_is_not_waited_for() -> None:
    with pytest.raises(ConfigError):
        asyncio.run(wait_for_address("a..b", None, print))


def test_waiting_can_be_cancelled() -> None:
    async def cancel() -> None:
        waiting = asyncio.create_task(wait_for_address("127.0.0.1", None, lambda _: None, socket.AF_INET6))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancel())
