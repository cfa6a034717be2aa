"""Faults on real engines: vLLM over mp and over Ray, and SGLang, two pods each, one group for all faults of an engine.

After each fault the old epoch was dead before the new one began, the group serves again by itself, knows why, and its
completion is that of a single process; what was measured stands in a table at the end of the session. Two faults an
engine run by default; all of them with -m real (an hour for all engines on two cores).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Table
from tests.faults import ON_TWO, survives
from tests.pods import Cluster, why_not
from tests.real import recipes
from tests.real.install import NotInstallable
from tests.real.launched import LaunchedGroup, engine_arguments

pytestmark = [pytest.mark.real, pytest.mark.timeout(2400)]

#: kill -9 of an engine process is in test_engines.py.
BY_DEFAULT = {"kill -9 guard (container), rank 1", "SIGSTOP agent, rank 1"}
SECONDS = 600.0  #: to serve again: the fault's own time, the lease, and an engine's start on a noisy machine


@pytest.fixture(scope="module", params=["vllm-mp", "vllm-ray", "sglang"])
def group(request: pytest.FixtureRequest) -> Iterator[LaunchedGroup]:
    reason = why_not()
    if reason:
        pytest.skip(f"pods cannot be made here: {reason}")
    name = request.param.partition("-")[0]
    try:
        arguments = engine_arguments(request.param)
        env = recipes.environment(name)
        recipes.expected_completion(name)
    except NotInstallable as reason:
        pytest.skip(f"{name} cannot be installed here: {reason}")
    at = arguments.index("--")
    more = ("--restart-backoff", "1s", "--max-restarts", "100")
    with Cluster() as cluster:
        made = LaunchedGroup(cluster, 2, [*arguments[:at], *more, *arguments[at:]], env, name=request.param)
        made.start_all()
        made.until_serving()
        yield made
        assert set(made.terminate_all().values()) <= {0, -9}, made.logs(20)
        for pod in made.pods.values():
            assert not pod.processes()


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[] if name in BY_DEFAULT else [pytest.mark.chaos]) for name in ON_TWO]
)
def test_the_engine_survives(group: LaunchedGroup, fault: str, table: Table) -> None:
    survived = survives(group, group.name, fault, ON_TWO[fault], SECONDS)
    assert group.complete() == recipes.expected_completion(group.name.partition("-")[0])
    table(*survived.row)
