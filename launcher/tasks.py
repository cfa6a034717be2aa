"""Background work whose failure is heard.

asyncio keeps the exception of a task to itself until somebody asks for it; a loop that nobody awaits would end in
silence, and what it watched would never be looked at again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start(work: Coroutine[Any, Any, T], failed: Callable[[BaseException], None] | None = None) -> asyncio.Task[T]:
    """A task; if it raises, ``failed`` hears of it at once, or else the event loop's exception handler."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda ended: _ended(ended, failed or _tell_the_loop))
    return task


def _ended(task: asyncio.Task[T], failed: Callable[[BaseException], None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        failed(error)


def _tell_the_loop(error: BaseException) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": str(error), "exception": error})
