"""Reads an InferenceService: its groups, pods and roles. Anything else is an error that names its path.

``template.py`` reads the pod templates and merges the leader's and the worker's into one.
"""

from __future__ import annotations

import re
from typing import Any

from launcher.common.numbers import check_document
from launcher.errors import ConfigError
from launcher.render import known, text
from launcher.render.fields import Field
from launcher.render.model import Service
from launcher.render.template import read_template, unite

API = "system.hero.ai/v1alpha1"
KIND = "InferenceService"
MODE = "DistributeInference"
#: the set's name and a revision's hash must fit into a label of 63 characters
LONGEST = 63 - len("-engine-99") - len("-1234567890")

#: added by the API server to an object that it returns
_SERVERS = ("creationTimestamp", "generation", "resourceVersion", "uid", "managedFields", "selfLink", "finalizers")
#: added by kubectl
_KUBECTLS = {"kubectl.kubernetes.io/last-applied-configuration"}
#: a Service's name may not start with a digit
_DNS = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


def read(source: str, name: str) -> list[Service]:
    """Every InferenceService in a file's text. ``name``: the file, for errors. Raises ConfigError."""
    module = text.yaml()
    try:
        documents = [d for d in module.load_all(source, Loader=_strict(module)) if d is not None]
        check_document(documents)
    except module.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}", "correct it") from None
    except (ValueError, TypeError, RecursionError) as error:  # an invalid date or key, or nesting that is too deep
        raise ConfigError(f"{name} cannot be read: {str(error)[:200]}", "correct it") from None
    if not documents:
        raise ConfigError(f"{name} holds nothing", f"write an {KIND}")
    many = len(documents) > 1
    return [_service(Field(f"{name}: document {i + 1}" if many else name, d)) for i, d in enumerate(documents)]


def _strict(module: Any) -> Any:
    """A loader that rejects duplicate keys: PyYAML would silently take the last one."""

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
            f"{name} cannot name the pods and their Service",
            f"use lower case letters, digits and -, a letter first, {LONGEST} at most",
        )
    spec.mapping(("deploymentMode", "scheduler", "replicas", "servers"))
    if spec["deploymentMode"].text() != MODE:
        raise spec["deploymentMode"].error(f"{spec['deploymentMode'].value} is not {MODE}", f"only {MODE} is rendered")
    scheduler = spec.get("scheduler", {})
    scheduler.mapping(("queue",))
    found = _servers(spec["servers"])
    found.name, found.namespace = name, known.namespace(metadata["namespace"]) if "namespace" in metadata else None
    found.labels = known.labels(metadata.get("labels", {}))
    if "queue" in scheduler:
        found.queue = scheduler["queue"].text()
        known.label(scheduler["queue"], found.queue, what="queue's name")
    if metadata.get("annotations", {}).mapping().keys() - _KUBECTLS:
        found.notes.append(
            "metadata.annotations are not carried over: those of the pods stand in the templates' metadata"
        )
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
    pods = [read_template(template)]
    # On the platform `template: {}` means "like the leader".
    if other.value:
        pods.append(read_template(other))
    service = Service("", None, {}, None, 1, size, {}, {}, {}, {}, (), [], "")
    unite(service, pods)
    return service
