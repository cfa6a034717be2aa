"""--state-dir: what a launcher remembers of one that was killed with all that it ran, and nobody else knows."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from launcher.memory import KILLED
from tests.e2e.group import Group, running

QUICK = ("--restart-backoff", "0.3", "--stop-grace", "1", "--lease", "3", "--drain-settle", "0")


def remembered(folder: Path, rank: int) -> dict[str, Any]:
    """A rank's file."""
    return dict(json.loads((folder / f"launcher-rank-{rank}.json").read_text()))


def until_charged(group: Group, folder: Path, rank: int, charged: int) -> None:
    group.until(f"{charged} restarts are charged", lambda: remembered(folder, rank)["charged"] == charged)


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
        assert remembered(folder, 0)["clean"] is True


def test_the_first_failure_outlives_every_launcher_of_the_group(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with running(tmp_path, 2, *QUICK, "--state-dir", str(folder)) as group:
        epoch = group.until_serving()
        os.kill(group.root(1), signal.SIGKILL)
        epoch = group.until_serving(after=epoch)
        for rank in (0, 1):
            until_charged(group, folder, rank, 1)
            assert remembered(folder, rank)["clean"] is False
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
            assert remembered(folder, rank)["clean"] is True
            group.restart(rank)
        assert group.until_serving(after=epoch) == epoch + 1
        for rank in (0, 1):
            until_charged(group, folder, rank, 2)  # a clean end is no kill
