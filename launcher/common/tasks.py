"""Background tasks whose failure is reported, and threads that exist before they are needed.

asyncio keeps the exception of a task until it is retrieved. A background loop that is never awaited would end in
silence, and what it watched would go unwatched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, TypeVar

T = TypeVar("T")

THREADS = 4


def start(work: Coroutine[Any, Any, T], failed: Callable[[BaseException], None] | None = None) -> asyncio.Task[T]:
    """A task; if it raises, ``failed`` hears of it at once, or else the event loop's exception handler."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda ended: _ended(ended, failed or _tell_the_loop))
    return task


def start_threads() -> int:
    """Have the threads of ``asyncio.to_thread`` started now, so that it works when no more can be: how many there are.

    An engine may use up all that a pod may have of processes and threads (pids.max). A health check that could not ask
    would then be taken for an engine that does not answer.
    """
    for count in (THREADS, 1):
        pool, gate = ThreadPoolExecutor(count, "launcher"), Event()
        try:
            for _ in range(count):
                pool.submit(gate.wait)  # each finds the others busy, and gets a thread of its own
        except RuntimeError:
            pool.shutdown(wait=False)
            continue
        finally:
            gate.set()
        asyncio.get_running_loop().set_default_executor(pool)
        return count
    return 0


def _ended(task: asyncio.Task[T], failed: Callable[[BaseException], None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        failed(error)


def _tell_the_loop(error: BaseException) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": str(error), "exception": error})
