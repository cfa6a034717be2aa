"""Connections to the agent port, on loopback: what is answered, what is not, and what none of it costs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.http11 import Response

from launcher.api import visitors
from launcher.api.visitors import BadRequest, Visitors, answer_of, parse, plain
from launcher.network.listening import bind
from launcher.node import descriptors

HOST, PATIENCE = "127.0.0.1", 60.0
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def respond(method: str, target: str, headers: Headers, peer: str) -> Response:
    if target == "/broken":
        raise RuntimeError("a page with a bug")
    if target == "/large":
        return plain(200, "OK", "x" * (8 << 20))
    return plain(200, "OK", f"{method} {target} {headers.get('X-Mine', '')} {peer}\n")


@contextlib.asynccontextmanager
async def serving(most: int = 64) -> AsyncIterator[tuple[Visitors, int]]:
    broken: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
    sockets = bind(HOST, 0)
    port = sockets[0].getsockname()[1]
    served = Visitors(respond, sockets, most)
    try:
        yield served, port
    finally:
        served.close()
        await asyncio.sleep(0)
        assert not broken


async def ask(port: int, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)
        said = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        return said
    writer.close()
    return b""


async def until(true: Callable[[], object]) -> None:
    async def poll() -> None:
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), PATIENCE)


@pytest.mark.parametrize(
    ("said", "status", "body"),
    [
        (GET, 200, "GET /livez  127.0.0.1"),
        (b"POST /x HTTP/1.0\r\nX-Mine: yes\r\nContent-Length: 3\r\n\r\nabc", 200, "POST /x yes"),
        (b"GET /x HTTP/1.1\r\nx-mine:  a b \t\r\n\r\n" + GET, 200, "GET /x a b 127"),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500, "RuntimeError"),
        (b"GET / HTTP/2\r\n\r\n", 400, "not a request"),
        (b"\x16\x03\x01\x02\r\n\r\n", 400, "not a request"),
        (b"GET /x HTTP/1.1\r\nno colon\r\n\r\n", 400, "header"),
        (b"GET /x HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400, "header"),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400, "more than one Host"),
        (b"GET /x HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 400, "more than 100"),
        (b"GET /" + b"x" * 20_000, 400, "not a request"),
        (b"\r\n\r\n", 400, "not a request"),
    ],
)
def test_what_is_answered(said: bytes, status: int, body: str) -> None:
    async def test() -> None:
        async with serving() as (served, port):
            answer = await ask(port, said)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert body.encode() in answer
            if len(said) < 100:
                assert await ask(port, *(said[i : i + 1] for i in range(len(said)))) == answer
            await until(lambda: not len(served))

    asyncio.run(test())


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"GET {text} HTTP/1.1\r\n{text}".encode()))
def test_any_bytes_are_a_request_or_a_bad_one(head: bytes) -> None:
    with contextlib.suppress(BadRequest):
        method, target, _ = parse(head)
        assert method.isalpha() and target.isprintable()
    assert answer_of(respond, head, HOST).status_code in (200, 400)


def test_the_idle_and_the_slow_make_room_and_a_probe_is_answered() -> None:
    async def test() -> None:
        async with serving(most=16) as (served, port):
            crowd = [await asyncio.open_connection(HOST, port) for _ in range(40)]
            for _, writer in crowd[20:]:
                writer.write(b"GET /li")
            await until(lambda: served.turned_away >= 24)
            assert len(served) <= 16
            assert b"200 OK" in await ask(port, GET)
            for _, writer in crowd:
                writer.close()
            await until(lambda: not len(served))

    asyncio.run(test())


def test_who_takes_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(visitors, "ANSWER_SECONDS", 0.2)

    async def test() -> None:
        async with serving() as (served, port):
            assert await ask(port) == b""
            assert await ask(port, b"GET") == b""
            with socket.socket() as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                slow.connect((HOST, port))
                slow.sendall(b"GET /large HTTP/1.1\r\n\r\n")
                await until(lambda: len(served))
                await until(lambda: not len(served))

    asyncio.run(test())


def test_answers_that_nobody_reads_take_only_so_much_memory() -> None:
    async def test() -> None:
        async with serving() as (served, port):
            readers = []
            for _ in range(20):
                one = socket.socket()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.connect((HOST, port))
                one.sendall(b"GET /large HTTP/1.1\r\n\r\n")
                readers.append(one)
            await until(lambda: served.turned_away >= 17)
            assert sum(visit.unsent for visit in served._visits) <= visitors.MOST_UNSENT
            assert b"200 OK" in await ask(port, GET)
            for one in readers:
                one.close()

    asyncio.run(test())


def test_probes_do_not_wait_for_pages_that_take_long() -> None:
    """Each of those has an iteration of the event loop of its own, in which probes are answered first."""

    async def test() -> None:
        order: list[str] = []

        def slow(method: str, target: str, headers: Headers, peer: str) -> Response:
            order.append(target)
            return plain(200, "OK", target)

        sockets = bind(HOST, 0)
        served = Visitors(slow, sockets, 1000)
        port = sockets[0].getsockname()[1]
        pages = [asyncio.create_task(ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")) for _ in range(60)]
        while not order:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert b"/livez" in await ask(port, GET)
        assert order[-1] == "/livez" or order.index("/livez") < 61
        assert all(b"200 OK" in answer for answer in await asyncio.gather(*pages))
        served.close()

    asyncio.run(test())


def test_noise_breaks_nothing() -> None:
    rng = random.Random(7)

    async def stranger(port: int) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            for _ in range(rng.randrange(4)):
                writer.write(rng.choice((GET, GET[:-2], rng.randbytes(50), b"\r\n\r\n", b"x" * 9000)))
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                writer.write_eof()
            elif rng.random() < 0.5:
                writer.transport.abort()
            await asyncio.wait_for(reader.read(), 0.2)
        writer.close()

    async def test() -> None:
        async with serving(most=100) as (_, port):
            await asyncio.gather(*(stranger(port) for _ in range(300)), return_exceptions=True)
            assert b"200 OK" in await ask(port, GET)

    asyncio.run(test())


# ---------------------------------------------------------------------------------------------------- descriptors


@given(st.integers(32, 1 << 20), st.integers(1, 4096), st.booleans())
def test_shares_leave_what_members_and_the_agent_need(limit: int, size: int, leads: bool) -> None:
    shares = descriptors.shares(limit, size, leads)
    assert shares.visits >= 8 and shares.guests >= 8
    if shares.enough:
        members = size if leads else 1
        own = min(descriptors.RESERVE, limit // 4)
        assert shares.visits + (shares.guests if leads else 0) + members + own <= limit
