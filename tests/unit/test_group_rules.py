"""Rules of the tables that no schedule is needed for: what belongs to another epoch, another challenge, another pod."""

from __future__ import annotations

import random
from collections import deque
from enum import Enum
from typing import Any

import pytest

from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group import messages as m
from launcher.group.budget import STEADY
from launcher.group.config import CoordinatorConfig, MemberConfig, StageLimit
from launcher.group.events import Closed, Hang, Send, Tick
from launcher.group.fences import Fences
from launcher.group.lease import Terms
from launcher.group.roster import CHALLENGE_SECONDS, LOCAL
from launcher.model import Cause, CauseKind, Epoch, ProcessEvidence

CAUSE = Cause(CauseKind.EXITED, 1, "it ended with 1", "engine", 1)
PROCESS = ProcessEvidence(7, "worker", "S", frames=("forward (model.py:1)",))
NOW = 1.0


def hello(rank: int, incarnation: str, **more: Any) -> m.Hello:
    return m.Hello("g", rank, 2, incarnation, f"10.0.0.{rank}", **more)


def seated() -> c.Coordinator:
    """A leader with all its members, on connections 0 and 1, who have not answered yet."""
    leader = c.Coordinator(CoordinatorConfig("g", 2, "leader"), 0.0, random.Random(1))
    leader.stages = (StageLimit("one"), StageLimit("two"))
    for rank in range(2):
        leader.handle(hello(rank, f"i{rank}"), rank, NOW)
    return leader


def brought_to(phase: c.GroupPhase) -> tuple[c.Coordinator, Epoch]:
    leader = seated()
    for rank in range(2):
        leader.handle(m.Ping(1, 1 << 40), rank, NOW)
    leader.handle(Tick(), LOCAL, NOW)
    epoch = leader.epoch
    assert epoch is not None
    steps: dict[c.GroupPhase, list[Any]] = {
        c.GroupPhase.PREPARING: [],
        c.GroupPhase.STARTING: [m.Prepared(epoch)],
        c.GroupPhase.RUNNING: [m.StageDone(epoch, 0), m.StageDone(epoch, 1)],
        c.GroupPhase.DRAINING: [],
        c.GroupPhase.STOPPING: [],
    }
    for upto, words in steps.items():
        for word in words:
            for rank in range(2):
                leader.handle(word, rank, NOW)
        if upto is c.GroupPhase.DRAINING:
            leader.handle(m.Leaving(30.0), 1, NOW)
        if upto is c.GroupPhase.STOPPING:
            leader.handle(m.Failed(epoch, CAUSE), 0, NOW)
        if upto is phase:
            break
    assert leader.phase is phase
    return leader, epoch


def looks(machine: Any) -> str:
    """Everything that a machine knows, but what it did last."""
    return repr(_deep(machine))


def _deep(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deep(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, deque)):
        return [_deep(one) for one in value]
    if not type(value).__module__.startswith("launcher.group") or isinstance(value, Enum):
        return value
    passing = ("_out", "answers", "_gap")
    return {name: _deep(one) for name, one in sorted(vars(value).items()) if name not in passing}


IN_EPOCH = [
    c.GroupPhase.PREPARING,
    c.GroupPhase.STARTING,
    c.GroupPhase.RUNNING,
    c.GroupPhase.DRAINING,
    c.GroupPhase.STOPPING,
]


@pytest.mark.parametrize("phase", IN_EPOCH)
@pytest.mark.parametrize("other", [Epoch(1, "before"), Epoch(2, "leader")])
def test_a_leader_counts_no_word_of_another_epoch(phase: c.GroupPhase, other: Epoch) -> None:
    leader, epoch = brought_to(phase)
    assert other != epoch
    before = looks(leader)
    words = (
        *(m.Prepared(other), m.Unable(other, CAUSE, True), m.Unable(other, CAUSE, False), m.StageDone(other, 0)),
        *(m.StageDone(other, 1), m.Failed(other, CAUSE), m.Stopped(other), m.Drained(other), m.Report(other)),
        m.Evidence(other, (PROCESS,)),
    )
    for word in words:
        for rank in range(2):
            assert leader.handle(word, rank, NOW) == [], word
            assert looks(leader) == before, word


