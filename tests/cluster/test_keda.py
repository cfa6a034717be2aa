"""KEDA, where it is installed, with a metric source that the suite brings: whole groups only, from zero and back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster import history
from tests.cluster.conftest import Measured, needs
from tests.cluster.kubectl import Kubectl, Recorder, until
from tests.cluster.space import Group, Space
from tests.manifests import K8S, build, of_kind

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("keda")]

#: seconds without load until KEDA scales to zero, instead of the 15 minutes of k8s/
COOLDOWN = 30
SIZE = 2

#: Says what the metric is from now on: a number, `nothing` or `down`. Returns when that was.
Metric = Callable[[str], float]


@pytest.fixture
def metric(space: Space) -> Iterator[Metric]:
    space.run("prometheus", "prometheus", "serve", port=9090)

    def change(value: str) -> float:
        space.kubectl("exec", "prometheus", "--", "python3", "/scripts/prometheus.py", "set", value)
        return time.time()

    change("0")
    yield change


def asks_ours(group: Group) -> Group:
    """Its ScaledObjects ask the suite's source, and wait less long."""
    for scaled in of_kind(group.objects, "ScaledObject"):
        spec: dict[str, Any] = scaled["spec"]
        spec["cooldownPeriod"] = COOLDOWN
        behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
        if behavior:
            behavior["scaleDown"]["stabilizationWindowSeconds"] = COOLDOWN
        for trigger in spec["triggers"]:
            server = f"http://prometheus.{group.space.name}:9090"
            trigger["metadata"] |= {"serverAddress": server, "query": 'sum(gateway_requests_in_flight{model="ours"})'}
    return group


def two_sets(space: Space) -> Group:
    """Two groups, each a set with a ScaledObject: the second wakes at more than 100."""
    space.group("keda")  # writes the folder of one group
    out = space.folder / "keda-groups"
    script = [str(K8S / "groups.sh"), str(space.folder / "keda"), "2", str(out), "100", "keda"]
    subprocess.run(script, check=True, capture_output=True)
    return asks_ours(Group(space, "keda", size=SIZE, objects=build(out)))


def one_packed_set(space: Space) -> Group:
    return asks_ours(space.group("keda", components=["components/packed", "components/keda-packed"]))


def total(watch: Recorder) -> int:
    numbers = history.wanted(watch.events)
    return numbers[-1][1] if numbers else 0


@pytest.mark.parametrize("form", [two_sets, one_packed_set], ids=["a set a group", "packed"])
def test_zero_to_two_groups_and_back(
    form: Callable[[Space], Group], space: Space, metric: Metric, measured: Measured
) -> None:
    """0, S, 2S, S, 0, and never another number at any watch event."""
    with space.watched("pods", "statefulsets") as seen, form(space) as group:
        sets, pods = seen["statefulsets"], seen["pods"]
        until("KEDA has the sets at 0", lambda: sets.events and total(sets) == 0)
        time.sleep(10)
        asked = metric("1")
        leader = f"{group.sets[0].name}-0"
        awake = lambda: any(t.ready for t in history.readiness(pods.events, leader))  # noqa: E731
        until("the first group serves", awake, words=lambda: scaled_objects(space))
        timeline = group.status_of(leader)["timeline"]
        woke = history.wake_up(asked, sets.events, pods.events, leader, timeline)
        measured(f"KEDA ({group.sets[0].name}): first request to serving", woke.total)
        for name in ("keda", "scheduling", "launcher", "engine", "probe"):
            measured(f"  of that: {name}", float(getattr(woke, name)))
        assert total(sets) == SIZE
        for value, wanted in (("150", 2 * SIZE), ("50", SIZE), ("0", 0)):
            asked = metric(value)
            until(
                f"load {value} gives {wanted} pods",
                lambda n=wanted: total(sets) == n,  # type: ignore[misc]
                words=lambda: scaled_objects(space),
            )
            measured(f"  load {value}: {wanted} pods wanted after", time.time() - asked)
        assert not history.off_a_multiple(sets.events, SIZE)
        assert [number for _, number in history.wanted(sets.events)] == [0, SIZE, 2 * SIZE, SIZE, 0]


def test_source_that_is_down_changes_nothing(space: Space, metric: Metric, measured: Measured) -> None:
    """A group that serves goes on. Back with load 0 after longer than the cooldown: it is put to sleep at once."""
    group = asks_ours(space.group("keda", components=["components/keda"]))
    with space.watched("pods", "statefulsets") as seen, group:
        metric("1")
        until("the group serves", group.serves, words=lambda: scaled_objects(space))
        metric("down")
        time.sleep(2 * COOLDOWN)
        assert total(seen["statefulsets"]) == SIZE and group.serves()
        back = metric("0")
        until("the group is put to sleep", lambda: total(seen["statefulsets"]) == 0)
        measured("KEDA: to 0 after an outage that ended without load", time.time() - back)
        assert not history.off_a_multiple(seen["statefulsets"].events, SIZE)


def test_load_that_is_longer_than_the_cooldown(space: Space, metric: Metric) -> None:
    """The cooldown counts from the last load: a group under load is not put to sleep, however long that lasts."""
    group = asks_ours(space.group("keda", components=["components/keda"]))
    with space.watched("pods", "statefulsets") as seen, group:
        metric("1")
        until("the group serves", group.serves, words=lambda: scaled_objects(space))
        time.sleep(3 * COOLDOWN)
        assert total(seen["statefulsets"]) == SIZE and group.serves()
        metric("0")
        until("the group is put to sleep", lambda: total(seen["statefulsets"]) == 0)
        assert [number for _, number in history.wanted(seen["statefulsets"].events)] == [0, SIZE, 0]
        assert history.restarts(seen["pods"].events) == {}


def test_http_add_on_holds_the_first_request(space: Space, reached: Kubectl, measured: Measured) -> None:
    """From zero by one request, which waits in KEDA's proxy and is answered."""
    needs(reached, "interceptorroutes.http.keda.sh", "KEDA's http add-on (0.15 or later)")
    host = f"{space.name}.example.com"
    route = {
        "target": {"kind": "InterceptorRoute"},
        "patch": f'[{{"op": "replace", "path": "/spec/rules/0/hosts", "value": ["{host}"]}}]',
    }
    with (
        space.watched("statefulsets") as seen,
        space.group("keda", components=["components/keda-http"], patches=[route]),
    ):
        until("the set is at 0", lambda: seen["statefulsets"].events and total(seen["statefulsets"]) == 0)
        proxy = "http://keda-add-ons-http-interceptor-proxy.keda:8080"
        command = ["python3", "/scripts/streams.py", proxy, "--host", host, "--patience", "30", "--timeout", "300"]
        (stream,) = history.streams(space.kubectl("exec", space.client(), "--", *command, timeout=400))
        assert stream.end == "done", stream
        measured("KEDA's http add-on: the first request, from zero", stream.seconds)
        assert not history.off_a_multiple(seen["statefulsets"].events, SIZE)


def scaled_objects(space: Space) -> str:
    return space.kubectl.attempt("get", "scaledobjects,statefulsets,pods", "-o", "wide").stdout
