"""The cheap checks at every start: they take at most 2 s, log what they find, and never prevent a start.

What is certain to fail (ports, topology, RDMA that was required) is an error elsewhere. Each pod checks itself and
sends its findings in its hello; the leader compares them.
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
MOST_FINDINGS = 16  #: findings in a hello
LONGEST = 300  #: characters of each: the limit on the wire


async def examine(node: Node) -> tuple[Finding, ...]:
    """Check this pod, for at most 2 s."""
    chosen = [check for check in CHECKS if check.at_start]
    return await asyncio.to_thread(run.run, node, chosen, run.START_SECONDS)


def tell(findings: Iterable[Finding], log: Log) -> None:
    """Log one line for each warning or failure."""
    for f in findings:
        if f.level in (Level.WARN, Level.FAIL):
            level = "error" if f.level is Level.FAIL else "warning"
            log(f"preflight: {f.check}: {f.what}", {"why": f.why, "fix": f.fix}, level)


def as_facts(findings: Iterable[Finding], more: Mapping[str, str]) -> dict[str, str]:
    """This pod's part of a hello: facts to compare, and the warnings and failures."""
    found = list(findings)
    facts = {name: value for name, value in {**facts_of(found), **more}.items() if compare.compared(name)}
    bad = [f for f in found if f.level in (Level.FAIL, Level.WARN)]
    bad.sort(key=lambda f: f.level is not Level.FAIL)
    words = {f"{FINDING}{i:02}": f"{f.level.value} {f}" for i, f in enumerate(bad[:MOST_FINDINGS])}
    return {name: clean(value)[:LONGEST] for name, value in {**facts, **words}.items()}


def findings_in(facts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The findings in a hello."""
    said = [clean(value).partition(" ") for name, value in sorted(facts.items()) if name.startswith(FINDING)]
    return [{"level": level, "text": text} for level, _, text in said if level in ("fail", "warn")]
