"""Do the parallel sizes fit the pods? Checked before anything starts, with every number in the error.

Engines find out late and report it badly: vLLM's placement group waits 30 minutes, SGLang asserts after it has
downloaded the model. This module knows no engine: each passes the factors that make its world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from launcher.engines.base import Checked
from launcher.errors import ConfigError
from launcher.model import NodeFacts
from launcher.settings import Settings


@dataclass(frozen=True)
class World:
    """The accelerators that an engine needs: named factors, ``(("--tp", 4), ("--pp", 2))``."""

    factors: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        return prod(number for _, number in self.factors)

    def __str__(self) -> str:
        return " x ".join(f"{name} {number}" for name, number in self.factors) + f" = {self.size}"


def world(settings: Settings, names: Sequence[str] = ("tp", "pp", "dp")) -> World:
    """tp x pp x dp from the settings; a size that is not given counts as 1."""
    return World(tuple((f"--{name}", getattr(settings, name) or 1) for name in names))


def gpus(settings: Settings, facts: NodeFacts) -> int | None:
    """GPUs of a pod: --gpus-per-pod, else what was detected; None: unknown."""
    return facts.gpus if settings.gpus_per_pod is None else settings.gpus_per_pod


def check(settings: Settings, facts: NodeFacts, size: int, needed: World) -> Checked:
    """Refuse a world that cannot be spread over ``size`` pods of the GPUs that this one has.

    Raises:
        ConfigError: not divisible by the pods, or more GPUs a pod than there are.
    """
    have = gpus(settings, facts)
    if needed.size % size:
        raise ConfigError(
            f"{needed} ranks cannot be spread evenly over {size} pods", _fix_for_pods(size, have, needed.size)
        )
    each = needed.size // size
    shown = f"{needed} ranks over {size} pod{'s' if size > 1 else ''}: {each} a pod"
    if have is None:
        return Checked((f"{shown}; the GPUs of a pod are not known here, so that is not checked",))
    if have == 0:
        return Checked((f"{shown}; no GPU in this pod: taken as a CPU engine, not checked further",))
    if each > have:
        raise ConfigError(
            f"{needed} ranks over {size} pod{'s' if size > 1 else ''} are {each} a pod, and this pod has {have} GPUs",
            f"use {-(-needed.size // have)} pods or more (--size), give each {each} GPUs, or make --tp x --pp x --dp at"
            f" most {have * size}",
        )
    if each < have:
        return Checked((shown,), (f"each pod has {have} GPUs and uses {each}: {have - each} stay idle",))
    return Checked((f"{shown}, as many as it has GPUs",))


def _fix_for_pods(size: int, have: int | None, product: int) -> str:
    if product == 1:
        example = f"--tp {have} --pp {size}" if have else f"--tp {size}"
        return f"say how the model is split over the {size} pods, for instance {example}"
    return f"make --tp x --pp x --dp a multiple of {size}, or change the number of pods"
