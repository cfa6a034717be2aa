"""Reads the pod templates of leader and worker and merges them, since a StatefulSet has only one.

Variables may differ: each role keeps its own. Of CPU and memory the larger value wins. A field set on one side only
applies to both, with a note. A field set to different values is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from launcher.engines import arguments
from launcher.render import known
from launcher.render.fields import Field
from launcher.render.model import PodTemplate, Service

_POD = ("containers", "terminationGracePeriodSeconds", *known.POD)
_POD_OURS = {
    "hostname": "pods are named by their StatefulSet",
    "subdomain": "pods are named by their StatefulSet and its headless Service",
    "enableServiceLinks": "it is false: a Service with the engine's name would break the engine",
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
_CONTAINER = ("name", "command", "args", "ports", "resources", *known.CONTAINER)
#: mount path of the launcher's copy, and the name of its volume
_PLACE, _COPY = "/opt/launcher", "launcher"
#: variables that identify a pod, and the field that each must come from
_IDENTITY = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_IP": "status.podIP",
    "POD_INDEX": "metadata.labels['apps.kubernetes.io/pod-index']",
}
_PROBE = "the launcher answers the probes: /livez, and /readyz which includes the engine's own health"
_CONTAINER_OURS = {
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "startupProbe": _PROBE,
    "lifecycle": "the launcher drains by itself when a pod receives SIGTERM",
}
#: the labels by which the Services, the policy and the budget select pods
_LABELS_OURS = ("app.kubernetes.io/name", "app.kubernetes.io/instance", "inference-group")


def read_template(template: Field) -> PodTemplate:
    """Read one role's template. Raises ConfigError for what does not belong in it."""
    template.mapping(("metadata", "spec"))
    template.get("metadata", {}).mapping(("annotations", "labels", "creationTimestamp", "name"))
    spec = template["spec"]
    spec.mapping(_POD, _POD_OURS)
    if "terminationGracePeriodSeconds" in spec:
        spec["terminationGracePeriodSeconds"].number(1)
    _check_known(spec, known.POD)
    for entry in spec.get("volumes", []).entries():
        if entry["name"].text() == _COPY:
            raise entry["name"].error(f"{_COPY} is the launcher's own volume", "give it another name")
        known.one_of(entry, known.SOURCES, "name one, as emptyDir: {} or persistentVolumeClaim: {claimName: ...}")
    containers = list(spec["containers"].entries())
    if len(containers) != 1:
        raise spec["containers"].error(f"{len(containers)} containers", "one container is supported: the engine's")
    (container,) = containers
    container.mapping(_CONTAINER, _CONTAINER_OURS)
    _check_known(container, known.CONTAINER)
    for entry in container.get("volumeMounts", []).entries():
        entry["name"].text()
        path = entry["mountPath"].text().rstrip("/")
        if path == _PLACE or path.startswith(f"{_PLACE}/"):
            raise entry["mountPath"].error(f"{path} would hide the launcher", "mount it elsewhere")
    env: dict[str, dict[str, Any]] = {}
    for entry in container.get("env", []).entries():
        name = _variable(entry)
        if name in env:
            raise entry.error(f"{name} is set twice", "leave one of them out")
        env[name] = dict(entry.value)
    return PodTemplate(template, spec, container, env)


def _check_known(place: Field, shapes: Mapping[str, Any]) -> None:
    for name in place.value:
        if name in shapes:
            known.check(place[name], shapes[name])


def _variable(entry: Field) -> str:
    """Validate one entry of env and return its name."""
    name = entry["name"].text()
    known.variable_name(entry["name"], name)
    if "value" in entry:
        entry["value"].quiet_text()
        if "valueFrom" in entry:
            raise entry.error(f"{name} has both value and valueFrom", "leave one of them out")
    source = entry.get("valueFrom", {})
    if "valueFrom" in entry:
        known.one_of(source, known.VALUES, "name one, as secretKeyRef: {name: ..., key: ...}")
    if name in _IDENTITY and source.get("fieldRef", {}).get("fieldPath").value != _IDENTITY[name]:
        raise entry.error(
            f"{name} is how each pod knows itself, and is set already ({_IDENTITY[name]})",
            "leave it out: one value would be every pod's",
        )
    return name


# ------------------------------------------------------------------------------------------------- one of two


def unite(service: Service, pods: list[PodTemplate]) -> None:
    """Merge ``pods`` (the leader's template first) into the one of ``service``. Raises ConfigError."""
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
    """A field that applies to both roles: equal on both, or set on one side only, which is noted."""
    said = [side[name] for side in sides if name in side]
    if any(s.value != said[0].value for s in said):
        raise said[1].error(
            f"differs from {said[0].path}", "leader and worker are one pod template: say the same, or only the leader's"
        )
    if len(said) < len(sides):
        service.notes.append(f"{said[0].path} holds for all pods: one template serves leader and workers")
    return said[0].value


