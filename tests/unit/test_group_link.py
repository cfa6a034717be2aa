"""The link on loopback: who comes in, who doesn't and what is said of them, and that nobody is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from launcher.group import link
from launcher.group import messages as m
from launcher.network.listening import bind

HOST = "127.0.0.1"


def hello(rank: int = 1) -> m.Hello:
    return m.Hello("g", rank, 2, f"i{rank}", HOST)


class Leader:
    """A leader's link, and what it tells."""

    def __init__(self, secret: bytes | None = None, most: int = 100, hello_seconds: float = 10.0) -> None:
        self.heard: list[tuple[int, Any]] = []
        self.closed: list[tuple[int, str]] = []
        self.strangers: list[str] = []
        self.link = link.LeaderLink(
            "g",
            secret,
            most,
            heard=lambda conn, message: self.heard.append((conn, message)),
            closed=lambda conn, why: self.closed.append((conn, why)),
            stranger=lambda where, what: self.strangers.append(what),
            hello_seconds=hello_seconds,
        )
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port: int = free.getsockname()[1]


@contextlib.asynccontextmanager
async def listening(**more: Any) -> AsyncIterator[Leader]:
    """A leader; any exception that the event loop has to handle fails the test."""
    broken: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
    leader = Leader(**more)
    leader.link.listen(bind(HOST, leader.port))
    try:
        yield leader
    finally:
        await leader.link.close()
        assert not broken


class Member:
    def __init__(self, leader: Leader, secret: bytes | None = None) -> None:
        self.heard: list[Any] = []
        self.closed: list[str] = []
        self.failed: list[str] = []
        self.link = link.MemberLink(
            "g",
            secret,
            leader.port,
            self._resolve,
            link.LinkEvents(
                connected=lambda own: self.link.say(hello()),
                heard=self.heard.append,
                closed=self.closed.append,
                failed=self.failed.append,
            ),
            task=lambda work: asyncio.get_running_loop().create_task(work),
        )
        self.link.dial(0)

    async def _resolve(self) -> tuple[str, ...]:
        return (HOST,)


async def until(true: Callable[[], Any]) -> None:
    async def poll() -> None:
        while not true():  # noqa: ASYNC110  # of many kinds of things
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), 90)


async def raw(leader: Leader, *pieces: bytes) -> bytes:
    """What the leader says to these bytes until it hangs up."""
    reader, writer = await asyncio.open_connection(HOST, leader.port)
    said = b""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        said = await asyncio.wait_for(reader.read(-1), 90)
    writer.close()
    return said


def upgrade() -> bytes:
    ws = ClientProtocol(parse_uri("ws://x/group"))
    ws.send_request(ws.connect())
    return b"".join(ws.data_to_send())


def frame(text: bytes, opcode: Opcode = Opcode.TEXT, fin: bool = True) -> bytes:
    return Frame(opcode, text, fin).serialize(mask=True)


GREETING = m.encode(hello()).encode()


@pytest.mark.parametrize("secret", [None, b"a secret"])
def test_both_sides_hear_each_other_in_order(secret: bytes | None) -> None:
    async def test() -> None:
        async with listening(secret=secret) as leader:
            member = Member(leader, secret)
            await until(lambda: leader.heard)
            assert leader.heard.pop() == (1, hello())
            for seq in range(1, 50):
                member.link.say(m.Ping(seq))
                leader.link.say([1, 7], m.Ack(seq, seq))
            assert not member.heard
            leader.link.flush()
            await until(lambda: len(leader.heard) == 49 and len(member.heard) == 49)
            assert [said.seq for _, said in leader.heard] == [said.good for said in member.heard] == [*range(1, 50)]
            leader.link.say([1], m.Goodbye())
            leader.link.hang(1)
            await until(lambda: member.closed)
            assert (member.heard[-1], member.closed, leader.closed) == (m.Goodbye(), [""], [])

    asyncio.run(test())


