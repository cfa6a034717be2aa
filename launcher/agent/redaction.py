"""Takes the secrets that this pod knows out of words that go further: to the leader, a state file, /status, a log.

Engines print their arguments and environment, and the last lines of a dead one travel. What the engine writes to its
own standard output is passed on as it is: that is the engine's log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from launcher.common.last_lines import LINE_LENGTH
from launcher.engines import arguments
from launcher.group.messages import Report
from launcher.model import Cause

LEAST = 6  #: characters: what is shorter is in too many words
_PATHS = ("_FILE", "_PATH", "_DIR", "_HOME")  #: LAUNCHER_TOKEN_FILE is named like a secret, and is only where one is


def known(args: Sequence[str], environ: Mapping[str, str], *more: str) -> tuple[str, ...]:
    """Values of options and variables that are named like secrets, and ``more``."""
    values = [v for option in arguments.given(args) if arguments.is_secret(option.name) for v in option.values]
    values += [v for k, v in environ.items() if arguments.is_secret(k) and not k.upper().endswith(_PATHS)]
    return tuple(sorted({v for v in (*values, *more) if len(v) >= LEAST}, key=len, reverse=True))


def text(words: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if secret in words:
            words = words.replace(secret, arguments.MASK)
        if len(words) >= LINE_LENGTH:
            words = _without_beginning_of(secret, words)
    return words


def _without_beginning_of(secret: str, words: str) -> str:
    """Lines are cut to a length, perhaps in the middle of a secret."""
    for length in range(len(secret) - 1, LEAST - 1, -1):
        if words.endswith(secret[:length]):
            return words[:-length] + arguments.MASK
    return words


def cause(found: Cause, secrets: Sequence[str]) -> Cause:
    """The same failure in words that may travel."""
    return replace(
        found,
        text=text(found.text, secrets),
        process=text(found.process, secrets),
        tail=tuple(text(line, secrets) for line in found.tail),
    )


def event(found: Any, secrets: Sequence[str]) -> Any:
    """An event for the member in words that may travel: those of its cause, or of its report's last lines."""
    if isinstance(getattr(found, "cause", None), Cause):
        return replace(found, cause=cause(found.cause, secrets))
    if isinstance(getattr(found, "report", None), Report):  # they are told should this pod be lost
        tail = tuple(text(line, secrets) for line in found.report.tail)
        return replace(found, report=replace(found.report, tail=tail))
    return found
