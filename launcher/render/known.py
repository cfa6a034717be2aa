"""The fields of a pod that are rendered, as tables. What the API server would reject is rejected here, with its path.

A shape is one of the words below, a mapping of fields to shapes, or a list with the shape of its entries. Fields that
no engine pod uses (other systems' volumes, Windows) are left out, as are those that ``template.py`` rejects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.render.fields import Field

TEXT, NUMBER, FLAG, TEXTS, LABELS, ANY = "text", "number", "flag", "texts", "labels", "any"
Shape = Any

_PROFILE = {"type": TEXT, "localhostProfile": TEXT}
_USER = {"runAsUser": NUMBER, "runAsGroup": NUMBER, "runAsNonRoot": FLAG}
_SYSTEM = {
    "seccompProfile": _PROFILE,
    "appArmorProfile": _PROFILE,
    "seLinuxOptions": {"level": TEXT, "role": TEXT, "type": TEXT, "user": TEXT},
}
_POD_SECURITY = {
    **_USER,
    **_SYSTEM,
    "fsGroup": NUMBER,
    "fsGroupChangePolicy": TEXT,
    "supplementalGroups": [NUMBER],
    "supplementalGroupsPolicy": TEXT,
    "sysctls": [{"name": TEXT, "value": TEXT}],
}
_EXPRESSION = {"key": TEXT, "operator": TEXT, "values": TEXTS}
_SELECTOR = {"matchLabels": LABELS, "matchExpressions": [_EXPRESSION]}
_NODES = {"matchExpressions": [_EXPRESSION], "matchFields": [_EXPRESSION]}
_PODS = {
    "topologyKey": TEXT,
    "labelSelector": _SELECTOR,
    "namespaceSelector": _SELECTOR,
    "namespaces": TEXTS,
    "matchLabelKeys": TEXTS,
    "mismatchLabelKeys": TEXTS,
}
_BY_PODS = {
    "requiredDuringSchedulingIgnoredDuringExecution": [_PODS],
    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": NUMBER, "podAffinityTerm": _PODS}],
}
_BY_NODES = {
    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_NODES]},
    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": NUMBER, "preference": _NODES}],
}
_ITEMS = [{"key": TEXT, "path": TEXT, "mode": NUMBER}]
_FIELD = {"fieldPath": TEXT, "apiVersion": TEXT}
_RESOURCE = {"resource": TEXT, "containerName": TEXT, "divisor": ANY}
_KEY = {"name": TEXT, "key": TEXT, "optional": FLAG}
_NAMED = {"name": TEXT, "optional": FLAG}

#: the sources of a volume: exactly one is required
SOURCES: Mapping[str, Shape] = {
    "emptyDir": {"medium": ANY, "sizeLimit": ANY},
    "persistentVolumeClaim": {"claimName": TEXT, "readOnly": FLAG},
    "hostPath": {"path": TEXT, "type": ANY},
    "nfs": {"server": TEXT, "path": TEXT, "readOnly": FLAG},
    "secret": {"secretName": TEXT, "items": _ITEMS, "defaultMode": NUMBER, "optional": FLAG},
    "configMap": {"name": TEXT, "items": _ITEMS, "defaultMode": NUMBER, "optional": FLAG},
    "csi": {"driver": TEXT, "readOnly": FLAG, "fsType": TEXT, "volumeAttributes": LABELS,
            "nodePublishSecretRef": {"name": TEXT}},
    "downwardAPI": {"items": ANY, "defaultMode": NUMBER},
    "projected": {"sources": ANY, "defaultMode": NUMBER},
    "ephemeral": {"volumeClaimTemplate": ANY},
    "image": {"reference": TEXT, "pullPolicy": TEXT},
}  # fmt: skip
#: the sources of a variable's value: exactly one is required
VALUES: Mapping[str, Shape] = {
    "fieldRef": _FIELD,
    "resourceFieldRef": _RESOURCE,
    "secretKeyRef": _KEY,
    "configMapKeyRef": _KEY,
}
POD: Mapping[str, Shape] = {
    "volumes": [{"name": TEXT, **SOURCES}],
    "nodeSelector": LABELS,
    "tolerations": [
        {"key": TEXT, "operator": TEXT, "value": ANY, "effect": TEXT, "tolerationSeconds": NUMBER},
    ],
    "affinity": {"nodeAffinity": _BY_NODES, "podAffinity": _BY_PODS, "podAntiAffinity": _BY_PODS},
    "imagePullSecrets": [{"name": TEXT}],
    "priorityClassName": TEXT,
    "runtimeClassName": TEXT,
    "schedulerName": TEXT,
    "topologySpreadConstraints": [
        {"maxSkew": NUMBER, "topologyKey": TEXT, "whenUnsatisfiable": TEXT, "labelSelector": _SELECTOR,
         "minDomains": NUMBER, "nodeAffinityPolicy": TEXT, "nodeTaintsPolicy": TEXT, "matchLabelKeys": TEXTS},
    ],
    "securityContext": _POD_SECURITY,
    "dnsPolicy": TEXT,
    "dnsConfig": {"nameservers": TEXTS, "searches": TEXTS, "options": [{"name": TEXT, "value": TEXT}]},
    "hostAliases": [{"ip": TEXT, "hostnames": TEXTS}],
}  # fmt: skip
CONTAINER: Mapping[str, Shape] = {
    "image": TEXT,
    "imagePullPolicy": TEXT,
    "workingDir": TEXT,
    "env": [{"name": TEXT, "value": ANY, "valueFrom": VALUES}],
    "envFrom": [{"prefix": ANY, "configMapRef": _NAMED, "secretRef": _NAMED}],
    "volumeMounts": [
        {"name": TEXT, "mountPath": TEXT, "readOnly": FLAG, "recursiveReadOnly": TEXT, "subPath": TEXT,
         "subPathExpr": TEXT, "mountPropagation": TEXT},
    ],
    "securityContext": {
        **_USER,
        **_SYSTEM,
        "privileged": FLAG,
        "allowPrivilegeEscalation": FLAG,
        "readOnlyRootFilesystem": FLAG,
        "procMount": TEXT,
        "capabilities": {"add": TEXTS, "drop": TEXTS},
    },
}  # fmt: skip


def check(place: Field, shape: Shape) -> None:
    """Raises ConfigError for an unknown field or a value of the wrong kind."""
    if isinstance(shape, Mapping):
        for name in place.mapping(shape):
            check(place[name], shape[name])
    elif isinstance(shape, list):
        for entry in place.entries():
            check(entry, shape[0])
    elif shape == TEXT:
        place.text()
    elif shape == NUMBER:
        place.number(0)
    elif shape == FLAG:
        place.flag()
    elif shape == TEXTS:
        place.texts()
    elif shape == LABELS:
        place.strings()


def one_of(place: Field, sources: Mapping[str, Shape], fix: str) -> None:
    """Raises ConfigError unless exactly one of the sources is given."""
    found = [name for name in sources if name in place]
    if len(found) != 1:
        problem = f"has {len(found)} sources ({', '.join(found)})" if found else "has no source"
        raise place.error(problem, fix)


# ------------------------------------------------------------------------------------------------------ names

_LABEL = re.compile(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", re.ASCII)
_PREFIX = re.compile(r"(?=.{1,253}/)[a-z0-9]([a-z0-9.-]*[a-z0-9])?/")
_PORT = re.compile(r"(?!.*--)(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
_VARIABLE = re.compile(r"[-._A-Za-z][-._A-Za-z0-9]*")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def label(place: Field, text: str, *, what: str = "label") -> None:
    """A label's value; it may be empty."""
    if text and not _LABEL.fullmatch(text):
        raise place.error(
            f"{text!r} is no {what}", "use up to 63 letters, digits, -, _ and ., a letter or digit at both ends"
        )


def label_name(place: Field, name: str, what: str) -> None:
    """The name of a label or annotation, with or without ``prefix/``."""
    prefix = _PREFIX.match(name)
    if not _LABEL.fullmatch(name[prefix.end() :] if prefix else name):
        raise place.error(f"{name!r} is no name of {what}", "use letters, digits, -, _ and ., or example.com/name")


def port_name(place: Field, name: str) -> None:
    if not _PORT.fullmatch(name):
        raise place.error(f"{name!r} is no port's name", "use up to 15 lower case letters, digits and -, as http")


def variable_name(place: Field, name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        raise place.error(f"{name!r} is no variable's name", "use letters, digits and _, no digit first")


def namespace(place: Field) -> str:
    name = place.text()
    if not _NAMESPACE.fullmatch(name):
        raise place.error(f"{name!r} is no namespace", "use lower case letters, digits and -, 63 at most")
    return name


def labels(place: Field, what: str = "label") -> dict[str, str]:
    """Labels or annotations whose names and values the API server accepts."""
    found = place.strings()
    for name, value in found.items():
        label_name(Field(f"{place.path}.{name}", value), name, f"a {what}" if what == "label" else f"an {what}")
        if what == "label":
            label(Field(f"{place.path}.{name}", value), value)
    return found
