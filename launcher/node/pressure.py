"""How starved this machine is of CPU time, and a clock for deadlines that takes it into account.

An engine that gets a tenth of the CPU takes ten times as long, and no deadline that was chosen for a quiet machine says
anything about it. So every deadline but the lease runs on :attr:`Pressure.clock`: it stands still while this launcher
itself did not run, and runs slower while more processes want a CPU than there are CPUs. The lease must not wait: other
pods count on it.

Three witnesses: the event loop's own beat (was it late?), ``/proc/loadavg`` (how many want to run), and, where the
kernel has it, ``/proc/pressure/cpu`` (did anybody have to wait?), without which a load made of tasks that wait for
disks would count.
"""

from __future__ import annotations

import os

#: At most so many times slower: a deadline has to come, however busy the machine.
MOST_STRETCH = 4.0
#: The share of the last ten seconds in which some task waited for a CPU, in percent: below that, no task starves.
WAITING = 20.0
LOOK_EVERY = 2.0  #: seconds between looks at /proc
#: A beat that is late by this many seconds is a gap: the whole machine was frozen, or this launcher got no CPU.
GAP = 2.0


class Pressure:
    """Told of every beat of the event loop; says how much of the time since then deadlines may count."""

    def __init__(self, now: float, proc: str = "/proc") -> None:
        self._proc = proc
        self._cpus = len(os.sched_getaffinity(0))
        self._beat_at = now
        self._expected = float("inf")  # seconds to the next beat
        self._look_at = now
        self.stretch = 1.0  #: how many times longer deadlines are just now
        self.put_off = 0.0  #: seconds by which deadlines were put off so far
        self.load = 0.0
        self.gaps = 0  #: how often this launcher did not run

    def beat(self, now: float, expected: float) -> float:
        """One beat of the loop, with ``expected`` seconds from each to the next. Returns the gap, or 0."""
        passed = max(0.0, now - self._beat_at)
        late = max(0.0, passed - self._expected)
        self._beat_at, self._expected = now, expected
        self.put_off += late + (passed - late) * (1 - 1 / self.stretch)
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self.stretch = self._look()
        if late < GAP:
            return 0.0
        self.gaps += 1
        return passed

    def clock(self, now: float) -> float:
        """The time by which deadlines are counted."""
        passed = min(max(0.0, now - self._beat_at), self._expected)
        return self._beat_at - self.put_off + passed / self.stretch

    @property
    def words(self) -> str:
        """Why deadlines are stretched; empty when they are not."""
        if self.stretch <= 1:
            return ""
        cpus = f"{self._cpus} CPU{'' if self._cpus == 1 else 's'}"
        longer = f"deadlines are {self.stretch:.1f} x as long"
        return f"this machine is overloaded (load {self.load:.0f} on {cpus}), so {longer}"

    def _look(self) -> float:
        self.load = max(_load(f"{self._proc}/loadavg"))
        waiting = _waiting(f"{self._proc}/pressure/cpu")
        if waiting is not None and waiting < WAITING:
            return 1.0
        return min(MOST_STRETCH, max(1.0, self.load / self._cpus))


def _load(path: str) -> tuple[float, float]:
    """The load average of a minute, and how many tasks run or want to at this moment."""
    try:
        with open(path) as file:
            fields = file.read(256).split()
        return float(fields[0]), float(fields[3].partition("/")[0])
    except (OSError, ValueError, IndexError):  # a sandbox that does not tell
        return 0.0, 0.0


def _waiting(path: str) -> float | None:
    """PSI's ``some avg10``, in percent; None: this kernel does not measure it."""
    try:
        with open(path) as file:
            for line in file.read(1024).splitlines():
                if line.startswith("some "):
                    return float(line.split()[1].partition("=")[2])
    except (OSError, ValueError, IndexError):
        pass
    return None
