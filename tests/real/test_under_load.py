"""Real engines on a machine that is far too busy: slow, and never ended for it.

LAUNCHER_TEST_LOAD says how many busy processes run beside (default: 30 for helpers, 16 for the compiler).

./run.sh slow -m "real and chaos" -s tests/real/test_under_load.py
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.load import busy
from tests.pods import Cluster
from tests.real import recipes
from tests.real.forking_helpers.sitecustomize import DELAYS, WAYS
from tests.real.install import NotInstallable
from tests.real.launched import LaunchedGroup, engine_arguments

pytestmark = [pytest.mark.real, pytest.mark.chaos, pytest.mark.timeout(2400)]

HELPERS = Path(__file__).parent / "forking_helpers"
ROUNDS = 5


def load(default: int) -> int:
    return int(os.environ.get("LAUNCHER_TEST_LOAD", default))


def _group(cluster: Cluster, kind: str, env: dict[str, str], without: Sequence[str] = ()) -> LaunchedGroup:
    name = kind.partition("-")[0]
    try:
        recipes.expected_completion(name)  # its one process does not run beside the load
        arguments = [a for a in engine_arguments(kind) if a not in without]
        own = {**recipes.environment(name), **env}
    except NotInstallable as reason:
        pytest.skip(f"{name} cannot be installed here: {reason}")
    at = arguments.index("--")
    return LaunchedGroup(cluster, 2, [*arguments[:at], "--health-failures", "20", *arguments[at:]], own)


def check_calm(group: LaunchedGroup) -> None:
    """One epoch, and nothing that looked like a failure."""
    status = group.until_told()
    assert status.get("epoch") == 1 and not status.get("first_failure"), group.logs()


@pytest.mark.parametrize("kind", ["vllm-mp", "sglang"])
def test_helpers_of_real_workers_end_and_the_group_serves_on(cluster: Cluster, kind: str) -> None:
    """Workers fork helpers that take up to 5 s to exec and end in every way, while requests run."""
    log = "/tmp/helpers"
    env = {"PYTHONPATH": str(HELPERS), "FORKING_HELPERS_LOG": log, "FORKING_HELPERS_ROUNDS": str(ROUNDS)}
    group = _group(cluster, kind, env)
    expected = recipes.expected_completion(kind.partition("-")[0])
    began = time.monotonic()
    group.start_all()
    group.until_serving()
    ready = time.monotonic() - began

    def rounds() -> Counter[str]:
        said = [pod.exec(["sh", "-c", f"cat {log} 2>/dev/null || true"]).stdout for pod in group.pods.values()]
        return Counter(line.split()[0] for text in said for line in text.splitlines())

    with busy(load(30)):
        for pod in group.pods.values():
            pod.exec(["touch", f"{log}.begin"])
        completions = 0
        until_then = time.monotonic() + recipes.READY_SECONDS
        while len(rounds()) < 2 or min(rounds().values()) < len(DELAYS) * ROUNDS:
            assert time.monotonic() < until_then, f"{rounds()}\n{group.logs()}"
            assert group.complete() == expected
            completions += 1
            check_calm(group)
            time.sleep(1)
        check_calm(group)
    forked = sum(rounds().values()) * len(WAYS)
    print(f"\n{kind}: ready after {ready:.0f} s, {completions} completions beside {forked} helpers, no restart")
    said = re.findall("an engine process exited with 0 and its parent runs on.*", group.logs(100_000))
    print(f"{kind}: {len(said)} exits with 0 were told and passed over")
    assert group.terminate_all() == {0: 0, 1: 0}, group.logs()


def test_the_first_completion_with_compilation_on(cluster: Cluster) -> None:
    """TorchInductor compiles in the workers, with an empty cache: compilers are forked from them."""
    group = _group(cluster, "vllm-mp", {}, without=["--enforce-eager"])
    with busy(load(16)):
        began = time.monotonic()
        group.start_all()
        group.until_serving()
        ready = time.monotonic()
        text = group.complete()
        done = time.monotonic()
        check_calm(group)
    print(f"\nvllm-mp, compiled: ready after {ready - began:.0f} s, first completion {done - ready:.1f} s: {text!r}")
    assert text
    compiled = group.pods[0].exec(["find", "/tmp", "-name", "*.so"]).stdout.split()
    assert compiled, group.logs()
    print(f"vllm-mp, compiled: {len(compiled)} kernels made by g++ on rank 0")
    assert group.terminate_all() == {0: 0, 1: 0}, group.logs()
