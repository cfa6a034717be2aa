"""Every kustomization and every render, asked of the API server itself: strictly valid, nothing created."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import Measured
from tests.cluster.kubectl import Kubectl, Object, has
from tests.cluster.space import Space
from tests.manifests import K8S, build, folders, named, overlay, read

pytestmark = pytest.mark.cluster

#: what must be below a component
BELOW = {"components/keda-packed": ["components/packed"], "lws/keda": ["lws/as-lws"], "lws/topology": ["lws/as-lws"]}
#: parts of others
INSIDE = {"components/group-of-several", "components/shared-by-groups", "lws/as-lws/template"}


def refused(space: Space, objects: list[Object]) -> tuple[list[str], set[str]]:
    """What the server says against these objects, and the kinds that it does not know."""
    unknown = {o["kind"] for o in objects if not known(space.kubectl, o)}
    found = [{**o, "metadata": {**o["metadata"], "namespace": space.name}} for o in objects if o["kind"] not in unknown]
    done = space.kubectl.attempt(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", text=json.dumps(listed(found))
    )
    return (done.stderr.strip().splitlines() if done.returncode else []), unknown


def listed(objects: list[Object]) -> Object:
    return {"apiVersion": "v1", "kind": "List", "items": objects}


_known: dict[str, bool] = {}


def known(kubectl: Kubectl, o: Object) -> bool:
    """Whether the server serves this kind: of Kubernetes itself, or a CRD that is installed."""
    group = o["apiVersion"].rpartition("/")[0]
    if f"{o['apiVersion']}/{o['kind']}" not in _known:
        answer = kubectl.attempt("get", "--raw", f"/apis/{o['apiVersion']}" if group else f"/api/{o['apiVersion']}")
        kinds = {r["kind"] for r in json.loads(answer.stdout)["resources"]} if answer.returncode == 0 else set()
        _known[f"{o['apiVersion']}/{o['kind']}"] = o["kind"] in kinds
    return _known[f"{o['apiVersion']}/{o['kind']}"]


def test_every_kustomization_is_valid(space: Space, measured: Measured) -> None:
    found: dict[str, list[str]] = {}
    unknown: set[str] = set()
    number = 0
    for folder in [f for f in folders("Kustomization") if f.name != "base"]:
        objects = build(folder)
        said, kinds = refused(space, objects)
        number, unknown = number + len(objects), unknown | kinds
        found |= {named(folder): said} if said else {}
    for folder in folders("Component"):
        name = named(folder)
        if name in INSIDE:
            continue
        place = space.folder / re.sub(r"\W", "-", name)
        objects = overlay(["engines/vllm-mp"], [*BELOW.get(name, []), name], place, namePrefix="dry-")
        said, kinds = refused(space, objects)
        number, unknown = number + len(objects), unknown | kinds
        found |= {name: said} if said else {}
    measured("objects of k8s/ valid for the server", str(number))
    if unknown:
        measured("kinds that this server does not know", ", ".join(sorted(unknown)))
    assert not found


@pytest.mark.parametrize("more", [[], ["--no-keda"], ["--gang", "volcano"], ["--gang", "kueue"]], ids=" ".join)
def test_every_render_is_valid(more: list[str], space: Space) -> None:
    launcher = Path(sys.executable).with_name("launcher")
    source = K8S / "examples/inferenceservice.yaml"
    command = [str(launcher), "render", "-f", str(source), "--query", "vector(1)", "--launcher-image", "x/launcher:1"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True, env=os.environ)
    said, _ = refused(space, read(done.stdout))
    assert not said


def test_crds_that_are_installed_are_named(space: Space, measured: Measured) -> None:
    """So that the table says what the scenarios ran against."""
    version = json.loads(space.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    nodes = space.kubectl.items("nodes")
    assert nodes
    measured(
        "Kubernetes", f"{version}, {len(nodes)} nodes, {nodes[0]['status']['nodeInfo']['containerRuntimeVersion']}"
    )
    for name, resource in (("KEDA", "scaledobjects.keda.sh"), ("LWS", "leaderworkersets.leaderworkerset.x-k8s.io")):
        measured(name, "installed" if has(space.kubectl, resource) else "not installed")
