"""Masks the secrets that this pod knows in text that leaves it: to the leader, a state file, /status, a log.

Engines print their arguments and environment, and the last lines of a failed one are sent to the leader. What an engine
writes to its own standard output is passed on unchanged: that is the engine's log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from launcher.common.last_lines import LINE_LENGTH
from launcher.engines import arguments
from launcher.group.member import Examined
from launcher.group.messages import Report
from launcher.model import Cause, ProcessEvidence

LEAST = 6  #: characters; anything shorter occurs in too many words
_PATHS = ("_FILE", "_PATH", "_DIR", "_HOME")  #: LAUNCHER_TOKEN_FILE is named like a secret, but is only the path of one


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
    """Lines are cut to a length, possibly in the middle of a secret."""
    for length in range(len(secret) - 1, LEAST - 1, -1):
        if words.endswith(secret[:length]):
            return words[:-length] + arguments.MASK
    return words


def cause(found: Cause, secrets: Sequence[str]) -> Cause:
    """The same failure with secrets masked."""
    return replace(
        found,
        text=text(found.text, secrets),
        process=text(found.process, secrets),
        tail=tuple(text(line, secrets) for line in found.tail),
    )


def event(found: Any, secrets: Sequence[str]) -> Any:
    """An event for the member with secrets masked in its cause, or in its report's last lines."""
    if isinstance(getattr(found, "cause", None), Cause):
        return replace(found, cause=cause(found.cause, secrets))
    if isinstance(getattr(found, "report", None), Report):  # they are reported if this pod is lost
        report = found.report
        tail, told = tuple(text(line, secrets) for line in report.tail), report.progress
        if told is not None:
            told = replace(told, gate=text(told.gate, secrets), answer=text(told.answer, secrets))
        return replace(found, report=replace(report, tail=tail, progress=told))
    if isinstance(found, Examined):
        return replace(found, processes=tuple(_process(one, secrets) for one in found.processes))
    return found


def _process(found: ProcessEvidence, secrets: Sequence[str]) -> ProcessEvidence:
    lines = tuple(text(line, secrets) for line in found.text)
    return replace(found, name=text(found.name, secrets), text=lines)
