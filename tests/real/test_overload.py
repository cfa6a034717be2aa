"""A real engine on a machine with ten times too much to do: slow, and never restarted for it; a frozen rank is found.

LAUNCHER_OVERLOAD_SECONDS=900 ./run.sh slow -m "real and chaos" -s tests/real/test_overload.py
"""

from __future__ import annotations

import os
import signal
import statistics
import time

import pytest

from tests.load import busy
from tests.overload import FOUND_WITHIN, LOAD, SECONDS, found, requests, watch
from tests.pods import Cluster
from tests.real import recipes
from tests.real.install import NotInstallable
from tests.real.launched import LaunchedGroup, engine_arguments

#: vLLM ends itself when one step takes 300 s: here a step waits for its turn on a CPU at every layer (seen at load 80).
OWN_LIMITS = {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3600"}


@pytest.mark.real
@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + 3000)
@pytest.mark.parametrize("kind", ["vllm-mp", "sglang"])
def test_an_overloaded_engine_is_not_restarted(cluster: Cluster, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = kind.partition("-")[0]
    try:
        expected = recipes.expected_completion(name)  # its one process does not run beside the load
        group = LaunchedGroup(cluster, 2, engine_arguments(kind), {**recipes.environment(name), **OWN_LIMITS})
    except NotInstallable as reason:
        pytest.skip(f"{name} cannot be installed here: {reason}")
    group.start_all()
    # A start beside a load, and the compilers that the first request forks, are in test_under_load.py.
    group.until_serving()
    assert group.complete() == expected
    with busy(LOAD, apart=True):
        with requests(lambda: _ask(group, expected), callers=2) as asked:
            loads = watch(group.status, SECONDS, group.logs)
            asked.stop()
            victim = group.workers(1)[-1]
            epoch = int(group.until_told()["epoch"])
            os.kill(victim.pid, signal.SIGSTOP)
            took, why = found(group.status, epoch, time.monotonic())
        slow = sum(line.count("engine is slow") for line in group.logs(1_000_000).splitlines())
        with capsys.disabled():
            print(
                f"\n{kind}, {SECONDS:g} s at load {min(loads):.0f} to {max(loads):.0f} (mean "
                f"{statistics.mean(loads):.0f}): 0 restarts, {len(asked.took)} requests served, the slowest in "
                f"{max(asked.took, default=0):.1f} s, {len(asked.failed)} failed, told to be slow {slow} times; "
                f"frozen process found after {took:.1f} s: {why}"
            )
        assert asked.took and not asked.failed, asked.failed
        assert "has been stopped (state T)" in why and took < FOUND_WITHIN, (took, why)
    group.terminate_all()


def _ask(group: LaunchedGroup, expected: str) -> None:
    assert group.complete() == expected
