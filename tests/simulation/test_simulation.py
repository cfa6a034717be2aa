"""Random schedules: the five promises hold in all of them. LAUNCHER_SIM_SCHEDULES says how many (300)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.schedule import run, story

SCHEDULES = int(os.environ.get("LAUNCHER_SIM_SCHEDULES", "300"))
FIRST = int(os.environ.get("LAUNCHER_SIM_FIRST", "0"))
CHUNK = 50


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(FIRST, FIRST + SCHEDULES, CHUNK))
def test_the_promises_hold(first: int) -> None:
    for seed in range(first, min(first + CHUNK, FIRST + SCHEDULES)):
        outcome = run(seed)
        if outcome.broken:
            pytest.fail(
                f"seed {seed}: {outcome.broken}\n\n{story(outcome, 40)}\n\nreplay: python -m tests.simulation {seed}",
                pytrace=False,
            )


def test_a_seed_is_a_history() -> None:
    """The same seed tells the same story in another process, whatever it hashes texts to."""
    here = story(run(4711))
    for hashes in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "4711"],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert there.startswith(here)
