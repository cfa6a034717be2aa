"""What an engine printed last, to explain its end: the last lines, and whole tracebacks.

A cause is easily lost. Health and metrics probes fill the log of an engine that hangs; after a traceback come those of
its neighbours, and a shutdown's own lines. So access-log lines of probes are passed over, and a traceback that began in
the last minutes is kept from its first line to its last, whatever follows. Everything is bounded.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

TAIL_LINES = 20
LINE_LENGTH = 400
#: What tracebacks may take besides, all of them together.
TRACEBACK_LINES, TRACEBACK_CHARACTERS = 200, 16 << 10
FRESH = 600.0  #: seconds for which a traceback may explain an end
CASCADE = 60.0  #: seconds after a traceback in which others are likely to follow from it
GAP = "[...]"

COLOURS = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
#: Paths that platforms and the launcher ask, of any engine.
PROBES = ("/health", "/healthz", "/health_generate", "/metrics", "/ping", "/ready", "/readyz", "/live", "/livez")

_HEADER = re.compile(r"(?P<before>.*?)(?:\+ Exception Group )?Traceback \(most recent call last\):\s*$")
_FAULT = re.compile(r"(?P<before>.*?)Fatal Python error: ")
_CHAIN = re.compile(r"(During handling of the above exception|The above exception was the direct cause)")
_RAISED = re.compile(r"(?!(?:DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b)[A-Za-z_][\w.]*(?:: .*)?$")
_OF_FAULT = re.compile(r"(?:\s|Current thread |Thread |Stack |Extension modules|$)")
_LOG = re.compile(r"\(|\[?\d{4}-\d\d-\d\d|(?:DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL)\b|Traceback ")
_MESSAGE_LINES = 6  #: of an exception after its first
_FOREIGN = 200  #: lines of others between two of a traceback
_OPEN = 8  #: tracebacks that are written at the same time


def without_colours(line: str) -> str:
    return COLOURS.sub("", line) if "\x1b" in line else line


def probes_of(urls: Iterable[str | None]) -> re.Pattern[str]:
    """Recognises access-log lines of successful probes, also of those that go to ``urls``."""
    paths = {urlsplit(url).path for url in urls if url} - {"", "/"}
    names = "|".join(re.escape(path) for path in sorted({*PROBES, *paths}, key=len, reverse=True))
    return re.compile(rf"\b(?:GET|HEAD)\b[\s\"']+(?:https?://[^/\s]+)?(?:{names})/?(?:\?\S*)?[\s\\\"'].*?\b2\d\d\b")


class Lines:
    """The lines of an output that arrives in pieces."""

    def __init__(self) -> None:
        self._part = ""

    def feed(self, text: str) -> list[str]:
        """Take in a piece; the lines that it completes. A carriage return starts a line anew (progress bars)."""
        *whole, part = (self._part + text).split("\n")
        self._part = part[-LINE_LENGTH * 4 :]
        return [line.rstrip("\r").rpartition("\r")[2][:LINE_LENGTH] for line in whole]

    @property
    def part(self) -> str:
        """What has no line end yet."""
        return self._part.rpartition("\r")[2][:LINE_LENGTH]


class _Traceback:
    """One traceback, chained ones included, or the stacks of a fatal error; ``prefix`` stands before each line."""

    def __init__(self, number: int, line: str, prefix: str, is_fault: bool, at: float) -> None:
        self.lines = [(number, line)]
        self.prefix, self.is_fault, self.at = prefix, is_fault, at
        self.open = True
        self._in_frames, self._chained = True, False
        self._after = self._foreign = 0

    def take(self, number: int, line: str, clean: str) -> bool:
        """Whether this line is one of it."""
        belongs = clean.startswith(self.prefix) and self._continues(clean[len(self.prefix) :])
        if belongs:
            self._foreign = 0
            self.lines.append((number, line))
            while len(self.lines) > TRACEBACK_LINES or self.size > TRACEBACK_CHARACTERS:
                del self.lines[min(len(self.lines) // 4, 40)]  # where it came from and what was raised count most
        else:
            self._foreign += 1
            self.open = self.open and self._foreign < _FOREIGN
        return belongs

    @property
    def size(self) -> int:
        return sum(len(line) for _, line in self.lines)

    def _continues(self, rest: str) -> bool:
        if self.is_fault:
            if not _OF_FAULT.match(rest):
                self.open = self.prefix == ""  # others may write in between
                return False
            return True
        if _CHAIN.match(rest) or (_HEADER.match(rest) and (self._in_frames or self._chained)):
            self._in_frames, self._chained = True, True
            return True
        if self._in_frames:
            if rest[:1] in ("", " ", "\t", "|", "+"):
                return True
            if self.prefix == "" and not _RAISED.match(rest):
                return False  # a line of another process
            self._in_frames, self._chained, self._after = False, False, 0
            return True
        self._after += bool(rest.strip())
        if self._after > _MESSAGE_LINES or _LOG.match(rest):
            self.open = False
            return False
        return True


class LastLines:
    """The last lines of one output or of several. ``probes``: lines that say nothing."""

    def __init__(self, probes: re.Pattern[str] | None = None) -> None:
        self._probes = probes
        self._sources: list[Lines] = []
        self._lines: deque[tuple[int, str]] = deque(maxlen=TAIL_LINES)
        self._tracebacks: list[_Traceback] = []
        self._count = 0

    def follow(self, source: Lines) -> None:
        """What has no line end yet is taken from there."""
        self._sources.append(source)

    def add(self, lines: Sequence[str]) -> int:
        """Take in whole lines; how many characters of them say nothing."""
        skipped = 0
        for line in lines:
            clean = without_colours(line)
            if self._probes is not None and self._probes.search(clean):
                skipped += len(line) + 1
            else:
                self._add(line, clean)
        return skipped

    def _add(self, line: str, clean: str) -> None:
        if not clean.strip():
            return
        self._count += 1
        self._lines.append((self._count, line))
        taken = [one.take(self._count, line, clean) for one in self._tracebacks if one.open]
        if any(taken):
            self._make_room()
            return
        is_fault = False
        header = _HEADER.match(clean)
        if header is None:
            header, is_fault = _FAULT.match(clean), True
        if header is None:
            return
        before = header["before"] if header["before"].strip() else ""
        self._tracebacks.append(_Traceback(self._count, line, before, is_fault, time.monotonic()))
        if sum(one.open for one in self._tracebacks) > _OPEN:
            next(one for one in self._tracebacks if one.open).open = False
        self._make_room()

    def _make_room(self) -> None:
        """The first of those that belong together and the newest explain the most; what lies between goes first."""
        while len(self._tracebacks) > 1 and (
            sum(len(one.lines) for one in self._tracebacks) > TRACEBACK_LINES
            or sum(one.size for one in self._tracebacks) > TRACEBACK_CHARACTERS
        ):
            related = self._tracebacks[-1].at - self._tracebacks[0].at <= CASCADE
            del self._tracebacks[1 if related else 0]

    @property
    def _parts(self) -> list[str]:
        return [source.part for source in self._sources if source.part.strip()][-TAIL_LINES:]

    @property
    def last(self) -> tuple[str, ...]:
        """The last lines as they came."""
        return tuple([*(line for _, line in self._lines), *self._parts][-TAIL_LINES:])

    @property
    def telling(self) -> tuple[str, ...]:
        """The last lines, and before them whatever traceback may explain the end; a gap is marked."""
        since, parts = time.monotonic() - FRESH, self._parts
        shown = dict(list(self._lines)[max(0, len(self._lines) + len(parts) - TAIL_LINES) :])
        for one in self._tracebacks:
            shown.update(one.lines if one.at >= since else ())
        told: list[str] = []
        before = None
        for number, line in sorted(shown.items()):
            if before is not None and number != before + 1:
                told.append(GAP)
            told.append(line)
            before = number
        return (*told, *parts)
