"""The configuration of the two state machines. Durations are in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.group.lease import Terms
from launcher.model import Cause, Epoch


@dataclass(frozen=True)
class StageLimit:
    """What the coordinator must know about a stage of the plan: its name, and how long it may take."""

    name: str
    timeout: float | None = None
    on_timeout: str = ""  #: a hint for people


@dataclass(frozen=True)
class CoordinatorConfig:
    group: str
    size: int
    incarnation: str
    terms: Terms = Terms()
    max_restarts: int = 10
    restart_window: float = 3600.0
    restart_backoff: float = 60.0
    stop_grace: float = 3.0
    join_timeout: float | None = None
    startup_timeout: float | None = None
    startup_stall_timeout: float | None = 1800.0
    linger: float = 0.0  #: after giving up: how long to stay for ranks that have not heard why
    highest_n: int = 0  #: from the state file
    autopsy: bool = True  #: evidence is gathered before an epoch that ended by a verdict is killed
    waits: tuple[str, ...] = ()  #: patterns of functions in which this engine waits for other ranks
    mint: Callable[[Epoch], tuple[str, Mapping[str, Any]]] = lambda epoch: ("", {})  #: Ray token and values of an epoch


@dataclass(frozen=True)
class MemberConfig:
    group: str
    rank: int
    size: int
    name: str
    incarnation: str
    terms: Terms = Terms()
    stop_grace: float = 3.0
    join_timeout: float | None = None
    #: The same for a leader that is gone after an epoch: None where the platform brings it back, so it is waited for.
    rejoin_timeout: float | None = None
    may_restart: bool = True  #: False (``--max-restarts 0``): losing the leader of an epoch ends the launcher too
    replaces: tuple[str, ...] = ()
    died: Cause | None = None
    #: The epoch that the launcher before us in this pod was last told of, and its members' incarnations by rank.
    last: tuple[Epoch, tuple[str, ...]] | None = None
