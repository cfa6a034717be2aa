"""Real engines, two pods each: whichever process of whichever rank is ended, that rank is named.

LAUNCHER_REAL_CRASHES=5 ./run.sh slow -m "real and chaos" -s tests/real/test_first_failure.py
"""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from typing import Any

import pytest

from tests.pods import Cluster, until, why_not
from tests.real import recipes
from tests.real.install import NotInstallable
from tests.real.launched import LaunchedGroup, engine_arguments

pytestmark = [pytest.mark.real, pytest.mark.chaos, pytest.mark.timeout(3000)]

CRASHES = int(os.environ.get("LAUNCHER_REAL_CRASHES", "2"))
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
#: Titles of the processes that serve; the root has its command line.
TITLES = ("VLLM::Worker", "VLLM::EngineCore", "sglang::scheduler")
SECONDS = 900.0


def _failure(group: LaunchedGroup, epoch: int) -> dict[str, Any] | None:
    """How an epoch ended, as soon as rank 0 tells."""
    return next((f for f in group.status().get("failures", ()) if f["epoch"] == epoch), None)


@pytest.mark.parametrize("kind", ["vllm-mp", "sglang"])
def test_the_rank_that_crashed_is_named(kind: str) -> None:
    reason = why_not()
    if reason:
        pytest.skip(f"pods cannot be made here: {reason}")
    name = kind.partition("-")[0]
    try:
        arguments, env = engine_arguments(kind), recipes.environment(name)
    except NotInstallable as reason:
        pytest.skip(f"{name} cannot be installed here: {reason}")
    at = arguments.index("--")
    more = ("--restart-backoff", "1s", "--max-restarts", "100")
    rng, told = random.Random(kind), []
    with Cluster() as cluster:
        group = LaunchedGroup(cluster, 2, [*arguments[:at], *more, *arguments[at:]], env, name=kind)
        group.start_all()
        epoch = 0
        for number in range(CRASHES):
            epoch = int(group.until_serving(epoch + 1, SECONDS)["epoch"])
            rank, how = rng.randrange(2), rng.choice(SIGNALS)
            processes = group.engine_processes(rank)
            serving = [p for p in processes if any(title in p.command for title in TITLES)]
            root = min(processes, key=lambda p: p.started)  # pids wrap
            victim = rng.choice([root, *serving])
            os.kill(victim.pid, how)
            failure = until(partial(_failure, group, epoch), SECONDS, "its end")
            assert failure is not None
            words = f"{number + 1}: {how.name} of {victim.command[:60]!r} of rank {rank}"
            told.append(f"{words}: told is {failure['rank']}: {failure['text']}; {failure['because_of_it']}")
            print(told[-1], flush=True)
            assert failure["rank"] == rank, "\n".join([*told, group.logs(80)])
            assert {end["rank"] for end in failure["ends"]} == {0, 1}, failure
        group.terminate_all()
