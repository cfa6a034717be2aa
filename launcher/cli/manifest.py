"""What a manifest passes to its pods: `launcher plan -f FILE` reads it as a kubelet would, without a cluster.

From a StatefulSet, LeaderWorkerSet, JobSet or indexed Job come the options and the environment of rank 0 of its first
group (and of rank 1, if it has its own pod template). What only a cluster knows (addresses, Secrets, ConfigMaps) stays
unknown and is reported. `manifest_checks.py` finds what would deadlock or break.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.cli import manifest_shell
from launcher.cli.options import ALL
from launcher.common.numbers import check_document
from launcher.engines import registry
from launcher.errors import ConfigError, UsageError

KINDS = ("StatefulSet", "LeaderWorkerSet", "JobSet", "Job")
GPUS = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "habana.ai/gaudi")
_REFERENCE = re.compile(r"\$\$|\$\(([-._A-Za-z0-9]+)\)")
_RELEASE = re.compile(r"v?(\d+\.\d+\.\d+(?:\.post\d+)?)((?:[-_.][A-Za-z0-9_.]+)*)")
_PRERELEASE = re.compile(r"(?i)(^|[-_.])(rc|dev|alpha|beta|nightly|pre)")
#: Several projects have a resource named InferenceService.
_OTHERS = {
    "serving.kserve.io": "KServe's InferenceService, which KServe's controller turns into pods",
    "ome.io": "OME's InferenceService, which OME's controller turns into pods",
}


@dataclass(frozen=True)
class Problem:
    """Something in a manifest that would deadlock or break."""

    path: str  #: ``spec.template.spec.containers[0].args[3]``
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True)
class ManifestPod:
    """The launcher's input on one rank, and the objects that it comes from."""

    title: str
    hostname: str
    args: tuple[str, ...]  #: its options
    environ: Mapping[str, str]  #: its variables
    replicas: int | None = None  #: of a StatefulSet; 0 or None: an autoscaler decides
    warnings: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    worker: ManifestPod | None = None  #: rank 1, if its pod template is not the leader's
    owner: Mapping[str, Any] = field(default_factory=dict)
    template: Mapping[str, Any] = field(default_factory=dict)  #: the pod template
    template_at: str = ""  #: its path in the owner
    container: Mapping[str, Any] = field(default_factory=dict)
    container_at: str = ""  #: its path in the owner
    others: tuple[Mapping[str, Any], ...] = ()  #: all objects of the file


