"""Every kustomization under k8s/ builds, and every object in it is valid, strictly: no unknown field, no wrong type."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from referencing import Registry, Resource

from tests.manifests import K8S, SCHEMAS, Object, build, folders, groups, named, of_kind, overlay, read

NEWEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
OLDEST = "1.28"
CRDS = {
    "ScaledObject": "keda.sh_scaledobjects.v2.20.2.yaml",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io_leaderworkersets.v0.10.0.yaml",
}
#: no schema of these is at hand; their shape was taken from the projects' own documentation
UNCHECKED = {"InterceptorRoute", "PodMonitor", "PrometheusRule"}
#: components that an older Kubernetes does not know
SINCE = {"components/roce-dra": "1.34"}
#: where a component goes on top of another
UNDER = {"components/keda-packed": ["components/packed"]}


def strict(schema: Any) -> Any:
    """The schema with every object closed that names its fields: a field that is not known is an error."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {k: strict(v) for k, v in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@cache
def crd(kind: str) -> jsonschema.Draft202012Validator:
    path = SCHEMAS / CRDS[kind]
    if not path.exists():
        pytest.skip(f"the CRD of {kind} is not at hand ({path.name} in shared/schemas)")
    versions = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
    schema = strict(versions[0]["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


@cache
def core(api: str, kind: str, version: str) -> jsonschema.Draft202012Validator:
    """What kubernetes_validate.validate(..., strict=True) uses, made once: it reads megabytes anew for every object."""
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    *group, name = api.split("/")
    stem = "-".join([kind.lower(), *(g.split(".")[0] for g in group), name])
    schemas = [
        Resource.from_contents(contents(f"{folder}/{f}", version)) for f in (f"{stem}.json", "_definitions.json")
    ]
    return jsonschema.Draft202012Validator(schemas[0].contents, registry=schemas @ Registry())


contents = cache(kubernetes_validate.utils.schema_contents)
_valid: set[str] = set()


def check(o: Object, version: str) -> None:
    """Raises where the object is not valid in this Kubernetes. The same object is looked at once."""
    key = json.dumps([version, o], sort_keys=True)
    if o["kind"] in UNCHECKED or key in _valid:
        return
    validator = crd(o["kind"]) if o["kind"] in CRDS else core(o["apiVersion"], o["kind"], version)
    errors = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(o)]
    assert not errors, errors
    _valid.add(key)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("folder", folders("Kustomization"), ids=named)
def test_kustomization_builds_and_is_valid(folder: Path, version: str) -> None:
    objects = build(folder)
    assert objects
    for o in objects:
        check(o, version)


@pytest.mark.parametrize("folder", folders("Component"), ids=named)
def test_component_builds_over_an_engine_and_is_valid(folder: Path, tmp_path: Path) -> None:
    name = named(folder)
    first = ["lws/as-lws"] if name.startswith("lws/") and not name.startswith("lws/as-lws") else UNDER.get(name, [])
    objects = overlay(["engines/vllm-mp"], [*first, name], tmp_path, namePrefix="my-")
    for o in objects:
        check(o, oldest(name))
        check(o, NEWEST)


def oldest(*components: str) -> str:
    """The first Kubernetes that knows all of these components."""
    return max([OLDEST, *(SINCE[c] for c in components if c in SINCE)], key=lambda v: [int(n) for n in v.split(".")])


def folders_of_the_readme() -> list[str]:
    """The kustomizations that k8s/README.md shows: indented blocks that begin with `resources:`."""
    blocks = re.split(r"\n(?! {4}|\n)|\n\n", (K8S / "README.md").read_text())
    return [textwrap.dedent(b) for b in blocks if b.startswith("    resources:")]


@pytest.mark.parametrize("text", folders_of_the_readme())
def test_folders_that_the_readme_shows_are_valid(text: str, tmp_path: Path) -> None:
    shown = yaml.safe_load(text)
    lists = {k: [name.removeprefix("../k8s/") for name in shown.pop(k, [])] for k in ("resources", "components")}
    objects = overlay(lists["resources"], lists["components"], tmp_path, **shown)
    for o in objects:
        check(o, OLDEST)
        check(o, NEWEST)
    (pods,) = groups(objects)
    for trigger in (t["metadata"] for s in of_kind(objects, "ScaledObject") for t in s["spec"]["triggers"]):
        assert "gateway_requests_in_flight" not in trigger.get("query", ""), "nobody's gateway has it"
    for route in of_kind(objects, "InterceptorRoute"):
        assert route["spec"]["rules"][0]["hosts"] != ["engine.example.com"]
    assert "containers/0" not in text, "an image is named under `images`"
    images = {c["name"]: c["image"] for c in [*pods.spec["containers"], *pods.spec.get("initContainers", [])]}
    assert images.get("launcher", images["engine"]) == "your-registry/launcher:1"


def test_readme_shows_every_way_from_zero() -> None:
    shown = "\n".join(folders_of_the_readme())
    assert "components/keda\n" in shown
    assert "components/keda-http\n" in shown


def test_query_that_matches_nothing_is_an_error() -> None:
    """Where no answer is no load, a mistaken query looks like a model that nobody asks for."""
    for path in ("components/keda/scaledobject.yaml", "lws/keda/scaledobject.yaml"):
        (scaled,) = read((K8S / path).read_text())
        assert scaled["spec"]["triggers"][0]["metadata"]["ignoreNullValues"] == "false"


def test_model_is_made_by_copying_a_folder(tmp_path: Path) -> None:
    """As the README says: beside the others."""
    shutil.copytree(K8S, tmp_path / "k8s")
    mine = tmp_path / "k8s/models/mine"
    shutil.copytree(K8S / "models/llama-3.1-405b", mine)
    assert build(mine) == build(K8S / "models/llama-3.1-405b")


def test_files_that_are_applied_by_themselves_are_valid() -> None:
    for o in read((K8S / "components/model-cache/pvc/claim.yaml").read_text()):
        check(o, OLDEST)
        check(o, NEWEST)


def test_the_strict_check_is_strict() -> None:
    """A field that nobody knows must not pass, in a core object and in a CRD."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, "automount": False}
    with pytest.raises(AssertionError, match="automount"):
        check(account, NEWEST)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(account, NEWEST, strict=True)
    wrong = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "a"}}
    with pytest.raises(AssertionError, match="idleReplicas"):
        check({**wrong, "spec": {"scaleTargetRef": {"name": "a"}, "triggers": [], "idleReplicas": 0}}, NEWEST)


def test_nothing_here_is_a_secret_or_names_a_registry() -> None:
    for path in K8S.rglob("*.yaml"):
        for o in read(path.read_text()):
            assert o.get("kind") != "Secret", path
        for line in path.read_text().splitlines():
            if line.strip().startswith("image:"):
                first = line.split("image:")[1].strip().split("/")[0]
                assert "." not in first.partition(":")[0], f"{path}: {line.strip()} names a registry"
