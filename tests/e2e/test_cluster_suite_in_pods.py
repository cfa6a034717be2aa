"""Scenarios of tests/cluster on their stand-in: what `./run.sh cluster` would do to a cluster, with real launchers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.manifests import ROOT
from tests.pods import why_not

pytestmark = [pytest.mark.pods, pytest.mark.timeout(1200)]

SCENARIOS = {
    "forms again": "test_whole_group_is_deleted",
    "restarts in place": "test_kill_9 and engine-1",
    "scales under streams": "test_scaled_to_zero_and_back",
    "waits when mixed": "test_rolling_update_by_mistake",
    "goes on after giving up": "test_group_that_gave_up",
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_scenario_passes_on_the_stand_in(scenario: str) -> None:
    if reason := why_not():
        pytest.skip(f"pods cannot be made here: {reason}")
    command = [sys.executable, "-m", "tests.cluster.stand_in", "-k", scenario, "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout, done.stdout
