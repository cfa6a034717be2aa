"""The launcher's own log: one line an event, key=value, with the rank and the epoch on each; text or JSON.

Lines go out through the guard's queue, so a log without a reader never blocks the agent. Text that came from a peer or
from an engine is escaped: it can't forge a line or move a cursor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone

LEVELS = ("debug", "info", "warning", "error")
REMIND_SECONDS = 60.0
LONG_SECONDS = 180.0  #: a wait that lasts so long is unusual: it becomes a warning, and says what to look at
LAST = 253402300799.0  #: the end of the year 9999: no later time can be written
#: What every line says of itself. A field of an event that is called so becomes ``of_rank`` and so on.
OWN = ("time", "level", "event", "rank", "epoch")


class WaitLines:
    """One wait after another: said when its reason changes, and once a minute while that does not."""

    def __init__(self) -> None:
        self._text = ""
        self._since = self._said = 0.0

    def lasted(self, now: float) -> float:
        """Seconds since the wait began, whatever its reason was meanwhile."""
        return now - self._since if self._text else 0.0

    def line(self, text: str, now: float) -> str:
        """``text``: what is missing; empty: the wait is over. What is to be said now; empty: nothing."""
        before, self._text = self._text, text
        if not text or (text == before and now - self._said < REMIND_SECONDS):
            return ""
        if not before:
            self._since = now
        self._said = now
        return f"still {text}" if text == before and text.startswith("waiting") else text


class Log:
    """Writes lines with ``write(text)``. ``epoch`` is set by the agent as epochs come and go."""

    def __init__(
        self, write: Callable[[str], None], rank: int | None, style: str = "text", level: str = "info"
    ) -> None:
        self._write = write
        self._rank = rank
        self._style = style
        self._least = LEVELS.index(level)
        self._wait = WaitLines()
        self.epoch = ""
        self.look_at = ""  #: a command that shows the pods of this group, for whoever finds that a wait is long

    def __call__(self, event: str, fields: Mapping[str, object] | None = None, level: str = "info") -> None:
        """One event: a few words, and what belongs to it."""
        if LEVELS.index(level) >= self._least:
            self._write(self._line(event, fields or {}, level))

    def waiting(self, text: str, fields: Mapping[str, object] | None = None) -> None:
        """What is missing: said when it changes, and once a minute while it does not. Empty: the wait is over."""
        now = time.monotonic()
        line = self._wait.line(text, now)
        if not line:
            return
        lasted = self._wait.lasted(now)
        fields = {**({"waited_s": round(lasted)} if lasted >= 1 else {}), **(fields or {})}
        if lasted < LONG_SECONDS:
            self(line, fields)
        else:
            self(line, {**fields, "look_at": self.look_at}, "warning")

    def block(self, lines: list[str], level: str = "error") -> None:
        """Several lines that belong together: the first failure and its last words."""
        if LEVELS.index(level) < self._least:
            return
        if self._style == "json":
            self._write(self._line(lines[0].strip(), {"detail": lines[1:]}, level))
        else:
            self._write("".join(f"{plain(line)}\n" for line in lines))

    def _line(self, event: str, fields: Mapping[str, object], level: str) -> str:
        now = stamp(time.time())
        where: dict[str, object] = {}
        if self._rank is not None:
            where["rank"] = self._rank
        if self.epoch:
            where["epoch"] = self.epoch
        fields = {f"of_{k}" if k in OWN else k: v for k, v in fields.items()}
        if self._style == "json":
            return _json({"time": now, "level": level, "event": event, **where, **fields}) + "\n"
        mark = "" if level == "info" else f"{level.upper()} "
        pairs = "".join(f" {k}={_value(v)}" for k, v in fields.items() if v not in (None, ""))
        place = "".join(f" {k}={v}" for k, v in where.items())
        return f"{now} launcher{place} {mark}{plain(event)}{pairs}\n"


def _value(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else _json(text)


def _json(value: object) -> str:
    import json

    return json.dumps(value, default=str)


def stamp(at: float) -> str:
    """Seconds since 1970 as people and programs read them: UTC."""
    at = min(max(at, 0.0), LAST)
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(text: str) -> str:
    """Printable: control characters and line ends become escapes."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)