@pytest.mark.parametrize(
    ("leads", "follows", "words"),
    [
        (b"right", b"wrong", "it did not take our proof: another secret (--token-file) or another group"),
        (b"right", None, "it wants a proof of the secret and this pod has no --token-file"),
        (None, b"right", "it has no --token-file and this pod has one"),
    ],
)
def test_other_secrets(leads: bytes | None, follows: bytes | None, words: str) -> None:
    async def test() -> None:
        async with listening(secret=leads) as leader:
            member = Member(leader, follows)
            await until(lambda: member.failed)
            assert words in member.failed[0]
            assert not leader.heard
            member.link.hang()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((os.urandom(4096),), "left without a hello"),
        ((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",), "made a plain HTTP request"),
        ((b"GET /" + b"x" * 100_000,), "left without a hello"),
        ((upgrade().replace(b"Version: 13", b"Version: 12"),), "left without a hello"),
        ((upgrade() + frame(b"{}"),), "not a word"),
        ((upgrade() + b"\xff" * 1000,), "left without a hello"),
        ((upgrade(), frame(b"[" * 50_000)), "not JSON"),
        ((upgrade(), frame(b"\xff\xfe")), "not UTF-8"),
        ((upgrade(), frame(GREETING, Opcode.BINARY)), "not a text in one piece"),
        ((upgrade(), frame(GREETING[:9], fin=False), frame(GREETING[9:], Opcode.CONT)), "not a text in one piece"),
        ((upgrade(), frame(b"x" * 200_000)), "left without a hello"),
        ((upgrade(), frame(m.encode(m.Ping(1)).encode())), "the first word was not hello"),
        ((upgrade(), frame(b"", Opcode.PING) * 1000), "more than 100 messages a second"),
        ((upgrade(), frame(b"", Opcode.CLOSE)), "left without a hello"),
        ((upgrade() + frame(b"", Opcode.CLOSE),), "left without a hello"),
    ],
)
def test_strangers(pieces: tuple[bytes, ...], words: str) -> None:
    """Each is hung up on and named, once a minute; a member comes in beside them."""

    async def test() -> None:
        async with listening() as leader:
            for _ in range(2):
                await raw(leader, *pieces)
            assert len(leader.strangers) == 1
            assert words in leader.strangers[0]
            assert not leader.heard
            Member(leader)
            await until(lambda: leader.heard)

    asyncio.run(test())


def test_whatever_strangers_send_nothing_breaks() -> None:
    """Requests, frames of every kind and rubbish, in any order, in pieces of any size; then a member comes in."""
    rng = random.Random(7)

    def piece() -> bytes:
        body = rng.choice((b"", GREETING, m.encode(m.Ping(1)).encode(), b"{}", rng.randbytes(rng.randrange(200))))
        any_frame = frame(body, rng.choice(list(Opcode)), rng.random() < 0.8)
        spoilt = bytearray(any_frame)
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        return rng.choice((any_frame, any_frame, bytes(spoilt), rng.randbytes(9), upgrade(), any_frame[:3]))

    async def stranger(port: int) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        said = (upgrade() if rng.random() < 0.9 else b"") + b"".join(piece() for _ in range(rng.randrange(9)))
        with contextlib.suppress(ConnectionError):
            while said:
                step = rng.choice((1, 9, 500, 5000)) if len(said) > 50 else 5000
                writer.write(said[:step])
                said = said[step:]
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                writer.write_eof()
            elif rng.random() < 0.3:
                writer.transport.abort()
            await asyncio.wait_for(reader.read(-1), 0.5)
        writer.close()

    async def test() -> None:
        async with listening(hello_seconds=0.3, most=1000) as leader:
            await asyncio.gather(*(stranger(leader.port) for _ in range(400)), return_exceptions=True)
            leader.heard.clear()
            Member(leader)
            await until(lambda: leader.heard)

    asyncio.run(test())


def test_who_says_no_hello_is_hung_up_on() -> None:
    async def test() -> None:
        async with listening(hello_seconds=0.2) as leader:
            await raw(leader)
            assert leader.strangers == ["said no hello in time"]
            assert await raw(leader, upgrade())
            await raw(leader, upgrade()[:50])
            assert not leader.closed

    asyncio.run(test())


def test_the_oldest_makes_room_for_the_newest() -> None:
    async def test() -> None:
        async with listening(most=24) as leader:
            held = [await asyncio.open_connection(HOST, leader.port) for _ in range(40)]
            await until(lambda: leader.link.turned_away >= 28)
            assert leader.strangers == ["said no hello, and made room for a newer connection"]
            reader, _ = held[0]
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 90) == b""
            Member(leader)
            await until(lambda: leader.heard)
            for _, writer in held:
                writer.close()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (frame(b"nonsense"), "it sent what is not the protocol: not JSON"),
        (
            frame(m.encode(m.Ping(1)).encode()) * 600,
            "it sent what is not the protocol: more than 100 messages a second",
        ),
        (frame(b"x" * 200_000), "code 1009"),
        (b"", "without a goodbye"),
    ],
    ids=["unreadable", "too many", "too long", "gone"],  # the bytes are masked by chance
)
def test_how_a_member_ends_is_told_once(said: bytes, why: str) -> None:
    async def test() -> None:
        async with listening() as leader:
            reader, writer = await asyncio.open_connection(HOST, leader.port)
            writer.write(upgrade() + frame(GREETING))
            await reader.readuntil(b'"open"')
            writer.write(said)
            if not said:
                writer.transport.abort()
            await until(lambda: leader.closed)
            await asyncio.wait_for(reader.read(-1), 90) if said else None
            writer.close()
            assert [conn for conn, _ in leader.closed] == [1]
            assert leader.closed[0][1].startswith(why)

    asyncio.run(test())


