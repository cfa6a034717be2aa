"""`launcher doctor` as `kubectl exec` runs it: beside a launcher that is PID 1 of its pod, without any option."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.pods import Cluster, Pod, until

pytestmark = [pytest.mark.pods, pytest.mark.timeout(300)]

LAUNCHER = Path(sys.executable).with_name("launcher")
ARGS = ("--engine", "reference", "--size", "2", "--service", "engine", "--grace", "20", "--drain-settle", "0")


def environment(pod: Pod) -> dict[str, str]:
    who = {"POD_NAME": pod.name, "POD_NAMESPACE": "default", "POD_IP": pod.ip}
    return {**who, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def test_beside_a_launcher_that_runs(cluster: Cluster) -> None:
    pods = [cluster.pod(f"engine-{i}") for i in range(2)]
    started = [pod.start([LAUNCHER, *ARGS], environment(pod)) for pod in pods]
    ready = "http://localhost:9471/readyz"
    until(lambda: all(pod.http(ready).status == 200 for pod in pods), 90, "the group serves")

    alone = pods[1].exec([LAUNCHER, "doctor"], environment(pods[1]), timeout=60)
    assert "rank 1 of 2, group default/engine-0" in alone.stdout
    assert "PID 1 is the launcher" in alone.stdout and "a launcher runs in this pod" in alone.stdout
    assert "its group port 9470 answers" in alone.stdout
    assert "GLOO_SOCKET_IFNAME" in alone.stdout and "eth0" in alone.stdout

    group = pods[1].exec([LAUNCHER, "doctor", "--group"], environment(pods[1]), timeout=60)
    assert "2 pods: what the running launchers found when they started" in group.stdout
    assert all(pod.ip in group.stdout for pod in pods) and "all pods are alike" in group.stdout
    refused = pods[0].exec([LAUNCHER, "doctor", "--collective"], environment(pods[0]), timeout=60, check=False)
    assert refused.returncode == 78 and "its engine has the devices" in refused.stdout

    for process in started:
        process.signal(signal.SIGTERM)
    assert [process.wait(60) for process in started] == [0, 0], [p.output() for p in started]
