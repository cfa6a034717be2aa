"""What the checks read: one pod as the roots of its file systems, its environment and what was learned about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.common.numbers import is_whole
from launcher.engines.base import Engine, Requirements
from launcher.errors import LauncherError
from launcher.model import EMPTY, Identity, NodeFacts, Plan
from launcher.node.cgroup import places
from launcher.planning import steps
from launcher.planning.pod_network import Network
from launcher.settings import Settings

if TYPE_CHECKING:
    from launcher.network.addresses import Interface


@dataclass(frozen=True)
class Node:
    """One pod. ``raw``: the environment as the platform made it. ``environ``: the same without service links.

    A field that could not be learned is None, and ``trouble`` says why, under one of the keys ``identity``, ``engine``,
    ``plugin``, ``network``.
    """

    settings: Settings
    environ: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    raw: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    identity: Identity | None = None
    facts: NodeFacts = field(default_factory=NodeFacts)
    plan: Plan | None = None
    network: Network | None = None
    among: tuple[Interface, ...] = ()
    smi: str | None = None  #: output of ``nvidia-smi -L``; None: not run
    smi_code: int = 0
    running: bool = False  #: a launcher already runs in this pod and uses its ports
    agent: bool = False  #: this process is the launcher's agent
    trouble: Mapping[str, str] = field(default_factory=lambda: EMPTY)

    @property
    def sys(self) -> Path:
        return Path(self.environ.get("LAUNCHER_SYSFS") or "/sys")

    @property
    def dev(self) -> Path:
        return Path(self.environ.get("LAUNCHER_DEV") or "/dev")

    @property
    def proc(self) -> Path:
        return Path(self.environ.get("LAUNCHER_PROC") or "/proc")

    @property
    def size(self) -> int:
        return self.identity.size if self.identity else self.settings.size or 1

    @cached_property
    def engine(self) -> Engine | None:
        """The engine that the settings name; None: unusable, and ``trouble`` says why."""
        if "engine" in self.trouble:
            return None
        try:
            return steps.engine_of(self.settings)
        except LauncherError:
            return None

    @cached_property
    def distribution(self) -> str:
        """The distribution whose version is the engine's; empty: there is none."""
        return next(iter(self.engine.distributions(self.settings)), "") if self.engine is not None else ""

    @cached_property
    def requirements(self) -> Requirements:
        """What the engine needs; if it is unusable, what most engines need."""
        if self.engine is None:
            return Requirements(torch=self.settings.engine_file is None or "torch" in self.facts.versions)
        return self.engine.requirements(self.settings, self.environ)

    @property
    def gpus(self) -> int | None:
        return self.facts.gpus if self.settings.gpus_per_pod is None else self.settings.gpus_per_pod

    @property
    def ranks_here(self) -> int:
        """Engine ranks (processes that hold a part of the model) in this pod."""
        return max(1, -(-self.settings.world // self.size))


def text(path: Path) -> str:
    """A small file of /proc or /sys without its newline; empty if unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def cgroup(node: Node, v2: str, v1_controller: str, v1: str) -> int | None:
    """A limit of our cgroup (bytes, processes); None: unlimited, or unknown.

    cgroup v1 writes "unlimited" as a number near 2**63.
    """
    membership = text(node.proc / "self/cgroup")
    for place in places(membership, str(node.sys / "fs/cgroup"), v2, v1_controller, v1):
        said = text(Path(place))
        if is_whole(said):
            return int(said) if int(said) < 1 << 60 else None
        if said == "max":
            return None
    return None
