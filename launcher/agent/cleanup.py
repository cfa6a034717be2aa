"""What an epoch leaves on its pod: looked at before it and after it, and removed where that is ours to do.

`node/leftovers.py` looks once; here it is asked again until a bound is over. `nvidia-smi` runs through the guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.node import leftovers
from launcher.planning.steps import Ask, has_nvidia

GPU_TRIES = 20  #: looks, half a second apart, at GPU memory after an epoch
UNKNOWN_TRIES = 3  #: so many without an answer, and GPU memory is not what keeps the next epoch waiting


@dataclass(frozen=True)
class Before:
    """What was there before an epoch, to be compared with what is left after it."""

    shm: leftovers.Snapshot
    gpu_memory: Mapping[str, int]
    oom_kills: int | None


async def before_epoch(ask: Ask) -> Before:
    shm = leftovers.snapshot()
    return Before(shm, (await _gpu_memory(ask) if has_nvidia() else None) or {}, leftovers.oom_kills())


async def after_epoch(before: Before, ask: Ask) -> tuple[tuple[str, ...], str]:
    """Remove what the ended epoch left in /dev/shm, wait (bounded) for GPU memory to come back.

    Returns what was removed, and words about GPU memory that did not come back, else nothing.
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


async def sweep(folders: Sequence[str], keep: int = 2) -> None:
    """Remove the scratch folders of epochs before the newest ``keep``; ``folders`` is oldest first."""
    if not folders[:-keep]:
        return
    import shutil  # with bz2 and lzma

    for folder in folders[:-keep]:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _gpu_memory(ask: Ask) -> Mapping[str, int] | None:
    """MiB in use by GPU; None: no answer, which does not say that nothing is in use."""
    code, output = await ask(leftovers.GPU_QUERY, 10.0)
    return leftovers.gpu_memory(output) if code == 0 else None
