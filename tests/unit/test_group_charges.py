"""Restarts that are charged leave the window: in the leader's count, its members' memory, and for the next leader."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group import messages as m
from launcher.group.config import CoordinatorConfig, MemberConfig, StageLimit
from launcher.group.events import Send, SendAll, Tick
from launcher.model import Cause, CauseKind

BOOM = Cause(CauseKind.EXITED, 0, "boom", "engine", 1)


class Alone:
    """A leader that is its own only member, and an engine that does as it is told."""

    def __init__(self, incarnation: str, now: float, news: m.News) -> None:
        self.now = now
        config = CoordinatorConfig("g", 1, incarnation, max_restarts=3, restart_window=3600.0, restart_backoff=1.0)
        self.leader = c.Coordinator(config, now, random.Random(1))
        self.leader.stages = (StageLimit("serve"),)
        self.member = mb.Member(MemberConfig("g", 0, 1, "n", incarnation), now)
        self.member.news = news
        self.member.address = "127.0.0.1"
        self.exit: mb.Exit | None = None
        self.tell(mb.Gone())

    def tell(self, *events: Any) -> None:
        todo: deque[tuple[bool, Any]] = deque((False, event) for event in events)
        while todo:
            leads, event = todo.popleft()
            machine = (lambda e: self.leader.handle(e, 0, self.now)) if leads else self._follow
            for action in machine(event):
                answer = self._answer(action)
                if isinstance(action, (Send, SendAll)):
                    todo.append((not leads, action.message))
                elif answer is not None:
                    todo.append((False, answer))

    def _follow(self, event: Any) -> list[Any]:
        return self.member.handle(event, self.now)

    def _answer(self, action: Any) -> Any:
        if isinstance(action, mb.Dial):
            return mb.Connected()
        if isinstance(action, mb.DoPrepare):
            return mb.Able(action.shared.epoch)
        if isinstance(action, mb.DoStage):
            return mb.Done(action.epoch, action.stage)
        if isinstance(action, mb.DoStop):
            return mb.Gone()
        if isinstance(action, mb.Exit):
            self.exit = action
        return None

    def goes_on(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end and self.exit is None:
            self.now += 0.5
            for action in self.leader.handle(Tick(), 0, self.now):
                self.tell(action.message) if isinstance(action, (Send, SendAll)) else None
            self.tell(Tick())

    def fails(self) -> None:
        assert self.leader.phase is c.GroupPhase.RUNNING and self.member.epoch is not None
        self.tell(mb.Broke(self.member.epoch, BOOM))


def three_failures() -> Alone:
    one = Alone("one", 0.0, m.News("gathering"))
    for _ in range(3):
        one.goes_on(60.0)
        one.fails()
    one.goes_on(60.0)
    assert len(one.member.news.charges) == 3
    return one


def test_members_hear_that_a_charge_has_left_the_window() -> None:
    one = three_failures()
    one.goes_on(2 * 3600.0)
    assert one.member.news.charges == ()


def test_a_new_leader_does_not_date_old_charges_anew() -> None:
    """What is remembered in between, here for most of the window, grows old."""
    one = three_failures()
    now = one.now + 3300.0
    two = Alone("two", now, m.News("gathering", charges=one.member.charges(now)))
    two.goes_on(10.0)
    assert two.leader.budget.charged(two.now) == 3, "they still count"
    two.goes_on(600.0)
    assert two.leader.budget.charged(two.now) == 0
    two.fails()
    two.goes_on(10.0)
    assert two.exit is None and two.leader.phase is c.GroupPhase.RUNNING


def test_news_that_was_held_up_makes_no_charge_younger() -> None:
    """A member that was frozen, or cut off, reads late how old a charge is: it does not date it by that moment."""
    member = mb.Member(MemberConfig("g", 1, 2, "n", "one"), 0.0)
    member.handle(mb.Gone(), 0.0)
    member.handle(mb.Connected(), 0.0)
    member.handle(m.Accepted("leader", 1), 0.0)
    ping = next(a.message.seq for a in member.handle(Tick(), 5.0) if isinstance(a, Send))
    member.handle(m.Ack(ping, 2), 5.1)
    member.handle(m.News("backoff", charges=(0.0, 5.0)), 5.2)
    assert member.charges(6.0) == (1.0, 6.0), "by the ping that was acked, at 5.0"
    member.handle(m.News("backoff", charges=(1.0, 6.0)), 105.0)
    assert member.charges(106.0) == (102.0, 107.0), "it may have been said a hundred seconds ago"
