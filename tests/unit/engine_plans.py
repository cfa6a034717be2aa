"""What the tests of engines share: contexts with real values, and a plan as the lines a person would read."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.engines.base import Checked, Engine, PlanContext
from launcher.model import EMPTY, Epoch, Identity, NodeFacts, Plan, Process, Shared
from launcher.settings import Settings

TOKEN = "t" * 64


def facts(gpus: int | None = None, model: str = "", **versions: str) -> NodeFacts:
    """Facts of an interpreter that was asked; ``nvidia_nccl_cu12`` is the distribution ``nvidia-nccl-cu12``."""
    return NodeFacts({k.replace("_", "-"): v for k, v in versions.items()}, True, gpus, model)


def identity(size: int, rank: int = 0) -> Identity:
    return Identity("ns/vllm-0", rank, size, f"vllm-{rank}", "vllm-0.svc", "explicit")


def context(
    settings: Settings,
    size: int,
    known: NodeFacts | None = None,
    epoch: int = 1,
    ip: str = "10.0.0.{}",
    bind: str = "0.0.0.0",
    environ: Mapping[str, str] = EMPTY,
) -> PlanContext:
    shared = Shared(Epoch(epoch, "abcdef0123"), tuple(ip.format(n + 1) for n in range(size)), TOKEN)
    return PlanContext(settings, identity(size), known or NodeFacts(), shared, bind, environ)


def plan(engine: Engine, settings: Settings, size: int, rank: int = 0, known: NodeFacts | None = None) -> Plan:
    return engine.plan(context(settings, size, known), rank)


def check(engine: Engine, settings: Settings, size: int, known: NodeFacts | None = None) -> Checked:
    return engine.check(settings, identity(size), known or NodeFacts())


def process(plan: Plan, stage: str = "engine") -> Process:
    """The one process of a stage."""
    (found,) = next(s for s in plan.stages if s.name == stage).processes
    return found


def command(plan: Plan, stage: str = "engine") -> str:
    return " ".join(process(plan, stage).argv)
