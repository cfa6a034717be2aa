"""What operators do to running groups: scale, roll out, drain. No stream may be cut."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.reference.tokens import expected_text
from tests.cluster import history
from tests.cluster.conftest import Measured
from tests.cluster.kubectl import PATIENCE, until
from tests.cluster.space import INSTANCE, Group, Space
from tests.manifests import K8S, build, of_kind

pytestmark = pytest.mark.cluster

#: 40 tokens of 0.2 s: streams that run while pods are told to go
SLOW = ["--token-seconds", "0.2"]


def whole(found: Sequence[history.Stream], tokens: int, size: int = 2) -> None:
    assert found, "there was no stream"
    complaints = history.complaints(found, expected_text("hello", tokens, size=size))
    assert not complaints, f"{len(complaints)} of {len(found)} streams: " + "; ".join(complaints[:5])


def test_scaled_to_zero_and_back_under_streams(space: Space, measured: Measured) -> None:
    with space.watched("pods") as seen, space.group("scale", engine=SLOW) as group:
        group.serving()
        load = group.load(at_once=20, tokens=40)
        time.sleep(2.0)
        began = time.monotonic()
        space.kubectl("scale", "statefulset", group.set_name, "--replicas=0")
        whole(load.over(), 40)
        until("no pod is left", lambda: not group.found(), words=group.words)
        measured("scaled to 0 under 20 streams of 8 s: last pod gone, no stream cut", time.monotonic() - began)
        space.kubectl("scale", "statefulset", group.set_name, "--replicas=2")
        measured("scaled to 2: serving again", group.serving())
        group.check()
        assert history.restarts(seen["pods"].events) == {}


@contextmanager
def several(space: Space, name: str, count: int) -> Iterator[tuple[list[Group], list[Group]]]:
    """Groups behind one Service, by k8s/groups.sh; (the groups, what they share with them as one)."""
    space.group(name, engine=SLOW)  # writes the folder of one group
    out = space.folder / f"{name}-groups"
    script = [str(K8S / "groups.sh"), str(space.folder / name), str(count), str(out)]
    subprocess.run(script, check=True, capture_output=True)
    all_of_it = Group(space, name, size=2 * count, objects=build(out))
    services = of_kind(all_of_it.objects, "Service")
    singles = [Group(space, name, objects=[*services, pods.owner]) for pods in all_of_it.sets]
    with all_of_it:
        yield singles, [all_of_it]


def test_rollout_replaces_one_group_at_a_time(space: Space, measured: Measured) -> None:
    """k8s/rollout.sh over three groups under streams: no stream is cut, n - 1 groups serve all the while."""
    with space.watched("pods", "statefulsets") as seen, several(space, "roll", 3) as (singles, (together,)):
        until("all groups serve", together.serves, words=together.words)
        load = together.load(at_once=12, tokens=20, seconds=60, patience=30)
        for group in singles:
            change = '{"spec":{"template":{"metadata":{"annotations":{"rolled":"yes"}}}}}'
            space.kubectl("patch", "statefulset", group.set_name, "--type=merge", "-p", change)
        began = time.monotonic()
        done = rollout("roll", space)
        assert done.returncode == 0, done.stdout + done.stderr
        measured("rollout.sh over 3 groups of 2", time.monotonic() - began)
        whole(load.over(), 20)
        leaders = [f"{g.set_name}-0" for g in singles]
        fewest = history.least_ready(seen["pods"].events, leaders)
        measured("rollout.sh: fewest leaders ready at any time", fewest, "2")
        assert fewest >= 2
        annotations = [p["metadata"].get("annotations", {}).get("rolled") for p in together.found()]
        assert annotations == ["yes"] * 6


def rollout(name: str, space: Space) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{Path(space.kubectl.program).parent}:{os.environ['PATH']}", "TIMEOUT": "300"}
    command = [str(K8S / "rollout.sh"), name, "-n", space.name]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=1200)


def test_rolling_update_by_mistake(space: Space) -> None:
    """Pod by pod, another argument: the mixed group waits, says so and answers nobody, until all its pods are new."""
    with space.group("mistake") as group:
        group.serving()
        engine = {"name": "engine", "args": ["--engine", "reference", "--", "--max-model-len", "4096"]}
        template = {"spec": {"containers": [engine]}}
        change = json.dumps({"spec": {"updateStrategy": {"type": "RollingUpdate"}, "template": template}})
        space.kubectl("patch", "statefulset", group.set_name, "--type=strategic", "-p", change)
        status = until("the group says that its pods differ", lambda: mismatched(group), words=group.words)
        assert "engine.args.max-model-len 4096" in str(status["waiting_for"]), status
        assert not any(map(history.ready, group.found()))
        space.kubectl("delete", "pod", "--wait=false", *group.members)
        until("the group serves with the new argument", group.serves, words=group.words)
        group.check()


def mismatched(group: Group) -> dict[str, object]:
    statuses = (group.status(rank) for rank in (0, 1))
    return next((s for s in statuses if s["phase"] == "mismatched"), {})


def test_packed_groups_serve_and_leave_one_by_one(space: Space, measured: Measured) -> None:
    """Two groups in one set: workers are never ready, so the Service has the two leaders; scaled down by one group."""
    four = {"target": {"kind": "StatefulSet"}, "patch": '[{"op": "replace", "path": "/spec/replicas", "value": 4}]'}
    group = space.group("packed", components=["components/packed"], patches=[four], engine=SLOW)
    with space.watched() as seen, group:
        leaders = {f"{group.set_name}-0", f"{group.set_name}-2"}
        until("both leaders serve", lambda: ready(group) == leaders, words=group.words)
        group.check()
        load = group.load(at_once=12, tokens=40)
        time.sleep(2.0)
        space.kubectl("scale", "statefulset", group.set_name, "--replicas=2")
        whole(load.over(), 40)
        until("the second group is gone", lambda: len(group.found()) == 2)
        group.check()
        assert history.behind(seen["endpointslices"].events, group.api) == leaders
        assert ready(group) == {f"{group.set_name}-0"}


def ready(group: Group) -> set[str]:
    return {p["metadata"]["name"] for p in group.found() if history.ready(p)}


def test_drain_takes_one_group_at_a_time(space: Space, measured: Measured) -> None:
    """A node with one pod of each of two groups: the budget lets the second go once the first serves elsewhere."""
    nodes = space.nodes()
    if len(nodes) < 2:
        pytest.skip(f"a drain needs two nodes that take pods; this cluster has {len(nodes)}")
    if space.kubectl.attempt("auth", "can-i", "patch", "nodes").stdout.strip() != "yes":
        pytest.skip("no right to patch nodes, so none can be cordoned")
    node = nodes[0]
    with space.watched("pods") as seen, several(space, "drain", 2) as (singles, (together,)):
        until("both groups serve", together.serves, words=together.words)
        moved_to(node, singles, space)
        until("both groups serve with a pod on the node", together.serves, words=together.words)
        began = time.time()
        try:
            done = space.kubectl.attempt(
                "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=600s",
                f"--pod-selector={INSTANCE}=drain", timeout=700,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            measured(f"kubectl drain of a node with pods of 2 groups ({len(nodes)} nodes)", time.time() - began)
            until("both groups serve elsewhere", together.serves, PATIENCE, together.words)
        finally:
            space.kubectl("uncordon", node)
        after = [e for e in seen["pods"].events if e.at >= began - 1]
        fewest = history.least_ready(after, [f"{g.set_name}-0" for g in singles])
        measured("drain: fewest leaders ready at any time", fewest, "1")
        assert fewest >= 1, "both groups were down at once"


def moved_to(node: str, singles: Sequence[Group], space: Space) -> None:
    """Make each group's worker anew, with a liking for the node: a requirement would keep it there in the drain."""
    there = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    likes = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": there}]}
    change = {"spec": {"template": {"spec": {"affinity": {"nodeAffinity": likes}}}}}
    for group in singles:
        space.kubectl("patch", "statefulset", group.set_name, "--type=strategic", "-p", json.dumps(change))
        space.kubectl("delete", "pod", group.member(1))
        until(f"{group.set_name} serves", group_serves(group), words=group.words)
        (pod,) = [p for p in group.found() if p["metadata"]["name"] == group.member(1)]
        if pod["spec"].get("nodeName") != node:
            pytest.skip(f"the scheduler did not place {group.member(1)} on {node}: no room there")


def group_serves(group: Group) -> Callable[[], bool]:
    """Of one of several groups behind one Service."""
    names = set(group.members)

    def serves() -> bool:
        pods = [p for p in group.found() if p["metadata"]["name"] in names]
        return len(pods) == len(names) and all(map(history.ready, pods))

    return serves
