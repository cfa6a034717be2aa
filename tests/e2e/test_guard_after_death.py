"""What the guard does when the kernel will not let go of a process, and when a lease has run out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.group import PATIENCE, until

pytestmark = pytest.mark.timing

#: SIGKILL does nothing to `sleep` until a file is there: a process in state D, imitated.
UNKILLABLE = """
import os, signal, sys, time
from launcher.guard import channel, guard, stopping
from launcher.node import tree
stopping.KILL_BOUND = 0.5
send = tree.send
def imitated(pid, number):
    if number == signal.SIGKILL and not os.path.exists(sys.argv[1]):
        try:
            if open(f"/proc/{abs(pid)}/comm").read().strip() == "sleep":
                return
        except OSError:
            pass
    send(pid, number)
tree.send = imitated
def agent(fd):
    line = channel.GuardChannel(fd)
    if "LAUNCHER_PREVIOUS_AGENT" in os.environ:
        left = [p.comm for p in tree.descendants(os.getppid()) if p.comm == "sleep" and not p.gone]
        print("a new agent; left:", left, flush=True)
        return 0
    line.send(channel.Policy(True))
    line.send(channel.Spawn("engine", "engine", ("sleep", "60"), dict(os.environ)))
    while not any(isinstance(report, channel.Started) for report in line.receive()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
guard.run(agent)
"""
#: The deadline passes; when all is dead, a question is put, and then an engine is ordered.
ASKS = """
import asyncio, os, time
from launcher.agent.guard_client import GuardClient
from launcher.guard import channel, guard
async def story(fd):
    expired, stopped, refused = asyncio.Event(), asyncio.Event(), asyncio.Event()
    def heard(report):
        if isinstance(report, channel.LeaseExpired):
            expired.set()
        elif isinstance(report, channel.Stopped):
            stopped.set()
        elif isinstance(report, channel.NotStarted):
            print("refused:", report.text, flush=True)
            refused.set()
    line = GuardClient(channel.GuardChannel(fd), heard)
    line.open()
    line.send(channel.Spawn("engine", "engine", ("sleep", "60"), dict(os.environ)))
    line.send(channel.Deadline(time.monotonic() + 0.5))
    await expired.wait()
    line.send(channel.Kill("stop", None))
    await stopped.wait()
    print("answer:", await line.ask(("echo", "GPU-1, 70000"), 10, dict(os.environ)), flush=True)
    line.send(channel.Spawn("engine-2", "engine", ("sleep", "60"), dict(os.environ)))
    await refused.wait()
    return 0
guard.run(lambda fd: asyncio.run(story(fd)))
"""


def launched(tmp_path: Path, program: str, *args: str) -> subprocess.Popen[bytes]:
    (tmp_path / "program.py").write_text(program)
    with (tmp_path / "said").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), *args],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )


def test_no_agent_is_started_beside_what_the_former_one_left(tmp_path: Path) -> None:
    """It would say hello, which says: nothing of mine is left."""
    let_go = tmp_path / "let-go"
    process = launched(tmp_path, UNKILLABLE, str(let_go))
    said = tmp_path / "said"
    try:
        until("it is said, twice", lambda: said.read_text().count("could be killed") >= 2, words=said.read_text)
        assert "a new agent" not in said.read_text()
    finally:
        let_go.touch()
    assert process.wait(PATIENCE) == 0
    assert "a new agent; left: []" in said.read_text()


def test_questions_are_answered_after_a_lease_has_run_out_and_engines_are_not_started(tmp_path: Path) -> None:
    """How much memory the GPUs still hold is asked then."""
    process = launched(tmp_path, ASKS)
    assert process.wait(PATIENCE) == 0
    said = (tmp_path / "said").read_text()
    assert "answer: (0, 'GPU-1, 70000\\n')" in said
    assert "refused: the lease has run out" in said
