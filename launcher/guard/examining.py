"""Evidence from an engine that is about to be killed: what each process is doing, and the stacks that it prints.

    at once          the kernel's words on every process are read, then all are stopped (SIGSTOP): a process that is
                     stopped holds its connections, so that no neighbour on another pod moves because of us
    a quarter later  one after the other, children first: SIGABRT, and SIGCONT to let it act on that. Python's
                     faulthandler (PYTHONFAULTHANDLER=1) prints the stacks of all threads, and the process ends
    at the end       SIGKILL to what is left (``stopping``)

The quarter is for the other pods: they hear of the stop at about the same time, and should be looked at before the
first process anywhere ends. One after the other, because several processes share one pipe and faulthandler writes a
line in many pieces. No ptrace is needed, and no privilege.

Imported by the guard when it is first needed; only what is small may enter.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from launcher.guard.channel import Aborting, Output
from launcher.node import kernel_state, tree
from launcher.node.tree import Key, Proc

HOLD = 0.25  #: of the time: all are stopped
MOST = 64  #: processes that are examined
PAUSE = 0.005  #: seconds between two looks
LEAST = 0.02  #: seconds for one process to print its stacks


class Examining:
    """One examination. ``say`` hands a report to the agent, ``drain`` reads what all processes have written.

    What a process prints follows its Aborting report as Output, up to the next Aborting.
    """

    def __init__(
        self,
        order: str,
        seconds: float,
        now: float,
        say: Callable[[Aborting | Output], object],
        drain: Callable[[], None],
    ) -> None:
        self._order = order
        self._say, self._drain = say, drain
        self._hold_until = now + HOLD * seconds
        self._ends = now + seconds
        self._waiting: list[Proc] | None = None  # not aborted yet, the next one last; None: nothing was looked at
        self._seen: dict[Key, Aborting] = {}
        self._current: Key | None = None
        self._current_until = 0.0
        self._file: tuple[int, int] | None = None

    def step(self, now: float, alive: Sequence[Proc]) -> list[tuple[int, int]] | None:
        """Signals (pid, number) to send now; None: it is over. ``alive``: parents before children."""
        if now >= self._ends:
            self._drain()
            return None
        if self._waiting is None:
            for p in alive[:MOST]:
                self._seen[p.key] = self._look(p)
            self._waiting = [p for p in alive if p.key in self._seen]
            return [(p.pid, signal.SIGSTOP) for p in alive]
        if now < self._hold_until:
            return []
        signals: list[tuple[int, int]] = []
        if self._current is not None:
            pid, start = self._current
            ended = tree.start_time(pid) != start or tree.ending(pid)
            self._drain()  # all that it printed is in the pipe before it is gone
            if not ended and now < self._current_until:
                return []
            self._read_file()
            if not ended:
                signals.append((pid, signal.SIGSTOP))
            self._current = None
        return self._next(now, signals)

    @property
    def pause(self) -> float:
        """Seconds until the next step is due, if nothing happens."""
        return PAUSE if self._current is not None else PAUSE * 4

    def _look(self, p: Proc) -> Aborting:
        name = kernel_state.title(p.pid, p.comm)
        asleep = kernel_state.wchan(p.pid) if p.state in ("S", "D") else ""
        return Aborting(self._order, p.pid, name, p.state, asleep, kernel_state.syscall(p.pid))

    def _read_file(self) -> None:
        """What it has written to a standard error that is a file, as that of Ray's workers is."""
        text = "" if self._file is None else kernel_state.appended(*self._file)
        self._file = None
        if text:
            self._say(Output(self._order, 2, text))

    def _next(self, now: float, signals: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
        assert self._waiting is not None
        while self._waiting:
            p = self._waiting.pop()
            if tree.start_time(p.pid) != p.start_time:
                continue
            self._say(self._seen[p.key])
            if tree.ending(p.pid) or not kernel_state.forbid_core(p.pid):
                continue
            self._current = p.key
            self._file = kernel_state.stderr_file(p.pid)
            share = max(LEAST, (self._ends - now) / (len(self._waiting) + 1) / 2)
            self._current_until = min(self._ends, now + max(share, (self._ends - now) / 4))
            return [*signals, (p.pid, signal.SIGABRT), (p.pid, signal.SIGCONT)]
        return signals or None
