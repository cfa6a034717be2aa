"""Trees from a made-up /proc in a folder, and from the real one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from launcher.node import tree
from launcher.node.tree import Proc, Table


def add(root: Path, pid: int, ppid: int, comm: str = "x", state: str = "S", start: int = 100, threads: int = 1) -> None:
    rest = [state, ppid, pid, pid, 0, -1, 0, 0, 0, 0, 0, 7, 5, 0, 0, 20, 0, threads, 0, start, *([0] * 30)]
    (root / str(pid)).mkdir()
    (root / str(pid) / "stat").write_text(f"{pid} ({comm}) {' '.join(map(str, rest))}\n")


def test_descent_with_names_that_try_to_confuse(tmp_path: Path) -> None:
    add(tmp_path, 1, 0)
    add(tmp_path, 10, 1, comm="a) R 1 (b")
    add(tmp_path, 20, 10, comm="x\n) Z 0 0", state="Z")
    add(tmp_path, 30, 20, state="Z", threads=2)
    add(tmp_path, 40, 1)
    add(tmp_path, 99, 0)
    (tmp_path / "self").mkdir()
    found = tree.descendants(10, str(tmp_path))
    assert [(p.pid, p.ppid, p.gone) for p in found] == [(20, 10, True), (30, 20, False)]
    assert [p.pid for p in tree.descendants(1, str(tmp_path))] == [10, 40, 20, 30]
    ten = tree.read(10, str(tmp_path))
    assert ten == Proc(10, 1, 10, 10, 100, "S", "a) R 1 (b", 12, 1)
    assert tree.start_time(10, str(tmp_path)) == 100
    assert tree.start_time(11, str(tmp_path)) is None


def test_a_scan_knows_that_it_is_torn(tmp_path: Path) -> None:
    add(tmp_path, 1, 0)
    add(tmp_path, 7, 1)
    assert not tree.scan(str(tmp_path)).torn
    add(tmp_path, 9, 8)  # its parent ended after we read it
    assert tree.scan(str(tmp_path)).torn
    (tmp_path / "8").mkdir()  # and this one before we could
    assert tree.scan(str(tmp_path)).torn


def test_a_loop_of_parents_ends() -> None:
    """Pids can be reused between two reads of one scan."""
    a, b = Proc(5, 6, 5, 5, 1, "S", "a"), Proc(6, 5, 6, 6, 1, "S", "b")
    assert {p.pid for p in Table({5: a, 6: b}).below([5])} == {5, 6}


def test_the_real_tree() -> None:
    program = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        end = time.monotonic() + 30
        while "sleep" not in [p.comm for p in tree.descendants(child.pid)]:
            assert time.monotonic() < end
            time.sleep(0.01)
        sleep = tree.descendants(child.pid)[0]
        assert sleep.ppid == child.pid and sleep in tree.descendants(os.getpid())
        assert tree.descends(sleep, os.getpid())
        assert not tree.descends(sleep, sleep.pid)
        child_key = (child.pid, tree.start_time(child.pid) or 0)
        assert tree.kill_tree_without_guard([child_key]) == ()
        assert child.wait(30) == -9
        assert (found := tree.read(sleep.pid)) is None or found.gone or found.start_time != sleep.start_time
    finally:
        child.kill()
        child.wait()


def test_the_cookie_finds_what_nobody_recorded() -> None:
    env = {**os.environ, "LAUNCHER_COOKIE": "c00k1e"}
    with_it = subprocess.Popen(["sleep", "60"], env=env, start_new_session=True)
    without = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert tree.kill_tree_without_guard([], cookie="c00k1e") == ()
        assert with_it.wait(30) == -9
        assert without.poll() is None
        stale = (without.pid, (tree.start_time(without.pid) or 0) - 1)  # an earlier process with this pid
        assert tree.kill_tree_without_guard([stale]) == ()
        assert without.poll() is None
    finally:
        for process in (with_it, without):
            process.kill()
            process.wait()


def test_a_group_that_holds_a_stranger_is_not_killed_as_a_whole() -> None:
    both = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; exec sleep 61"], stdout=-1, start_new_session=True)
    assert both.stdout
    stranger = int(both.stdout.readline())
    try:
        table = tree.scan()
        assert table.procs[stranger].group == both.pid
        tree.kill([table.procs[both.pid]], table, set())
        assert both.wait(30) == -9
        found = tree.read(stranger)
        assert found and not found.gone
        tree.kill([found], tree.scan(), {both.pid})
    finally:
        tree.send(stranger, 9)
        both.kill()
        both.wait()
        both.stdout.close()


CHASE_BESIDE_THREADS = """
import os, threading
from launcher.node import tree
over = threading.Event()
for _ in range(200):
    threading.Thread(target=over.wait, daemon=True).start()
    tree.chase(lambda p: p.pid != os.getpid() and p.ppid == os.getppid())
print("alive")
"""


def test_the_chase_spares_who_starts_a_thread() -> None:
    """A thread's number is given out like a pid; a signal to it is one to its whole process."""
    done = subprocess.run([sys.executable, "-c", CHASE_BESIDE_THREADS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done


def test_what_has_ended_is_remembered_while_its_session_lives(tmp_path: Path) -> None:
    """After that its pid may be given to a stranger."""
    add(tmp_path, 40, 1)
    leader, alone, missed, again = (10, 100), (20, 100), (40, 100), (50, 100)
    living = [Proc(11, 1, 10, 10, 101, "S", "child of 10"), Proc(50, 1, 50, 50, 999, "S", "another 50")]
    kept = tree.still_ours([leader, alone, missed], living[:1], str(tmp_path))
    assert set(kept) == {leader, missed, (11, 101)}
    assert again not in tree.still_ours([], living, str(tmp_path))
