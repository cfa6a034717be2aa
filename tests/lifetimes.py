"""When processes began and when they ended, in the kernel's own word and on one clock: seconds since boot.

The beginning is field 22 of /proc/PID/stat, in clock ticks (10 ms) and rounded down: whoever sees a process at all
knows when it began, however late he looks. The end is told by a pidfd, to a thread that waits for nothing else: what it
notes is a moment just after the end, never one before it.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time

from launcher.node.tree import Key, read

TICK = 1 / os.sysconf("SC_CLK_TCK")


def now() -> float:
    """The clock of all times here."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def began(key: Key) -> float:
    """When a process started, at most a TICK early."""
    return key[1] * TICK


class Ends:
    """Notes when processes end. A context manager."""

    def __init__(self) -> None:
        self.at: dict[Key, float] = {}  #: when each that has ended did
        self._waiting: dict[int, Key] = {}
        self._watched: set[Key] = set()
        self._poll = select.epoll()
        self._bell, self._rope = os.pipe()
        self._poll.register(self._bell, select.EPOLLIN)
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._note, daemon=True)

    def __enter__(self) -> Ends:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._rope, b".")
        self._thread.join()
        self._poll.close()
        for fd in (self._bell, self._rope, *self._waiting):
            os.close(fd)

    def watch(self, key: Key) -> None:
        """From now on wait for this one's end; one that has ended already is taken to have ended now."""
        if key in self._watched:
            return
        self._watched.add(key)
        try:
            fd = os.pidfd_open(key[0])
        except ProcessLookupError:
            self.at[key] = now()
            return
        found = read(key[0])
        if found is None or found.key != key:  # its pid is another's by now
            os.close(fd)
            self.at[key] = now()
            return
        self._waiting[fd] = key
        self._poll.register(fd, select.EPOLLIN)

    @property
    def left(self) -> list[Key]:
        """Those that live."""
        return [key for key in self._watched if key not in self.at]

    def last(self, patience: float) -> float:
        """When the last of them had ended. Raises AssertionError if some have not within ``patience`` seconds."""
        with self._change:
            assert self._change.wait_for(lambda: not self.left, patience), f"{self.left} still live"
        return max(self.at.values())

    def _note(self) -> None:
        # A thread that gets no processor would note late what ended in time. Not everybody may ask for more.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        while True:
            ready = [fd for fd, _ in self._poll.poll()]
            at = now()
            if self._bell in ready:
                return
            with self._change:
                for fd in ready:
                    self._poll.unregister(fd)
                    self.at[self._waiting.pop(fd)] = at
                    os.close(fd)
                self._change.notify_all()
