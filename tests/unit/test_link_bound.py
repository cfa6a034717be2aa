"""Every message of a proven connection is bound to it: a relay that lets the proof pass can say nothing of its own.

Real links on loopback, with a relay of real sockets between them; launcher 0.1 is played by its words on the wire.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from launcher.group import link, proof
from launcher.group import messages as m
from tests.relay import Edit, Relay, pass_on
from tests.unit.test_link_unproven import GROUP, HELLO, HOST, PATIENCE, SECRET, Leader, until

OTHER = b"fedcba9876543210"
#: Texts from each side before its first that is bound: the member's proof; the leader's opening and its proof.
FIRST = {"member": 1, "leader": 2}


def news(seq: int, part: float = 1.0) -> m.News:
    return m.News("gathering", f"{seq} {part}")


class Member:
    """A member's link, and what it tells."""

    def __init__(self, port: int, secret: link.Secret = SECRET) -> None:
        self.up = False
        self.heard: list[Any] = []
        self.closed: list[str] = []
        self.failed: list[str] = []

        async def here() -> tuple[str, ...]:
            return (HOST,)

        self.link = link.MemberLink(
            GROUP,
            secret,
            port,
            here,
            link.LinkEvents(self._connected, self.heard.append, self.closed.append, self.failed.append),
            asyncio.get_running_loop().create_task,
        )
        self.link.dial(0)

    def _connected(self, own: str) -> None:
        self.up = True
        self.link.say(HELLO)


# ------------------------------------------------------------------------------------------------------- the tags


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=8), st.data())
def test_only_the_next_message_opens(texts: list[bytes], data: st.DataObject) -> None:
    """What was sent is opened in its order; the first message that is not the next one is not."""
    sender, _ = proof.seals(SECRET, GROUP, "a", "b")
    receiver, _ = proof.seals(SECRET, GROUP, "a", "b")
    sent = [sender.tag(proof.digest_of(text)) + text for text in texts]
    at = data.draw(st.integers(0, len(sent) - 1))
    for text, message in zip(texts[:at], sent[:at], strict=True):
        assert receiver.opened(message) == text
    wrong = data.draw(
        st.sampled_from([one for i, one in enumerate(sent) if i != at])
        if len(sent) > 1 and data.draw(st.booleans())
        else st.tuples(st.integers(0, len(sent[at]) - 1), st.integers(1, 255)).map(
            lambda where: sent[at][: where[0]] + bytes((sent[at][where[0]] ^ where[1],)) + sent[at][where[0] + 1 :]
        )
    )
    assert receiver.opened(wrong) is None


def test_a_key_is_of_one_direction_connection_group_and_secret() -> None:
    digest = proof.digest_of(b"x")
    pairs = [
        proof.seals(SECRET, GROUP, "a", "b"),
        proof.seals(SECRET, GROUP, "a", "c"),
        proof.seals(SECRET, GROUP, "c", "b"),
        proof.seals(SECRET, "other", "a", "b"),
        proof.seals(OTHER, GROUP, "a", "b"),
    ]
    assert len({seal.tag(digest) for pair in pairs for seal in pair}) == 2 * len(pairs)


# ------------------------------------------------------------------------------------------------------- the relay


def inject(side: str, what: bytes) -> Edit:
    return lambda who, n, text: [what, text] if (who, n) == (side, FIRST[side] + 2) else [text]


def repeat(side: str) -> Edit:
    return lambda who, n, text: [text, text] if (who, n) == (side, FIRST[side] + 2) else [text]


def leave_out(side: str) -> Edit:
    return lambda who, n, text: [] if (who, n) == (side, FIRST[side] + 2) else [text]


def alter(side: str) -> Edit:
    return lambda who, n, text: [text[:-2] + b" " + text[-2:]] if (who, n) == (side, FIRST[side] + 2) else [text]


def turn_round(side: str) -> Edit:
    kept: list[bytes] = []

    def edit(who: str, n: int, text: bytes) -> list[bytes]:
        if (who, n) == (side, FIRST[side] + 2):
            kept.append(text)
            return []
        return [text, kept.pop()] if who == side and kept else [text]

    return edit


