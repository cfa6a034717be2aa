"""What the pods of a manifest are told: `launcher plan -f FILE` reads it as a kubelet would, and touches no cluster.

A StatefulSet, LeaderWorkerSet or indexed Job becomes the options and the environment with which rank 0 of its first
group starts. What only a cluster knows (addresses, Secrets, ConfigMaps) stays unknown, and is said to be.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.data import dataclass, field
from launcher.errors import ConfigError, UsageError

KINDS = ("StatefulSet", "LeaderWorkerSet", "Job")
GPUS = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "habana.ai/gaudi")
_REFERENCE = re.compile(r"\$\$|\$\(([-._A-Za-z0-9]+)\)")
_RELEASE = re.compile(r":v?(\d+\.\d+\.\d+(?:\.post\d+)?)(?:[-_.].*)?$")


@dataclass(frozen=True)
class Told:
    """What the launcher of rank 0 is told. ``args``: its options; ``environ``: its variables."""

    title: str
    hostname: str
    args: tuple[str, ...]
    environ: Mapping[str, str]
    replicas: int | None = None  #: of a StatefulSet; 0 and None: left to a scaler
    warnings: tuple[str, ...] = field(default_factory=tuple)


def read(source: str) -> tuple[Told, ...]:
    """Every set of pods in a file (``-``: standard input) whose container starts the launcher.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it holds no such pods, or they start something that can't be looked into.
    """
    from launcher.render.text import yaml

    module = yaml("reading a manifest")
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"--filename {source} cannot be read: {why}", "give a YAML file, or - for input") from None
    try:
        objects = [o for o in module.safe_load_all(text) if isinstance(o, dict)]
    except module.YAMLError as error:
        raise UsageError(f"--filename {source} is not YAML: {error}", "build it first: kubectl kustomize DIR") from None
    found = tuple(told for o in _flat(objects) if o.get("kind") in KINDS for told in [_told(o)] if told is not None)
    if not found:
        kinds = ", ".join(sorted({str(o.get("kind")) for o in _flat(objects)})) or "nothing"
        raise ConfigError(
            f"--filename {source} holds no {', '.join(KINDS)} whose container starts the launcher (it holds {kinds})",
            "give the built manifest: kubectl kustomize DIR | launcher plan -f -",
        )
    return found


def _flat(objects: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for o in objects:
        if o.get("kind") == "List":
            yield from _flat(i for i in o.get("items") or [] if isinstance(i, dict))
        else:
            yield o


def _told(owner: Mapping[str, Any]) -> Told | None:
    kind, name = str(owner["kind"]), str(_at(owner, "metadata", "name") or "unnamed")
    namespace = str(_at(owner, "metadata", "namespace") or "default")
    template, warnings = _template(owner)
    pod = _at(template, "spec") or {}
    where = f"{kind} {name}"
    container = _container(pod, where)
    if container is None:
        return None
    words = _words(container, where)
    fields = {
        "metadata.name": f"{name}-0",
        "metadata.namespace": namespace,
        "metadata.labels['apps.kubernetes.io/pod-index']": "0",
        **{f"metadata.labels['{k}']": str(v) for k, v in (_at(template, "metadata", "labels") or {}).items()},
        **{f"metadata.annotations['{k}']": str(v) for k, v in (_at(template, "metadata", "annotations") or {}).items()},
    }
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", **_of_the_controller(owner, name, namespace)}
    environ.update(_environment(container, fields, environ, warnings))
    if _at(pod, "automountServiceAccountToken") is not False:
        environ.setdefault("POD_NAMESPACE", namespace)  # what the mounted account tells
    _gpus(container, environ)
    _release(container, environ, warnings)
    args = tuple(_expanded(word, environ) for word in words)
    title = f"{where}, namespace {namespace}, container {container.get('name', '?')}"
    replicas = _at(owner, "spec", "replicas") if kind == "StatefulSet" else None
    return Told(title, f"{name}-0", args, environ, replicas if isinstance(replicas, int) else None, tuple(warnings))


def _template(owner: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    if owner["kind"] != "LeaderWorkerSet":
        return _at(owner, "spec", "template") or {}, []
    worker = _at(owner, "spec", "leaderWorkerTemplate", "workerTemplate") or {}
    leader = _at(owner, "spec", "leaderWorkerTemplate", "leaderTemplate")
    if leader is None or leader == worker:
        return worker, []
    return leader, ["leaderTemplate and workerTemplate differ: this is the leader's; the launcher needs one template"]


def _of_the_controller(owner: Mapping[str, Any], name: str, namespace: str) -> dict[str, str]:
    """Variables that the controller of these pods adds, for rank 0."""
    if owner["kind"] == "LeaderWorkerSet":
        return {
            "LWS_LEADER_ADDRESS": f"{name}-0.{name}.{namespace}",
            "LWS_GROUP_SIZE": str(_at(owner, "spec", "leaderWorkerTemplate", "size") or 1),
            "LWS_WORKER_INDEX": "0",
        }
    if owner["kind"] == "Job" and _at(owner, "spec", "completionMode") == "Indexed":
        return {"JOB_COMPLETION_INDEX": "0"}
    return {}


def _container(pod: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    containers = [c for c in pod.get("containers") or [] if isinstance(c, dict)]
    named = [c for c in containers if _launcher_at(c.get("command") or []) is not None]
    silent = [c for c in containers if not c.get("command") and _looks_ours(c)]
    found = named or silent
    if len(found) > 1:
        names = ", ".join(str(c.get("name")) for c in found)
        raise ConfigError(f"{where}: several containers start the launcher ({names})", "one launcher runs in a pod")
    return found[0] if found else None


def _looks_ours(container: Mapping[str, Any]) -> bool:
    """Without a command the image's entrypoint runs: ours, where options or variables are ours."""
    args = [str(a) for a in container.get("args") or []]
    named = any(str(e.get("name", "")).startswith("LAUNCHER_") for e in container.get("env") or [])
    return named or any(a.partition("=")[0] in ("--engine", "--engine-file", "--size", "--service") for a in args)


