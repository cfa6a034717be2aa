"""Whose title is its own: real processes that fork, take names, exec late and end, as engines and their helpers do."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import pytest

from launcher.guard.children import adopt_orphans
from launcher.node import tree
from launcher.node.exit_watcher import End, Vital
from launcher.node.process_titles import Titles
from tests.kernel import tells_the_reaped

pytestmark = pytest.mark.timing

NAMES = ("test::",)

#: Runs the story in its second argument. A long first argument makes room for titles in the command line.
ACTOR = """
import os, signal, sys, time
from launcher.reference.process import rename

def fork(story, *args):
    pid = os.fork()
    if pid == 0:
        try:
            story(*args)
        finally:
            os._exit(0)
    return pid

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def rest():
    time.sleep(600)

def obey(*orders):
    "Carry out one of the orders for each line that comes."
    for line in sys.stdin.buffer.raw:
        orders[int(line)]()
"""


class Actor:
    """A process that plays a story; this process is the guard that it runs under."""

    def __init__(self, process: subprocess.Popen[bytes], out: IO[bytes], to: IO[bytes]) -> None:
        self.process, self._out, self._to = process, out, to
        self.pid = process.pid

    def told(self) -> list[int]:
        """The next line that it says: pids."""
        line = self._out.readline()
        assert line, "the actor has ended"
        return [int(word) for word in line.split()]

    def has_told(self) -> bool:
        """Whether a line waits; only where it says one at a time."""
        return bool(select.select([self._out], [], [], 0)[0])

    def order(self, number: int) -> None:
        self._to.write(b"%d\n" % number)
        self._to.flush()

    def procs(self) -> list[tree.Proc]:
        """The actor and all that descends from it or has fallen to us from it."""
        return [p for p in tree.descendants(os.getpid()) if self.pid in (p.pid, p.session)]


@contextmanager
def acting(story: str) -> Iterator[Actor]:
    adopt_orphans()
    process = subprocess.Popen(
        [sys.executable, "-c", ACTOR + story, "room" * 32],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdin is not None
    actor = Actor(process, process.stdout, process.stdin)
    try:
        yield actor
    finally:
        for p in actor.procs():
            with suppress(ProcessLookupError):
                os.kill(p.pid, signal.SIGKILL)
        process.wait()
        for p in actor.procs():  # what fell to us
            with suppress(ChildProcessError):
                os.waitpid(p.pid, 0)
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()


def own_now(titles: Titles, actor: Actor) -> dict[int, str]:
    return {key[0]: title for key, title in titles.own(actor.procs(), NAMES, [actor.pid]).items()}


def wait_for(what: str, found: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def comm(pid: int) -> str:
    found = tree.read(pid)
    return found.comm if found else ""


def test_a_forked_worker_counts_once_it_has_named_itself() -> None:
    """Until then it carries the name of what forked it. Real workers of vLLM may be forks that never exec."""
    story = """
def worker():
    obey(lambda: rename("test::worker_TP0"))
rename("test::engine core")
say(fork(worker))
rest()
"""
    with acting(story) as actor:
        (worker,) = actor.told()
        titles = Titles()
        assert own_now(titles, actor) == {actor.pid: "test::engine core"}
        actor.order(0)
        wait_for("named", lambda: comm(worker).startswith("test::worker"))
        assert own_now(titles, actor) == {actor.pid: "test::engine core", worker: "test::worker_TP0"}


def test_names_that_are_cut_alike_and_siblings_named_alike() -> None:
    story = """
def worker(title):
    rename(title)
    say(os.getpid())
    rest()
rename("test::worker_of_the_leader")
for title in ("test::worker_of_the_rank", "test::worker", "test::worker"):
    fork(worker, title)
rest()
"""
    with acting(story) as actor:
        workers = [actor.told()[0] for _ in range(3)]
        found = own_now(Titles(), actor)
        assert set(found) == {actor.pid, *workers}
        assert sorted(found.values()).count("test::worker") == 2


def test_an_engine_that_shows_its_names_in_comm_alone() -> None:
    story = """
def name(title):
    open("/proc/self/comm", "w").write(title)
def helper():
    say(os.getpid())
    rest()
def worker():
    name("test::worker")
    fork(helper)
    say(os.getpid())
    rest()
fork(worker)
rest()
"""
    with acting(story) as actor:
        pids = {actor.told()[0], actor.told()[0]}
        found = own_now(Titles(), actor)
        assert list(found.values()) == ["test::worker"] and set(found) < pids


def test_helpers_of_helpers_and_orphans_have_no_title_of_their_own() -> None:
    """A helper may become another program, or end, while the one that it forked still carries the worker's name."""
    story = """
def grandchild():
    say(os.getpid())
    rest()
def becomes_another():
    fork(grandchild)
    os.execvp("sleep", ["sleep", "600"])
def ends():
    fork(grandchild)
rename("test::worker_TP0")
fork(becomes_another)
pid = fork(ends)
os.waitpid(pid, 0)
rest()
"""
    with acting(story) as actor:
        helpers = [actor.told()[0], actor.told()[0]]
        wait_for("exec", lambda: any(p.comm == "sleep" for p in actor.procs()))
        wait_for("an orphan", lambda: any(p.ppid == os.getpid() for p in actor.procs() if p.pid in helpers))
        titles = Titles()
        for _ in range(2):
            assert own_now(titles, actor) == {actor.pid: "test::worker_TP0"}


