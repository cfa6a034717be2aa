"""Findings as one screen for people, and as one JSON object for programs."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.preflight.finding import Finding, Level, counts

MARK = {Level.OK: "ok", Level.WARN: "WARN", Level.FAIL: "FAIL", Level.SKIPPED: "-"}
COLOUR = {Level.OK: 32, Level.WARN: 33, Level.FAIL: 31, Level.SKIPPED: 90}


def width() -> int:
    """Columns of the terminal; a pipe or a log gets 120."""
    return min(160, shutil.get_terminal_size((120, 40)).columns)


def lines(findings: Sequence[Finding], columns: int = 120, paint: bool = False) -> list[str]:
    """One line per good finding; a bad one also says why it matters and what to do."""
    name = max((len(f.check) for f in findings), default=0)
    indent = " " * (name + 10)
    shown: list[str] = []
    for f in findings:
        head = f"  {MARK[f.level]:<4}  {f.check:<{name}}  "
        wrapped = textwrap.wrap(f.what, max(40, columns - len(head)), break_long_words=False) or [""]
        mark = f"\x1b[{COLOUR[f.level]}m{MARK[f.level]:<4}\x1b[0m" if paint else f"{MARK[f.level]:<4}"
        shown.append(f"  {mark}  {f.check:<{name}}  {wrapped[0]}")
        shown += [indent + line for line in wrapped[1:]]
        if f.level in (Level.WARN, Level.FAIL):
            shown += _said("why", f.why, indent, columns) + _said("fix", f.fix, indent, columns)
    return shown


def verdict(findings: Sequence[Finding]) -> str:
    """``11 ok, 2 warnings, 1 failed``."""
    n = counts(findings)
    words = [f"{n[Level.OK]} ok"]
    if n[Level.WARN]:
        words.append(f"{n[Level.WARN]} warning{'s' if n[Level.WARN] > 1 else ''}")
    if n[Level.FAIL]:
        words.append(f"{n[Level.FAIL]} failed")
    if n[Level.SKIPPED]:
        words.append(f"{n[Level.SKIPPED]} not checked")
    return ", ".join(words)


def as_object(findings: Sequence[Finding]) -> dict[str, Any]:
    """``{"ok": ..., "counts": ..., "findings": [...]}``."""
    n = counts(findings)
    return {
        "ok": not n[Level.FAIL],
        "counts": {level.value: count for level, count in n.items()},
        "findings": [f.as_object() for f in findings],
    }


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """A table: each column as wide as its widest cell."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [(indent + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True))).rstrip() for row in rows]


def paints(environ: Mapping[str, str]) -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in environ


def _said(what: str, text: str, indent: str, columns: int) -> list[str]:
    if not text:
        return []
    first = f"{indent}{what}: "
    return textwrap.wrap(
        text, max(60, columns), initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False
    )
