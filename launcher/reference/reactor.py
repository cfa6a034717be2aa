"""An event loop on poll(2): calls functions for file descriptors, timers and signals. Only poll blocks."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from time import monotonic

READ = select.POLLIN
WRITE = select.POLLOUT


class Reactor:
    """Calls functions when descriptors are ready, timers expire and signals arrive."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._watched: dict[int, Callable[[int], object]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._signals: dict[int, Callable[[], None]] = {}
        self._come: list[int] = []
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)

    def watch(self, fd: int, events: int, ready: Callable[[int], object]) -> None:
        """Call ``ready(events)`` whenever ``fd`` is ready; replaces an earlier watch."""
        self._watched[fd] = ready
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def after(self, seconds: float, due: Callable[[], None]) -> None:
        """Call ``due`` once, after ``seconds``."""
        heappush(self._timers, (monotonic() + seconds, next(self._order), due))

    def on_signal(self, number: int, come: Callable[[], None]) -> None:
        """Call ``come`` from the loop, never in the middle of another function, after a signal."""
        if not self._signals:
            signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
            self.watch(self._woken.fileno(), READ, lambda _events: self._woken.recv(4096))
        self._signals[number] = come
        signal.signal(number, lambda come, _frame: self._come.append(come))

    def turn(self, longest: float | None = None) -> None:
        """Run one iteration: wait ``longest`` seconds at most and handle what is ready."""
        if self._timers:
            due = self._timers[0][0] - monotonic()
            longest = due if longest is None else min(due, longest)
        # Rounded up: rounding down would spin through the last millisecond before a timer.
        timeout = None if longest is None else max(0, int(longest * 1000 + 0.999))
        found = self._poll.poll(timeout)
        # Signals first: one that arrived before a neighbour's exit must be handled before it.
        while self._come:
            self._signals[self._come.pop(0)]()
        for fd, events in found:
            ready = self._watched.get(fd)
            if ready is not None:
                ready(events)
        now = monotonic()
        while self._timers and self._timers[0][0] <= now:
            heappop(self._timers)[2]()
