"""Draws the two state machines from their own tables into docs/protocol.md: `python -m tests.simulation.diagram`.

The edges and the answers are those of LEADS and `answers`; only the words on the edges are written here, and there
must be words for every edge and no other (`test_diagram.py`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group.config import CoordinatorConfig, MemberConfig

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

P, S = c.GroupPhase, mb.State

COORDINATOR: Mapping[tuple[Enum, Enum], str] = {
    (P.WAITING, P.PREPARING): "all present, alike and fresh, nobody leaving, no fence, back-off over",
    (P.WAITING, P.ABORTED): "--join-timeout, or a member cannot read the leader",
    (P.PREPARING, P.STARTING): "prepared from all",
    (P.PREPARING, P.STOPPING): "unable, lost, leaving, or too slow",
    (P.STARTING, P.RUNNING): "the last stage done on all",
    (P.STARTING, P.STOPPING): "failed, lost, leaving, or too slow",
    (P.RUNNING, P.DRAINING): "a pod received SIGTERM",
    (P.RUNNING, P.STOPPING): "failed or lost",
    (P.DRAINING, P.STOPPING): "rank 0 has stopped, the grace is nearly over, failed or lost",
    (P.STOPPING, P.WAITING): "stopped from all that are left",
    (P.STOPPING, P.ABORTED): "the budget is spent, or it can never work",
}

MEMBER: Mapping[tuple[Enum, Enum], str] = {
    (S.CLEANING, S.SEEKING): "nothing is left here",
    (S.CLEANING, S.GONE): "SIGTERM",
    (S.SEEKING, S.SEATED): "accepted",
    (S.SEEKING, S.GONE): "SIGTERM, abort, or --join-timeout",
    (S.SEATED, S.SEEKING): "closed, or the leader is silent",
    (S.SEATED, S.PREPARING): "prepare",
    (S.SEATED, S.GONE): "SIGTERM, abort, or --join-timeout",
    (S.PREPARING, S.STARTING): "able, the deadline is set, prepared is said",
    (S.PREPARING, S.STOPPING): "stop, closed, silent, or abort",
    (S.PREPARING, S.GONE): "SIGTERM",
    (S.STARTING, S.RUNNING): "running",
    (S.STARTING, S.STOPPING): "stop, closed, expired, or abort",
    (S.RUNNING, S.STOPPING): "stop, closed, expired, or abort",
    (S.STOPPING, S.SEATED): "nothing is left, stopped is said",
    (S.STOPPING, S.SEEKING): "nothing is left, and the leader is gone",
    (S.STOPPING, S.LEAVING): "nothing is left, SIGTERM received, the leader still there",
    (S.STOPPING, S.GONE): "nothing is left, after SIGTERM or abort",
    (S.LEAVING, S.GONE): "goodbye, closed, or the grace is over",
}

Table = Mapping[Any, Mapping[type[Any], Callable[..., None]]]
Machine = tuple[Mapping[tuple[Enum, Enum], str], Mapping[Any, frozenset[Any]], Table, Enum]

TABLES: dict[str, Table] = {
    "coordinator": c.Coordinator(CoordinatorConfig("", 1, ""), 0.0, random.Random(0)).answers,
    "member": mb.Member(MemberConfig("", 0, 1, "", ""), 0.0).answers,
}

MACHINES: dict[str, Machine] = {
    "coordinator": (COORDINATOR, c.LEADS, TABLES["coordinator"], P.WAITING),
    "member": (MEMBER, mb.LEADS, TABLES["member"], S.CLEANING),
}


def diagram(name: str) -> str:
    """A state diagram in mermaid."""
    words, leads, _, first = MACHINES[name]
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.value}"]
    for state, nexts in leads.items():
        for after in type(state):
            if after in nexts:
                lines.append(f"    {state.value} --> {after.value}: {words[state, after]}")
        if not nexts:
            lines.append(f"    {state.value} --> [*]")
    return "\n".join([*lines, "```"])


def answers(name: str) -> str:
    """The table: what each state answers to each event. A dot: nothing changes."""
    table = MACHINES[name][2]
    states = list(table)
    lines = ["| event | " + " | ".join(s.value for s in states) + " |", "|---" * (len(states) + 1) + "|"]
    for event in table[states[0]]:
        row = (table[s][event].__name__[1:].replace("_", " ") for s in states)
        lines.append(
            f"| **{event.__name__}** | " + " | ".join("·" if a in ("idle", "stale") else a for a in row) + " |"
        )
    return "\n".join(lines)


def drawn(page: str) -> str:
    """The page with everything between the marks drawn anew."""
    for name in MACHINES:
        for what, draw in (("diagram", diagram), ("table", answers)):
            begin, end = f"<!-- {name} {what} -->", f"<!-- end of {name} {what} -->"
            pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
            if len(pattern.findall(page)) != 1:
                raise ValueError(f"{PAGE} has no place, or two, for {begin}")
            page = pattern.sub(lambda _: f"{begin}\n{draw(name)}\n{end}", page)  # noqa: B023
    return page


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
