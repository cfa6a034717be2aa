"""The request, as data that the modules of `render` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.render.fields import Field

#: the tag that images/build.sh gives the launcher's image on the build machine
BUILT = "launcher:dev"


@dataclass(frozen=True)
class RenderOptions:
    """Choices that depend on the cluster, not on the resource."""

    launcher_image: str | None = BUILT  #: of the init container; None: the engine's image contains the launcher
    keda: bool = True
    replicas: str = "zero"  #: under KEDA: zero, for the first apply; or keep, which leaves the field to KEDA
    prometheus: str | None = None  #: None: as in k8s/components/keda
    query: str | None = None
    load: int = 100  #: requests in flight that one group carries
    gang: str = "none"  #: none, volcano or kueue
    monitoring_namespace: str | None = None  #: whose pods may scrape the agent port; None: as in k8s/base


@dataclass
class Service:
    """One InferenceService, as requested."""

    name: str
    namespace: str | None
    labels: Mapping[str, str]
    queue: str | None
    groups: int
    size: int
    annotations: Mapping[str, str]  #: of the pods
    pod_labels: Mapping[str, str]
    pod: Mapping[str, Any]  #: the pod's spec without its containers
    container: dict[str, Any]
    args: tuple[str, ...]
    env: list[dict[str, Any]]
    path: str  #: path of the container, for errors about its arguments
    notes: list[str] = field(default_factory=list)  #: decisions made while reading, as sentences
    warnings: list[str] = field(default_factory=list)


@dataclass
class PodTemplate:
    """One role's template, validated."""

    template: Field
    spec: Field
    container: Field
    env: dict[str, dict[str, Any]]
