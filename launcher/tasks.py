"""Background work whose failure is heard.

asyncio keeps the exception of a task to itself until somebody asks for it; a loop that nobody awaits would end in
silence, and what it watched would never be looked at again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task; if it raises, the event loop's exception handler hears of it at once."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        task.get_loop().call_exception_handler({"message": str(error), "exception": error, "task": task})
