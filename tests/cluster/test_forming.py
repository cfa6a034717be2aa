"""A group forms: how long it takes, what its probes and events say meanwhile, whom callers reach, what a user sees."""

from __future__ import annotations

import json

import pytest

from launcher.reference.tokens import expected_text
from tests.cluster import history
from tests.cluster.conftest import Measured
from tests.cluster.kubectl import until
from tests.cluster.space import LAUNCHER, Group, Space

pytestmark = pytest.mark.cluster

UNMODIFIED = {
    "target": {"kind": "StatefulSet"},
    "patch": """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: any}
spec:
  template:
    spec:
      containers:
      - {name: engine, image: PYTHON}
""",
}


def unmodified(space: Space) -> dict[str, object]:
    return {**UNMODIFIED, "patch": str(UNMODIFIED["patch"]).replace("PYTHON", space.options.python_image)}


@pytest.mark.parametrize(("size", "how"), [(2, "baked in"), (3, "baked in"), (2, "init container")])
def test_group_forms(size: int, how: str, space: Space, measured: Measured) -> None:
    """With no restart and no warning; each pod turns ready once, and the Service has the leader and nobody else."""
    copied = how == "init container"
    group = space.group(
        "form",
        size=size,
        components=["components/launcher-copy"] if copied else [],
        patches=[unmodified(space)] if copied else [],
    )
    with space.watched() as seen:
        group.apply()
        measured(f"{how}, {size} pods: applied to serving", group.serving())
        group.check()
        until("the Service has the leader", lambda: history.behind(seen["endpointslices"].events, group.api))
        pods = seen["pods"].events
        assert history.restarts(pods) == {}
        for name in group.members:
            assert [turn.ready for turn in history.readiness(pods, name)] == [False, True]
        assert history.behind(seen["endpointslices"].events, group.api) == {group.leader}
    assert not [w for w in group.warnings() if "Unhealthy" in w], "a normal start fails no probe"


def test_pods_run_as_any_user_on_a_read_only_root(space: Space) -> None:
    """As on OpenShift, which chooses the user: here it is a number that no image knows."""
    user = {"runAsUser": 1_000_730_000, "runAsGroup": 0, "fsGroup": 1_000_730_000}
    change = [
        {"op": "add", "path": f"/spec/template/spec/securityContext/{key}", "value": value}
        for key, value in user.items()
    ]
    patch = {"target": {"kind": "StatefulSet"}, "patch": json.dumps(change)}
    with space.group("user", components=["components/any-uid"], patches=[patch]) as group:
        group.serving()
        group.check()
        for name in group.members:
            assert shell(space, name, "id -u") == "1000730000"
            assert shell(space, name, "touch /x 2>/dev/null || echo no") == "no"
            assert int(shell(space, name, "awk '/CapEff/{print $2}' /proc/1/status"), 16) == 0
        assert "serving" in space.kubectl("exec", group.leader, "--", LAUNCHER, "status").lower()


def shell(space: Space, pod: str, command: str) -> str:
    return space.kubectl("exec", pod, "--", "sh", "-c", command).strip()


def test_describe_says_why_a_group_gave_up(space: Space) -> None:
    """The termination message: `kubectl describe pod` names the rank, the process and how it ended."""
    crash = ["--crash-after", "1", "--crash-at", "startup", "--crash-code", "41", "--fault-ranks", "1"]
    with space.group("fails", engine=crash, options=["--max-restarts", "1"]) as group:

        def message() -> str:
            for pod in group.found():
                state = history.engine_state(pod)
                last = (state.get("lastState") or {}).get("terminated") or (state.get("state") or {}).get("terminated")
                if pod["metadata"]["name"] == group.leader and last and last.get("message"):
                    return str(last["message"])
            return ""

        said = until("the leader's container has a termination message", message, words=group.words)
        assert "rank 1" in said and "41" in said, said
        shown = space.described(group.leader)
        assert "Message:" in shown and "rank 1" in shown, shown


def test_what_render_writes_serves(space: Space, measured: Measured) -> None:
    """An InferenceService of two groups, rendered and applied: both serve behind one Service."""
    from launcher.render import objects, service
    from launcher.render.model import RenderOptions
    from launcher.render.text import write
    from tests.manifests import read

    resource = {
        "apiVersion": "system.hero.ai/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "rendered", "namespace": space.name},
        "spec": {
            "deploymentMode": "DistributeInference",
            "replicas": 2,
            "servers": {
                "leader": {
                    "replicas": 1,
                    "template": {
                        "spec": {
                            "containers": [
                                {
                                    "name": "inference-server",
                                    "image": space.options.image,
                                    "args": ["--engine", "reference"],
                                    "ports": [{"containerPort": 8000, "name": "http"}],
                                    "resources": {
                                        "requests": {"cpu": "100m", "memory": "128Mi"},
                                        "limits": {"memory": "256Mi"},
                                    },
                                }
                            ],
                            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}],
                        }
                    },
                },
                "worker": {"replicas": 1, "template": {}},
            },
        },
    }
    (one,) = service.read(json.dumps(resource), "rendered.json")
    files = objects.render(one, RenderOptions(launcher_image=None, keda=False))
    found = [o for documents in files.values() for d in documents for o in read(write(d))]
    group = Group(space, "rendered", size=4, objects=found)
    with group:
        measured("render, 2 groups of 2: applied to serving", group.serving())
        leaders = {p.name + "-0" for p in group.sets}
        with space.watched("endpointslices") as seen:
            until(
                "both leaders are behind the Service",
                lambda: history.behind(seen["endpointslices"].events, group.api) == leaders,
            )
        stream = group.complete()
        assert not history.complaints([stream], expected_text("hello", 5, size=2)), stream
