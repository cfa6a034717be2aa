"""When failing health checks are evidence enough to end an epoch: pure rules over answers and times.

A failed health check says little: an overloaded engine works, but does not answer in time. So a verdict needs failing
health checks *and* requests that make no progress:

- an error or a refused connection (nothing listens), ``--health-failures`` times in a row, while no request is in
  flight: the engine's server or the kernel has said so, and no request is lost;
- otherwise ``--unresponsive-timeout`` in which no health check succeeded and no request made progress. A token, or
  bytes of an answer, restart that time. CPU time and output put it off only once: a worker that spins in a collective
  has both, and so has a server that logs every health check.

Times come in twice: ``now`` is the monotonic clock, for texts; ``fair`` is the clock of `node/pressure.py`, for
deadlines.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

#: Seconds for which a request that made progress counts as moving: an engine that does not answer is only slow.
MOVING_FOR = 15.0
#: Seconds after which an error counts as a time-out: SGLang answers 503 after 20 s.
PROMPT = 5.0


class CheckFailure(str, Enum):
    """How a health check failed. The value is the ``reason`` label of the metric."""

    REFUSED = "refused"
    ERROR = "error"
    TIMEOUT = "timeout"  #: or the connection broke


@dataclass
class Spell:
    """A run of failed checks; the first success ends it."""

    began: float  #: on the monotonic clock
    since: float  #: start of the deadline: the first failure, the latest progress, or the one delay
    moved: bool = False  #: whether a sign of progress has moved ``since``
    delayed: bool = False
    in_a_row: int = 0  #: latest errors and refusals that came promptly
    last: CheckFailure = CheckFailure.TIMEOUT
    words: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    signs: int | None = None  #: CPU time and output when ``since`` was set


class HealthVerdict:
    """State of one epoch's health. Every method takes the time; `judge` says whether the epoch must end."""

    def __init__(self, process: str, what: str, failures: int, timeout: float) -> None:
        self._process = process
        self._what = what  #: ``GET /health``
        self._failures = failures
        self._timeout = timeout
        self._moved_at: float | None = None  # fair
        self._moved_wall: float | None = None
        self.spell: Spell | None = None

    def well(self) -> None:
        self.spell = None

    def failed(self, failure: CheckFailure, words: str, asked: float, asked_fair: float) -> None:
        """A check failed that was sent at ``asked``."""
        if self.spell is None:
            self.spell = Spell(asked, asked_fair)
        spell = self.spell
        spell.last, spell.words = failure, words
        spell.counts[words] += 1
        spell.in_a_row = 0 if failure is CheckFailure.TIMEOUT else spell.in_a_row + 1

    def progress(self, now: float, fair: float) -> None:
        """A request made progress."""
        self._moved_at, self._moved_wall = fair, now
        if self.spell is not None:
            self.spell.since, self.spell.moved = fair, True
            self.spell.delayed, self.spell.signs = False, None

    def slow(self, fair: float) -> bool:
        """Whether the engine does not answer in time, but requests make progress."""
        moving = self._moved_at is not None and fair - self._moved_at < MOVING_FOR
        return self.spell is not None and self.spell.last is CheckFailure.TIMEOUT and moving

    def judge(self, now: float, fair: float, in_flight: bool, signs: int, starved: str = "") -> str:
        """The evidence, if it ends the epoch; else nothing.

        ``signs`` moves with CPU time and output; ``starved`` says why the fair clock is slow.
        """
        spell = self.spell
        if spell is None:
            return ""
        if spell.in_a_row >= self._failures and not in_flight:
            return f"{self._process} failed its health check {spell.in_a_row} times in a row: {spell.words}"
        if spell.signs is None:
            spell.signs = signs
        if not self._timeout or fair - spell.since < self._timeout:
            return ""
        if not spell.delayed and signs != spell.signs:
            spell.delayed, spell.since = True, fair
            return ""
        return self._words(spell, now) + (f"; {starved}" if starved else "")

    def _words(self, spell: Spell, now: float) -> str:
        counts = ", ".join(f"{words} {_times(n)}" for words, n in spell.counts.most_common(4))
        seconds = now - spell.began
        text = f"{self._process}: {self._what} failed for {seconds:.0f} s ({counts}) and no request made progress"
        if spell.moved and self._moved_wall is not None:
            return f"{text} in the last {now - self._moved_wall:.0f} s of them"
        return f"{text} in that time"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
