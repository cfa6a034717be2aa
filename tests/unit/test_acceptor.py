"""Connections before their request is whole, on loopback: when one is handed on, and what it may cost until then."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from launcher.common import acceptor
from launcher.common.acceptor import Acceptor, Incoming
from launcher.common.places import Places
from launcher.network.listening import bind

PATIENCE = 60.0
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


class Port:
    """An acceptor, what it has handed on and whom it has refused."""

    def __init__(self, most: int, seconds: float) -> None:
        sockets = bind("127.0.0.1", 0)
        self.where = sockets[0].getsockname()
        self.asked: list[Incoming] = []
        self.refused: list[str] = []
        self.places: Places[Incoming] = Places(most, most)
        self.one = Acceptor(
            sockets, self.places, seconds, self.asked.append, lambda _, why: self.refused.append(why), lambda: None
        )

    def dial(self) -> socket.socket:
        client = socket.create_connection(self.where, timeout=PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    async def until_read(self, count: int) -> None:
        """The only connection has sent so many bytes, or has been refused."""
        await until(lambda: self.refused or [len(one.head) for one in self.places] == [count])


@contextlib.asynccontextmanager
async def listening(most: int = 100, seconds: float = PATIENCE) -> AsyncIterator[Port]:
    port = Port(most, seconds)
    try:
        yield port
    finally:
        port.one.close()
        for incoming in port.asked:
            incoming.sock.close()


async def until(true: Callable[[], object]) -> None:
    async def poll() -> None:
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    await asyncio.wait_for(poll(), PATIENCE)


@pytest.mark.parametrize("said", [GET, GET + b"and more", b"POST / HTTP/1.0\r\n\r\n"])
def test_a_request_is_handed_on_when_its_head_is_whole(said: bytes) -> None:
    async def test() -> None:
        async with listening() as port:
            with port.dial() as client:
                end = said.index(b"\r\n\r\n") + 4
                for at in range(end - 1):
                    client.sendall(said[at : at + 1])
                    await port.until_read(at + 1)
                assert not port.asked
                client.sendall(said[end - 1 :])
                await until(lambda: port.asked)
                assert (port.asked[0].head, len(port.one), port.refused) == (said, 0, [])

    asyncio.run(test())


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01",
        b"get / HTTP/1.1\r\n",
        b"\r\n",
        b"GET / HTTP/2\r\n",
        b"HELO\r\n",
        b"GET / HTTP/1.1\n",
        b"A" * 20_000,
    ],
)
def test_what_will_never_be_a_request_is_handed_on_at_once(said: bytes) -> None:
    async def test() -> None:
        async with listening() as port:
            with port.dial() as client:
                client.sendall(said)
                await until(lambda: port.asked)
                assert said.startswith(port.asked[0].head)

    asyncio.run(test())


@pytest.mark.parametrize("said", [b"", b"GET /"])
def test_who_leaves_is_closed(said: bytes) -> None:
    async def test() -> None:
        async with listening() as port:
            with port.dial() as client:
                client.sendall(said)
                await until(lambda: len(port.one))
            await until(lambda: not len(port.one))
            assert not port.refused and not port.asked

    asyncio.run(test())


@pytest.mark.parametrize("said", [b"", b"GET /"])
def test_who_is_late_is_closed(said: bytes) -> None:
    async def test() -> None:
        async with listening(seconds=0.3) as port:
            with port.dial() as client:
                client.sendall(said)
                await until(lambda: port.refused == ["said no hello in time"])
                assert client.recv(1) == b"" and not len(port.one) and not port.asked

    asyncio.run(test())


def test_a_head_in_too_many_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MOST_PIECES", 5)

    async def test() -> None:
        async with listening() as port:
            with port.dial() as client:
                with contextlib.suppress(ConnectionError):
                    for at in range(len(GET)):
                        client.sendall(GET[at : at + 1])
                        await port.until_read(at + 1)
                assert port.refused == ["sent its request in too many pieces"]

    asyncio.run(test())


def test_unfinished_heads_are_bounded_together_and_the_largest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MOST_BYTES", 50_000)

    async def test() -> None:
        async with listening() as port, contextlib.AsyncExitStack() as closing:
            clients = [closing.enter_context(port.dial()) for _ in range(8)]
            await until(lambda: len(port.one) == 8)
            for client in clients[:4]:
                client.sendall(b"GET / HTTP/1.1\r\nA: " + b"x" * 10_000)
            for client in clients[4:7]:
                client.sendall(b"GET / HTTP/1.1\r\nA: " + b"x" * 15_000)
            await until(lambda: port.refused == ["sent too much that is no request"] * 3)
            await until(lambda: sum(len(one.head) for one in port.places) <= 50_000)
            clients[7].sendall(GET)
            await until(lambda: port.asked)
            assert len(port.one) == 4

    asyncio.run(test())


def test_heads_that_come_with_their_connections_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MOST_BYTES", 50_000)

    async def test() -> None:
        async with listening() as port, contextlib.AsyncExitStack() as closing:
            for _ in range(20):  # all in the kernel's backlog, with their first bytes, before any is accepted
                closing.enter_context(port.dial()).sendall(b"GET / HTTP/1.1\r\nA: " + b"x" * 15_000)
            await until(lambda: len(port.refused) + len(port.places) == 20)
            await until(lambda: sum(len(one.head) for one in port.places) <= 50_000)
            assert {*port.refused} == {"sent too much that is no request"}

    asyncio.run(test())


def test_an_iteration_of_the_loop_serves_a_bounded_number() -> None:
    async def test() -> None:
        async with listening(most=500) as port, contextlib.AsyncExitStack() as closing:
            clients = [closing.enter_context(port.dial()) for _ in range(200)]
            await until(lambda: len(port.one) == 200)
            for client in clients:
                client.sendall(GET)
            before, most = 0, 0
            while len(port.asked) < 200:
                await asyncio.sleep(0)
                before, most = len(port.asked), max(most, len(port.asked) - before)
            assert most <= acceptor.SERVED_EACH_TURN

    asyncio.run(test())


def test_the_oldest_makes_room_but_not_if_it_has_asked() -> None:
    async def test() -> None:
        async with listening(most=4) as port, contextlib.AsyncExitStack() as closing:
            first = closing.enter_context(port.dial())
            await until(lambda: len(port.one) == 1)
            first.sendall(GET)
            for _ in range(5):  # nothing is read between these
                closing.enter_context(port.dial())
            await until(lambda: port.asked and port.refused)
            assert [one.head for one in port.asked] == [GET]
            assert port.refused == ["said no hello, and made room for a newer connection"]
            assert len(port.one) == 4

    asyncio.run(test())


def test_an_address_that_waits_with_few_is_served_before_a_crowd() -> None:
    async def test() -> None:
        async with listening(most=1000) as port, contextlib.AsyncExitStack() as closing:
            for _ in range(100):
                closing.enter_context(port.dial()).sendall(GET)
            probe = closing.enter_context(socket.socket())
            probe.bind(("127.0.0.77", 0))
            probe.connect(port.where)
            probe.sendall(GET)
            await until(lambda: port.asked)  # 8 at a time
            await until(lambda: len(port.asked) == 101)
            hosts = [one.host for one in port.asked]
            assert hosts.index("127.0.0.77") < 3 * acceptor.SERVED_EACH_TURN

    asyncio.run(test())
