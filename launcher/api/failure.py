"""How a failure is reported to people: one block in the log, and the termination message that the platform shows."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from launcher.common import files
from launcher.group.ends import SAYING
from launcher.log import Log, plain
from launcher.model import Cause

TERMINATION_BYTES = 4000  #: the kubelet reads 4096


class FailureReporter:
    """Reports each first failure once."""

    def __init__(self, log: Log, termination_log: str, last_lines: bool = True) -> None:
        self._log = log
        self._last_lines = last_lines  #: whether to show an engine's own lines
        self._path = termination_log
        self._reported: Cause | None = None

    def failure(self, cause: Cause, giving_up: str | None = None) -> None:
        """``giving_up``: why the group does; then a failure that was reported already gets one more line."""
        if cause != self._reported:
            self._reported = cause
            self._log.block(failure_block(self._shown(cause), giving_up or ""))
        elif giving_up is not None:
            self._log.block([f"launcher: giving up: {giving_up} (first failure: {cause})"])

    def _shown(self, cause: Cause) -> Cause:
        because = tuple(line.partition(SAYING)[0] for line in cause.because)
        return cause if self._last_lines else replace(cause, tail=(), because=because)

    def write_termination_message(self, cause: Cause | None, code: int, text: str) -> None:
        """Write it if the platform has provided a file for it. A failed write is logged."""
        words = termination_message(cause and self._shown(cause), code, text)
        if not words or not os.path.exists(self._path):
            return
        try:
            files.overwrite(self._path, words.encode("utf-8", "backslashreplace"))
        except OSError as error:
            why = {"path": self._path, "why": error.strerror}
            self._log("the termination message could not be written", why, "warning")


def failure_block(cause: Cause, reason: str = "") -> list[str]:
    """The first failure, as a block of the log."""
    lines = [f"launcher: first failure: {cause}"]
    if cause.process:
        code = "" if cause.code is None else f", exit code {cause.code}"
        lines.append(f"launcher:   process {cause.process}{code}")
    if reason:
        lines.append(f"launcher:   giving up: {reason}")
    if cause.autopsy:
        lines.append(f"launcher:   autopsy: {cause.autopsy}")
    if cause.rivals:
        lines.append(f"launcher:   {rivals_in_words(cause)}")
    if cause.tail:
        lines.append(f"launcher:   last lines of rank {cause.rank}:")
        lines += [f"launcher:   | {line}" for line in cause.tail]
    if cause.because:
        lines.append(f"launcher:   {because_in_words(cause)}")
        lines += [f"launcher:   | {line}" for line in cause.because]
    return lines


def rivals_in_words(cause: Cause) -> str:
    """Which other ranks may have failed first."""
    others = " or ".join(f"rank {rank}" for rank in cause.rivals)
    return f"it may have been {others}: they ended too close together to know which was first"


def because_in_words(cause: Cause) -> str:
    """How many ranks ended because of it."""
    count = len(cause.because)
    if count and (more := re.fullmatch(r"and (\d{1,4}) more", cause.because[-1], re.ASCII)):
        count += int(more[1]) - 1
    return f"{count} more rank{' ended' if count == 1 else 's ended'} because of it:"


def termination_message(cause: Cause | None, code: int, text: str) -> str:
    """What the platform shows for a pod that has exited: the cause, and the latest lines that fit in 4 KiB."""
    if cause is None:
        return "" if code == 0 else _in_bytes(f"exit code {code}: {_escaped(text)}\n")
    head = f"first failure: {_escaped(str(cause))}\n"
    if code:
        told = f": {_escaped(text)}" if text and text not in str(cause) else ""
        head = f"exit code {code}{told}\n{head}"
    if cause.autopsy:
        head += f"autopsy: {_escaped(cause.autopsy)}\n"
    tail = ""
    for line in map(plain, reversed(cause.tail)):
        if len((head + line + tail).encode()) + 5 > TERMINATION_BYTES:
            break
        tail = f"  | {line}\n" + tail
    return _in_bytes(head + tail)


def _escaped(text: str) -> str:
    """Text from a peer or an engine, made safe for a terminal."""
    return "\n".join(map(plain, text.splitlines()))


def _in_bytes(text: str) -> str:
    return text.encode()[:TERMINATION_BYTES].decode("utf-8", "ignore")
