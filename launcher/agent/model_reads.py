"""Follows how an engine reads its weight files, now and then, in a thread: the looks must not slow anything down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from launcher.agent.start_watch import StartWatch
from launcher.common import tasks
from launcher.engines import weights
from launcher.model import Weights
from launcher.node.file_reads import FileReads, Reading

SHARE = 50  #: a look is followed by a pause that is so many times as long: 2 % of a core at most
FIND_AGAIN = 10.0  #: seconds until files that were not there are looked for again (a download)


class ModelReads:
    """One pod's. What it sees goes to ``start``."""

    def __init__(self, start: StartWatch, environ: Mapping[str, str]) -> None:
        self._start = start
        self._environ = environ
        self._weights: Weights | None = None
        self._files: FileReads | None = None
        self._next = 0.0
        self._busy = False

    def begin(self, found: Weights | None) -> None:
        """A start begins whose engine reads these weights."""
        self._weights, self._files, self._next = found, None, 0.0

    def look(self, pids: Sequence[int]) -> None:
        """Look at these processes, unless a look is under way or was made just now."""
        if self._weights is None or self._busy or not self._start.loads or time.monotonic() < self._next:
            return
        self._busy = True
        tasks.start(self._look(self._weights, self._files, pids))

    async def _look(self, wanted: Weights, files: FileReads | None, pids: Sequence[int]) -> None:
        try:
            files, reading, took = await asyncio.to_thread(_look, wanted, files, self._environ, pids)
        except RuntimeError:  # can't start new thread: the pod's limit of processes is reached
            return
        finally:
            self._busy = False
        if self._weights is not wanted:
            return  # of the epoch before
        self._files = files
        self._next = time.monotonic() + max(took * SHARE, FIND_AGAIN if files is None else 0.0)
        if files is not None:
            self._start.see(reading)


def _look(
    wanted: Weights, files: FileReads | None, environ: Mapping[str, str], pids: Sequence[int]
) -> tuple[FileReads | None, Reading, float]:
    """Find the files if they are not known, and look. Also the seconds of CPU time that it took."""
    began = time.thread_time()
    if files is None:
        sizes = weights.find(wanted, environ)
        files = FileReads(sizes) if sizes else None
    reading = Reading() if files is None else files.look(pids)
    return files, reading, time.thread_time() - began
