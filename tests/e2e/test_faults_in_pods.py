"""Real faults on real pods: four launchers as PID 1, each in its own network namespace, names from a real DNS server.

Each scenario breaks something, and asserts that no process of the old epoch lived beside one of a new epoch, that the
group serves again by itself, and that the cause is kept. What was measured stands in a table at the end of the session.
What is expected when a part is frozen (SIGSTOP) stands beside its fault.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.conftest import Table
from tests.faults import ON_FOUR, cut, kill_engine, survives
from tests.pods import Cluster, PodError, until
from tests.real.launched import LaunchedGroup

pytestmark = [pytest.mark.pods, pytest.mark.timeout(400)]

SIZE = 4
ARGUMENTS = ("--engine", "reference", "--port", "8000", "--restart-backoff", "2s")
ENV = {"PYTHONDONTWRITEBYTECODE": ""}
SECONDS = 120.0  #: for the group to serve again: the lease, the back-off, and a noisy machine


@pytest.fixture
def group(cluster: Cluster) -> Iterator[LaunchedGroup]:
    made = LaunchedGroup(cluster, SIZE, [*ARGUMENTS, "--"], ENV)
    made.start_all()
    made.until_serving(seconds=SECONDS)
    yield made
    codes = made.terminate_all()
    assert set(codes.values()) <= {0, -9}, (codes, made.logs(20))
    for pod in made.pods.values():
        assert not pod.processes()


@pytest.mark.parametrize("name", ON_FOUR)
def test_the_group_survives(group: LaunchedGroup, name: str, table: Table) -> None:
    table(*survives(group, "reference", name, ON_FOUR[name], SECONDS).row)


def test_an_outage_shorter_than_half_a_lease_ends_nothing(group: LaunchedGroup) -> None:
    before = group.status()
    cut(3, "link")(group, 2)
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 12, 30)
    after = group.status()
    assert (after["epoch"], after["ready"]) == (before["epoch"], True), group.logs()
    assert after["first_failure"] is None


def test_a_rank_that_runs_out_of_memory_says_so(cluster: Cluster) -> None:
    """The kernel kills in the pod's memory cgroup; that is told, not "signal 9", and the next epoch serves."""
    hog = ("--memory-bytes", str(400 << 20), "--fault-ranks", "2", "--fault-epochs", "1")
    made = LaunchedGroup(cluster, SIZE, [*ARGUMENTS, "--", *hog], ENV)
    try:
        made.pod(2, memory_limit=200 << 20)
    except PodError as reason:
        pytest.skip(f"no memory limit can be set here: {reason}")
    made.start_all()
    status = made.until_serving(2, SECONDS)
    failure = status["first_failure"]
    assert (failure["rank"], failure["cause"]) == (2, "out_of_memory"), failure
    assert "out of memory" in failure["text"]
    assert set(made.terminate_all().values()) == {0}, made.logs()


def test_a_full_disk_and_a_termination_log_that_cannot_be_written(cluster: Cluster, table: Table) -> None:
    """What the launcher keeps on disk is a comfort: without it the group runs, survives, and says what is missing."""
    arguments = [*ARGUMENTS, "--state-dir", "/tmp/state", "--termination-log", "/proc/version", "--"]
    made = LaunchedGroup(cluster, SIZE, arguments, ENV)
    for rank in range(SIZE):
        pod = made.pod(rank)
        pod.exec(["mount", "-o", "remount,size=64k", "/tmp"])
        pod.exec(["sh", "-c", "dd if=/dev/zero of=/tmp/fill bs=1k count=128 2>/dev/null; mkdir /tmp/state; df /tmp"])
        made.start(rank)
    made.until_serving(1, SECONDS)
    table(*survives(made, "reference", "kill -9 engine on a full disk, rank 2", (kill_engine, 2), SECONDS).row)
    for process in made.processes.values():
        assert "--state-dir cannot be written" in process.output()
    assert set(made.terminate_all().values()) == {0}, made.logs()
    assert "a bug of the launcher" not in made.logs(1000)
