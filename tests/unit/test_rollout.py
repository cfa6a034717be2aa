"""k8s/rollout.sh against a small cluster that a stand-in for kubectl keeps: whole groups, n - 1 always there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.manifests import K8S, kubectl
from tests.unit.small_api_server import SmallApiServer, pod, stateful_set

FAKE = Path(__file__).with_name("fake_cluster.py")


class Cluster:
    """The cluster's file, and the script run against it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cluster.json"
        kubectl = folder / "bin" / "kubectl"
        kubectl.parent.mkdir()
        # -S -I: a start of the interpreter is most of what a call costs
        kubectl.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" "$@"\n')
        kubectl.chmod(0o755)
        self.environ = {**os.environ, "PATH": f"{kubectl.parent}:{os.environ['PATH']}", "FAKE_CLUSTER": str(self.path)}
        self.environ |= {"POLL": "0", "TIMEOUT": "20"}

    def write(self, **sets: dict[str, Any]) -> None:
        self.path.write_text(json.dumps({"sets": sets, "log": []}))

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found

    def rollout(self, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [str(K8S / "rollout.sh"), "llama", "-n", "inference"]
        environ = {**self.environ, **environ}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def one(name: str, revision: str = "r1", *, generation: int = 2, size: int = 2, **more: Any) -> dict[str, Any]:
    """A set whose pods are of `revision`; generation 2 is a template that nobody runs yet."""
    pod = {"revision": revision, "age": 9, "ready": True, "leaving": 0}
    pods = {f"{name}-{rank}": dict(pod) for rank in range(size)}
    base = {"replicas": size, "generation": generation, "observed": 1, "update": "r1", "pods": pods}
    return {**base, **more}


def revisions(cluster: Cluster) -> dict[str, set[str]]:
    return {name: {p["revision"] for p in s["pods"].values()} for name, s in cluster.read()["sets"].items()}


def test_groups_are_replaced_one_at_a_time_and_whole(cluster: Cluster) -> None:
    cluster.write(a=one("a"), b=one("b"), c=one("c"))
    done = cluster.rollout()
    assert done.returncode == 0, done.stderr
    assert revisions(cluster) == {"a": {"r2"}, "b": {"r2"}, "c": {"r2"}}
    log = cluster.read()["log"]
    assert [entry for entry in log if isinstance(entry, str)] == [f"delete inference-group={g}" for g in "abc"]
    assert min(len(entry) for entry in log if isinstance(entry, list)) == 2, "n - 1 groups serve all the while"


def test_again_changes_nothing(cluster: Cluster) -> None:
    cluster.write(a=one("a"))
    cluster.rollout()
    before = cluster.read()["log"].count("delete inference-group=a")
    assert "a: is new" in cluster.rollout().stdout
    assert cluster.read()["log"].count("delete inference-group=a") == before == 1


def test_group_that_sleeps_is_passed_over(cluster: Cluster) -> None:
    cluster.write(a=one("a"), b=one("b", size=0))
    done = cluster.rollout()
    assert done.returncode == 0
    assert "b: no pods" in done.stdout
    assert revisions(cluster)["a"] == {"r2"}


def test_mixed_group_goes_first_and_whole(cluster: Cluster) -> None:
    mixed = one("b")
    mixed["pods"]["b-1"]["revision"] = "r2"
    cluster.write(a=one("a"), b=mixed)
    done = cluster.rollout()
    assert done.returncode == 0, done.stderr
    deleted = [entry for entry in cluster.read()["log"] if isinstance(entry, str)]
    assert deleted == ["delete inference-group=b", "delete inference-group=a"]
    assert revisions(cluster) == {"a": {"r2"}, "b": {"r2"}}


def test_stops_where_another_group_does_not_serve(cluster: Cluster) -> None:
    cluster.write(a=one("a"), b=one("b", "r2", broken=True))
    done = cluster.rollout()
    assert done.returncode == 1
    assert "b does not serve" in done.stderr
    assert revisions(cluster)["a"] == {"r1"}


def test_gives_up_on_a_group_that_never_serves(cluster: Cluster) -> None:
    cluster.write(a=one("a", broken=True), b=one("b"))
    done = cluster.rollout(TIMEOUT="1")
    assert done.returncode == 1
    assert "a does not serve with its new pods" in done.stderr
    assert revisions(cluster)["b"] == {"r1"}


@pytest.mark.parametrize("call", ["get pods", "get statefulset", "delete pods"])
def test_says_that_kubectl_fails_rather_than_that_all_is_new(cluster: Cluster, call: str) -> None:
    cluster.write(a=one("a"), b=one("b"))
    cluster.path.write_text(json.dumps({**cluster.read(), "failing": {call: 10**6}}))
    done = cluster.rollout()
    assert done.returncode == 69
    assert "is new" not in done.stdout
    assert f"stopped: kubectl {call} failed" in done.stderr
    assert "Forbidden" in done.stderr
    assert revisions(cluster) == {"a": {"r1"}, "b": {"r1"}}


def test_answer_that_fails_once_is_asked_for_again(cluster: Cluster) -> None:
    cluster.write(a=one("a"), b=one("b"))
    cluster.path.write_text(json.dumps({**cluster.read(), "failing": {"get pods": 2, "delete pods": 1}}))
    done = cluster.rollout()
    assert done.returncode == 0, done.stderr
    assert revisions(cluster) == {"a": {"r2"}, "b": {"r2"}}


def test_group_that_falls_asleep_in_its_turn_is_done(cluster: Cluster) -> None:
    """KEDA may take a group to 0 while its pods are replaced: nobody waits for it."""
    cluster.write(a=one("a", falls_asleep=True), b=one("b"))
    done = cluster.rollout()
    assert done.returncode == 0, done.stderr
    assert "a: put to sleep meanwhile" in done.stdout
    assert revisions(cluster) == {"a": set(), "b": {"r2"}}


def test_dry_run_touches_nothing(cluster: Cluster) -> None:
    cluster.write(a=one("a"), b=one("b"))
    done = cluster.rollout(DRY_RUN="1")
    assert "a: would be replaced" in done.stdout
    assert revisions(cluster) == {"a": {"r1"}, "b": {"r1"}}


def test_nothing_of_that_name_is_an_error(cluster: Cluster) -> None:
    cluster.write()
    assert cluster.rollout().returncode == 66


def test_the_real_kubectl_understands_what_it_is_asked(tmp_path: Path) -> None:
    """The same script with kubectl itself, over HTTP: `old` is replaced whole, `new` and what sleeps are left alone."""
    sets = [
        stateful_set("old", "llama", "r2"),
        stateful_set("new", "llama", "r2"),
        stateful_set("no", "llama", "r2", 0),
    ]
    pods = [pod(name, rank, revision) for name, revision in (("old", "r1"), ("new", "r2")) for rank in (0, 1)]
    other = [stateful_set("other", "qwen", "r2"), pod("other", 0, "r1"), pod("other", 1, "r1")]
    path = f"{Path(kubectl()).parent}:{os.environ['PATH']}"
    environ = {
        **os.environ,
        "PATH": path,
        "KUBECONFIG": os.devnull,
        "HOME": str(tmp_path),
        "POLL": "0",
        "TIMEOUT": "60",
    }
    with SmallApiServer([*sets, other[0]], [*pods, *other[1:]]) as api:
        command = [str(K8S / "rollout.sh"), "llama", "-n", "inference", "--server", api.url]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(api.deleted) == ["old-0", "old-1"]
    said = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    assert "new: is new" in said
    assert "no: no pods; the next ones are new anyway" in said
    assert said[-2:] == ["old: serves", "done"]
