"""Strangers on the group port, and the group's secret: none of them stops a group from forming or serving."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from launcher.group import messages as m
from tests.e2e.group import Group, running

UPGRADE = (
    b"GET /group HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def connect(group: Group) -> socket.socket:
    return socket.create_connection((group.addresses[0], group.group_port), 10)


def masked(payload: bytes, opcode: int = 1) -> bytes:
    """A WebSocket frame of a client, with a mask of zeros."""
    length = len(payload)
    if length < 126:
        head = bytes([0x80 | opcode, 0x80 | length])
    elif length < 1 << 16:
        head = bytes([0x80 | opcode, 0x80 | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0x80 | 127]) + length.to_bytes(8, "big")
    return head + bytes(4) + payload


def talk(group: Group, *pieces: bytes) -> bytes:
    """Say something and read until the leader hangs up."""
    with connect(group) as stranger:
        stranger.settimeout(30)
        said = b""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                stranger.sendall(piece)
            while data := stranger.recv(65536):
                said += data
        return said


def test_strangers_on_the_group_port(tmp_path: Path) -> None:
    """Before and while the group serves: each is closed, one is named in the log, and nothing else changes."""
    with running(tmp_path, 2, start=False) as group:
        group.start(0)
        group.until_phase("gathering", 0)
        idle = [connect(group) for _ in range(20)]
        assert b"426 Upgrade Required" in talk(group, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"members only" in talk(group, b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        group.start(1)
        group.until_serving()
        for pieces in (
            (os.urandom(4096),),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),),  # TLS
            (b"GET /" + b"x" * 100_000,),
            (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",),
            (UPGRADE, masked(b"{}")),
            (UPGRADE, masked(b"not json")),
            (UPGRADE, masked(b"[" * 50_000)),
            (UPGRADE, masked(b'{"is": "ping", "seq": 1, "echo": 0}')),
            (UPGRADE, masked(b"x" * 200_000)),  # more than a member may say
            (UPGRADE, masked(b'{"is": "hello", "rank": 1e400}')),
            (UPGRADE, masked(b"\xff\xfe", opcode=1)),
            (UPGRADE, masked(b"\0" * 100, opcode=2)),
            (UPGRADE, b"\xff" * 1000),
        ):
            talk(group, *pieces)
        said = group.output(0)
        assert said.count("rejected unknown peer") == 1  # one line a minute and address
        assert "made a plain HTTP request" in said
        for each in idle:
            each.close()
        assert group.serves()
        assert group.epoch() == 1
        assert not any(word in said for word in ("Traceback", "a bug of the launcher"))


def test_members_of_other_groups_that_stay_take_no_place(tmp_path: Path) -> None:
    """As many as may connect say a hello that is refused, and keep their end of the connection open."""
    with running(tmp_path, 2, start=False) as group:
        group.start(0)
        group.until_phase("gathering", 0)
        hello = m.encode(m.Hello("somebody/else", 1, 2, "stranger", "10.9.9.9"))
        crowd = []
        for _ in range(4 * group.size + 64):
            crowd.append(connect(group))
            crowd[-1].sendall(UPGRADE + masked(hello.encode()))
            crowd[-1].settimeout(30)
            said = b""
            while b"wrong_group" not in said and (data := crowd[-1].recv(65536)):
                said += data
            assert b"wrong_group" in said
        group.start(1)
        group.until_serving()
        for stranger in crowd:
            stranger.close()


def test_many_connections_and_slow_ones(tmp_path: Path) -> None:
    """200 that say nothing, and one that says its request a byte at a time: members still come in."""
    with running(tmp_path, 2, start=False) as group:
        group.start(0)
        group.until_phase("gathering", 0)
        crowd = []
        for _ in range(200):
            crowd.append(connect(group))
        upgraded = []
        for stranger in crowd[:50]:
            stranger.sendall(UPGRADE)
            upgraded.append(stranger)
        slow = connect(group)
        group.start(1)
        end = time.monotonic() + 60
        sent = 0
        while not group.serves():
            assert time.monotonic() < end, group.words()
            with contextlib.suppress(ConnectionError):
                slow.sendall(UPGRADE[sent % len(UPGRADE) :][:1])
                sent += 1
            time.sleep(0.05)
        group.complete("through the crowd", 5)
        group.until("the silent ones are closed", lambda: all(map(is_closed, [*crowd, slow])))
        for stranger in [*crowd, slow]:
            stranger.close()
        assert group.serves()
        turned_away = ("more than", "said no hello in time")
        group.until("it is in the log", lambda: any(words in group.output(0) for words in turned_away))


def is_closed(stranger: socket.socket) -> bool:
    stranger.setblocking(False)
    try:
        while stranger.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def secret(folder: Path, name: str, text: str) -> tuple[str, str]:
    path = folder / name
    path.write_text(text)
    return "--token-file", str(path)


def test_the_right_secret(tmp_path: Path) -> None:
    """Members join; strangers see nothing; details of /status are for the pod itself and for bearers."""
    right = secret(tmp_path, "right", "a long and secret word, never printed\n")
    with running(tmp_path, 2, *right) as group:
        group.until_serving()
        said = talk(group, UPGRADE, masked(b'{"is": "hello"}'))
        assert b"incarnation" not in said
        for rank in range(2):
            assert "never printed" not in group.output(rank)
            assert "accepts any peer" not in group.output(rank)


def test_other_secrets(tmp_path: Path) -> None:
    """Wrong, or missing on one side: told to the member, who joins when it has the right one."""
    right, wrong = (
        secret(tmp_path, "right", "one word that is secret"),
        secret(tmp_path, "wrong", "another word, not secret"),
    )
    with running(tmp_path, 2, start=False) as group:
        group.start(0, *right)
        group.until_phase("gathering", 0)
        for args, words in [
            (wrong, "it did not take our proof: another secret (--token-file) or another group"),
            ((), "it wants a proof of the secret and this pod has no --token-file"),
        ]:
            group.start(1, *args)
            group.until("told", lambda w=words: w in group.status(1).get("waiting_for", ""))  # type: ignore[misc]
            group.until("it is in the log", lambda w=words: w in group.output(1))  # type: ignore[misc]
            group.until("the leader waits", lambda: group.status(0).get("waiting_for") == "waiting for rank 1")
            group.terminate(1)
            assert group.code(1) == 0
        group.until("it is in the log", lambda: "did not prove the group's secret" in group.output(0))
        group.start(1, *right)
        group.until_serving()


def test_a_secret_that_only_a_worker_has(tmp_path: Path) -> None:
    with running(tmp_path, 2, start=False) as group:
        group.start(0)
        group.start(1, *secret(tmp_path, "right", "one word that is secret"))
        words = "it has no --token-file and this pod has one"
        group.until("told", lambda: words in group.status(1).get("waiting_for", ""))
        group.until("the leader waits", lambda: group.status(0).get("waiting_for") == "waiting for rank 1")
