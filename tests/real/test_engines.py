"""The main job on real engines: the launcher as PID 1 of two pods, names from real DNS, vLLM and SGLang on CPU.

Each engine is started once; both start orders, the completion, a kill and the way back are looked at on that group.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.pods import Cluster, until
from tests.real import recipes
from tests.real.install import NotInstallable
from tests.real.launched import LaunchedGroup, engine_arguments

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

LATE = 20.0  #: seconds by which one side is late


def _group(cluster: Cluster, kind: str, *more: str) -> LaunchedGroup:
    name = kind.partition("-")[0]
    try:
        arguments = engine_arguments(kind)
        env = recipes.environment(name)
    except NotInstallable as reason:
        pytest.skip(f"{name} cannot be installed here: {reason}")
    at = arguments.index("--")
    return LaunchedGroup(cluster, 2, [*arguments[:at], *more, *arguments[at:]], env)


@pytest.mark.parametrize("kind", ["vllm-mp", "vllm-ray", "sglang"])
def test_two_pods_serve_what_one_process_would(cluster: Cluster, kind: str) -> None:
    """The worker starts 20 s before the leader's DNS record exists; then a kill -9, and the group comes back."""
    group = _group(cluster, kind)
    expected = recipes.expected_completion(kind.partition("-")[0])
    worker, leader = group.pod(1), group.pod(0, resolvable=False)
    group.start(1)
    began = time.monotonic()
    until(lambda: "does not resolve yet" in group.processes[1].output(), 120, "the worker to wait for the name")
    group.start(0)
    until(lambda: time.monotonic() - began > LATE, LATE + 60, "the record to be late")
    assert group.processes[1].returncode is None, group.logs()
    assert not group.engine_processes(1), "an engine process was started before the group was whole"
    cluster.dns.set(leader.fqdn, leader.ip)
    status = group.until_serving()
    print(f"\n{kind}: serving; phases {[(t['phase'], t['seconds']) for t in status['timeline']]}")
    assert group.models() == [recipes.MODEL_NAME]
    assert group.complete() == expected
    assert {p.state for p in worker.processes()} <= set("RSDI"), "a zombie, or a stopped process"

    _kill_and_come_back(group, kind, expected)

    codes = group.terminate_all()
    assert codes == {0: 0, 1: 0}, group.logs()
    for pod in group.pods.values():
        assert not pod.processes()


def _kill_and_come_back(group: LaunchedGroup, kind: str, expected: str) -> None:
    """kill -9 of an engine process of rank 1: everything of the epoch is dead before the next one starts."""
    old = {(p.pid, p.started) for rank in (0, 1) for p in group.engine_processes(rank)}
    victim = max(group.workers(1), key=lambda p: p.started)
    killed = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)

    def none_left() -> bool:
        return not any((p.pid, p.started) in old for rank in (0, 1) for p in group.engine_processes(rank))

    until(none_left, 120, "the old epoch to be gone")
    gone = time.monotonic() - killed
    status = group.until_serving(epoch=2)
    print(f"{kind}: kill -9 -> all dead {gone:.2f} s, serving again {time.monotonic() - killed:.1f} s")
    # Of a worker over Ray vLLM itself tells first, on rank 0.
    assert status["first_failure"]["rank"] in ((0, 1) if kind == "vllm-ray" else (1,)), status["first_failure"]
    assert group.complete() == expected


def test_the_leader_may_start_long_before_its_workers(cluster: Cluster) -> None:
    group = _group(cluster, "vllm-mp")
    group.start(0)
    began = time.monotonic()
    until(lambda: group.status().get("phase") == "gathering", 120, "the leader to wait")
    until(lambda: time.monotonic() - began > LATE, LATE + 60, "the worker to be late")
    assert not group.engine_processes(0), "an engine process was started before the group was whole"
    group.start(1)
    group.until_serving()
    assert group.complete() == recipes.expected_completion("vllm")
    assert group.terminate_all() == {0: 0, 1: 0}, group.logs()


def test_one_pod_alone_needs_no_network(cluster: Cluster) -> None:
    arguments = engine_arguments("vllm-mp")
    at = arguments.index("--tp")
    arguments[at + 1] = "1"
    group = LaunchedGroup(cluster, 1, arguments, recipes.environment("vllm"))
    group.start(0)
    group.until_serving()
    assert group.complete() == recipes.expected_completion("vllm")
    listening = group.pods[0].exec(["cat", "/proc/net/tcp"]).stdout
    assert f":{9470:04X} " not in listening, "the group port is open although there is no group"
    assert group.terminate_all() == {0: 0}, group.logs()
