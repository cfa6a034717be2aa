"""Sixteen ranks on a machine with ten times too much to do: slow, and never restarted for it; a frozen rank is found.

LAUNCHER_OVERLOAD_SECONDS=1800 ./run.sh slow -m chaos -s tests/e2e/test_overload.py
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from tests.e2e.group import running
from tests.load import busy
from tests.overload import FOUND_WITHIN, LOAD, SECONDS, found, requests, watch

SIZE = 16
READY = 600.0  #: seconds for sixteen launchers to serve beside that load


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + 1500)
def test_an_overloaded_group_is_not_restarted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with busy(LOAD), running(tmp_path, SIZE, "--grace", "60") as group:
        group.until("serving", group.serves, READY)

        def ask() -> None:
            group.complete("on a busy machine", 16, timeout=600)

        with requests(ask, callers=4) as asked:
            loads = watch(lambda: group.status(0), SECONDS, group.words)
            asked.stop()
            victim = random.SystemRandom().randrange(1, SIZE)
            os.kill(group.worker(victim), signal.SIGSTOP)
            took, why = found(lambda: group.status(0), group.epoch(), time.monotonic())
        with capsys.disabled():
            print(
                f"\n{SIZE} pods, {SECONDS:g} s at load {min(loads):.0f} to {max(loads):.0f} (mean "
                f"{statistics.mean(loads):.0f}): 0 restarts, {len(asked.took)} requests served, the slowest in "
                f"{max(asked.took, default=0):.1f} s, {len(asked.failed)} failed; frozen rank {victim} found after "
                f"{took:.1f} s: {why}"
            )
        assert asked.took and not asked.failed, asked.failed
        assert "has been stopped (state T)" in why and took < FOUND_WITHIN, (took, why)
        group.until_serving(after=1, patience=READY)
