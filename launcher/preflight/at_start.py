"""The cheap checks at every start: at most 2 s, in words in the log, and never a reason not to start.

What is certain to fail (ports, topology, RDMA that was required) is an error elsewhere. Of the group's pods each looks
at itself; what it found travels in its hello, and the leader compares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.log import Log
from launcher.preflight.checks import run
from launcher.preflight.checks.registry import CHECKS
from launcher.preflight.finding import Finding, Level, clean, facts_of
from launcher.preflight.group import compare
from launcher.preflight.pod import Node

FINDING = "finding."
MOST_FINDINGS = 16  #: in a hello
LONGEST = 300  #: characters of each: what the wire takes


async def examine(node: Node) -> tuple[Finding, ...]:
    """The findings about this pod, after at most 2 s."""
    chosen = [check for check in CHECKS if check.at_start]
    return await asyncio.to_thread(run.run, node, chosen, run.START_SECONDS)


def tell(findings: Iterable[Finding], log: Log) -> None:
    """One line for each finding that is not well."""
    for f in findings:
        if f.level in (Level.WARN, Level.FAIL):
            level = "error" if f.level is Level.FAIL else "warning"
            log(f"preflight: {f.check}: {f.what}", {"why": f.why, "fix": f.fix}, level)


def as_facts(findings: Iterable[Finding], more: Mapping[str, str]) -> dict[str, str]:
    """What a hello tells of this pod: facts to compare, and the findings that are not well."""
    found = list(findings)
    facts = {name: value for name, value in {**facts_of(found), **more}.items() if compare.compared(name)}
    bad = [f for f in found if f.level in (Level.FAIL, Level.WARN)]
    bad.sort(key=lambda f: f.level is not Level.FAIL)
    words = {f"{FINDING}{i:02}": f"{f.level.value} {f}" for i, f in enumerate(bad[:MOST_FINDINGS])}
    return {name: clean(value)[:LONGEST] for name, value in {**facts, **words}.items()}


def findings_in(facts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The findings that a hello brought."""
    said = [clean(value).partition(" ") for name, value in sorted(facts.items()) if name.startswith(FINDING)]
    return [{"level": level, "text": text} for level, _, text in said if level in ("fail", "warn")]
