"""One moment of a pod, as plain data. The agent builds it; /status and /metrics are made from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.group.autopsy import Autopsy
from launcher.group.ends import RankEnd
from launcher.group.ledger import StartLedger
from launcher.group.metrics import Durations
from launcher.model import EMPTY, Cause, Identity, StartProgress


@dataclass(frozen=True)
class PhaseVisit:
    """One stay in a phase."""

    phase: str
    at: float  #: when it began: seconds since 1970
    seconds: float  #: how long it lasted (so far)


@dataclass(frozen=True)
class FailureRecord:
    """A failure and the epoch that it ended. None: not known, as after a restart of this launcher."""

    cause: Cause
    epoch: int | None
    at: float | None  #: seconds since 1970
    age: float | None  #: seconds


@dataclass(frozen=True)
class EndedEpoch:
    """An epoch that failed, as the leader remembers it."""

    failure: FailureRecord
    served: float | None  #: seconds; None: it never served
    ends: tuple[RankEnd, ...]


@dataclass(frozen=True)
class AutopsyRecord:
    """The latest autopsy. ``at``: seconds since 1970."""

    autopsy: Autopsy
    at: float


@dataclass(frozen=True)
class MemberRow:
    """What this pod knows of one rank."""

    rank: int
    state: str
    address: str
    incarnation: str = ""
    pids: tuple[int, ...] = ()
    silent: float | None = None  #: seconds since it was heard; None: it never was
    facts: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    progress: StartProgress | None = None  #: None: it does not start anything, or how far it is is unknown
    line: str = ""  #: its last line of output, while it starts


@dataclass(frozen=True)
class StartRecord:
    """A start that the leader has seen succeed."""

    start: StartLedger
    at: float  #: when it served: seconds since 1970


@dataclass(frozen=True)
class LeaderView:
    """What only the leader knows."""

    ended: tuple[EndedEpoch, ...]
    failures: Mapping[str, float]  #: by kind of cause
    detected: Durations
    stopped: Durations
    drains: Mapping[str, float]  #: by outcome
    drained: Durations
    slow: bool  #: requests make progress, health checks time out
    health_failures: Mapping[str, float]  #: by reason
    starts: tuple[StartRecord, ...]  #: the latest ones, oldest first
    start_steps: Mapping[str, Durations]  #: of all starts on their slowest ranks, by step


@dataclass(frozen=True)
class Snapshot:
    """One pod, now."""

    identity: Identity
    engine: str  #: name, or path of the engine file
    agent_port: int
    engine_version: str | None
    model: str | None
    api_url: str | None  #: where the engine takes requests, on the rank that has its API
    phase: str  #: one of `PHASES`
    ready: bool
    why: str  #: why it is ready or not
    epoch: int | None  #: number of the current or latest one
    waiting_for: str
    first_failure: FailureRecord | None
    latest_cause: FailureRecord | None  #: why the latest epoch ended; known on rank 0
    members_present: int
    members: tuple[MemberRow, ...]
    restarts: int
    timeline: tuple[PhaseVisit, ...]
    phase_seconds: Mapping[str, float]  #: by phase, ended visits
    findings: tuple[Mapping[str, Any], ...]
    leader: LeaderView | None
    connection_errors: Mapping[str, float]  #: by kind
    turned_away: Mapping[str, float]  #: by port
    stretch: float
    gaps: int
    start: StartProgress | None = None  #: of this pod; None: nothing starts
    loaded_bytes: int | None = None  #: of the weight files, in the current or latest start
    autopsy: AutopsyRecord | None = None  #: only on the leader
