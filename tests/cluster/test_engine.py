"""A real engine over two pods, where --engine-image names one: the same scenarios, at its pace."""

from __future__ import annotations

import json
import time

import pytest

from tests.cluster import history
from tests.cluster.conftest import Measured
from tests.cluster.kubectl import until
from tests.cluster.options import Options
from tests.cluster.space import Group, Space

pytestmark = pytest.mark.cluster
PATIENCE = 1800.0


@pytest.fixture
def engine(space: Space, options: Options) -> Group:
    """Two pods of the engine's unmodified image; the init container brings the launcher."""
    if not options.engine_image:
        pytest.skip("--engine-image names no real engine")
    told = [
        {"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": options.engine},
        {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": options.engine_image},
        {"op": "replace", "path": "/spec/template/spec/containers/0/resources", "value": {"requests": {"cpu": "1"}}},
    ]
    room = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: any}
spec:
  template:
    spec:
      volumes:
      - {name: shm, emptyDir: {medium: Memory, sizeLimit: 2Gi}}
"""
    sets = {"kind": "StatefulSet"}
    return space.group(
        "engine",
        components=["components/launcher-copy"],
        patches=[{"target": sets, "patch": room}, {"target": sets, "patch": json.dumps(told)}],
    )


def text(group: Group, tokens: int = 16) -> str:
    """The engine's answer, greedy: what it must be again after every restart."""
    name = json.loads(group.kubectl("exec", group.leader, "--", "python3", "-c", MODELS))["data"][0]["id"]
    command = ["python3", "/scripts/streams.py", group.url, "--tokens", str(tokens), "--model", name]
    (found,) = history.streams(group.kubectl("exec", group.space.client(), "--", *command, timeout=300))
    assert found.end == "done", found
    return found.text


MODELS = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/v1/models', timeout=30).read().decode())"


def test_engine_serves_and_recovers(engine: Group, space: Space, measured: Measured) -> None:
    with space.watched("pods") as seen, engine:
        measured("real engine: applied to serving", engine.serving(PATIENCE))
        said = text(engine)
        before = engine.lives(engine.member(1))
        space.kubectl("delete", "pod", "--wait=false", engine.member(1))
        began = time.monotonic()
        new = lambda: engine.serves() and not before & engine.lives(engine.member(1))  # noqa: E731
        until("the engine serves with a new worker", new, PATIENCE, engine.words)
        measured("real engine: worker's pod deleted, serving again", time.monotonic() - began)
        assert text(engine) == said
        space.kubectl("scale", "statefulset", engine.set_name, "--replicas=0")
        until("no pod is left", lambda: not engine.found(), words=engine.words)
        assert history.restarts(seen["pods"].events) == {}
