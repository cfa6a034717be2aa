"""The result of one check: what was found, why it matters, what to do. Pure data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from launcher.common.text import printable
from launcher.model import EMPTY


class Level(str, Enum):
    """How bad it is. Only ``fail`` makes doctor exit with 1."""

    OK = "ok"
    WARN = "warn"  #: works, but may work worse than it could
    FAIL = "fail"  #: the engine will not start or will not serve
    SKIPPED = "skipped"  #: could not be checked here; ``what`` says why


@dataclass(frozen=True)
class Finding:
    """``facts``: short texts that the group compares; they may differ."""

    check: str  #: one word: ``shm``, ``memlock``
    level: Level
    what: str
    why: str = ""
    fix: str = ""
    facts: Mapping[str, str] = field(default_factory=lambda: EMPTY)

    def __str__(self) -> str:
        return f"{self.check}: {self.what}" + (f"; {self.fix}" if self.fix else "")

    def as_object(self) -> dict[str, Any]:
        """For ``--json`` and /status."""
        plain = {"check": self.check, "level": self.level.value, "what": self.what, "why": self.why, "fix": self.fix}
        return {**plain, "facts": dict(self.facts)} if self.facts else plain


def ok(check: str, what: str, facts: Mapping[str, str] = EMPTY) -> Finding:
    return Finding(check, Level.OK, what, facts=facts)


def warn(check: str, what: str, why: str, fix: str, facts: Mapping[str, str] = EMPTY) -> Finding:
    return Finding(check, Level.WARN, what, why, fix, facts)


def fail(check: str, what: str, why: str, fix: str, facts: Mapping[str, str] = EMPTY) -> Finding:
    return Finding(check, Level.FAIL, what, why, fix, facts)


def skipped(check: str, what: str, facts: Mapping[str, str] = EMPTY) -> Finding:
    return Finding(check, Level.SKIPPED, what, facts=facts)


def from_object(value: Mapping[str, Any]) -> Finding:
    """The inverse of `Finding.as_object`, for another pod's data: cleans its texts. Raises ValueError."""
    texts = {name: clean(value.get(name)) for name in ("check", "what", "why", "fix")}
    facts = value.get("facts")
    return Finding(
        level=Level(value.get("level")),
        facts={clean(k): clean(v) for k, v in facts.items()} if isinstance(facts, dict) else EMPTY,
        **texts,
    )


def clean(value: object) -> str:
    """A peer's text, made printable and short."""
    return printable(value or "", 600)


def counts(findings: Iterable[Finding]) -> dict[Level, int]:
    """The number of findings of each level."""
    found = dict.fromkeys(Level, 0)
    for finding in findings:
        found[finding.level] += 1
    return found


def facts_of(findings: Iterable[Finding]) -> dict[str, str]:
    """The facts of all findings in one mapping."""
    return {name: value for finding in findings for name, value in finding.facts.items() if value}
