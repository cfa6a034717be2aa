"""Answers to what people ask of the agent port besides the pages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlainAnswer:
    """A status of HTTP, and one line for people."""

    status: int
    text: str


@dataclass(frozen=True)
class RankLines:
    """The last lines of a rank's engine. ``ended``: how that engine ended, if it has."""

    rank: int
    epoch: int
    lines: tuple[str, ...]
    ended: str = ""
