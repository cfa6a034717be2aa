"""Nothing is left of an engine that does not want to die, however its end comes about."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.guard.channel import Deadline, Kill, Policy, Spawn, Stop
from launcher.node.tree import descendants, kill_tree_without_guard, read, start_time
from tests.e2e.programs.guarded import HERE, Fifo, Launched, until

KINDS = (
    "rename", "orphan", "session", "stopped", "stubborn", "demon", "storm", "hopper", "far_hopper", "headless",
)  # fmt: skip

Launch = Callable[..., tuple[Launched, Fifo]]


@pytest.fixture
def nasty(tmp_path: Path) -> Iterator[Launch]:
    started: list[Launched] = []

    def start(kinds: tuple[str, ...] = KINDS, **options: Any) -> tuple[Launched, Fifo]:
        folder = tmp_path / f"launch{len(started)}"
        folder.mkdir()
        fifo = Fifo(folder)
        launched = Launched(folder, sys.executable, HERE / "nasty.py", fifo.path, *kinds, **options)
        started.append(launched)
        fifo.wait_ready(len(kinds) + 1)
        launched.reported("Started")
        return launched, fifo

    yield start
    for launched in started:
        launched.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_ends_each_kind(nasty: Launch, kind: str) -> None:
    launched, fifo = nasty((kind,), stay=1, env={"NASTY_ROOT_LEAVES": "1"})
    launched.order(Stop("s", None, 0.3))
    report = launched.reported("Stopped", id="s")
    assert report["clean"] and report["left"] == []
    assert fifo.all_dead, "Stopped was reported, but somebody lives"
    if kind == "stopped":
        assert report["seconds"] < 0.3, "CONT lets it take the TERM"


def test_a_stop_ends_all_kinds_at_once(nasty: Launch) -> None:
    launched, fifo = nasty(stay=1)
    launched.order(Stop("s", None, 0.5))
    assert launched.reported("Stopped", id="s")["clean"]
    assert fifo.all_dead
    assert [p.pid for p in launched.tree()] == [launched.agent]


def test_a_kill_ends_all_kinds_at_once(nasty: Launch) -> None:
    launched, fifo = nasty(stay=1)
    launched.order(Kill("k"))
    report = launched.reported("Stopped", id="k")
    assert report["clean"] and fifo.all_dead
    print("kill of the nasty tree:", report["seconds"])


def test_the_agent_exits(nasty: Launch) -> None:
    """TERM comes to the guard; the agent stops the tree and exits; nothing is left by then."""
    launched, fifo = nasty(grace=0.3)
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() == 137
    assert fifo.all_dead


def test_the_agent_is_killed(nasty: Launch) -> None:
    launched, fifo = nasty()
    os.kill(launched.agent, signal.SIGKILL)
    print("dead after", fifo.seconds_until_dead())
    assert launched.wait() == 137


def test_the_agent_is_killed_and_comes_back(nasty: Launch) -> None:
    launched, fifo = nasty(("demon", "storm"), restart=1, grace=0.2)
    first = launched.agent
    until(lambda: time.monotonic() - launched.log()[0][0] > 1.0, "a life of more than a second")
    os.kill(first, signal.SIGKILL)
    begun = until(lambda: launched.all_reported("agent")[1:], "a second agent")[0]
    assert begun["LAUNCHER_PREVIOUS_AGENT"].startswith("killed by signal 9 (SIGKILL)")
    assert begun["LAUNCHER_REPLACES"] == f"life{first}"
    # The new agent started the same program again: its tree, and only its, is alive now, so the FIFO fills up anew.
    fifo.wait_ready(6)
    os.kill(launched.pid, signal.SIGTERM)
    os.kill(begun["pid"], signal.SIGKILL)
    third = until(lambda: launched.all_reported("agent")[2:], "a third agent")[0]
    assert third["LAUNCHER_REPLACES"] == f"life{first},life{begun['pid']}"
    until(lambda: len(launched.all_reported("SignalReceived", number=15)) >= 1, "the TERM told to the third agent")
    assert launched.wait() in (0, 143)
    assert fifo.all_dead


def test_an_agent_that_dies_again_and_again(nasty: Launch) -> None:
    launched, fifo = nasty(("orphan",), restart=1, stay=1)
    for life in range(5):
        agent = until(lambda life=life: launched.all_reported("agent")[life:], f"agent {life}")[0]  # type: ignore[misc]
        os.kill(agent["pid"], signal.SIGKILL)
        if life == 0:
            first_life = time.monotonic() - launched.log()[0][0]
    expected = 5 if first_life < 0.9 else 6
    if expected == 6:
        agent = until(lambda: launched.all_reported("agent")[5:], "the sixth agent")[0]
        os.kill(agent["pid"], signal.SIGKILL)
    assert launched.wait() == 70
    assert fifo.all_dead


def test_the_agent_is_frozen_and_the_lease_ends_all(nasty: Launch) -> None:
    launched, fifo = nasty(lease=1.0, stay=1)
    os.kill(launched.agent, signal.SIGSTOP)
    print("dead after", fifo.seconds_until_dead())
    os.kill(launched.agent, signal.SIGCONT)
    report = launched.reported("LeaseExpired")
    assert report["clean"]


def test_the_lease_holds_while_output_floods_a_frozen_agent(nasty: Launch) -> None:
    """The guard never waits for the agent's socket, nor for a reader of its own stdout (nobody reads the pipe here)."""
    launched, fifo = nasty(("demon", "flood"), lease=2.0, stay=1)
    os.kill(launched.agent, signal.SIGSTOP)
    fifo.seconds_until_dead()
    os.kill(launched.agent, signal.SIGCONT)
    launched.reported("LeaseExpired", clean=True)
    launched.reported("Dropped", stream=0)


