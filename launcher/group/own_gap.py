"""Measures how long this launcher itself did not run: when its machine freezes, all peers seem silent."""

from __future__ import annotations

from launcher.group.lease import Terms


class OwnGap:
    """Detects a gap from the time between two events: ticks come forty times a lease."""

    def __init__(self, terms: Terms, now: float) -> None:
        self._terms = terms
        self._last = now
        self._ended = now
        self.seconds = 0.0  #: of the latest gap; 0: there was none

    def event(self, now: float) -> None:
        """An event is handled now."""
        if now - self._last > self._terms.gap:
            self.seconds, self._ended = now - self._last, now
        self._last = now

    def explains(self, silence: float, now: float) -> bool:
        """Whether a peer's silence of so many seconds is just our own gap, plus a little time before and after it."""
        if not self.seconds or now - self._ended > self._terms.gap:
            return False
        return silence - self.seconds - (now - self._ended) <= self._terms.gap_slack

    def recent(self, now: float) -> bool:
        """Whether a gap has just ended that was long enough for others to declare us lost."""
        return self.seconds >= self._terms.lost_after and now - self._ended <= self._terms.gap

    @property
    def words(self) -> str:
        return own_gap(self.seconds)


def own_gap(seconds: float) -> str:
    return f"this launcher did not run for {seconds:.1f} s: machine frozen or overloaded"
