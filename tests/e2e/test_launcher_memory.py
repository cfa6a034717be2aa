"""What a launcher leaves in --state-dir for the next container of its pod, however it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

from launcher.memory import Keeper
from launcher.words import Epoch
from tests.e2e.group import running


def kept(folder: Path, rank: int = 0) -> dict[str, Any]:
    return dict(json.loads((folder / f"launcher-rank-{rank}.json").read_text()))


def test_a_start_that_fails_early_does_not_vouch_for_the_one_before(tmp_path: Path) -> None:
    """The one before was killed and its engine may still run; this one ends before it has looked."""
    folder = tmp_path / "state"
    assert Keeper(str(folder), 0).remember(
        incarnation="abc", place="elsewhere", clean=False, last=(Epoch(7, "abc"), ("abc",)), charges=(1,)
    )
    with running(tmp_path, 1, "--state-dir", str(folder), start=False) as group, socket.socket() as held:
        held.bind((group.addresses[0], group.agent_port))
        held.listen()
        group.start(0)
        assert group.code(0) == 78, group.words()
        assert (kept(folder)["incarnation"], kept(folder)["clean"]) == ("abc", False)


def test_the_start_after_a_handoff_speaks_of_no_kill(tmp_path: Path) -> None:
    """The engine had taken the launcher's place; it ended by a signal and the container was started again."""
    folder = tmp_path / "state"
    with running(tmp_path, 1, "--handoff", "--state-dir", str(folder)) as group:
        for _ in range(2):
            group.until("the engine serves", lambda: "serving" in group.output(0))
            group.complete("handed off", 5)
            os.kill(group.guard(0), signal.SIGKILL)
            group.code(0)
            assert kept(folder)["handed_off"] and kept(folder)["charges"] == []
            assert "possibly out of memory" not in group.output(0)
            group.output_path(0).write_text("")
            group.restart(0)
        group.until("the engine serves", lambda: "serving" in group.output(0))


def test_a_crash_of_the_agent_is_told_as_what_it_was(tmp_path: Path) -> None:
    """The guard saw the signal; that the file lacks the mark of a clean end says less."""
    with running(tmp_path, 1, "--restart-backoff", "0.3", "--state-dir", str(tmp_path / "state")) as group:
        epoch = group.until_serving()
        os.kill(group.agent(0), signal.SIGSEGV)
        group.until_serving(after=epoch)
        assert "SIGSEGV" in str(group.status(0)["first_failure"])
        assert "possibly out of memory" not in group.output(0)
        assert len(kept(tmp_path / "state")["charges"]) == 1


def test_what_an_engine_left_in_shared_memory_goes_when_the_agent_was_killed(tmp_path: Path) -> None:
    """The next agent of the same guard knows what was there before."""
    with running(tmp_path, 1, "--restart-backoff", "0.3", "--", "--shm-bytes", "100000") as group:
        epoch = group.until_serving()
        left: list[Path] = []
        for _ in range(2):
            left += [Path(name) for name in re.findall(r"left (/dev/shm/reference-\S+)", group.output(0))]
            group.output_path(0).write_text("")
            os.kill(group.agent(0), signal.SIGKILL)
            epoch = group.until_serving(after=epoch)
        assert len(left) == 2 and not any(path.exists() for path in left)