def test_the_guard_is_frozen(nasty: Launch) -> None:
    """Who has to kill in its place (here the test, so the agent goes too) finds all, though nothing can be reaped."""
    launched, fifo = nasty()
    guard = launched.pid
    os.kill(guard, signal.SIGSTOP)
    until(lambda: (p := read(guard)) is not None and p.stopped, "the guard stopped")
    key = (guard, start_time(guard) or 0)
    assert kill_tree_without_guard([], guard=key, bound=20) == ()
    assert fifo.all_dead
    os.kill(guard, signal.SIGCONT)
    assert launched.wait() == 137


def test_nothing_starts_on_a_passed_lease(nasty: Launch) -> None:
    launched, fifo = nasty(("demon",), stay=1)
    launched.order(Deadline(time.monotonic() - 1))
    launched.reported("LeaseExpired", clean=True)
    assert fifo.all_dead
    launched.order(Spawn("late", "late", ("true",), dict(os.environ)))
    assert "lease" in launched.reported("NotStarted", id="late")["text"]
    launched.order(Deadline(None))
    launched.order(Spawn("again", "again", ("true",), dict(os.environ)))
    launched.reported("Exited", id="again", code=0)


def test_a_stop_and_a_passed_lease_end_together(nasty: Launch) -> None:
    """Whichever came first, the order is answered; and after the answer something may be started again."""
    launched, fifo = nasty(stay=1)
    for turn in range(10):
        late, stop, name = Deadline(time.monotonic() - 1), Stop(f"stop{turn}", None, 5.0), f"next{turn}"
        for order in (late, stop) if turn % 2 else (stop, late):
            launched.order(order)
        assert launched.reported("Stopped", id=f"stop{turn}")["clean"]
        launched.order(Deadline(None))
        launched.order(Spawn(name, name, ("sleep", "60"), dict(os.environ)))
        launched.reported("Started", id=name)
    assert fifo.all_dead


def test_a_frozen_agent_does_not_keep_a_guard_that_was_asked_to_go(nasty: Launch) -> None:
    launched, fifo = nasty(("orphan",), lease=0.5, stay=1, frozen=2)
    os.kill(launched.agent, signal.SIGSTOP)
    fifo.seconds_until_dead()
    begun = time.monotonic()
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() == 143
    assert time.monotonic() - begun >= 2


def test_the_guard_is_killed_outside_a_pid_namespace(nasty: Launch) -> None:
    """PDEATHSIG takes the roots; the agent the rest that it recorded. Only a far_hopper is nobody's to find."""
    kinds = tuple(kind for kind in KINDS if kind != "far_hopper")
    launched, fifo = nasty(kinds, record=1)
    agent = launched.agent
    demon = until(lambda: [p for p in descendants(launched.pid) if p.comm == "sleep"], "the demon")[0]
    until(lambda: descendants(launched.pid), "a snapshot")
    time.sleep(0.3)  # two of the agent's rounds of recording, 100 ms each
    os.kill(launched.pid, signal.SIGKILL)
    print("dead after", fifo.seconds_until_dead())
    assert launched.reported("without_guard")["left"] == 0
    until(lambda: (p := read(agent)) is None or p.gone, "the agent gone")
    assert (p := read(demon.pid)) is None or p.start_time != demon.start_time or p.gone


needs_namespace = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode != 0,
    reason="no right to make a PID namespace",
)
AS_INIT = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def init_of(launched: Launched) -> int:
    """The guard's pid as seen from outside its namespace."""
    return until(lambda: [p.pid for p in descendants(launched.process.pid)], "the guard in its namespace")[0]


@needs_namespace
def test_as_init_a_stop_spares_what_is_not_ours(nasty: Launch) -> None:
    launched, fifo = nasty(before=AS_INIT, stay=1)
    assert launched.reported("Guarding")["pid"] == 1 and launched.reported("Guarding")["init"]
    init = init_of(launched)
    foreign = subprocess.Popen(["nsenter", "-t", str(init), "-p", "-m", "sleep", "60"])
    until(lambda: any(p.comm == "sleep" for p in descendants(foreign.pid)), "a process as kubectl exec starts it")
    launched.order(Stop("s", None, 0.5))
    assert launched.reported("Stopped", id="s")["clean"]
    assert fifo.all_dead
    assert foreign.poll() is None
    os.kill(init, signal.SIGTERM)
    assert launched.wait() == 0
    foreign.wait(30)


@needs_namespace
@pytest.mark.parametrize("victim", ["agent", "guard"])
def test_as_init_killed(nasty: Launch, victim: str) -> None:
    launched, fifo = nasty(before=AS_INIT)
    init = init_of(launched)
    if victim == "guard":
        os.kill(init, signal.SIGKILL)
    else:
        inner = launched.agent
        found = [p.pid for p in descendants(init) if re.search(rf"NSpid:.*\t{inner}\n", status(p.pid))]
        os.kill(found[0], signal.SIGKILL)
    print("dead after", fifo.seconds_until_dead())
    assert launched.wait() == (137 if victim == "agent" else 1)  # unshare's word for a child that a signal ended


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


def test_policy_is_an_order_of_its_own(nasty: Launch) -> None:
    launched, fifo = nasty(("orphan",), restart=1, stay=1)
    launched.order(Policy(False))
    launched.order(Kill("k"))
    launched.reported("Stopped", id="k")
    assert fifo.all_dead
    os.kill(launched.agent, signal.SIGKILL)
    assert launched.wait() == 137
