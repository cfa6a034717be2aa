"""What a launcher leaves in --state-dir for the next container of its pod, however it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from launcher.agent.state_file import KILLED, StateFile
from launcher.model import Epoch
from tests.e2e.group import Group, running

pytestmark = pytest.mark.timing

QUICK = ("--restart-backoff", "0.3", "--stop-grace", "1", "--lease", "3", "--drain-settle", "0")


def kept(folder: Path, rank: int = 0) -> dict[str, Any]:
    """A rank's file."""
    return dict(json.loads((folder / f"launcher-rank-{rank}.json").read_text()))


def test_a_start_that_fails_early_does_not_vouch_for_the_one_before(tmp_path: Path) -> None:
    """The one before was killed and its engine may still run; this one ends before it has looked."""
    folder = tmp_path / "state"
    assert StateFile(str(folder), 0).save(
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


def until_charged(group: Group, folder: Path, rank: int, charged: int) -> None:
    group.until(f"{charged} restarts are charged", lambda: len(kept(folder, rank)["charges"]) == charged)


def test_a_launcher_that_is_killed_again_and_again_spends_the_budget(tmp_path: Path) -> None:
    """Alone: nothing but the file knows. Each kill is charged, the first stays told, and the budget has an end."""
    folder = tmp_path / "state"
    with running(tmp_path, 1, *QUICK, "--max-restarts", "2", "--state-dir", str(folder)) as group:
        epoch = group.until_serving()
        until_charged(group, folder, 0, 0)
        for charged in (1, 2):
            group.kill_rank(0)
            group.restart(0)
            epoch = group.until_serving(after=epoch)  # the epoch's number is remembered too
            status = group.status(0)
            assert (status["first_failure"]["rank"], status["first_failure"]["text"]) == (0, KILLED)
            assert status["restarts"] == charged
            until_charged(group, folder, 0, charged)
            assert group.output(0).count(f"launcher: first failure: rank 0: {KILLED}") == charged
        os.kill(group.root(0), signal.SIGKILL)
        assert group.code(0) == 137
        told = group.termination(0)
        assert told.startswith("exit code 137: 2 restarts within 3600 s are spent (--max-restarts)\n"), told
        assert f"first failure: rank 0: {KILLED}" in told
        assert kept(folder, 0)["clean"] is True


def test_the_first_failure_outlives_every_launcher_of_the_group(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with running(tmp_path, 2, *QUICK, "--state-dir", str(folder)) as group:
        epoch = group.until_serving()
        os.kill(group.root(1), signal.SIGKILL)
        epoch = group.until_serving(after=epoch)
        for rank in (0, 1):
            until_charged(group, folder, rank, 1)
            assert kept(folder, rank)["clean"] is False
        group.kill_rank(0)
        group.kill_rank(1)
        group.restart(0)
        group.restart(1)
        epoch = group.until_serving(after=epoch)
        for rank in (0, 1):
            failure = group.status(rank)["first_failure"]
            assert (failure["rank"], failure["exit_code"]) == (1, 137), failure
            until_charged(group, folder, rank, 2)
            assert KILLED in group.output(rank)  # a warning of the start, and no more than that
        group.terminate()
        assert group.codes() == [0, 0]
        for rank in (0, 1):
            assert "first failure: rank 1: reference was ended by SIGKILL" in group.termination(rank)
            assert kept(folder, rank)["clean"] is True
            group.restart(rank)
        assert group.until_serving(after=epoch) == epoch + 1
        for rank in (0, 1):
            until_charged(group, folder, rank, 2)  # a clean end is no kill