def reflect(side: str) -> Edit:
    """What one side said comes back to it, in the place of the other side's words."""
    said: list[bytes] = []

    def edit(who: str, n: int, text: bytes) -> list[bytes]:
        if who != side and n >= FIRST[who]:
            said.append(text)
        return [said[-1]] if (who, n) == (side, FIRST[side] + 2) and said else [text]

    return edit


EDITS: dict[str, Callable[[str], Edit]] = {
    "injects in plain": lambda side: inject(side, m.encode(m.Goodbye() if side == "leader" else m.Leaving(0)).encode()),
    "injects with a made-up tag": lambda side: inject(side, b"0" * 32 + m.encode(m.Ping(9)).encode()),
    "injects nothing": lambda side: inject(side, b""),
    "repeats": repeat,
    "leaves one out": leave_out,
    "alters one": alter,
    "turns two round": turn_round,
    "reflects": reflect,
}


async def relayed(edit: Edit) -> tuple[Leader, Member]:
    """Both sides talk through a relay until one of them has hung up, or all was said."""
    seen = dict.fromkeys(FIRST, 0)

    def noting(who: str, n: int, text: bytes) -> list[bytes]:
        seen[who] = n
        return edit(who, n, text)

    async with Leader() as leader:
        with Relay((HOST, leader.port), HOST, edit=noting) as relay:
            member = Member(relay.port)
            await until(lambda: leader.heard)
            for seq in range(1, 7):
                member.link.say(m.Ping(seq))
                leader.link.say([1], news(seq))
                leader.link.flush()
                said = {who: n + seq - 1 for who, n in FIRST.items()}
                await until(lambda: leader.closed or member.closed or all(seen[w] >= n for w, n in said.items()))  # noqa: B023
            await until(lambda: leader.closed or member.closed or (len(leader.heard), len(member.heard)) == (7, 6))
            await until(lambda: bool(leader.closed) == bool(member.closed))
            member.link.hang()
    return leader, member


def test_a_relay_that_passes_everything_on_is_not_noticed() -> None:
    leader, member = asyncio.run(relayed(pass_on))
    assert leader.heard == [HELLO, *(m.Ping(seq) for seq in range(1, 7))]
    assert member.heard == [news(seq) for seq in range(1, 7)]
    assert not leader.closed and not member.closed


@pytest.mark.parametrize("side", ["member", "leader"])
@pytest.mark.parametrize("name", EDITS)
def test_whatever_a_relay_changes_ends_the_connection_unheard(name: str, side: str) -> None:
    leader, member = asyncio.run(relayed(EDITS[name](side)))
    heard, said = (
        (leader.heard[1:], [m.Ping(seq) for seq in range(1, 7)])
        if side == "member"
        else (member.heard, [news(seq) for seq in range(1, 7)])
    )
    assert heard == said[: len(heard)], "only what the other side said, in its order"
    assert len(heard) < 6
    told = leader.closed if side == "member" else member.closed
    assert "its MAC is wrong" in told[0]


# ---------------------------------------------------------------------------------------------------- launcher 0.1


def old_mac(direction: str, theirs: str, own: str) -> str:
    """As launcher 0.1 made it."""
    return proof._mac(SECRET, direction, GROUP, theirs, own)


def test_a_member_of_0_1_is_told_so_before_it_gives_its_proof() -> None:
    async def test() -> Leader:
        async with Leader() as leader:
            async with connect(f"ws://{HOST}:{leader.port}/group", compression=None, proxy=None) as old:
                with pytest.raises(ConnectionClosed) as closed:
                    await asyncio.wait_for(old.recv(), PATIENCE)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4001
                assert "launcher 0.2" in closed.value.rcvd.reason
            await leader.empty()
        return leader

    leader = asyncio.run(test())
    assert not leader.heard
    assert leader.strangers == [link.OLD_PROOF]


def test_a_leader_of_0_1_is_refused_in_words() -> None:
    async def test() -> list[str]:
        async def old(c: ServerConnection) -> None:
            nonce = "ab" * 16
            await c.send(json.dumps({"is": "open", "protocol": 1, "prove": True, "nonce": nonce}))
            said = json.loads(await c.recv())
            mac = old_mac("leader to member", nonce, said["nonce"])
            await c.send(json.dumps({"is": "proven", "mac": mac}))

        async with serve(old, HOST, 0, compression=None, close_timeout=0.1) as server:
            member = Member(next(iter(server.sockets)).getsockname()[1])
            await until(lambda: len(member.failed) > 1)
            member.link.hang()
            assert not member.up
            return member.failed

    assert "must run launcher 0.2 or later" in asyncio.run(test())[0]


