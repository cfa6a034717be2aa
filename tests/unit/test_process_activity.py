"""Stopped processes and activity from snapshots."""

from __future__ import annotations

from pathlib import Path

from launcher.node.process_activity import activity, frozen, stopped_since
from launcher.node.tree import Proc, descendants


def proc(pid: int, state: str, start: int = 1, ticks: int = 0) -> Proc:
    return Proc(pid, 1, pid, pid, start, state, "x", ticks)


def test_frozen_is_five_seconds_without_a_break() -> None:
    since = stopped_since({}, [proc(1, "T"), proc(2, "S"), proc(3, "t")], 0.0)
    since = stopped_since(since, [proc(1, "T"), proc(3, "S")], 3.0)
    since = stopped_since(since, [proc(1, "T"), proc(3, "t")], 4.9)
    assert frozen(since, 4.9) == ()
    assert frozen(since, 5.0) == ((1, 1),)
    since = stopped_since(since, [proc(1, "T", start=2), proc(3, "t")], 6.0)
    assert frozen(since, 6.0) == (), "the pid is somebody else's now"
    assert frozen(since, 20.0) == ((3, 1), (1, 2))


def test_activity_moves_with_cpu_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "io").write_text("rchar: 100\nwchar: 20\nsyscr: 3\nread_bytes: 5000\n")
    assert activity([proc(7, "R", ticks=3), proc(8, "S", ticks=4)], str(tmp_path)) == 127
    assert activity(descendants(1)) >= 0
