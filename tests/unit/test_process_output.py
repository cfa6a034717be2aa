"""Lines of the launcher's own between an engine's: on a line of their own, and never in the middle of another's."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from launcher.guard.output import CHUNK, UNFINISHED, Writer


class Pipe:
    """A writer and what came out of it."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.writer = Writer(self.write_end)

    def written(self) -> bytes:
        """All that was put in, once it has come out; what still waits for a line's end goes in first."""
        self.writer.flush(30.0, 30.0)
        os.close(self.write_end)
        said = b""
        while data := os.read(self.read_end, 1 << 20):
            said += data
        os.close(self.read_end)
        return said


@pytest.mark.parametrize(
    ("act", "written"),
    [
        (lambda w: (w.put(b"engine\n"), w.say(b"ours\n", 0.0)), b"engine\nours\n"),
        (lambda w: (w.put(b"eng"), w.say(b"ours\n", 0.0), w.put(b"ine\nmore\n")), b"engine\nours\nmore\n"),
        (lambda w: (w.put(b"eng"), w.say(b"1\n", 0.0), w.say(b"2\n", 0.0), w.put(b"ine\n")), b"engine\n1\n2\n"),
        (lambda w: (w.put(b"eng"), w.say(b"ours\n", 0.0)), b"eng\nours\n"),
        (lambda w: (w.put(b" 50%\r"), w.say(b"ours\n", 0.0), w.put(b" 51%\r")), b" 50%\r 51%\r\nours\n"),
        (
            lambda w: (w.say(b"1\n", 0.0), w.put(b"eng"), w.put(b"ine"), w.put(b"\n"), w.say(b"2\n", 0.0)),
            b"1\nengine\n2\n",
        ),
        (lambda w: (w.put(b"a"), w.put(b""), w.say(b"ours\n", 0.0)), b"a\nours\n"),
    ],
)
def test_ours_begin_a_line_and_break_none(act: Callable[[Writer], object], written: bytes) -> None:
    pipe = Pipe()
    act(pipe.writer)
    assert pipe.written() == written


def test_a_line_that_is_never_ended_is_broken_after_a_moment() -> None:
    pipe = Pipe()
    pipe.writer.put(b"Continue? ")
    pipe.writer.say(b"ours\n", 100.0)
    assert pipe.writer.due == 100.0 + UNFINISHED
    pipe.writer.mind(100.0)
    pipe.writer.mind(100.0 + UNFINISHED)
    pipe.writer.put(b"yes\n")
    assert pipe.writer.due == float("inf")
    assert pipe.written() == b"Continue? \nours\nyes\n"


def test_many_of_ours_do_not_wait_without_end() -> None:
    pipe = Pipe()
    pipe.writer.put(b"unfinished")
    for _ in range(CHUNK // 1000 + 1):
        pipe.writer.say(b"x" * 999 + b"\n", 0.0)
    assert pipe.writer.waiting > CHUNK or pipe.writer.due == float("inf")
    assert pipe.written().startswith(b"unfinished\nxxx")
