"""Real vLLM (mp and Ray) and SGLang on CPU as the manifests run them: a user id that no passwd file knows, a read-only
root, no capabilities, the launcher copied in by the init container. Two containers a group.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import images
from tests.e2e.containers import Container, Network
from tests.e2e.podman import podman, why_not
from tests.manifests import groups, overlay
from tests.real import launched, recipes
from tests.real.install import NotInstallable, engine
from tests.real.model import tiny_model

pytestmark = [
    pytest.mark.containers,
    pytest.mark.real,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
LAYERS = {"vllm-mp": "engines/vllm-mp", "vllm-ray": "engines/vllm-ray", "sglang": "engines/sglang"}


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.mark.parametrize("kind", list(LAYERS))
def test_real_engine_as_any_user_on_a_read_only_root(kind: str, network: Network, tmp_path: Path) -> None:
    name = kind.partition("-")[0]
    try:
        installed = engine(name)
        expected = recipes.expected_completion(name)
    except NotInstallable as why:
        pytest.skip(str(why))
    images.launcher_image()
    venv = installed.python.parent.parent
    environ = {**recipes.environment(name), "PATH": f"{venv}/bin:/usr/local/bin:/usr/bin:/bin"}
    # On a CPU both engines compile their samplers, and this image has no compiler; the engines' own images have one.
    environ |= {"TORCHDYNAMO_DISABLE": "1"}
    container: dict[str, Any] = {
        "name": "engine",
        "args": launched.engine_arguments(kind),
        "env": [{"name": k, "value": v} for k, v in environ.items()],
        "resources": {"$patch": "replace", "limits": {"memory": "7Gi"}},
    }
    body = {"spec": {"template": {"spec": {"containers": [container]}}}}
    patch = yaml.safe_dump({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "any"}, **body})
    change = {"target": {"kind": "StatefulSet"}, "patch": patch}
    (pods,) = groups(overlay([LAYERS[kind]], [], tmp_path, patches=[change]))
    folders = {str(venv), str(installed.python.resolve().parent.parent), str(tiny_model())}
    mounts = [f"-v={folder}:{folder}:ro" for folder in sorted(folders)]
    group = [Container(network, pods, rank, images.bare_image(), 10 + rank, mounts) for rank in range(2)]

    def words() -> str:
        return "\n".join(f"== {c.name}\n{c.logs[-12000:]}" for c in group)

    # A look a second: the engines need both cores to start.
    end = time.monotonic() + recipes.READY_SECONDS
    while not all(c.probe("readinessProbe") for c in group):
        assert "first failure" not in group[0].logs, words()
        assert time.monotonic() < end, words()
        time.sleep(1)
    asked = podman("exec", group[0].name, "sh", "-c", "id -u; getent passwd $(id -u) || echo nobody knows it")
    assert asked.splitlines() == ["12345", "nobody knows it"]
    connection = http.client.HTTPConnection(group[0].ip, pods.port("api"), timeout=recipes.ANSWER_SECONDS)
    connection.request("POST", "/v1/completions", json.dumps(recipes.REQUEST), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == 200, text + words()
    assert json.loads(text)["choices"][0]["text"] == expected
    for c in group:
        podman("kill", "-s", "TERM", c.name)
    assert [c.wait(120) for c in group] == [0, 0], words()