def test_without_a_secret_both_versions_talk() -> None:
    """The words of 0.1, in both directions: nothing is added to a text."""

    async def old_member() -> None:
        async with (
            Leader(secret=None) as leader,
            connect(f"ws://{HOST}:{leader.port}/group", compression=None, proxy=None) as old,
        ):
            assert json.loads(await old.recv()).items() >= {"is": "open", "protocol": 1, "prove": False}.items()
            await old.send(m.encode(HELLO))
            await until(lambda: leader.heard)
            leader.link.say([1], m.Goodbye())
            leader.link.flush()
            assert await old.recv() == m.encode(m.Goodbye())

    async def old_leader() -> None:
        async def old(c: ServerConnection) -> None:
            await c.send(json.dumps({"is": "open", "protocol": 1, "prove": False, "nonce": ""}))
            assert await c.recv() == m.encode(HELLO)
            await c.send(m.encode(m.Goodbye()))
            await c.wait_closed()

        async with serve(old, HOST, 0, compression=None, close_timeout=0.1) as server:
            member = Member(next(iter(server.sockets)).getsockname()[1], None)
            await until(lambda: member.heard)
            assert member.heard == [m.Goodbye()]
            member.link.hang()

    asyncio.run(old_member())
    asyncio.run(old_leader())


# --------------------------------------------------------------------------------------------- a Secret is replaced


def replaced(path: Path, secret: bytes) -> None:
    """As the kubelet does it: another file in the same place."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(secret)
    fresh.replace(path)


def test_the_secret_before_is_accepted_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    path.write_bytes(SECRET)
    told: list[str] = []
    secrets = proof.Secrets(str(path), "--token-file", told.append)
    assert secrets.accepted() == (SECRET,)
    replaced(path, OTHER)
    assert secrets.accepted() == (OTHER, SECRET)
    assert secrets.named(proof.key_id(SECRET)) == SECRET
    assert secrets.named("") is None
    path.write_bytes(b"short")
    assert secrets.accepted() == (OTHER, SECRET)
    os.remove(path)
    assert secrets.accepted() == (OTHER, SECRET)
    replaced(path, SECRET)  # and back
    assert secrets.accepted() == (SECRET, OTHER)
    assert ["changed" in one or "stays in use" in one for one in told] == [True] * 4
    monkeypatch.setattr(proof, "KEEP_SECONDS", 0.0)
    replaced(path, b"a third one of all")
    assert OTHER in secrets.accepted() and SECRET not in secrets.accepted()


@pytest.mark.parametrize("behind", ["member", "leader"])
def test_both_sides_meet_while_a_secret_is_replaced(tmp_path: Path, behind: str) -> None:
    """One side has been started anew and knows the new secret only; the other has seen the file change."""

    async def test() -> None:
        path = tmp_path / "token"
        path.write_bytes(SECRET)
        both = proof.Secrets(str(path), "--token-file")
        assert both.accepted() == (SECRET,)
        replaced(path, OTHER)
        for one in (OTHER, SECRET):
            async with Leader() as leader:
                leader.link._secret = both if behind == "leader" else one
                member = Member(leader.port, one if behind == "leader" else both)
                await until(lambda leader=leader: leader.heard)  # type: ignore[misc]
                member.link.hang()

    asyncio.run(test())


def test_a_broadcast_is_for_each_in_his_own_order() -> None:
    async def test() -> None:
        async with Leader() as leader:
            members = [Member(leader.port) for _ in range(5)]
            await until(lambda: len(leader.heard) == 5)
            for seq in range(1, 20):
                leader.link.say(range(1, 6), news(seq, 0.5))
                leader.link.say([1 + seq % 5], news(seq, 0.25))
                if seq % 3 == 0:
                    leader.link.flush()
            leader.link.flush()
            await until(lambda: sum(len(one.heard) for one in members) == 5 * 19 + 19)
            assert not any(one.closed for one in members)
            for one in members:
                one.link.hang()

    asyncio.run(test())
