"""--join-timeout on a member: for peers that do not come, not for such as differ."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.config import MemberConfig
from launcher.group.events import Tick


@pytest.mark.parametrize(("phase", "exits"), [("gathering", True), ("mismatched", False)])
def test_a_member_waits_with_its_leader_until_all_are_alike(phase: str, exits: bool) -> None:
    member = me.Member(MemberConfig("g", 1, 2, "n", "inc", join_timeout=60.0), 0.0)
    member.address = "127.0.0.1"
    for event in (me.Gone(), me.Connected(), m.Accepted("L", 1), m.News(phase, "why", 2)):
        member.handle(event, 0.0)
    actions: list[Any] = []
    for now in range(1, 100):
        actions += member.handle(m.Ack(0, now), float(now))
        actions += member.handle(Tick(), float(now))
    assert [a.code for a in actions if isinstance(a, me.Exit)] == ([69] if exits else [])
