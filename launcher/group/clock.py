"""A member's clock on the leader's: bounds of the difference, from the round trips of the beats.

Each ping says, by the member's clock, when it was sent and when the mark that it echoes was heard. It was sent before
it arrived, and the mark was heard after it was sent: two bounds of the offset, each off by no more than one way took.
The tightest are kept, and widened with their age by what two clocks may drift apart (1 % each, `lease.py`). A machine
that was suspended, or moved to another one, may have had its clock stand still: a bound that the newest one contradicts
is of the time before, and is forgotten.

For the order of failures only: no lease, deadline or fence depends on it.
"""

from __future__ import annotations

DRIFT = 0.0203  #: two clocks that are wrong by 1 % each, in opposite ways
LEAPT = 1e-3  #: seconds by which two bounds contradict each other if one of the clocks stood still or leapt


class Offset:
    """What the leader knows of ``leader's time - member's time``. ``drift`` is 0 where both have one clock."""

    def __init__(self, drift: float = DRIFT) -> None:
        self._drift = drift
        self._least: tuple[float, float] | None = None  # bound, and the leader's time at which it was learned
        self._most: tuple[float, float] | None = None

    def sent(self, at: float, now: float) -> None:
        """What the member sent at its time ``at`` arrived at ``now``."""
        if self._most is None or now - at < self._upper(self._most, now):
            self._most = (now - at, now)
            if self._contradicts(now):
                self._least = None

    def heard(self, at: float, said: float, now: float) -> None:
        """The member heard at its time ``at`` what was said at ``said``. It is ``now``."""
        if self._least is None or said - at > self._lower(self._least, now):
            self._least = (said - at, said)  # it was true when it was heard, which was no earlier
            if self._contradicts(now):
                self._most = None

    def interval(self, at: float, doubt: float, now: float) -> tuple[float, float] | None:
        """When it was, by the leader's clock, what the member noticed at ``at`` and ``doubt`` seconds late at most."""
        if self._least is None or self._most is None:
            return None
        until = min(now, at + self._upper(self._most, now))
        age = max(0.0, now - until)
        since = at - doubt + self._lower(self._least, now)
        return min(since - self._drift * (age + doubt), until), min(now, until + self._drift * age)

    def _contradicts(self, now: float) -> bool:
        """Whether no offset lies within both bounds."""
        if self._least is None or self._most is None:
            return False
        return self._lower(self._least, now) > self._upper(self._most, now) + LEAPT

    def _upper(self, bound: tuple[float, float], now: float) -> float:
        value, learned = bound
        return value + self._drift * (now - learned) if now > learned else value

    def _lower(self, bound: tuple[float, float], now: float) -> float:
        value, learned = bound
        return value - self._drift * (now - learned) if now > learned else value