def read(source: str) -> tuple[ManifestPod, ...]:
    """Every set of pods in a file (``-``: standard input) whose container starts the launcher.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it has no such pods, or their command cannot be analysed.
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
        check_document(objects)
    except module.YAMLError as error:
        raise UsageError(f"--filename {source} is not YAML: {error}", "build it first: kubectl kustomize DIR") from None
    except (ValueError, TypeError, RecursionError) as error:  # an invalid date or key, or nesting that is too deep
        raise UsageError(
            f"--filename {source} cannot be read: {error}", "build it first: kubectl kustomize DIR"
        ) from None
    flat = tuple(_flat(objects))
    found = tuple(pod for o in flat if o.get("kind") in KINDS for pod in _pods_of(o, flat))
    if not found:
        raise _nothing(source, flat)
    return found


def _nothing(source: str, objects: Sequence[Mapping[str, Any]]) -> ConfigError:
    for o in objects:
        group = str(o.get("apiVersion") or "").partition("/")[0]
        if o.get("kind") == "InferenceService":
            name = field_at(o, "metadata", "name") or "unnamed"
            if group in _OTHERS:
                return ConfigError(
                    f"--filename {source}: InferenceService {name} ({o.get('apiVersion')}) is {_OTHERS[group]}",
                    "plan the StatefulSet or LeaderWorkerSet that runs the launcher, or give the launcher's options "
                    "to `launcher plan` directly",
                )
            return ConfigError(
                f"--filename {source}: InferenceService {name} ({o.get('apiVersion')}) holds no pods yet",
                f"render it first: launcher render -f {source} | launcher plan -f -",
            )
    kinds = ", ".join(sorted({str(o.get("kind")) for o in objects})) or "nothing"
    return ConfigError(
        f"--filename {source} holds no {', '.join(KINDS)} whose container starts the launcher (it holds {kinds})",
        "give the built manifest (kubectl kustomize DIR | launcher plan -f -) of pods whose command is the "
        "launcher, or "
        "whose args are options of the launcher only",
    )


def _flat(objects: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for o in objects:
        if o.get("kind") == "List":
            yield from _flat(i for i in as_list(o.get("items")) if isinstance(i, dict))
        else:
            yield o


# ------------------------------------------------------------------------------------------------ pods of an owner


@dataclass(frozen=True)
class Pods:
    """The pods of one template, as their controller creates them: the first pod of the first group."""

    at: str
    template: Mapping[str, Any]
    hostname: str
    variables: Mapping[str, str]  #: added by the controller
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    name: str = ""  #: metadata.name; empty: the hostname


def _pods_of(owner: Mapping[str, Any], objects: tuple[Mapping[str, Any], ...]) -> list[ManifestPod]:
    name = str(field_at(owner, "metadata", "name") or "unnamed")
    namespace = str(field_at(owner, "metadata", "namespace") or "default")
    if owner["kind"] == "LeaderWorkerSet":
        return _of_lws(owner, objects, name, namespace)
    found = [_of_pods(owner, objects, pods, namespace) for pods in _pods(owner, name)]
    return [pod for pod in found if pod is not None]


def _pods(owner: Mapping[str, Any], name: str) -> Iterator[Pods]:
    spec = as_mapping(owner.get("spec"))
    if owner["kind"] == "StatefulSet":
        first = start if isinstance(start := field_at(spec, "ordinals", "start"), int) else 0
        label = {"apps.kubernetes.io/pod-index": str(first)}
        yield Pods("spec.template", as_mapping(spec.get("template")), f"{name}-{first}", {}, label)
    elif owner["kind"] == "Job":
        yield _job("spec", spec, name, spec.get("completionMode") == "Indexed")
    elif owner["kind"] == "JobSet":
        for i, job in enumerate(as_list(spec.get("replicatedJobs"))):
            inner = as_mapping(field_at(job, "template", "spec"))
            at = f"spec.replicatedJobs[{i}].template.spec"
            indexed = inner.get("completionMode", "Indexed") == "Indexed"  # JobSet's default
            pods = _job(at, inner, f"{name}-{as_mapping(job).get('name', 'job')}-0", indexed)
            annotations = {"jobset.sigs.k8s.io/jobset-name": name, "batch.kubernetes.io/job-completion-index": "0"}
            yield replace(pods, annotations=annotations, labels=annotations)


def _job(at: str, spec: Mapping[str, Any], name: str, indexed: bool) -> Pods:
    variables = {"JOB_COMPLETION_INDEX": "0"} if indexed else {}
    index = {"batch.kubernetes.io/job-completion-index": "0"}
    return Pods(
        f"{at}.template", as_mapping(spec.get("template")), f"{name}-0", variables, index, index, f"{name}-0-x7k2p"
    )


def _of_lws(
    owner: Mapping[str, Any], objects: tuple[Mapping[str, Any], ...], name: str, namespace: str
) -> list[ManifestPod]:
    spec = as_mapping(owner.get("spec"))
    inner = as_mapping(spec.get("leaderWorkerTemplate"))
    worker, leader = as_mapping(inner.get("workerTemplate")), inner.get("leaderTemplate")
    at = "spec.leaderWorkerTemplate"
    unique = field_at(spec, "networkConfig", "subdomainPolicy") == "UniquePerReplica"
    size = inner.get("size", 1)

    def pods(rank: int, where: str, template: Mapping[str, Any]) -> Pods:
        own = f"{name}-0" if rank == 0 else f"{name}-0-{rank}"
        variables = {
            "LWS_LEADER_ADDRESS": f"{name}-0.{f'{name}-0' if unique else name}.{namespace}",
            "LWS_GROUP_SIZE": str(size),
            "LWS_WORKER_INDEX": str(rank),
        }
        prefix = "leaderworkerset.sigs.k8s.io/"
        labels = {f"{prefix}name": name, f"{prefix}group-index": "0", f"{prefix}worker-index": str(rank)}
        return Pods(f"{at}.{where}", template, own, variables, labels)

    first_at, first = ("workerTemplate", worker) if leader is None else ("leaderTemplate", as_mapping(leader))
    pod = _of_pods(owner, objects, pods(0, first_at, first), namespace)
    if leader is None or leader == worker or size == 1:
        return [] if pod is None else [pod]
    other = _of_pods(owner, objects, pods(1, "workerTemplate", worker), namespace)
    if pod is None and other is None:
        return []
    present, absent = (other, "leaderTemplate") if pod is None else (pod, "workerTemplate")
    assert present is not None
    if pod is None or other is None:
        problem = Problem(
            f"{at}.{absent}",
            "no container of it starts the launcher, so the group never becomes whole",
            "run the same launcher command in leaderTemplate and workerTemplate",
        )
        return [replace(present, problems=(*present.problems, problem))]
    return [replace(pod, worker=other)]


def _of_pods(
    owner: Mapping[str, Any], objects: tuple[Mapping[str, Any], ...], pods: Pods, namespace: str
) -> ManifestPod | None:
    kind, name = str(owner["kind"]), str(field_at(owner, "metadata", "name") or "unnamed")
    spec = as_mapping(field_at(pods.template, "spec"))
    where = f"{kind} {name}"
    found = _container(spec, where)
    if found is None:
        return None
    at, container = f"{pods.at}.spec.{found[0]}", found[1]
    warnings: list[str] = []
    problems = list(_not_text(container, at))
    labels = {**as_texts(field_at(pods.template, "metadata", "labels")), **pods.labels}
    annotations = {**as_texts(field_at(pods.template, "metadata", "annotations")), **pods.annotations}
    fields = {
        "metadata.name": pods.name or pods.hostname,
        "metadata.namespace": namespace,
        **{f"metadata.labels['{k}']": v for k, v in labels.items()},
        **{f"metadata.annotations['{k}']": v for k, v in annotations.items()},
    }
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", **pods.variables}
    environ.update(_environment(container, fields, environ, warnings))
    if spec.get("automountServiceAccountToken") is not False:
        environ.setdefault("POD_NAMESPACE", namespace)  # as the mounted service account says
    _gpus(container, environ)
    command = [_expanded(str(w), environ) for w in as_list(container.get("command"))]
    args = [_expanded(str(w), environ) for w in as_list(container.get("args"))]
    words = _words(command, args, environ, where, at, warnings)
    _release(container, environ, words, warnings)
    replicas = field_at(owner, "spec", "replicas") if kind == "StatefulSet" else None
    return ManifestPod(
        title=f"{where}, namespace {namespace}, container {container.get('name', '?')}",
        hostname=pods.hostname,
        args=tuple(words),
        environ=environ,
        replicas=replicas if isinstance(replicas, int) else None,
        warnings=tuple(warnings),
        problems=tuple(problems),
        owner=owner,
        template=pods.template,
        template_at=pods.at,
        container=container,
        container_at=at,
        others=objects,
    )


# ---------------------------------------------------------------------------------------------- what a container runs


def _container(pod: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]] | None:
    """The container that starts the launcher, and its path in the pod's spec."""
    containers = [
        (f"{key}[{i}]", c)
        for key in ("containers", "initContainers")
        for i, c in enumerate(as_list(pod.get(key)))
        if isinstance(c, dict) and (key == "containers" or c.get("restartPolicy") == "Always")
    ]
    named = [(at, c) for at, c in containers if _starts_launcher(c)]
    silent = [(at, c) for at, c in containers if not c.get("command") and _looks_ours(c)]
    found = named or silent
    if len(found) > 1:
        names = ", ".join(str(c.get("name")) for _, c in found)
        raise ConfigError(f"{where}: several containers start the launcher ({names})", "run one launcher in a pod")
    return found[0] if found else None


