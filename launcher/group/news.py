"""Decides when the leader sends news to its members: at every change that people can see; mere counts once a second."""

from __future__ import annotations

from collections.abc import Callable

from launcher.group.roster import MANY
from launcher.model import Cause

NEWS_EVERY = 1.0


class NewsDesk:
    """What was last sent. ``state`` is sent when it changes, and so is ``counts``, but at most once in NEWS_EVERY.

    ``known`` is the part of ``state`` that is cheap to know; the rest takes a pass over all seats.
    """

    def __init__(self, now: float) -> None:
        self._state: tuple[object, ...] = ()
        self._counts: tuple[object, ...] = ()
        self._told_at = now
        self._look_at = now  # when what is missing may be put in words again
        self._all_told = False  # as of the last look, the members know all that people can see

    def nothing_new(self, first_failure: Cause | None, charged: Callable[[], int]) -> bool:
        """After an event that changed nothing else: whether these have not changed either, and all news was sent."""
        return self._all_told and first_failure is self._state[1] and charged() == self._counts[-1]

    def due(self, known: tuple[object, ...], seats: int, now: float) -> bool:
        """Whether to compute the rest: with many seats, not at every event."""
        self._all_told = False
        if now < self._look_at and known == self._state[: len(known)]:
            return False
        self._look_at = now + (NEWS_EVERY if seats > MANY else 0.0)
        return True

    def changed(self, state: tuple[object, ...], counts: tuple[object, ...], now: float) -> bool:
        """Whether this must be sent now; if so, it counts as sent."""
        same = counts == self._counts
        if state == self._state and (same or now - self._told_at < NEWS_EVERY):
            self._all_told = same
            return False
        self._state, self._counts, self._told_at, self._all_told = state, counts, now, True
        return True
