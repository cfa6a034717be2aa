"""What every part of the agent is given, and what stays as it is from the agent's start to its exit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.agent.guard_client import GuardClient
from launcher.log import Log
from launcher.model import Identity
from launcher.node.pressure import Pressure
from launcher.settings import Settings

if TYPE_CHECKING:
    from launcher.group.proof import Secrets


@dataclass(frozen=True)
class AgentContext:
    """One pod's agent, as its parts see it."""

    settings: Settings
    identity: Identity
    environ: Mapping[str, str]  #: the engine's, without what is set for it by its plan
    incarnation: str  #: of this process; the member's changes when it takes over another one's seat
    secrets: Secrets | None
    guard: GuardClient
    log: Log
    pressure: Pressure
    tell: Callable[[Any], None]  #: hands an event to the member
    task: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]  #: runs a coroutine; if it raises, the agent ends
    redacted: tuple[str, ...] = ()  #: secrets that are masked in text that leaves this pod