def test_the_failure_of_an_epoch_that_served_long_is_the_first_though_all_were_lost_at_once() -> None:
    leader, epoch = brought_to(c.GroupPhase.RUNNING)
    leader.handle(Tick(), LOCAL, NOW + 2 * STEADY)
    (ended,) = leader.history.ended
    assert (leader.phase, ended.epoch) == (c.GroupPhase.WAITING, epoch)
    assert leader.history.first == ended.cause


def test_a_stage_is_done_once_and_in_its_turn() -> None:
    leader, epoch = brought_to(c.GroupPhase.STARTING)
    for rank in range(2):
        leader.handle(m.StageDone(epoch, 1), rank, NOW)
    assert leader.stage == 0
    leader.handle(m.StageDone(epoch, 0), 0, NOW)
    leader.handle(m.StageDone(epoch, 0), 0, NOW)
    assert leader.stage == 0, "rank 1 has not done it"
    leader.handle(m.StageDone(epoch, 0), 1, NOW)
    assert leader.stage == 1


def challenged() -> c.Coordinator:
    leader = seated()
    leader.handle(m.Ping(1, 1 << 40), 1, NOW)
    leader.handle(hello(1, "rival"), 7, NOW)
    assert leader.seats[1].rival is not None
    return leader


def test_the_answer_to_another_challenge_does_not_count() -> None:
    leader = challenged()
    assert leader.handle(m.Answer("of another one"), 1, NOW) == []
    rival = leader.seats[1].rival
    assert rival is not None
    actions = leader.handle(m.Answer(rival.nonce), 1, NOW)
    assert Hang(7) in actions and any(isinstance(a, Send) and isinstance(a.message, m.Rejected) for a in actions)
    assert leader.seats[1].rival is None


def test_a_rival_that_hangs_up_claims_nothing_any_more() -> None:
    leader = challenged()
    leader.handle(Closed("reset"), 7, NOW)
    leader.handle(Tick(), LOCAL, NOW + CHALLENGE_SECONDS + 0.1)
    assert leader.seats[1].hello.incarnation == "i1" and leader.seats[1].rival is None


def test_a_rival_is_not_known_to_be_clean() -> None:
    """Its connection has not answered: its hello may be an old one."""
    leader = challenged()
    assert "rival" not in leader._known_clean(NOW)
    assert "i1" in leader._known_clean(NOW) and "i0" not in leader._known_clean(NOW)


def member_in(state: mb.State) -> tuple[mb.Member, Epoch]:
    member, epoch = mb.Member(MemberConfig("g", 1, 2, "n", "i1"), 0.0), Epoch(3, "leader")
    steps: list[tuple[mb.State, list[Any]]] = [
        (mb.State.SEATED, [mb.Gone(), mb.Connected(), m.Accepted("leader", 1), m.Ack(1, 2)]),
        (mb.State.PREPARING, [m.Prepare(epoch, ("i0", "i1"), ("10.0.0.0", "10.0.0.1"))]),
        (mb.State.STARTING, [mb.Able(epoch)]),
        (mb.State.RUNNING, [m.Start(epoch, 0), m.Running(epoch)]),
        (mb.State.STOPPING, [m.Stop(epoch, CAUSE, 1.0)]),
    ]
    for reached, events in steps:
        for event in events:
            member.handle(event, NOW)
        assert member.state is reached
        if reached is state:
            break
    return member, epoch


@pytest.mark.parametrize("state", [mb.State.PREPARING, mb.State.STARTING, mb.State.RUNNING, mb.State.STOPPING])
@pytest.mark.parametrize("other", [Epoch(3, "before"), Epoch(2, "leader")])
def test_a_member_takes_nothing_of_another_epoch_for_its_own(state: mb.State, other: Epoch) -> None:
    member, _ = member_in(state)
    before = looks(member)
    events = (
        *(m.Start(other, 0), m.Start(other, 1), m.Running(other), m.Drain(other, CAUSE, 5.0), mb.Able(other)),
        *(mb.NotAble(other, CAUSE), mb.Done(other, 0), mb.Broke(other, CAUSE), mb.Idle(other)),
        mb.Activity(m.Report(other)),
        mb.Examined(other, (PROCESS,)),
    )
    for event in events:
        assert member.handle(event, NOW) == [], event
        assert looks(member) == before, event
    if state is not mb.State.STOPPING:  # there the word of its own epoch is still due
        assert member.handle(m.Stop(other, CAUSE, 1.0), NOW) == [Send(mb.LINK, m.Stopped(other))]
        assert member.state is state


