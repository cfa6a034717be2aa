"""When things happened: the phases of this launcher, and how monotonic times relate to the wall clock."""

from __future__ import annotations

import time
from collections import deque

from launcher.api.snapshot import PhaseVisit
from launcher.model import PHASES

MOST_VISITS = 64
_BOOT = time.time() - time.monotonic()


def wall_clock(at: float) -> float:
    """A monotonic time of this process as seconds since 1970, always the same for the same time."""
    return _BOOT + at


def monotonic_of(at: float) -> float:
    """The inverse of `wall_clock`."""
    return at - _BOOT


class Timeline:
    """The phases that this launcher went through, with the time of each."""

    def __init__(self) -> None:
        self._entries: deque[tuple[str, float, float]] = deque(maxlen=MOST_VISITS)
        self.seconds = dict.fromkeys(PHASES, 0.0)  #: spent in each phase, without the current visit

    def enter(self, phase: str) -> None:
        now = time.monotonic()
        if self._entries:
            last, _, since = self._entries[-1]
            self.seconds[last] = self.seconds.get(last, 0.0) + now - since
        self._entries.append((phase, time.time(), now))

    def visits(self) -> tuple[PhaseVisit, ...]:
        """Oldest first; the last one goes on."""
        ends = [*[since for _, _, since in self._entries][1:], time.monotonic()]
        return tuple(
            PhaseVisit(phase, at, end - since) for (phase, at, since), end in zip(self._entries, ends, strict=True)
        )
