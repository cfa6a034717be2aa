"""Frames: every message survives the way, however the stream is cut."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.guard import channel as c

MESSAGES: list[c.Order | c.Report] = [
    c.Spawn("a", "api", ("vllm", "serve", "caf\udce9", "\u2028", ""), {"A": "1", "B": "\udc80"}, "/tmp", True),
    c.Stop("1", ("a", "b"), 2.5),
    c.Stop("2", None, 0.0),
    c.Stop("3", None, 3.0, 2.0),
    c.Kill("3"),
    c.Deadline(None),
    c.Deadline(1234.5),
    c.Deliver(10, ("a",)),
    c.Ping(7),
    c.Handoff(("x",), {}),
    c.Policy(True),
    c.Incarnation("abc"),
    c.Say(2, "line\n"),
    c.Guarding(1, 2, True),
    c.Started("a", 2, 3),
    c.NotStarted("a", 2, "exec of x: No such file or directory"),
    c.Output("a", 1, "\x00\ufffd é\n"),
    c.Exited("a", None, 9, "tail"),
    c.Exited("a", None, 9, "tail", True),
    c.Aborting("3", 4, "worker", "S", "pipe_read", "0"),
    c.Stopped("1", False, ((4, 5, "python", "D"),), 1.5),
    c.LeaseExpired(True, 0.1),
    c.SignalReceived(15),
    c.Dropped(0, 10),
    c.Pong(7),
]


@given(st.lists(st.integers(1, 200), max_size=30))
def test_messages_survive_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b"".join(map(c.encode, MESSAGES))
    frames = c.Frames()
    got = []
    for cut in cuts:
        got += frames.feed(stream[:cut])
        stream = stream[cut:]
    got += frames.feed(stream)
    assert got == MESSAGES
    assert [type(message) for message in got] == [type(message) for message in MESSAGES]


def test_a_frame_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        c.encode(c.Say(1, "x" * (c.LIMIT + 1)))
    with pytest.raises(ValueError, match="over the limit"):
        c.Frames().feed(struct.pack("!I", c.LIMIT + 1))


def test_sending_never_blocks_and_the_rest_goes_when_there_is_room() -> None:
    ours, theirs = socket.socketpair()
    channel = c.GuardChannel(theirs.detach())
    for n in range(2000):
        channel.send(c.Say(1, f"{n} " + "x" * 1000))
    assert channel.wants_write
    frames = c.Frames()
    got: list[c.Say] = []
    while len(got) < 2000:
        channel.flush()
        got += frames.feed(ours.recv(1 << 20))
    assert [int(say.text.split()[0]) for say in got] == list(range(2000))
    assert channel.receive() == []
    channel.close()
    ours.close()


def test_the_guards_last_words_come_before_its_loss() -> None:
    ours, theirs = socket.socketpair()
    channel = c.GuardChannel(theirs.detach())
    ours.sendall(c.encode(c.Pong(1)))
    ours.close()
    channel.send(c.Ping(2))
    assert not channel.wants_write
    assert channel.receive() == [c.Pong(1), c.GuardLost()]
    assert channel.receive() == []
    os.fstat(channel.fileno())
    channel.close()