def _alike(service: Service, pods: list[PodTemplate], name: str, *, metadata: bool) -> Mapping[str, str]:
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
    return known.labels(place, name.removesuffix("s"))


def _arguments(service: Service, pods: list[PodTemplate]) -> tuple[str, ...]:
    """The launcher's arguments: every pod runs the same command line."""
    for pod in pods:
        command = pod.container.get("command", [])
        if command.value and command.texts()[0].rpartition("/")[2] != "launcher":
            raise command.error(
                f"{' '.join(command.texts())[:80]} takes the launcher's place",
                "leave command out and say it in the launcher's words: args: [--model, ..., --tp, ...]",
            )
    said = [(*pod.container.get("command", []).texts()[1:], *pod.container.get("args", []).texts()) for pod in pods]
    # `launcher` without a command means `launcher run`.
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


def _environment(service: Service, pods: list[PodTemplate]) -> list[dict[str, Any]]:
    """Variables equal in both roles keep their name; those of one role get the launcher's prefix for that role."""
    from launcher.planning.rank_variables import LEADER, WORKER

    # A worker's template without env inherits the leader's, as it does image and args.
    if len(pods) == 1 or "env" not in pods[1].container:
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


def _ports(pods: list[PodTemplate]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for pod in pods:
        for entry in pod.container.get("ports", []).entries():
            entry.mapping(("containerPort", "name", "protocol"))
            number = entry["containerPort"].number(1)
            if number > 65535:
                raise entry["containerPort"].error(f"{number} is no port", "write 1 to 65535")
            if "name" in entry:
                known.port_name(entry["name"], entry["name"].text())
            if entry.get("protocol", "TCP").value not in ("TCP", "UDP", "SCTP"):
                raise entry["protocol"].error(f"{entry['protocol'].value} is no protocol", "write TCP, or leave it out")
            before = found.setdefault(number, {})
            if any(before.get(key, value) != value for key, value in entry.value.items()):
                raise entry.error(f"port {number} is described differently elsewhere", "describe it alike")
            before.update(entry.value)
    names = [p["name"] for p in found.values() if "name" in p]
    if twice := {name for name in names if names.count(name) > 1}:
        raise pods[0].container["ports"].error(f"two ports are named {twice.pop()}", "give each its own name")
    return list(found.values())


def _resources(service: Service, pods: list[PodTemplate]) -> dict[str, Any]:
    """CPU and memory that fit both roles. Devices must be equal: every rank has the same share of the work."""
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
    _check_limits(result, f"{pods[0].container.path}.resources")
    return result


def _check_limits(resources: Mapping[str, Any], path: str) -> None:
    """Check as the API server does: no request above its limit, and requests of devices equal to it."""
    limits = resources.get("limits", {})
    for name, amount in resources.get("requests", {}).items():
        place, most = Field(f"{path}.requests.{name}", amount), limits.get(name)
        device = "/" in name or name.startswith("hugepages-")
        if device and most is None:
            raise place.error(f"{amount}, and no limit", f"write it under limits: {name} is not shared out by weight")
        if most is None:
            continue
        asked, allowed = quantity(place), quantity(Field(f"{path}.limits.{name}", most))
        if asked > allowed:
            raise place.error(f"{amount} is more than the limit of {most}", "ask for the limit at most")
        if device and asked != allowed:
            raise place.error(f"{amount}, and a limit of {most}", "say the same: it can't be more or less later")


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


def _warn_of_secrets(service: Service, pods: list[PodTemplate]) -> None:
    for pod in pods:
        for name, entry in pod.env.items():
            value = entry.get("value") or ""
            if (arguments.is_secret(name) and value) or arguments.holds_password(value):
                service.warnings.append(
                    f"{pod.container.path}.env: {name} is a secret in plain text, which all see who may read pods; "
                    "put it into a Secret and take it by valueFrom.secretKeyRef"
                )
    for option in arguments.given(service.args):
        plain = arguments.is_secret(option.name) and option.value and not option.value.startswith("$(")
        if plain or any(map(arguments.holds_password, option.values)):
            service.warnings.append(
                f"{service.path}.args: {option.name} is a secret in plain text, which all see who may read pods; put "
                "it into a Secret, take that as a variable by valueFrom.secretKeyRef, and write $(VARIABLE) here"
            )
