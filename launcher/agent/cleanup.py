"""What an epoch leaves on its pod: recorded before it, compared after it, and removed where it is the engine's.

`node/leftovers.py` looks once; this file repeats it within bounds. `nvidia-smi` runs through the guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from launcher.log import Log
from launcher.node import leftovers
from launcher.node.run_command import Ask
from launcher.planning.steps import has_nvidia

GPU_TRIES = 20  #: looks, half a second apart, at GPU memory after an epoch
UNKNOWN_TRIES = 3  #: looks without an answer, after which GPU memory no longer holds up the next epoch
MOST_REFUSALS = 3  #: epochs in a row, each some ten seconds later, that GPU memory may keep from starting
KEPT_FOLDERS = 2  #: scratch folders of the newest epochs that stay


@dataclass(frozen=True)
class Before:
    """What was there before an epoch."""

    shm: leftovers.Snapshot
    gpu_memory: Mapping[str, int]
    oom_kills: int | None


class Cleanup:
    """What is known between one epoch and the next. ``ask`` runs a short program.

    Another epoch may begin or end during each wait; ``current`` says whether the caller's is still the latest. If not,
    the result is not kept.
    """

    def __init__(self, ask: Ask, log: Log) -> None:
        self._ask = ask
        self._log = log
        self._scratch: list[str] = []
        self._refusals = 0  # how often in a row GPU memory has kept an epoch from starting
        self.before: Before | None = None  #: the latest epoch; None: there was none
        self.not_back = ""  #: text on GPU memory that an ended epoch still holds

    async def before_epoch(self, scratch: Sequence[str], current: Callable[[], bool]) -> None:
        """Record what is there, and remove the scratch folders of old epochs."""
        before = await before_epoch(self._ask)
        if not current():
            return
        self.before = before
        self._scratch += [folder for folder in scratch if folder not in self._scratch]
        await sweep(self._scratch)
        if current():
            self._scratch = self._scratch[-KEPT_FOLDERS:]

    async def after_epoch(self, current: Callable[[], bool]) -> None:
        """Remove what the epoch left, and check that its GPU memory was freed."""
        if self.before is None:
            return
        removed, not_back = await after_epoch(self.before, self._ask)
        if removed:
            self._log("removed what the engine left in /dev/shm", {"files": len(removed)})
        if current():
            self.not_back = not_back
            if not_back:
                self._log(not_back, level="error")

    async def still_not_back(self, current: Callable[[], bool]) -> str:
        """Check again for GPU memory that an earlier epoch kept; empty: no reason to refuse the next one.

        After some refusals it no longer counts: on a shared GPU it may be another pod's.
        """
        if not self.not_back or self.before is None:
            return self.not_back
        _, not_back = await after_epoch(self.before, self._ask)
        if not current():
            return self.not_back
        self._refusals = self._refusals + 1 if not_back else 0
        if self._refusals > MOST_REFUSALS:
            self._log(f"{not_back}: it is not freed, is the GPU shared? Going on", level="warning")
            self._refusals, not_back = 0, ""
        self.not_back = not_back
        return not_back

    def oom_killed(self) -> bool:
        """Whether the kernel has killed processes of this pod in this epoch."""
        before, now = self.before.oom_kills if self.before else None, leftovers.oom_kills()
        return before is not None and now is not None and now > before


async def before_epoch(ask: Ask) -> Before:
    shm = leftovers.snapshot()
    return Before(shm, (await _gpu_memory(ask) if has_nvidia() else None) or {}, leftovers.oom_kills())


async def after_epoch(before: Before, ask: Ask) -> tuple[tuple[str, ...], str]:
    """Remove what the ended epoch left in /dev/shm, and wait (bounded) for its GPU memory to be freed.

    Returns what was removed, and a text on GPU memory that was not freed, else nothing.
    """
    removed = await asyncio.to_thread(leftovers.remove, before.shm)
    kept, unknown = "", 0
    for _ in range(GPU_TRIES if before.gpu_memory else 0):
        now = await _gpu_memory(ask)
        if now is not None:
            kept = leftovers.gpu_memory_kept(before.gpu_memory, now)
        unknown += now is None
        if (now is not None and not kept) or unknown >= UNKNOWN_TRIES:
            break
        await asyncio.sleep(0.5)
    return removed, kept


async def sweep(folders: Sequence[str], keep: int = KEPT_FOLDERS) -> None:
    """Remove the scratch folders of epochs before the newest ``keep``; ``folders`` is oldest first."""
    if not folders[:-keep]:
        return
    import shutil  # with bz2 and lzma

    for folder in folders[:-keep]:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _gpu_memory(ask: Ask) -> Mapping[str, int] | None:
    """MiB in use by GPU; None: unknown."""
    code, output = await ask(leftovers.GPU_QUERY, 10.0)
    return leftovers.gpu_memory(output) if code == 0 else None
