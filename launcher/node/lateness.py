"""How late this process may have been to notice something: it waited for a CPU, or was busy with something else.

What becomes readable while a loop sleeps wakes it. So between the event and the moment in which the loop deals with it
lies only time in which the loop ran or waited to run, and the kernel counts both (/proc/self/schedstat: nanoseconds on
a CPU, nanoseconds on a run queue). It costs the guard one pread a turn.
"""

from __future__ import annotations

import os
import time

SLACK = 0.002  #: page faults and the like: neither running nor waiting to run
UNKNOWN = 0.25  #: where the kernel does not count


class Lateness:
    """Make it in the process that it is for, on its main thread."""

    def __init__(self) -> None:
        try:
            self._fd: int | None = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = None
        self._before = self._last = self._read()

    def mark(self) -> None:
        """The loop wakes: what it finds now came since its last waking, at the earliest."""
        self._before, self._last = self._last, self._read()

    def seconds(self) -> float:
        """How long ago what has just been noticed may have been."""
        (busy, wall), (busy_before, wall_before) = self._read(), self._before
        if busy is None or busy_before is None:
            return min(UNKNOWN, wall - wall_before)
        return min(busy - busy_before + SLACK, wall - wall_before)

    def _read(self) -> tuple[float | None, float]:
        """Seconds on a CPU and waiting for one, and the time."""
        now = time.monotonic()
        if self._fd is None:
            return None, now
        try:
            ran, waited, turns = os.pread(self._fd, 100, 0).split()
        except (OSError, ValueError):
            return None, now
        return ((int(ran) + int(waited)) / 1e9 if int(turns) else None), now
