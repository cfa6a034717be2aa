"""The order of an ending, with scans and times made up."""

from __future__ import annotations

from signal import SIGCONT, SIGTERM

from launcher.guard.stopping import KILL_BOUND, Phase, Stopping
from launcher.node.tree import Proc, Table

GUARD, AGENT = 1, 2


def proc(pid: int, ppid: int = GUARD, state: str = "S", session: int = 0, start: int = 5) -> Proc:
    return Proc(pid, ppid, session or pid, session or pid, start, state, f"p{pid}")


def table(*procs: Proc) -> Table:
    return Table({p.pid: p for p in (proc(GUARD, 0), proc(AGENT), *procs)})


def stop(*roots: int, everything: bool = True, grace: float | None = 10.0) -> Stopping:
    keys = [(pid, 5) for pid in roots]
    return Stopping(keys, everything=everything, guard=GUARD, spared={AGENT}, now=0.0, grace=grace)


def phase(s: Stopping) -> Phase:
    return s.phase


def test_roots_in_order_then_leftovers_then_kill() -> None:
    s = stop(20, 10)
    a, b, child = proc(10), proc(20), proc(21, 20, session=20)
    assert s.tick(0.0, table(a, b, child), 0) == [(20, SIGTERM)]
    assert s.tick(1.0, table(a, b, child), 0) == []
    orphan = child._replace(ppid=GUARD)
    assert s.tick(2.0, table(a, orphan), 1) == [(10, SIGTERM)]
    assert s.tick(3.0, table(orphan), 2) == [(21, SIGTERM)]
    assert phase(s) is Phase.LEFTOVERS
    assert s.tick(3.9, table(orphan), 2) == []
    assert s.tick(4.0, table(orphan), 2) == []
    assert phase(s) is Phase.KILL and [p.pid for p in s.left] == [21]
    s.tick(4.1, table(orphan._replace(state="Z")), 2)
    s.tick(4.2, table(), 3)
    assert phase(s) is Phase.KILL, "something was reaped since the last look: look again"
    s.tick(4.2, table(), 3)
    s.tick(4.2, table(), 3)
    assert s.clean and s.left == ()


def test_the_grace_is_shared_and_leaves_nothing_for_leftovers() -> None:
    s = stop(20, 10, grace=1.0)
    assert s.tick(0.0, table(proc(10), proc(20)), 0) == [(20, SIGTERM)]
    assert s.tick(0.9, table(proc(10)), 1) == [(10, SIGTERM)]
    assert 0 < s.pause <= 0.1001
    s.tick(1.0, table(proc(10)), 1)
    assert phase(s) is Phase.KILL


def test_the_stopped_are_continued_after_the_term() -> None:
    s = stop(10)
    assert s.tick(0.0, table(proc(10, state="T"), proc(11, 10, state="T"), proc(12, 10, state="t")), 0) == [
        (10, SIGTERM),
        (10, SIGCONT),
        (11, SIGCONT),
    ]


def test_the_agent_and_strangers_are_spared() -> None:
    stranger = proc(50, 0)
    s = stop(grace=None)
    s.tick(0.0, table(proc(10), stranger, proc(51, 50), proc(3, AGENT)), 0)
    assert {p.pid for p in s.left} == {10, 3}
    assert phase(s) is Phase.KILL


def test_some_roots_only_their_tree_session_and_all_that_was_ever_seen_of_it() -> None:
    s = stop(10, everything=False, grace=None)
    other, daemon = proc(20), proc(12, 11)
    s.tick(0.0, table(proc(10), proc(11, 10, session=10), daemon, other), 0)
    assert {p.pid for p in s.left} == {10, 11, 12}
    s.tick(0.1, table(daemon._replace(ppid=GUARD), proc(13, GUARD, session=10), other), 2)
    assert {p.pid for p in s.left} == {12, 13}
    reused = proc(10, GUARD, start=99)
    s.tick(0.2, table(other, reused, proc(14, 10, session=10)), 4)
    assert not s.left, "pid 10 is somebody else now, and so is session 10"


def test_less_grace_shortens_and_more_does_not() -> None:
    s = stop(10)
    s.tick(0.0, table(proc(10)), 0)
    s.shorten(1.0, 100.0)
    s.tick(9.9, table(proc(10)), 0)
    assert phase(s) is Phase.ROOTS
    s.shorten(9.9, 0.05)
    s.tick(9.96, table(proc(10)), 0)
    assert phase(s) is Phase.KILL
    s = stop(10)
    s.shorten(0.0, None)
    assert phase(s) is Phase.KILL


def test_what_cannot_be_killed_is_named_after_the_bound() -> None:
    s = stop(10, grace=None)
    stuck = proc(10, state="D")
    s.tick(0.0, table(stuck), 0)
    s.tick(KILL_BOUND - 0.1, table(stuck), 0)
    assert phase(s) is Phase.KILL
    s.tick(KILL_BOUND, table(stuck), 0)
    assert phase(s) is Phase.DONE and not s.clean and s.left == (stuck,)


def test_what_forks_and_ends_unseen_is_never_called_clean() -> None:
    s = stop(grace=None)
    for n in range(1000):
        s.tick(n / 1000, table(), n)
    assert phase(s) is Phase.KILL
