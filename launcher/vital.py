"""Notices at once when a process deep in the engine's tree ends, one that the engine cannot serve without.

The guard reaps what it started itself; a worker's worker is reaped by the engine, which may take ten seconds to miss it
or may never (facts of several engines). A pidfd becomes readable the moment its process ends, whoever the parent is.
Engines name the processes that count (``Process.vital``): others, such as compile workers, come and go as they like.

How it ended is known while it is a zombie, which is as long as its parent takes to reap it: often long enough. That
tells the process that somebody killed from those that went down because of it.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Iterable, Sequence

from launcher.process.tree import Key, Proc

PF_EXITING = 0x4  #: of the flags in /proc/PID/stat (include/linux/sched.h)


class Vital:
    """Watches processes by pidfd. ``ended(pid, name, status)`` is called once for each that ends while it is watched.

    ``status`` is what wait(2) would tell; None: its parent was faster.
    """

    def __init__(self, ended: Callable[[int, str, int | None], None]) -> None:
        self._ended = ended
        self._fds: dict[Key, tuple[int, str]] = {}

    def see(self, procs: Iterable[Proc], names: Sequence[str]) -> None:
        """A look at the tree: those whose names begin with one of ``names`` are watched from now on."""
        for p in procs:
            if p.key in self._fds or p.gone or not p.comm.startswith(tuple(names)):
                continue
            try:
                fd = os.pidfd_open(p.pid)
            except OSError:  # gone, or a kernel before 5.3: then the engine's own word is all there is
                continue
            self._fds[p.key] = (fd, p.comm)
            asyncio.get_running_loop().add_reader(fd, self._gone, p.key, p.comm)

    def forget(self) -> None:
        """The engine is being stopped: ends mean nothing from now on. Those that came before are told."""
        for key, (fd, name) in list(self._fds.items()):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if poll.poll(0):
                self._gone(key, name)
            else:
                self._close(key)

    def _gone(self, key: Key, name: str) -> None:
        self._close(key)
        self._ended(key[0], name, _status(key[0]))

    def _close(self, key: Key) -> None:
        fd, _ = self._fds.pop(key)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)


def ending(pid: int) -> bool:
    """Whether a process has ended, or has begun to: its descriptors are closed before it becomes a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & PF_EXITING)


def _status(pid: int) -> int | None:
    """The wait status of a zombie: the last field of its stat line (proc_pid_stat(5), exit_code)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[-1]) if fields[:1] == [b"Z"] else None