def _starts_launcher(container: Mapping[str, Any]) -> bool:
    words = [str(w) for w in (*as_list(container.get("command")), *as_list(container.get("args")))]
    shell = manifest_shell.script_of(words)
    if shell is not None:
        return manifest_shell.find(shell[0], shell[1], {}) is not None
    command = [str(w) for w in as_list(container.get("command"))]
    return _launcher_at(command) is not None


def _looks_ours(container: Mapping[str, Any]) -> bool:
    """Whether a container without a command runs the launcher as its image's entrypoint, by its options and variables.

    Options such as `--model` may be meant for the engine's own entrypoint. They count only if all options are the
    launcher's and the image is not the engine project's own.
    """
    args = [str(a) for a in as_list(container.get("args"))]
    if any(str(as_mapping(e).get("name", "")).startswith("LAUNCHER_") for e in as_list(container.get("env"))):
        return True
    known = {name for option in ALL for name in option.opts}
    own = args[: args.index("--")] if "--" in args else args
    options = [a.partition("=")[0] for a in own if a.startswith("--")]
    if any(o in ("--engine", "--engine-file", "--size", "--service", "--tp", "--pp") for o in options):
        return True
    upstream = _repository(container)[0] in registry.images()
    return bool(options) and all(o in known for o in options) and not upstream