def nobody(since: float) -> frozenset[str]:
    return frozenset()


def told(members: tuple[str, ...], quiet: float) -> m.Hello:
    return hello(1, "i1", last_epoch=Epoch(1, "before"), last_members=members, quiet=quiet)


@pytest.mark.parametrize("quiet", [(3.0, 1.0), (1.0, 3.0)])
def test_of_what_members_tell_of_a_leader_before_us_the_earliest_moment_counts(quiet: tuple[float, float]) -> None:
    """F is no later than when any of them last spoke to it."""
    fences = Fences(Terms(10.0))
    for age in quiet:
        fences.put_foreign(told(("a", "b"), age), nobody, 100.0)
    assert fences.until == pytest.approx(100.0 - 3.0 + 10.2)


def test_who_is_known_to_be_clean_stays_so_whoever_tells_of_the_epoch() -> None:
    fences = Fences(Terms(10.0))
    fences.put_foreign(told(("a", "b"), 0.0), lambda since: {"a"}, 100.0)
    fences.put_foreign(told(("a", "b"), 0.0), nobody, 100.0)
    assert fences.stand(100.0)
    fences.clear({"b"}, 100.0)
    assert not fences.stand(100.0) and not fences.foreign


@pytest.mark.parametrize("later", [100.5, 110.5], ids=["all are clean", "its time is over"])
def test_an_epoch_of_which_nothing_can_run_is_not_fenced_again(later: float) -> None:
    """Its members come one by one; the last ones spoke to the old leader later, and tell of it when all are known."""
    fences = Fences(Terms(10.0))
    fences.put_foreign(told(("a", "b"), 0.0), nobody, 100.0)
    assert fences.stand(100.0)
    if later < 110.0:
        fences.clear({"a", "b"}, 100.4)
    assert not fences.stand(later)
    fences.put_foreign(told(("a",), 0.1), nobody, later)
    assert not fences.stand(later) and not fences.foreign


def test_a_fence_falls_with_its_time_or_with_its_launcher() -> None:
    fences = Fences(Terms(10.0))
    fences.put("a", 1, 100.0)
    fences.put("b", 2, 101.0)
    assert fences.ranks == [1, 2]
    fences.clear({"b"}, 100.0)
    assert fences.stand(110.1) and fences.ranks == [1]
    assert not fences.stand(110.3) and not fences.lost


@pytest.mark.parametrize("back", [False, True])
def test_who_has_left_for_another_leader_unnoticed_is_not_known_to_be_clean(back: bool) -> None:
    """Its seat here is still warm. Of the other leader's epoch, which is over, it alone may run something."""
    leader = c.Coordinator(CoordinatorConfig("g", 3, "leader"), 0.0, random.Random(1))
    leader.stages = (StageLimit("one"),)
    for rank in range(2):
        leader.handle(m.Hello("g", rank, 3, f"i{rank}", f"10.0.0.{rank}"), rank, NOW)
        leader.handle(m.Ping(1, 1), rank, NOW)
    late = NOW + 4.0
    other: dict[str, Any] = {"last_epoch": Epoch(7, "other"), "last_members": ("i1",), "quiet": 0.5}
    leader.handle(m.Hello("g", 2, 3, "i2", "10.0.0.2", **other), 2, late)
    leader.handle(m.Ping(1, 1), 2, late)
    for conn, seq, echo in ((0, 2, 2), (0, 3, 3)):
        leader.handle(m.Ping(seq, echo), conn, late)
    assert leader.fences.stand(late)
    assert leader.fences.until == pytest.approx(late - 0.5 + 10.2)
    if back:  # it had been silent, no more
        for seq, echo in ((2, 2), (3, 3)):
            leader.handle(m.Ping(seq, echo), 1, late + 0.1)
        assert not leader.fences.stand(late + 0.1)
    else:  # another pod takes its rank
        leader.handle(Closed("reset"), 1, late)
        leader.handle(m.Hello("g", 1, 3, "new", "10.0.0.9"), 9, late)
        leader.handle(m.Ping(1, 1), 9, late)
        leader.handle(Tick(), LOCAL, late)
        assert leader.phase is c.GroupPhase.WAITING and leader.wait is c.Wait.FENCED
