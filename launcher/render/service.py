"""An InferenceService, read: what it says of the groups, the pod and the roles. All else is an error with its path.

A StatefulSet has one pod template, so the leader's and the worker's become one. What may differ is kept for each role
(the variables) or made to fit both (CPU and memory: the larger); what is said on one side only holds for both, and is
noted; what is said differently is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from launcher.data import dataclass, field
from launcher.engines import arguments
from launcher.errors import ConfigError
from launcher.render import text
from launcher.render.fields import Field

API = "system.hero.ai/v1alpha1"
KIND = "InferenceService"
MODE = "DistributeInference"
#: the set's name and a revision's hash must fit into a label of 63
LONGEST = 63 - len("-engine-99") - len("-1234567890")

#: what the API server adds to an object that is read back from it
_SERVERS = ("creationTimestamp", "generation", "resourceVersion", "uid", "managedFields", "selfLink", "finalizers")
_POD = (
    "containers", "volumes", "nodeSelector", "tolerations", "affinity", "imagePullSecrets", "priorityClassName",
    "runtimeClassName", "schedulerName", "topologySpreadConstraints", "securityContext", "dnsPolicy", "dnsConfig",
    "hostAliases", "terminationGracePeriodSeconds",
)  # fmt: skip
_POD_OURS = {
    "hostname": "pods are named by their StatefulSet",
    "subdomain": "pods are named by their StatefulSet and its headless Service",
    "enableServiceLinks": "it is false: a Service named vllm would break the engine",
    "restartPolicy": "it is Always in a StatefulSet",
    "serviceAccountName": "the pods have one without rights: nothing here talks to the Kubernetes API",
    "automountServiceAccountToken": "it is false: nothing here talks to the Kubernetes API",
    "initContainers": "none but the launcher's own is supported",
    "hostNetwork": "the pods of a node would share one set of ports; a second card comes by an annotation (Multus)",
    "hostIPC": "the engines of a node would meet in one /dev/shm",
    "hostPID": "the launcher must be process 1 of its container to reap and end what it started",
    "shareProcessNamespace": "the launcher must be process 1 of its container to reap and end what it started",
    "nodeName": "it would put all pods of the group on one node: use nodeSelector or affinity",
}
_CONTAINER = (
    "name", "image", "imagePullPolicy", "command", "args", "ports", "env", "envFrom", "resources", "volumeMounts",
    "securityContext", "workingDir",
)  # fmt: skip
_MOUNT = ("name", "mountPath", "readOnly", "recursiveReadOnly", "subPath", "subPathExpr", "mountPropagation")
_PROBE = "the launcher answers the probes: /livez, and /readyz which includes the engine's own health"
_CONTAINER_OURS = {
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "startupProbe": _PROBE,
    "lifecycle": "the launcher drains by itself when a pod is told to go",
}
#: what the Services, the policy and the budget select the pods by
_LABELS_OURS = ("app.kubernetes.io/name", "app.kubernetes.io/instance", "inference-group")
_DNS = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass
class Service:
    """What is asked for."""

    name: str
    namespace: str | None
    labels: Mapping[str, str]
    queue: str | None
    groups: int
    size: int
    annotations: Mapping[str, str]  #: of the pods
    pod_labels: Mapping[str, str]
    pod: Mapping[str, Any]  #: the pod's spec but for containers
    container: dict[str, Any]
    args: tuple[str, ...]
    env: list[dict[str, Any]]
    path: str  #: of the container, for errors about its arguments
    notes: list[str] = field(default_factory=list)  #: what was decided, in words
    warnings: list[str] = field(default_factory=list)


def read(source: str, name: str) -> list[Service]:
    """Every InferenceService of a file's text. ``name`` is the file's, for errors. Raises ConfigError."""
    module = text.yaml()
    try:
        documents = [d for d in module.load_all(source, Loader=_strict(module)) if d is not None]
    except module.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}", "correct it") from None
    if not documents:
        raise ConfigError(f"{name} holds nothing", f"write a {KIND}")
    many = len(documents) > 1
    return [_service(Field(f"{name}: document {i + 1}" if many else name, d)) for i, d in enumerate(documents)]


def _strict(module: Any) -> Any:
    """A loader that refuses a key that stands twice: the second would win without a word."""

    class Loader(module.SafeLoader):  # type: ignore[misc]
        pass

    def mapping(loader: Any, node: Any) -> dict[str, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise module.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node, deep=True))

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    return Loader


def _service(top: Field) -> Service:
    top.mapping(("apiVersion", "kind", "metadata", "spec", "status"))
    for key, wanted in (("apiVersion", API), ("kind", KIND)):
        if top[key].text() != wanted:
            raise top[key].error(f"{top[key].value} is not {wanted}", f"write {key}: {wanted}")
    metadata, spec = top["metadata"], top["spec"]
    metadata.mapping(("name", "namespace", "labels", "annotations", *_SERVERS))
    name = metadata["name"].text()
    if not _DNS.fullmatch(name) or len(name) > LONGEST:
        raise metadata["name"].error(
            f"{name} cannot name the pods", f"use lower case letters, digits and -, {LONGEST} at most"
        )
    spec.mapping(("deploymentMode", "scheduler", "replicas", "servers"))
    if spec["deploymentMode"].text() != MODE:
        raise spec["deploymentMode"].error(f"{spec['deploymentMode'].value} is not {MODE}", f"only {MODE} is rendered")
    scheduler = spec.get("scheduler", {})
    scheduler.mapping(("queue",))
    found = _servers(spec["servers"])
    found.name, found.namespace = name, metadata["namespace"].text() if "namespace" in metadata else None
    found.labels = _strings(metadata.get("labels", {}))
    found.queue = scheduler["queue"].text() if "queue" in scheduler else None
    found.groups = spec.get("replicas", 1).number(1)
    return found


def _servers(servers: Field) -> Service:
    servers.mapping(("leader", "worker"))
    leader, worker = servers["leader"], servers.get("worker", {})
    for side in (leader, worker):
        side.mapping(("replicas", "template"))
    if (one := leader.get("replicas", 1)).number(1) != 1:
        raise one.error(f"{one.value} leaders", "a group has one leader: write 1, and spec.replicas for more groups")
    size = 1 + worker["replicas"].number(0) if "worker" in servers else 1
    template = leader["template"]
    other = worker.get("template", {})
    if size == 1 and other.value:
        raise worker["replicas"].error(
            "0 workers, and a template for them", "write how many there are, or leave servers.worker out"
        )
    pods = [_template(template)]
    # `template: {}` is how the platform says "like the leader".
    if other.value:
        pods.append(_template(other))
    service = Service("", None, {}, None, 1, size, {}, {}, {}, {}, (), [], "")
    _unite(service, pods)
    return service


@dataclass
class _Pod:
    template: Field
    spec: Field
    container: Field
    env: dict[str, dict[str, Any]]


def _template(template: Field) -> _Pod:
    template.mapping(("metadata", "spec"))
    template.get("metadata", {}).mapping(("annotations", "labels", "creationTimestamp", "name"))
    spec = template["spec"]
    spec.mapping(_POD, _POD_OURS)
    if "terminationGracePeriodSeconds" in spec:
        spec["terminationGracePeriodSeconds"].number(1)
    for entry in spec.get("volumes", []).entries():
        entry.mapping()
        entry["name"].text()
    containers = list(spec["containers"].entries())
    if len(containers) != 1:
        raise spec["containers"].error(f"{len(containers)} containers", "one container is supported: the engine's")
    (container,) = containers
    container.mapping(_CONTAINER, _CONTAINER_OURS)
    for entry in container.get("volumeMounts", []).entries():
        entry.mapping(_MOUNT)
        entry["name"].text()
        entry["mountPath"].text()
    env: dict[str, dict[str, Any]] = {}
    for entry in container.get("env", []).entries():
        entry.mapping(("name", "value", "valueFrom"))
        name = entry["name"].text()
        if name in env:
            raise entry.error(f"{name} is set twice", "leave one of them out")
        if "value" in entry and not isinstance(entry["value"].value, str):
            raise entry["value"].error(f"{entry['value'].value!r} is no text", "quote it")
        env[name] = dict(entry.value)
    return _Pod(template, spec, container, env)


# ------------------------------------------------------------------------------------------------- one of two


def _unite(service: Service, pods: list[_Pod]) -> None:
    first = pods[0]
    service.path = first.container.path
    service.annotations = _alike(service, pods, "annotations", metadata=True)
    service.pod_labels = _alike(service, pods, "labels", metadata=True)
    names = dict.fromkeys(k for pod in pods for k in pod.spec.value if k != "containers")
    service.pod = {name: _same(service, [pod.spec for pod in pods], name) for name in names}
    container: dict[str, Any] = {}
    for name in dict.fromkeys(k for pod in pods for k in pod.container.value):
        if name in ("image", "imagePullPolicy", "envFrom", "volumeMounts", "securityContext", "workingDir"):
            container[name] = _same(service, [pod.container for pod in pods], name)
    container["ports"] = _ports(pods)
    container["resources"] = _resources(service, pods)
    service.container = container
    first.container["image"].text()
    service.args = _arguments(service, pods)
    service.env = _environment(service, pods)
    _warn_of_secrets(service, pods)


def _same(service: Service, sides: list[Field], name: str) -> Any:
    """A field that holds for both roles: said alike, or on one side only, which is noted."""
    said = [side[name] for side in sides if name in side]
    if any(s.value != said[0].value for s in said):
        raise said[1].error(
            f"differs from {said[0].path}", "leader and worker are one pod template: say the same, or only the leader's"
        )
    if len(said) < len(sides):
        service.notes.append(f"{said[0].path} holds for all pods: one template serves leader and workers")
    return said[0].value


def _alike(service: Service, pods: list[_Pod], name: str, *, metadata: bool) -> Mapping[str, str]:
    sides = [pod.template.get("metadata", {}) for pod in pods]
    if not any(name in side for side in sides):
        return {}
    value = _same(service, sides, name)
    place = Field(next(side for side in sides if name in side)[name].path, value)
    for label in _LABELS_OURS if name == "labels" else ():
        if label in place:
            raise place[label].error(
                "the pods of a group are found by this label, and it is set already", "leave it out"
            )
    return _strings(place)


def _strings(place: Field) -> dict[str, str]:
    for name, value in place.mapping().items():
        if not isinstance(value, str):
            raise Field(f"{place.path}.{name}", value).error(f"{value!r} is no text", "quote it")
    return dict(place.value)


def _arguments(service: Service, pods: list[_Pod]) -> tuple[str, ...]:
    """The launcher's arguments: the same command line runs in every pod."""
    for pod in pods:
        command = pod.container.get("command", [])
        if command.value and command.texts()[0].rpartition("/")[2] != "launcher":
            raise command.error(
                f"{' '.join(command.texts())[:80]} takes the launcher's place",
                "leave command out and say it in the launcher's words: args: [--engine, vllm, --model, ..., --tp, ...]",
            )
    said = [(*pod.container.get("command", []).texts()[1:], *pod.container.get("args", []).texts()) for pod in pods]
    # `launcher run` is what `launcher` without a command does.
    said = [args[1:] if args[:1] == ("run",) else args for args in said]
    if len(said) > 1 and said[1] and said[1] != said[0]:
        raise (
            pods[1]
            .container.get("args")
            .error(
                f"differs from {pods[0].container.path}.args",
                "the same command line runs in every pod, each finds out its rank: leave the worker's args out",
            )
        )
    return said[0]


