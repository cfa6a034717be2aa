"""Puts together what the guard's examination of an engine yields: for each process the kernel's words and its stacks.

The guard says which process it is about to abort (Aborting). What is printed from then on is that process's, since all
others are stopped. Python's faulthandler prints the stacks of all threads, the innermost frame first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from launcher.common.last_lines import without_colours
from launcher.group.messages import LONGEST_PRINTED, MOST_FRAMES, MOST_PRINTED, MOST_PROCESSES
from launcher.guard import channel as guard
from launcher.model import ProcessEvidence

MOST_CHARACTERS = 1 << 18  #: kept of what one process prints
_THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-fA-F]+.*\(most recent call first\):$")
_FRAME = re.compile(r'\s+File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<name>.*)$')
_CUT = "..."  #: stands for the threads that are not listed
_BEGIN = "Fatal Python error: "


class EvidenceCollector:
    """One examination at a time."""

    def __init__(self) -> None:
        self._reports: list[guard.Aborting] = []
        self._printed: list[str] = []
        self._order = ""

    def begin(self, order: str) -> None:
        """An examination is ordered; an earlier one's words do not count any more."""
        self._order = order
        self._reports, self._printed = [], []

    def aborting(self, report: guard.Aborting) -> None:
        if report.id == self._order and len(self._reports) < MOST_PROCESSES:
            self._reports.append(report)
            self._printed.append("")

    def printed(self, text: str) -> None:
        """What a process of the engine wrote."""
        if self._printed and len(self._printed[-1]) < MOST_CHARACTERS:
            self._printed[-1] += text[:MOST_CHARACTERS]

    def take(self) -> tuple[ProcessEvidence, ...] | None:
        """What was found, once; None: nothing was to be examined."""
        if not self._order:
            return None
        found = zip(self._reports, self._printed, strict=True)
        evidence = tuple(_evidence(report, text) for report, text in found)
        self.begin("")
        return evidence


def _evidence(report: guard.Aborting, text: str) -> ProcessEvidence:
    lines = _from_the_error([without_colours(line)[:LONGEST_PRINTED] for line in text.splitlines()])
    return ProcessEvidence(
        max(1, report.pid),
        report.name,
        report.state[:1],
        report.wchan,
        report.syscall,
        main_frames(lines)[:MOST_FRAMES],
        tuple(lines[:MOST_PRINTED]),
    )


def _from_the_error(lines: list[str]) -> list[str]:
    """Without what was still in the pipe from before."""
    begin = next((at for at, line in enumerate(lines) if _BEGIN in line), None)
    return lines if begin is None else lines[begin:]


def main_frames(lines: Sequence[str]) -> tuple[str, ...]:
    """The stack of the main thread in what faulthandler printed: "forward (model.py:12)", the innermost first.

    It lists the newest thread first, so the main thread comes last. The current one, which happened to receive the
    signal, may be any; it counts only where the list was cut (after 100 threads).
    """
    threads: list[tuple[bool, list[str]]] = []
    for line in lines:
        header = _THREAD.match(line)
        frame = _FRAME.match(line)
        if header is not None:
            threads.append((header[1] == "Current thread", []))
        elif frame is not None and threads:
            threads[-1][1].append(f"{frame['name']} ({_short(frame['file'])}:{frame['line']})")
    told = [(current, frames) for current, frames in threads if frames]
    if _CUT in lines:
        told.sort(key=lambda one: one[0])
    return tuple(told[-1][1]) if told else ()


def _short(path: str) -> str:
    """The last two parts of a path: enough to find a file, and no home folder."""
    return os.path.join(*path.split("/")[-2:])