def _launcher_at(command: Sequence[Any]) -> int | None:
    """Where the launcher's own options begin in a command."""
    for i, word in enumerate(command):
        if PurePosixPath(str(word)).name == "launcher":  # also that of `python3 -m launcher`
            return i + 1
    return None


def _words(container: Mapping[str, Any], where: str) -> list[str]:
    command, args = list(container.get("command") or []), list(container.get("args") or [])
    words = [str(w) for w in [*command[_launcher_at(command) or 0 :], *args]]
    if words[:1] == ["run"]:
        words = words[1:]
    elif words and not words[0].startswith("-"):
        raise ConfigError(
            f"{where}: its container runs `launcher {words[0]}`, which starts no engine", "give the pods that serve"
        )
    return words


def _environment(
    container: Mapping[str, Any], fields: Mapping[str, str], before: Mapping[str, str], warnings: list[str]
) -> dict[str, str]:
    found: dict[str, str] = {}
    unknown = [str(s) for s in ("envFrom",) if container.get("envFrom")]
    for entry in container.get("env") or []:
        name, source = str(entry.get("name")), entry.get("valueFrom")
        if source is None:
            found[name] = _expanded(str(entry.get("value") or ""), {**before, **found})
        elif "fieldRef" in source:
            path = str(source["fieldRef"].get("fieldPath"))
            if path in fields:
                found[name] = fields[path]
        else:
            unknown.append(name)
    if unknown:
        warnings.append(f"not known outside of the cluster, planned without: {', '.join(unknown)}")
    if found.pop("LAUNCHER_TOKEN_FILE", None):
        warnings.append("--token-file: the Secret is not read here")
    return found


def _gpus(container: Mapping[str, Any], environ: dict[str, str]) -> None:
    limits = _at(container, "resources", "limits") or {}
    asked = [int(limits[k]) for k in GPUS if str(limits.get(k, "")).isdigit()]
    if asked:
        environ.setdefault("LAUNCHER_GPUS_PER_POD", str(sum(asked)))


def _release(container: Mapping[str, Any], environ: dict[str, str], warnings: list[str]) -> None:
    tag = _RELEASE.search(str(container.get("image") or ""))
    if tag and "LAUNCHER_ENGINE_VERSION" not in environ:
        environ["LAUNCHER_ENGINE_VERSION"] = tag[1]
        warnings.append(f"the engine's version is taken from the image's tag: {tag[1]} (or say --engine-version)")


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    """``$(NAME)`` as Kubernetes replaces it; one that is not set stays, and ``$$`` is a dollar sign."""
    return _REFERENCE.sub(lambda m: environ.get(m[1], m[0]) if m[1] else "$", text)


def _at(thing: Any, *path: str) -> Any:
    for key in path:
        thing = thing.get(key) if isinstance(thing, Mapping) else None
    return thing