def _launcher_at(command: Sequence[str]) -> int | None:
    """The index of the launcher's first option in a command."""
    for i, word in enumerate(command):
        if PurePosixPath(word).name == "launcher":  # also in `python3 -m launcher`
            return i + 1
    return None


def _words(
    command: list[str], args: list[str], environ: dict[str, str], where: str, at: str, warnings: list[str]
) -> list[str]:
    """The launcher's arguments. Adds a script's exports to ``environ``."""
    shell = manifest_shell.script_of([*command, *args])
    if shell is not None:
        call = manifest_shell.find(shell[0], shell[1], environ)
        if call is None:
            raise ConfigError(
                f"{where}: {at} runs a shell, and its script depends on what only that shell knows",
                "write the launcher's words in the script's text, or give them as elements of command and args",
            )
        environ.update(call.environ)
        words = list(call.words)
        if call.unknown:
            warnings.append(f"known to the running shell only, planned as written: {', '.join(call.unknown)}")
        if not call.replaces_shell:
            warnings.append(
                f"{at}: the shell stays the container's first process and passes no SIGTERM on, so requests are cut at "
                "every stop: write `exec launcher ...`"
            )
    else:
        words = [*command[_launcher_at(command) or 0 :], *args]
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
    for entry in (as_mapping(e) for e in as_list(container.get("env"))):
        name, source = str(entry.get("name")), entry.get("valueFrom")
        if not isinstance(source, Mapping):
            value = entry.get("value")
            found[name] = _expanded("" if value is None else _text(value), {**before, **found})
        elif "fieldRef" in source:
            path = str(field_at(source, "fieldRef", "fieldPath"))
            if path in fields:
                found[name] = fields[path]
        else:
            unknown.append(name)
    if unknown:
        warnings.append(f"not known outside of the cluster, planned without: {', '.join(unknown)}")
    if found.pop("LAUNCHER_TOKEN_FILE", None):
        warnings.append("--token-file: the Secret is not read here")
    return found


