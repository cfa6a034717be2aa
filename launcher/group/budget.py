"""How often a group may restart, how long it waits before each restart, and when it should stop trying.

Pure bookkeeping over times that are passed in. A restart is charged when an epoch that had started a process failed;
drains, restarts by hand, mismatches and members that could not prepare cost nothing.

A group that gives up is not gone where a platform restarts its containers: once all members are back, it has one more
attempt. If that fails, too, it gives up again. So the platform's own back-off paces the attempts, and the group
recovers once the cause is gone.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from launcher.model import NO_FAILURE, Cause, CauseKind

#: Failures of the infrastructure, not of the engine: they say nothing about whether the next start can work.
_OUTSIDE = {CauseKind.LOST, CauseKind.LEADER, CauseKind.AGENT, CauseKind.JOIN}
#: The group gives up after this many failures in a row at the same point, before the engine was ever ready.
SAME_POINT = 3
#: An engine that hits a time limit of its own because everything is slow gets more attempts, further apart: its pauses
#: begin at SLOW_FIRST times the longest back-off and grow to SLOW_LONGEST times it.
SAME_LIMIT, SLOW_FIRST, SLOW_LONGEST = 6, 0.25, 8.0
#: After serving for this long (seconds), earlier trouble is over: the back-off and the first failure are reset.
STEADY = 600.0


@dataclass(frozen=True)
class Verdict:
    """What to do after an epoch: give up with ``reason``, or wait ``delay`` seconds and start again."""

    give_up: bool
    reason: str = ""
    delay: float = 0.0


class Budget:
    """``--max-restarts`` within ``--restart-window`` seconds; back-off from ``first`` doubling up to ``longest``."""

    def __init__(
        self,
        max_restarts: int,
        window: float,
        rng: random.Random,
        *,
        first: float = 0.5,
        longest: float = 60.0,
    ) -> None:
        self._max = max_restarts
        self._window = window
        self._rng = rng
        self._first = first
        self._longest = longest
        self._charges: deque[float] = deque()
        self._in_a_row = self._slow_in_a_row = 0
        self._point: tuple[object, ...] | None = None
        self._at_point = 0
        self._gave_up: float | None = None  # when the group gave up, if it has not been ready since
        self.total = 0  #: restarts since this launcher began

    def charged(self, now: float) -> int:
        while self._charges and now - self._charges[0] > self._window:
            self._charges.popleft()
        return len(self._charges)

    def used(self, now: float) -> str:
        """How much of the budget is spent, in words."""
        return f"{self.charged(now)} of {self._max} restarts"

    def ages(self, now: float) -> tuple[float, ...]:
        """The ages of the charges that still count, newest first."""
        return tuple(round(now - at, 1) for at in reversed(self._charges)) if self.charged(now) else ()

    def inherit(self, ages: Iterable[float], now: float, gave_up: float | None = None) -> None:
        """Merge the charges of a former leader that a member remembers, given by their ages.

        ``gave_up``: seconds since the group gave up, if the member heard so and no epoch was ready since.

        Members remember the same charges, each as far as it was told. So we merge place by place: the newest charge is
        the newest that anybody knows, the second newest likewise, and so on; nothing counts twice. Inherited charges
        alone never make the group give up, even if a member reports a thousand: only a failure that happens here
        exceeds the limit. So a container that is killed whole, again and again, before anything fails in it, is not
        judged: giving up would only end it once more, and its kubelet already waits longer each time.
        """
        told = sorted((now - age for age in ages if age <= self._window), reverse=True)[: self._max]
        mine = reversed(self._charges)
        self._charges = deque(max(pair) for pair in zip_longest(mine, told, fillvalue=-math.inf))
        self._charges.reverse()
        self.total = max(self.total, len(told))
        if gave_up is not None and gave_up <= self._window:
            self._gave_up = max(now - gave_up, -math.inf if self._gave_up is None else self._gave_up)

    def judge(self, cause: Cause, stage: str, served: float | None, charge: bool, now: float) -> Verdict:
        """Judge an epoch that ``cause`` ended in ``stage``; ``served``: for how long it was ready, None if never."""
        if cause.kind in NO_FAILURE:
            return Verdict(False)
        if served is not None:
            self._gave_up = None
            if served >= STEADY:
                self._in_a_row = 0
        self._in_a_row += 1
        # Full jitter would allow no wait at all; half of it still keeps many groups apart.
        first, longest = self._first, self._longest
        self._slow_in_a_row = self._slow_in_a_row + 1 if cause.limit else 0
        if cause.limit:
            first, longest = max(first, SLOW_FIRST * longest), SLOW_LONGEST * longest
        in_a_row = self._slow_in_a_row or self._in_a_row
        delay = min(longest, first * 2 ** min(in_a_row - 1, 16)) * (0.5 + 0.5 * self._rng.random())
        if not charge:
            return Verdict(False, delay=delay)
        self.total += 1
        self._charges.append(now)
        charged = self.charged(now)
        if charged > self._max:
            if self._max == 0:
                return Verdict(True, "no restart is allowed (--max-restarts 0)")
            return Verdict(True, f"{self._max} restarts within {self._window:g} s are spent (--max-restarts)")
        if self._gave_up is not None and now - self._gave_up <= self._window and cause.kind not in _OUTSIDE:
            return Verdict(True, "the group had given up, and the one attempt that it had since then failed as well")
        if self._same_point(cause, stage, served):
            return Verdict(
                True, f"it failed {self._at_point} times in a row at the same point before it was ever ready"
            )
        return Verdict(False, delay=delay)

    def _same_point(self, cause: Cause, stage: str, served: float | None) -> bool:
        if served is not None or cause.kind in _OUTSIDE:
            self._point, self._at_point = None, 0
            return False
        point = (cause.kind, cause.process, cause.code, stage)
        self._at_point = self._at_point + 1 if point == self._point else 1
        self._point = point
        return self._at_point >= (SAME_LIMIT if cause.limit else SAME_POINT)
