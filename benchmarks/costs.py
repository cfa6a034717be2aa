"""What processes cost: memory as the kernel shares it out (PSS), and CPU time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from launcher.node.tree import descendants, read

TICK = 1 / os.sysconf("SC_CLK_TCK")


def pss(pids: Iterable[int]) -> float:
    """Proportional set size of these processes together, in MiB: a page that n processes share counts 1/n for each.

    What the guard and the agent share after the fork is so counted once. Needs a kernel with smaps_rollup (4.14).
    """
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system CPU time that these processes have used so far, to the nanosecond where the kernel tells.

    /proc/PID/schedstat counts what the scheduler gave, so that a process that runs 300 us each half second is not
    rounded to whole ticks of 10 ms. Only of the main thread: all others are added from /proc/PID/task.
    """
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


def guard_and_agent(guard: int) -> tuple[int, int]:
    """The launcher's two processes, from the one that was started. Raises LookupError while there is no agent."""
    own = _command(guard)
    for child in descendants(guard):
        if child.ppid == guard and not child.gone and _command(child.pid) == own:
            return guard, child.pid
    raise LookupError(f"process {guard} has no agent (yet): {read(guard)}")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