def _not_text(container: Mapping[str, Any], at: str) -> Iterator[Problem]:
    """Values that must be strings but are not: the API server would reject the whole object."""
    fix = "quote it"
    for key in ("command", "args"):
        for i, word in enumerate(as_list(container.get(key))):
            if not isinstance(word, str):
                yield Problem(f"{at}.{key}[{i}]", f"{_text(word)} is {_kind(word)}, not text", fix)
    for i, entry in enumerate(as_list(container.get("env"))):
        value = as_mapping(entry).get("value", "")
        if value is not None and not isinstance(value, str):
            name = as_mapping(entry).get("name")
            yield Problem(f"{at}.env[{i}].value", f"{name}: {_text(value)} is {_kind(value)}, not text", fix)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return "empty" if value is None else f"a {'list' if isinstance(value, list) else 'mapping'}"


def _text(value: Any) -> str:
    """A value as written in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _gpus(container: Mapping[str, Any], environ: dict[str, str]) -> None:
    limits = as_mapping(field_at(container, "resources", "limits"))
    asked = [int(limits[k]) for k in GPUS if str(limits.get(k, "")).isdecimal()]
    if asked:
        environ.setdefault("LAUNCHER_GPUS_PER_POD", str(sum(asked)))


# ------------------------------------------------------------------------------------------------- the engine's version


def _repository(container: Mapping[str, Any]) -> tuple[str, str, str]:
    """The parts of an image reference: the last two elements of its path, tag, digest."""
    image, _, digest = str(container.get("image") or "").partition("@")
    path, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:  # the colon belongs to a registry's port
        path, tag = image, ""
    return "/".join(path.split("/")[-2:]), tag, digest


def _engine(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """The engine that the launcher will start; empty: the default."""
    own = list(words[: words.index("--")] if "--" in words else words)
    named = [own[i + 1] for i, word in enumerate(own[:-1]) if word == "--engine"]
    named += [w.partition("=")[2] for w in own if w.startswith("--engine=")]
    return named[-1] if named else environ.get("LAUNCHER_ENGINE", "")


def _release(container: Mapping[str, Any], environ: dict[str, str], words: Sequence[str], warnings: list[str]) -> None:
    """Take the engine's version from the image's tag, if that is a release of the engine's own project."""
    if "LAUNCHER_ENGINE_VERSION" in environ or any(w.partition("=")[0] == "--engine-version" for w in words):
        return
    repository, tag, digest = _repository(container)
    image = container.get("image") or "the image"
    release = _RELEASE.fullmatch(tag)
    if repository not in registry.images(_engine(words, environ)):
        why = "is no image of the engine's own project"
    elif digest:
        why = "is named by its digest"
    elif release is None or _PRERELEASE.search(release[2]):
        why = "has no tag of a release"
    else:
        environ["LAUNCHER_ENGINE_VERSION"] = release[1]
        warnings.append(f"the engine's version is taken from the image's tag: {release[1]} (or give --engine-version)")
        return
    warnings.append(f"{image} {why}, so the engine's version is not known from it: give --engine-version")


# --------------------------------------------------------------------------------------------------------- small ones


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    """Expand ``$(NAME)`` as Kubernetes does: an unset one stays, and ``$$`` is a dollar sign."""
    return _REFERENCE.sub(lambda m: environ.get(m[1], m[0]) if m[1] else "$", text)


def field_at(thing: Any, *path: str) -> Any:
    for key in path:
        thing = thing.get(key) if isinstance(thing, Mapping) else None
    return thing


def as_mapping(thing: Any) -> Mapping[str, Any]:
    return thing if isinstance(thing, Mapping) else {}


def as_list(thing: Any) -> list[Any]:
    return thing if isinstance(thing, list) else []


def as_texts(thing: Any) -> dict[str, str]:
    return {str(k): _text(v) for k, v in as_mapping(thing).items()}
