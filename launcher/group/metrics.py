"""What the leader counts of its epochs, for /metrics: how they ended, and how long it took to notice and to stop.

Counts and sums only grow, as Prometheus requires; they restart from 0 with the leader's launcher.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from launcher.group.ledger import KEPT, StartLedger
from launcher.model import NO_FAILURE, STEPS, CauseKind


@dataclass
class Durations:
    """The number of durations, and their sum in seconds."""

    count: int = 0
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.sum += max(0.0, seconds)


class DrainEnd(str, Enum):
    """How a drain ended."""

    IDLE = "idle"  #: nothing was in flight any more
    GRACE = "grace"  #: the grace ran out with requests in flight
    HURRIED = "hurried"  #: a second SIGTERM
    FAILED = "failed"  #: the engine or a rank failed while it drained


def _at_zero(kinds: Iterable[Enum]) -> Counter[str]:
    """Every label from the first scrape on: Prometheus takes no step from "no series" to 1 for an increase."""
    return Counter({str(kind.value): 0 for kind in kinds})


@dataclass
class Measures:
    """Since this launcher leads."""

    #: ended epochs by kind of cause; a drain is no failure
    failures: Counter[str] = field(default_factory=lambda: _at_zero(k for k in CauseKind if k not in NO_FAILURE))
    detected: Durations = field(default_factory=Durations)  #: from a failure to the moment that the leader knew
    stopped: Durations = field(default_factory=Durations)  #: from then until every rank that answers had stopped
    drains: Counter[str] = field(default_factory=lambda: _at_zero(DrainEnd))  #: by DrainEnd
    drained: Durations = field(default_factory=Durations)  #: from the first SIGTERM until all had stopped
    starts: deque[StartLedger] = field(default_factory=lambda: deque(maxlen=KEPT))  #: the latest ones, oldest first
    #: The time that starts took on their slowest rank, by step.
    start_steps: dict[str, Durations] = field(default_factory=lambda: {step: Durations() for step in STEPS})

    def started(self, start: StartLedger) -> None:
        """An epoch serves."""
        self.starts.append(start)
        for step, seconds in start.slowest.steps.items():
            self.start_steps[step].add(seconds)
