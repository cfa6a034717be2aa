"""Manifests applied again over a group that KEDA has scaled: what k8s/README.md says of it, by the real kubectl.

The API server is a small one of ours that knows whose `replicas` is and no more; what kubectl sends to it is kubectl's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.manifests import K8S, groups, kubectl, overlay
from tests.unit.small_api_server import NAMESPACE, SmallApiServer, stateful_set

LAST = "kubectl.kubernetes.io/last-applied-configuration"


@pytest.fixture
def api() -> Iterator[SmallApiServer]:
    """A group of two that KEDA has woken, after an apply that said 0."""
    with SmallApiServer([stateful_set("engine", "llama", "r1", 2)], []) as server:
        server.owners["engine"] = "keda"
        yield server


def manifest(folder: Path, replicas: int | None) -> str:
    spec = {"serviceName": "engine", **({} if replicas is None else {"replicas": replicas})}
    metadata = {"name": "engine", "namespace": NAMESPACE, "labels": {"app.kubernetes.io/instance": "llama"}}
    path = folder / f"replicas-{replicas}.yaml"
    path.write_text(
        yaml.safe_dump({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec})
    )
    return str(path)


def applied_by_the_client(api: SmallApiServer, path: str) -> None:
    """As if the first apply had been a client-side one."""
    said = json.dumps(yaml.safe_load(Path(path).read_text()))
    api.sets["engine"]["metadata"]["annotations"] = {LAST: said}


def run(api: SmallApiServer, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "KUBECONFIG": os.devnull, "HOME": str(home), **more}
    command = [kubectl(), "-n", NAMESPACE, "--server", api.url, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


def apply(api: SmallApiServer, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(api, home, "apply", "--validate=false", *arguments)


def replicas(api: SmallApiServer) -> int:
    return int(api.sets["engine"]["spec"]["replicas"])


def test_client_side_apply_without_the_field_scales_to_one(api: SmallApiServer, tmp_path: Path) -> None:
    """Why the README does not say just "take it out": kubectl deletes what the last apply had, and the default is 1."""
    applied_by_the_client(api, manifest(tmp_path, 0))
    done = apply(api, tmp_path, "-f", manifest(tmp_path, None))
    assert done.returncode == 0, done.stderr
    assert api.patches[-1]["spec"]["replicas"] is None
    assert replicas(api) == 1


def commands_of_the_readme() -> list[str]:
    return re.findall(r"^ {4,}(.*kubectl apply .*)$", (K8S / "README.md").read_text(), re.M)


def test_client_side_users_have_it_forgotten_first(api: SmallApiServer, tmp_path: Path) -> None:
    """With the README's own command: after it the field may go, and the group stays whole."""
    applied_by_the_client(api, manifest(tmp_path, 0))
    (forget,) = [c for c in commands_of_the_readme() if "edit-last-applied" in c]
    setting, command = re.fullmatch(r"KUBE_EDITOR=\"(.*)\" kubectl (.*)", forget).groups()  # type: ignore[union-attr]
    words = command.replace("NAME", "engine").split()
    done = run(api, tmp_path, *words, "--validate=false", KUBE_EDITOR=setting)
    assert done.returncode == 0, done.stderr
    assert "replicas" not in json.loads(api.sets["engine"]["metadata"]["annotations"][LAST])["spec"]
    done = apply(api, tmp_path, "-f", manifest(tmp_path, None))
    assert done.returncode == 0, done.stderr
    assert replicas(api) == 2


def test_server_side_apply_is_refused_rather_than_stop_a_group(api: SmallApiServer, tmp_path: Path) -> None:
    done = apply(api, tmp_path, "--server-side", "-f", manifest(tmp_path, 0))
    assert done.returncode != 0
    assert "conflict" in done.stderr
    assert replicas(api) == 2
    done = apply(api, tmp_path, "--server-side", "-f", manifest(tmp_path, None))
    assert done.returncode == 0, done.stderr
    assert replicas(api) == 2


def test_field_is_not_to_go_before_keda_has_it(api: SmallApiServer, tmp_path: Path) -> None:
    """Where the applier still owns it, leaving it out resets it: the README says to look first."""
    api.owners["engine"] = "kubectl"
    done = apply(api, tmp_path, "--server-side", "-f", manifest(tmp_path, None))
    assert done.returncode == 0, done.stderr
    assert replicas(api) == 1


@pytest.mark.parametrize(
    "path", ["k8s/README.md", "docs/rollout.md", "k8s/examples/inferenceservice.yaml", "k8s/groups.sh"]
)
def test_every_apply_that_is_shown_is_server_side(path: str) -> None:
    text = (K8S.parent / path).read_text()
    shown = re.findall(r"kubectl apply (?!edit-last-applied)[^\n`]*", text)
    assert shown
    assert all("--server-side" in c for c in shown), shown


def test_what_the_readme_shows_leaves_the_field_out(tmp_path: Path) -> None:
    (block,) = re.findall(r"^To leave it out:\n\n((?: {4}.*\n)+)", (K8S / "README.md").read_text(), re.M)
    objects = overlay(["models/llama-3.2-1b"], ["components/keda"], tmp_path, **yaml.safe_load(block))
    (pods,) = groups(objects)
    assert "replicas" not in pods.owner["spec"]
