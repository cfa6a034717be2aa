"""LeaderWorkerSet, where it is installed: its groups form, restart in place, and roll by whole groups."""

from __future__ import annotations

import json
import time

import pytest

from tests.cluster import history
from tests.cluster.conftest import Measured
from tests.cluster.kubectl import until
from tests.cluster.space import Group, Space, script

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("lws")]

SLOW = ["--token-seconds", "0.2"]
INDEX = "leaderworkerset.sigs.k8s.io/worker-index"


def of_lws(space: Space, replicas: int = 1) -> Group:
    """`replicas` groups of two in one LeaderWorkerSet; all its pods are the Group's."""
    change = [{"op": "replace", "path": "/spec/replicas", "value": replicas}]
    patch = {"target": {"kind": "LeaderWorkerSet"}, "patch": json.dumps(change)}
    group = space.group("lws", components=["lws/as-lws"], patches=[patch], engine=SLOW)
    group.size *= replicas
    return group


def leaders(group: Group) -> list[str]:
    return [p["metadata"]["name"] for p in group.found() if p["metadata"]["labels"].get(INDEX) == "0"]


def test_group_forms_and_restarts_in_place(space: Space, measured: Measured) -> None:
    """restartPolicy None: an engine that dies costs a restart in place, and no pod."""
    with space.watched("pods", "endpointslices") as seen, of_lws(space) as group:
        measured("LWS, 2 pods: applied to serving", group.serving())
        group.check()
        (leader,) = leaders(group)
        slices = seen["endpointslices"].events
        until("the Service has the leader", lambda: history.behind(slices, group.api))
        assert history.behind(slices, group.api) == {leader}
        pods = {p["metadata"]["uid"] for p in group.found()}
        before = group.status_of(leader)
        pid = before["members"][0]["engine_pids"][0]
        space.kubectl.python(leader, script("processes"), "kill", str(pid))

        def later() -> bool:
            now = group.status_of(leader)
            return bool(now["ready"]) and int(now["epoch"]) > int(before["epoch"])

        until("a later epoch serves", later, words=group.words)
        group.serving()
        assert {p["metadata"]["uid"] for p in group.found()} == pods
        assert history.restarts(seen["pods"].events) == {}


def test_rolling_update_goes_by_groups(space: Space, measured: Measured) -> None:
    """Two groups under streams: none is cut, and a group serves all the while."""
    with space.watched("pods") as seen, of_lws(space, 2) as group:
        group.serving()
        names = leaders(group)
        load = group.load(at_once=8, tokens=20, seconds=60, patience=30)
        began = time.monotonic()
        path = "/spec/leaderWorkerTemplate/workerTemplate/metadata/annotations"
        change = [{"op": "add", "path": path, "value": {"rolled": "yes"}}]
        space.kubectl("patch", "leaderworkerset", group.set_name, "--type=json", "-p", json.dumps(change))

        def rolled() -> bool:
            marks = [p["metadata"].get("annotations", {}).get("rolled") for p in group.found()]
            return marks == ["yes"] * group.size

        until("all pods are new", rolled, words=group.words)
        group.serving()
        measured("LWS: rolling update of 2 groups of 2", time.monotonic() - began)
        complaints = history.complaints(load.over())
        assert not complaints, complaints[:5]
        assert history.least_ready(seen["pods"].events, names) >= 1
