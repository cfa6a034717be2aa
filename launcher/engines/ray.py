from __future__ import annotations

from launcher.engines.base import PlanContext
from launcher.words import Process, Stage


def stages(context: PlanContext, rank: int, engine: Process, *, gpus: int) -> tuple[Stage, ...]:
    raise NotImplementedError
