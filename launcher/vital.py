"""Notices at once when a process deep in the engine's tree ends, one that the engine cannot serve without.

The guard reaps what it started itself; a worker's worker is reaped by the engine, which may take ten seconds to miss it
or may never (facts of several engines). A pidfd becomes readable the moment its process ends, whoever the parent is.
Engines name the processes that count (``Process.vital``): others, such as compile workers, come and go as they like.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence

from launcher.process.tree import Key, Proc


class Vital:
    """Watches processes by pidfd. ``ended(pid, name)`` is called once for each that ends while it is watched."""

    def __init__(self, ended: Callable[[int, str], None]) -> None:
        self._ended = ended
        self._fds: dict[Key, int] = {}

    def see(self, procs: Iterable[Proc], names: Sequence[str]) -> None:
        """A look at the tree: those whose names begin with one of ``names`` are watched from now on."""
        for p in procs:
            if p.key in self._fds or p.gone or not p.comm.startswith(tuple(names)):
                continue
            try:
                fd = os.pidfd_open(p.pid)
            except OSError:  # gone, or a kernel before 5.3: then the engine's own word is all there is
                continue
            self._fds[p.key] = fd
            asyncio.get_running_loop().add_reader(fd, self._gone, p.key, p.comm)

    def forget(self) -> None:
        """The engine is being stopped: ends mean nothing any more."""
        for key in list(self._fds):
            self._close(key)

    def _gone(self, key: Key, name: str) -> None:
        self._close(key)
        self._ended(key[0], name)

    def _close(self, key: Key) -> None:
        fd = self._fds.pop(key)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
