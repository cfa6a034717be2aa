"""What the modules of `render` share: what is asked for, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.render.fields import Field

#: what images/build.sh calls the launcher's image: on the machine of the build
BUILT = "launcher:dev"


@dataclass(frozen=True)
class RenderOptions:
    """What the resource does not say and the cluster decides."""

    launcher_image: str | None = BUILT  #: of the init container; None: the engine's image has the launcher
    keda: bool = True
    replicas: str = "zero"  #: under KEDA: zero, for the first apply, or keep: the field is left to KEDA
    prometheus: str | None = None  #: None: as in k8s/components/keda
    query: str | None = None
    load: int = 100  #: requests in flight that one group carries
    gang: str = "none"  #: none, volcano or kueue


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


@dataclass
class PodTemplate:
    """One role's template, looked through."""

    template: Field
    spec: Field
    container: Field
    env: dict[str, dict[str, Any]]