def _environment(service: Service, pods: list[_Pod]) -> list[dict[str, Any]]:
    """What both roles set alike under its own name, what one role sets under the launcher's name for that role."""
    from launcher.roles import LEADER, WORKER

    if len(pods) == 1:
        return list(pods[0].env.values())
    leader, worker = pods[0].env, pods[1].env
    found = [entry for name, entry in leader.items() if worker.get(name) == entry]
    for prefix, mine, others in ((LEADER, leader, worker), (WORKER, worker, leader)):
        for name, entry in mine.items():
            if others.get(name) == entry:
                continue
            if name.startswith("LAUNCHER_"):
                side = pods[0] if mine is leader else pods[1]
                raise side.container["env"].error(
                    f"{name} is not the same for leader and worker", "the launcher's options are alike on all ranks"
                )
            found.append({**entry, "name": prefix + name})
            service.notes.append(
                f"{name} is for the {'leader' if prefix == LEADER else 'workers'} only: {prefix}{name}"
            )
    return found


def _ports(pods: list[_Pod]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for pod in pods:
        for entry in pod.container.get("ports", []).entries():
            entry.mapping(("containerPort", "name", "protocol"))
            number = entry["containerPort"].number(1)
            before = found.setdefault(number, {})
            if any(before.get(key, value) != value for key, value in entry.value.items()):
                raise entry.error(f"port {number} is described differently elsewhere", "describe it alike")
            before.update(entry.value)
    return list(found.values())


def _resources(service: Service, pods: list[_Pod]) -> dict[str, Any]:
    """CPU and memory that fit both roles; devices must be the same, since every rank does the same share."""
    result: dict[str, Any] = {}
    for pod in pods:
        resources = pod.container.get("resources", {})
        resources.mapping(("requests", "limits"))
        for kind in resources.value:
            for name, amount in resources[kind].mapping().items():
                place = Field(f"{resources.path}.{kind}.{name}", amount)
                mine = quantity(place)
                before = result.setdefault(kind, {}).setdefault(name, amount)
                there = quantity(Field(place.path, before))
                if mine == there:
                    continue
                if name not in ("cpu", "memory", "ephemeral-storage"):
                    raise place.error(
                        f"{amount}, and {before} for the leader", "every rank does the same share: say the same"
                    )
                if mine > there:
                    result[kind][name] = amount
                note = f"resources.{kind}.{name}: the larger of leader's and worker's, for all pods"
                service.notes.append(note)
    return result


_UNITS: dict[str, Decimal | int] = {
    "": 1,
    "m": Decimal("0.001"),
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
}
_UNITS |= {f"{unit}i": 2 ** (10 * (power + 1)) for power, unit in enumerate("KMGTP")}


def quantity(place: Field) -> Decimal:
    """A Kubernetes quantity as a number: ``100m``, ``256Gi``, ``8``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", str(place.value))
    if not match or match[2] not in _UNITS or isinstance(place.value, bool):
        raise place.error(f"{place.value!r} is no amount", "write a number with a unit, as 100m, 8 or 256Gi")
    return Decimal(match[1]) * _UNITS[match[2]]


def _warn_of_secrets(service: Service, pods: list[_Pod]) -> None:
    for pod in pods:
        for name, entry in pod.env.items():
            if arguments.is_secret(name) and entry.get("value"):
                service.warnings.append(
                    f"{pod.container.path}.env: {name} is a secret in plain text, which all see who may read pods; "
                    "put it into a Secret and take it by valueFrom.secretKeyRef"
                )
    for option in arguments.given(service.args):
        if arguments.is_secret(option.name) and option.value and not option.value.startswith("$("):
            service.warnings.append(
                f"{service.path}.args: {option.name} is a secret in plain text, which all see who may read pods; put "
                "it into a Secret, take that as a variable by valueFrom.secretKeyRef, and write $(VARIABLE) here"
            )
