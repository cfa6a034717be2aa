"""Errors that nothing caught: an error of the launcher's own code is a bug, one over a connection is contained.

A peer must not be able to end a pod through a connection, whatever asyncio or a library makes of its input.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Mapping
from typing import Any

from launcher.log import Log

NAMED_EVERY = 60.0  #: seconds at least between two log lines about contained errors


class LoopErrors:
    """Sorts what reaches the event loop's exception handler."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._named_at = -NAMED_EVERY
        self.contained = 0  #: errors over connections so far

    def contain(self, context: Mapping[str, Any]) -> bool:
        """Close the connection and count the error, unless it is a bug of ours (False)."""
        if is_ours(context):
            return False
        self.contained += 1
        now = time.monotonic()
        if now - self._named_at >= NAMED_EVERY:
            self._named_at = now
            why = f"{context.get('message', '')}: {context.get('exception')!r}"[:300]
            self._log("connection error", {"why": why, "so_far": self.contained}, "warning")
        transport = context.get("transport")
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()
        return True

    def report_bug(self, context: Mapping[str, Any]) -> None:
        """Log all that is known of a bug."""
        error = context.get("exception")
        lines = traceback.format_exception(error) if isinstance(error, BaseException) else [str(context.get("message"))]
        self._log.block(["launcher: a bug of the launcher, please report it:", *"".join(lines).splitlines()])


def is_ours(context: Mapping[str, Any]) -> bool:
    """Whether an error that the event loop reports was raised by the launcher's own code, and not over a connection."""
    if any(context.get(key) is not None for key in ("transport", "protocol", "socket", "server")):
        return False
    error = context.get("exception")
    if isinstance(error, MemoryError) or not isinstance(error, BaseException):
        return isinstance(error, BaseException)  # without an exception it is a library's complaint
    if "handle" not in context and "future" not in context and "task" not in context:
        return True  # from a task or from the queue of the agent
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.partition(".")[0] == "launcher" for name in modules)
