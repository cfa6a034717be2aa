"""Time and chance: a queue of events in true time, one random generator, and the record of what happened.

Everything in the simulation happens in one process and one thread, in the order of true time, and every choice comes
from the seed. So a seed is a history, and a history can be read again.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any


class PromiseBroken(Exception):
    """One of the five promises, or a rule beside them, did not hold."""

    def __init__(self, promise: str, text: str) -> None:
        self.promise = promise
        super().__init__(f"{promise}: {text}")


class World:
    """True time, the queue of what will happen, and what has happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.log: list[tuple[float, str, str, tuple[object, ...]]] = []
        self.events = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    def at(self, delay: float, fn: Callable[..., None], *args: Any) -> None:
        """Have ``fn(*args)`` called ``delay`` seconds of true time from now; the same moment keeps the order."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay, self._order, fn, args))

    def run(self, until: float) -> None:
        """Let time pass."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, fn, args = heapq.heappop(queue)
            self.events += 1
            fn(*args)
        self.now = until

    def note(self, who: str, what: str, *more: object) -> None:
        self.log.append((self.now, who, what, more))

    def broken(self, promise: str, text: str) -> None:
        self.note("PROMISE", f"{promise} BROKEN: {text}")
        raise PromiseBroken(promise, text)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def between(self, least: float, most: float) -> float:
        return least + (most - least) * self.rng.random()
