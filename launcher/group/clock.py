"""Maps a member's clock to the leader's: bounds of their offset, from the round trips of the beats.

Each ping says, by the member's clock, when it was sent and when the mark that it echoes was received. The ping was sent
before it arrived, and the mark was received after it was sent. This gives two bounds of the offset, each off by no more
than the one-way delay. The tightest bounds are kept, and widened with their age by as much as two clocks may drift
apart (1 % each, `lease.py`). On a suspended or migrated machine the clock may have stood still: a bound that the newest
one contradicts dates from before that, and is dropped.

Used for the order of failures only: no lease, deadline or fence depends on it.
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
        """A message that the member sent at its time ``at`` arrived at ``now``."""
        if self._most is None or now - at < self._upper(self._most, now):
            self._most = (now - at, now)
            if self._contradicts(now):
                self._least = None

    def heard(self, at: float, said: float, now: float) -> None:
        """The member received at its time ``at`` what the leader sent at ``said``. It is ``now``."""
        if self._least is None or said - at > self._lower(self._least, now):
            self._least = (said - at, said)  # it was true when it was heard, which was no earlier
            if self._contradicts(now):
                self._most = None

    def interval(self, at: float, doubt: float, now: float) -> tuple[float, float] | None:
        """When it happened on the leader's clock: the member noticed it at ``at``, at most ``doubt`` seconds late."""
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
