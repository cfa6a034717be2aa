"""What successive looks at a process tree say: who has been stopped for too long, and whether anything works at all.

Pure functions of ``tree.Proc`` snapshots and a time, but for ``activity``, which also reads ``/proc/PID/io``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from launcher.node.tree import PROC, Key, Proc

#: Seconds in state T or t after which a process counts as frozen.
FROZEN_AFTER = 5.0


def stopped_since(before: Mapping[Key, float], procs: Iterable[Proc], now: float) -> dict[Key, float]:
    """Since when each stopped process (T by a signal, t by a debugger) has been seen so without a break.

    ``before`` is what the last call returned; a process that runs again or is gone drops out.
    """
    return {p.key: before.get(p.key, now) for p in procs if p.state in ("T", "t")}


def frozen(since: Mapping[Key, float], now: float, after: float = FROZEN_AFTER) -> tuple[Key, ...]:
    """Who has been stopped for at least ``after`` seconds, the longest first."""
    return tuple(key for key, at in sorted(since.items(), key=lambda item: item[1]) if now - at >= after)


def activity(procs: Iterable[Proc], proc: str = PROC) -> int:
    """A number that moves while any of these processes works: CPU time in clock ticks, and bytes read and written.

    It may fall, when a process ends: only a change means something. Bytes count files, pipes and sockets by read(2)
    and write(2), page cache too; a load through mmap or recv(2) shows as CPU time.
    """
    return sum(p.ticks + _bytes_moved(p.pid, proc) for p in procs)


def _bytes_moved(pid: int, proc: str) -> int:
    try:
        fd = os.open(f"{proc}/{pid}/io", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # gone, or not ours to look into
        return 0
    try:
        lines = os.read(fd, 4096).splitlines()
    except OSError:
        return 0
    finally:
        os.close(fd)
    return sum(int(line.split()[1]) for line in lines if line.startswith((b"rchar:", b"wchar:")))
