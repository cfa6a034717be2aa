"""How a failure is told to people: one block in the log, and the termination message that the platform shows."""

from __future__ import annotations

import os
from dataclasses import replace

from launcher.api.status import failure_block, termination_message
from launcher.common import files
from launcher.group.ends import SAYING
from launcher.log import Log
from launcher.model import Cause


class Telling:
    """Tells each first failure once."""

    def __init__(self, log: Log, termination_log: str, last_lines: bool = True) -> None:
        self._log = log
        self._last_lines = last_lines  #: whether an engine's own lines may be in it
        self._path = termination_log
        self._told: Cause | None = None

    def failure(self, cause: Cause, restarts: int, giving_up: str | None = None) -> None:
        """``giving_up``: why the group does; then it is said again in a line."""
        if cause != self._told:
            self._told = cause
            self._log.block(failure_block(self._shown(cause), giving_up or "", restarts))
        elif giving_up is not None:
            self._log.block([f"launcher: giving up: {giving_up} (first failure: {cause})"])

    def _shown(self, cause: Cause) -> Cause:
        because = tuple(line.partition(SAYING)[0] for line in cause.because)
        return cause if self._last_lines else replace(cause, tail=(), because=because)

    def termination(self, cause: Cause | None, code: int, text: str) -> None:
        """Where the platform has made a file for it. One that can't be written is said, and changes nothing."""
        words = termination_message(cause and self._shown(cause), code, text)
        if not words or not os.path.exists(self._path):
            return
        try:
            files.overwrite(self._path, words.encode("utf-8", "backslashreplace"))
        except OSError as error:
            why = {"path": self._path, "why": error.strerror}
            self._log("the termination message could not be written", why, "warning")