def test_a_worker_that_takes_another_name_after_it_forked() -> None:
    """The helper carries the old one, which its parent was seen with."""
    story = """
rename("test::worker")
say(fork(rest))
obey(lambda: rename("test::worker_TP0"))
"""
    with acting(story) as actor:
        actor.told()
        titles = Titles()
        assert own_now(titles, actor) == {actor.pid: "test::worker"}
        actor.order(0)
        wait_for("renamed", lambda: own_now(titles, actor) == {actor.pid: "test::worker_TP0"})


def test_a_program_that_names_itself_like_its_parent() -> None:
    """It has exec'd, so it must have taken the name itself."""
    found = tree.read(os.getpid())
    assert found is not None
    if not found.stack:
        pytest.skip("this kernel does not show where a stack begins")
    story = f"""
import subprocess
rename("test::worker")
child = subprocess.Popen([{sys.executable!r}, "-c", {ACTOR + "rename('test::worker'); say(os.getpid()); rest()"!r},
                         "room" * 32])
child.wait()
"""
    with acting(story) as actor:
        (child,) = actor.told()
        assert set(own_now(Titles(), actor)) == {actor.pid, child}


# ------------------------------------------------------------------------------------------------------ and their ends


def ends_of(actor: Actor, until: Callable[[Vital, list[End]], bool]) -> list[End]:
    """Look and listen as the agent does, more often, until told to stop."""
    ends: list[End] = []

    async def look() -> None:
        watching = Vital(ends.append, lambda: (actor.pid,))
        began = time.monotonic()
        while not until(watching, ends):
            assert time.monotonic() < began + 90
            watching.see(actor.procs(), NAMES)
            await asyncio.sleep(0.05)
        watching.forget()

    asyncio.run(look())
    return ends


def test_helpers_that_take_long_to_exec_are_no_evidence_however_they_end() -> None:
    """From 0 to 2 s, 40 looks, between fork and exec; then an exit with 0, a code or a signal, before exec or after.

    Then a worker is killed: that is one.
    """
    story = """
def helper(delay, how):
    time.sleep(delay)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fails":
        os._exit(3)
    if how == "forks":
        fork(helper, delay, "ends")
        fork(helper, 0.3, "fails")
    if how == "execs":
        os.execvp("sh", ["sh", "-c", "exit 3"])
def worker():
    rename("test::worker_TP0")
    say(os.getpid())
    for delay in (0, 0.02, 0.3, 1, 2):
        for how in ("ends", "fails", "killed", "execs", "forks"):
            fork(helper, delay / 2 if how == "forks" else delay, how)
    while True:  # reaps what it started, as subprocess does
        try:
            os.wait()
        except ChildProcessError:
            break
    say(0)
    rest()
rename("test::engine core")
fork(worker)
os.wait()
rest()
"""
    with acting(story) as actor:
        (worker,) = actor.told()

        def over(_: Vital, ends: list[End]) -> bool:
            if not ends and actor.has_told():  # all helpers are gone
                assert actor.told() == [0]
                os.kill(worker, signal.SIGKILL)
            return bool(ends)

        (end,) = ends_of(actor, over)
        assert (end.pid, end.name) == (worker, "test::worker_TP0")
        if tells_the_reaped():
            assert end.killed


def test_what_took_another_name_stays_watched_and_what_became_another_program_does_not() -> None:
    story = """
def becomes():
    rename("test::first")
    say(os.getpid())
    obey(lambda: rename("other"), lambda: os.execvp("sleep", ["sleep", "600"]))
fork(becomes)
rest()
"""
    with acting(story) as actor:
        (pid,) = actor.told()
        seen: list[list[str]] = []

        def over(watching: Vital, ends: list[End]) -> bool:
            assert not ends
            now = [str(one.name) for one in watching._watched.values()]
            if comm(pid) == "test::first" and now:
                actor.order(0)
            elif comm(pid) == "other" and len(seen) < 2:
                seen.append(now)
                if len(seen) == 2:
                    actor.order(1)
            return comm(pid) == "sleep" and not now

        ends_of(actor, over)
        assert seen[-1] == ["test::first"]


@pytest.mark.parametrize("parent_ends", [False, True])
def test_an_exit_with_0_says_whether_the_parent_lives_on(parent_ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    story = """
def worker():
    rename("test::worker_TP0")
    say(os.getpid(), os.getppid())
    obey(lambda: os._exit(0))
def core():
    fork(worker)
    os.wait()
    obey(lambda: os._exit(1))
fork(core)
rest()
"""
    if not tells_the_reaped():
        pytest.skip("a kernel before 6.15")
    if parent_ends:
        monkeypatch.setattr("launcher.node.exit_watcher.HOLD", 60)  # on a busy machine the parent may take its time
    with acting(story) as actor:
        _, core = actor.told()
        orders = 0

        def over(watching: Vital, ends: list[End]) -> bool:
            nonlocal orders
            if orders == 0 and watching._watched:
                orders = 1
                actor.order(0)
            elif parent_ends and orders == 1 and not watching._watched:
                orders = 2
                actor.order(0)
                wait_for("the parent's end", lambda: tree.ending(core))
                watching.settle()
            return bool(ends)

        (end,) = ends_of(actor, over)
        assert (end.status, end.parent_lives) == (0, not parent_ends)
