"""Whoever has not proven the group's secret changes nothing, on either side of the link; and nobody says too much.

The real link on loopback. What a stranger may try is drawn: words of the protocol, garbage, and proofs that are wrong,
repeated from another connection, turned back on their sender, or made for another group, in any order and number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from launcher.group import messages as m
from launcher.group import proof
from launcher.group.connection import BURST
from launcher.group.link import PROOF, LeaderLink, LinkEvents, MemberLink
from launcher.network.listening import bind
from tests.unit.test_group_messages import MESSAGES

HOST, GROUP, SECRET = "127.0.0.1", "default/engine-0", b"0123456789abcdef"
PATIENCE = 90.0

#: What a stranger says next, once it knows the leader's nonce.
Move = Callable[[str], str | bytes]
#: What it makes its proof of: the leader's nonce and its own.
Forgery = Callable[[str, str], str]

FORGERIES: dict[str, Forgery] = {
    "another secret": lambda theirs, own: proof.member_mac(b"another secret..", GROUP, theirs, own),
    "another group": lambda theirs, own: proof.member_mac(SECRET, "default/other-0", theirs, own),
    "heard on another connection": lambda theirs, own: proof.member_mac(SECRET, GROUP, "f" * 32, own),
    "turned back": lambda theirs, own: proof.leader_mac(SECRET, GROUP, theirs, own),
    "turned back, nonces too": lambda theirs, own: proof.leader_mac(SECRET, GROUP, own, theirs),
    "nonces the wrong way round": lambda theirs, own: proof.member_mac(SECRET, GROUP, own, theirs),
    "cut short": lambda theirs, own: proof.member_mac(SECRET, GROUP, theirs, own)[:-1],
    "empty": lambda theirs, own: "",
}


def said(message: Any) -> Move:
    return lambda theirs: m.encode(message)


def forged(forgery: str, nonce: str) -> Move:
    return lambda theirs: json.dumps({"is": "prove", "nonce": nonce, "mac": FORGERIES[forgery](theirs, nonce)})


def raw(words: str | bytes) -> Move:
    return lambda theirs: words


HELLO = m.Hello(GROUP, 1, 2, "5a5a5a5a5a5a", "10.0.0.2")
HONEST_AND_LATE = st.sampled_from([m.Ping(1), HELLO, m.Leaving(0.0)]).map(said)
PROOF_LIKE = st.fixed_dictionaries(
    {"is": st.sampled_from(["prove", "proven", "open", "hello"])},
    optional={"nonce": st.none() | st.integers() | st.text(max_size=70), "mac": st.none() | st.text(max_size=130)},
).map(lambda body: raw(json.dumps(body)))
MOVES = st.one_of(
    MESSAGES.map(said),
    HONEST_AND_LATE,
    st.builds(forged, st.sampled_from(sorted(FORGERIES)), st.sampled_from(["", "ab" * 16])),
    PROOF_LIKE,
    (st.text(max_size=50) | st.binary(max_size=50)).map(raw),
)


class Leader:
    """A leader's end of the link, and what came of it."""

    def __init__(self, secret: bytes | None = SECRET, hello_seconds: float = PATIENCE) -> None:
        self.heard: list[Any] = []
        self.closed: list[str] = []
        self.strangers: list[str] = []
        self.link = LeaderLink(
            GROUP,
            secret,
            most=100,
            heard=lambda conn, message: self.heard.append(message),
            closed=lambda conn, why: self.closed.append(why),
            stranger=lambda where, what: self.strangers.append(what),
            hello_seconds=hello_seconds,
        )
        self.port = 0

    async def __aenter__(self) -> Leader:
        self.link.listen(bind(HOST, 0))
        self.port = self.link.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.close()

    async def dialled(self) -> ClientConnection:
        return await connect(
            f"ws://{HOST}:{self.port}/group",
            compression=None,
            proxy=None,
            ping_interval=None,
            additional_headers={PROOF: str(proof.VERSION)},
        )

    async def empty(self) -> None:
        """No connection is left, nor counted."""
        await until(lambda: not self.link._members and not self.link._open)


async def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


async def until_closed(connection: ClientConnection) -> AsyncIterator[str | bytes]:
    """What still comes until the other side has hung up."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield await asyncio.wait_for(connection.recv(), PATIENCE)


async def intrude(moves: Sequence[Move], secret: bytes | None = SECRET) -> Leader:
    """A stranger's visit, from its first word to the end of its connection."""
    async with Leader(secret) as leader:
        connection = await leader.dialled()
        opening = json.loads(await connection.recv())
        with contextlib.suppress(ConnectionClosed):
            for move in moves:
                await connection.send(move(opening["nonce"]))
        async for text in until_closed(connection):
            raise AssertionError(f"the leader proves nothing to who has proven nothing, but said {text!r}")
        await leader.empty()
    return leader


@settings(max_examples=100, deadline=None)
@given(st.lists(MOVES, min_size=1, max_size=6))
def test_a_leader_hears_nothing_of_a_stranger(moves: list[Move]) -> None:
    leader = asyncio.run(intrude(moves))
    assert (leader.heard, leader.closed) == ([], [])
    assert len(leader.strangers) == 1


def test_each_forgery_is_refused_though_a_perfect_hello_follows() -> None:
    for name in FORGERIES:
        leader = asyncio.run(intrude([forged(name, "ab" * 16), said(HELLO), said(m.Ping(1))]))
        assert (leader.heard, leader.closed) == ([], []), name
        assert leader.strangers == ["did not prove the group's secret (--token-file)"], name


