"""What goes into the coordinator and the member besides messages, and what comes out: plain values.

Both state machines speak these; `link.py` and `agent/agent.py` turn the actions into bytes, timers and processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.group.lease import Terms

# ------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Closed:
    """A connection ended. ``why`` in words."""

    why: str = ""


@dataclass(frozen=True)
class Tick:
    """Time passed."""


class OwnGap:
    """How long this launcher did not run, noticed by the time between two events: ticks come forty times a lease.

    When the whole machine stood still, everybody else seems silent; the one who was silent is oneself.
    """

    def __init__(self, terms: Terms, now: float) -> None:
        self._terms = terms
        self._long = terms.lease / 4
        self._last = now
        self._ended = now
        self.seconds = 0.0  #: of the latest; 0: there was none

    def event(self, now: float) -> None:
        """An event is handled now."""
        if now - self._last > self._long:
            self.seconds, self._ended = now - self._last, now
        self._last = now

    def explains(self, silence: float, now: float) -> bool:
        """Whether somebody's silence of so many seconds is nothing but our own gap, and the little since and before."""
        if not self.seconds or now - self._ended > self._long:
            return False
        return silence - self.seconds - (now - self._ended) <= 4 * self._terms.beat

    def recent(self, now: float) -> bool:
        """Whether a gap has just ended that was so long that others must have taken us for lost."""
        return self.seconds >= self._terms.lost_after and now - self._ended <= self._long

    @property
    def words(self) -> str:
        return own_gap(self.seconds)


def own_gap(seconds: float) -> str:
    return f"this launcher did not run for {seconds:.1f} s: machine frozen or overloaded"


# ------------------------------------------------------------------------------------------------------ actions


@dataclass(frozen=True)
class Say:
    """Send a message."""

    conn: int
    message: Any


@dataclass(frozen=True)
class SayAll:
    """Send one message to many: encoded once."""

    conns: tuple[int, ...]
    message: Any


@dataclass(frozen=True)
class Hang:
    """Close a connection."""

    conn: int


@dataclass(frozen=True)
class Note:
    """A line for the log: ``event`` in a few words, with fields."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    level: str = "info"