def test_a_connection_that_breaks_is_nobodys_breach_of_the_protocol() -> None:
    """The kernel says so where asyncio does not expect it: when our half of one that is gone is closed."""

    def breaks(*_: Any) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    async def test() -> None:
        async with listening() as leader:
            member = Member(leader)
            await until(lambda: leader.heard)
            number = leader.heard[0][0]
            leader.link._members[number].hear = breaks
            member.link.say(m.Ping(1))
            await until(lambda: leader.closed)
            assert leader.closed == [(number, "it broke: Transport endpoint is not connected")]
            await until(lambda: member.closed)
            member.link.dial(0)
            await until(lambda: len(leader.heard) > 1)
            assert member.link._wire is not None
            member.link._wire.hear = breaks
            leader.link.say([leader.heard[-1][0]], m.News("gathering"))
            leader.link.flush()
            await until(lambda: len(member.closed) > 1)
            assert member.closed[-1] == "it broke: Transport endpoint is not connected"
            assert (leader.link.errors.protocol, member.link.errors.protocol) == (0, 0)
            member.link.hang()

    asyncio.run(test())


def test_who_reads_too_slowly_is_cut_off() -> None:
    async def test() -> None:
        async with listening() as leader:
            _, writer = await asyncio.open_connection(HOST, leader.port, limit=1)
            writer.write(upgrade() + frame(GREETING))
            await until(lambda: leader.heard)
            news = m.News("gathering", "x" * 2000)
            for _ in range(30_000):
                leader.link.say([1], news)
                leader.link.flush()
                if leader.closed:
                    break
                await asyncio.sleep(0)
            await until(lambda: leader.closed)
            writer.close()

    asyncio.run(test())


def test_a_leader_that_is_none() -> None:
    """Something else listens there: each try fails in words, and the member goes on trying."""

    async def test() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        leader = Leader()
        async with await asyncio.start_server(speak, HOST, leader.port):
            member = Member(leader)
            await until(lambda: len(member.failed) > 1)
            assert "200" in member.failed[0]
            member.link.hang()

    asyncio.run(test())


def test_a_leader_that_leaves_at_once() -> None:
    """It says that it is open and is gone: the try has failed, whenever that is noticed."""

    async def test() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ws = ServerProtocol()
            ws.receive_data(await reader.readuntil(b"\r\n\r\n"))
            ws.send_response(ws.accept(cast(Request, ws.events_received()[0])))
            ws.send_text(b'{"is": "open", "prove": false, "nonce": ""}')
            ws.send_close(1001)
            writer.write(b"".join(ws.data_to_send()))
            writer.close()

        leader = Leader()
        async with await asyncio.start_server(speak, HOST, leader.port):
            member = Member(leader)
            await until(lambda: member.failed or member.closed)
            assert len(member.failed) <= 1
            member.link.hang()

    asyncio.run(test())


def test_a_member_may_hang_up_at_any_moment() -> None:
    """What comes of an attempt that was given up is of no interest to the event loop."""

    async def test() -> None:
        async with listening(secret=b"right") as leader:
            for turns in range(40):
                member = Member(leader, b"wrong" if turns % 2 else b"right")
                for _ in range(turns):
                    await asyncio.sleep(0)
                member.link.hang()
            await asyncio.sleep(0.1)
            del member
            gc.collect()

    asyncio.run(test())


def test_an_attempt_given_up_as_it_fails_is_not_made_again() -> None:
    """`asyncio.wait_for` of Python 3.11 and older may raise the failure and forget the cancellation."""

    async def test() -> None:
        async with listening(secret=b"right") as leader:
            member = Member(leader, b"wrong")
            opened = member.link._open

            async def hung_up_meanwhile(address: str) -> Any:
                member.link.hang()
                with contextlib.suppress(asyncio.CancelledError):  # as `wait_for` forgets it
                    await asyncio.sleep(0)
                return await opened(address)

            member.link._open = hung_up_meanwhile  # type: ignore[method-assign]
            await until(lambda: bool(member.failed))
            await asyncio.sleep(0.01)
            assert not [task for task in asyncio.all_tasks() if "_dial" in repr(task)]

    asyncio.run(test())


def test_a_leader_that_leaves_says_goodbye_to_all() -> None:
    async def test() -> None:
        async with listening() as leader:
            members = [Member(leader) for _ in range(5)]
            await until(lambda: len(leader.heard) == 5)
            leader.link.say(range(1, 6), m.Goodbye())
        await until(lambda: all(member.closed for member in members))
        assert all(member.heard == [m.Goodbye()] and member.closed == [""] for member in members)
        assert not leader.closed

    asyncio.run(test())