def test_a_stranger_that_says_nothing_is_closed_in_time() -> None:
    async def wait() -> Leader:
        async with Leader(hello_seconds=0.3) as leader:
            words = [text async for text in until_closed(await leader.dialled())]
            assert len(words) == 1  # the leader's opening
            await leader.empty()
        return leader

    leader = asyncio.run(wait())
    assert (leader.heard, leader.closed, leader.strangers) == ([], [], ["said no hello in time"])


def test_an_honest_member_is_heard() -> None:
    """Else the tests above would show nothing."""

    async def join() -> Leader:
        async with Leader() as leader:
            up, over = asyncio.Event(), asyncio.Event()
            link = member_link(leader.port, lambda local: up.set(), lambda message: None, lambda why: over.set())
            link.dial(0)
            await asyncio.wait_for(up.wait(), PATIENCE)
            link.say(HELLO)
            link.say(m.Ping(1))
            await until(lambda: len(leader.heard) == 2)
            link.hang()
            await leader.empty()
        return leader

    leader = asyncio.run(join())
    assert (leader.heard, leader.closed, leader.strangers) == ([HELLO, m.Ping(1)], [""], [])


def member_link(
    port: int,
    connected: Callable[[str], None],
    heard: Callable[[Any], None],
    closed: Callable[[str], None],
    failed: Callable[[str], None] = lambda why: None,
) -> MemberLink:
    async def here() -> Sequence[str]:
        return (HOST,)

    task = asyncio.get_running_loop().create_task
    return MemberLink(GROUP, SECRET, port, here, LinkEvents(connected, heard, closed, failed), task)


# ------------------------------------------------------------------------------------------------- a false leader

TURNED_BACK: dict[str, Callable[[str, str, str], str]] = {
    "the member's own": lambda theirs, own, mac: mac,
    "another secret": lambda theirs, own, mac: proof.leader_mac(b"another secret..", GROUP, own, theirs),
    "another group": lambda theirs, own, mac: proof.leader_mac(SECRET, "default/other-0", own, theirs),
    "of another connection": lambda theirs, own, mac: proof.leader_mac(SECRET, GROUP, "f" * 32, theirs),
    "empty": lambda theirs, own, mac: "",
}
FALSE_WORDS = st.one_of(
    MESSAGES.map(m.encode),
    st.sampled_from(sorted(TURNED_BACK)).map(lambda name: f"proven by {name}"),
    st.text(max_size=50),
    st.binary(max_size=50),
)


async def pretend(words: Sequence[str | bytes]) -> tuple[list[Any], list[str]]:
    """A leader without the secret says these words; what the member took notice of, and what it said of it."""
    nonce, heard, failed = "cd" * 16, list[Any](), list[str]()

    async def false_leader(c: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await c.send(json.dumps({"is": "open", "protocol": m.PROTOCOL, "prove": True, "nonce": nonce, "bound": 2}))
            proven = json.loads(await c.recv())
            for word in words:
                name = word.removeprefix("proven by ") if isinstance(word, str) else ""
                if name in TURNED_BACK:
                    mac = TURNED_BACK[name](proven["nonce"], nonce, proven["mac"])
                    word = json.dumps({"is": "proven", "mac": mac})  # noqa: PLW2901
                await c.send(word)
            await c.wait_closed()

    async with serve(false_leader, HOST, 0, compression=None, ping_interval=None, close_timeout=0.1) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        link = member_link(port, heard.append, heard.append, heard.append, failed.append)
        link.dial(0)
        await until(lambda: failed)
        link.hang()
    return heard, failed


@settings(max_examples=50, deadline=None)
@given(st.lists(FALSE_WORDS, min_size=1, max_size=4))
def test_a_member_hears_nothing_of_a_false_leader(words: list[str | bytes]) -> None:
    heard, failed = asyncio.run(pretend(words))
    assert heard == []
    assert "is not a leader that we can join" in failed[0]


def test_each_false_proof_of_a_leader_is_refused() -> None:
    for name in TURNED_BACK:
        heard, failed = asyncio.run(pretend([f"proven by {name}", m.encode(m.Accepted("abc", 1))]))
        assert heard == [], name
        assert "it does not know the group's secret" in failed[0], name


# ------------------------------------------------------------------------------------------------------ too much


def test_a_member_that_says_too_much_is_closed() -> None:
    """A burst is borne; at 100 a second 5,000 pings would take the better part of a minute, and they come at once."""

    async def flood() -> Leader:
        async with Leader(secret=None) as leader:
            connection = await leader.dialled()
            await connection.recv()
            await connection.send(m.encode(HELLO))
            for seq in range(1, BURST - 99):
                await connection.send(m.encode(m.Ping(seq)))
            await until(lambda: len(leader.heard) == BURST - 99)
            assert not leader.closed
            with contextlib.suppress(ConnectionClosed):
                for seq in range(BURST, BURST + 5000):
                    await connection.send(m.encode(m.Ping(seq)))
            assert [text async for text in until_closed(connection)] == []
            await leader.empty()
        return leader

    leader = asyncio.run(flood())
    assert leader.closed == ["it sent what is not the protocol: more than 100 messages a second"]
    assert BURST <= len(leader.heard) < BURST + 5000
