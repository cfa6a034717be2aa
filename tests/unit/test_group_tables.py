"""Both tables are complete, and neither machine can be brought to raise by anything that may be said to it."""

from __future__ import annotations

import inspect
import random
from enum import Enum
from typing import Any

import pytest

from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group import messages as m
from launcher.group.config import CoordinatorConfig, MemberConfig, StageLimit
from launcher.group.dispatch import by_state
from launcher.group.events import Closed, Restart, Tick
from launcher.model import Cause, CauseKind, Epoch, ProcessEvidence

CAUSE = Cause(CauseKind.EXITED, 1, "it ended with 1", "engine", 1)
HANG = Cause(CauseKind.HANG, 1, "no tokens")
PROCESS = ProcessEvidence(7, "worker", "S", frames=("forward (model.py:1)",))


class Two(Enum):
    ONE = 1
    OTHER = 2


class TestTheTables:
    def test_the_coordinator_answers_everything_in_every_phase(self) -> None:
        events = {*m.MEMBER_SAYS.values(), Closed, Restart, Tick}
        for phase in c.GroupPhase:
            assert set(coordinator().answers[phase]) == events

    def test_the_member_answers_everything_in_every_state(self) -> None:
        own = {
            mb.Connected,
            mb.Unreadable,
            mb.Able,
            mb.NotAble,
            mb.Done,
            mb.Broke,
            mb.Gone,
            mb.Expired,
            mb.Idle,
            mb.Activity,
            mb.Examined,
        }
        events = {*m.LEADER_SAYS.values(), Closed, Tick, mb.Terminate, *own}
        for state in mb.State:
            assert set(a_member().answers[state]) == events

    @pytest.mark.parametrize("row", [(print,), (print, print, print)])
    def test_a_row_that_is_too_short_or_too_long_is_a_mistake(self, row: tuple[Any, ...]) -> None:
        with pytest.raises(ValueError, match="zip"):
            by_state(Two, {Tick: row, Closed: (print, print)})

    @pytest.mark.parametrize(
        ("leads", "first", "last"),
        [(c.LEADS, c.GroupPhase.WAITING, c.GroupPhase.ABORTED), (mb.LEADS, mb.State.CLEANING, mb.State.GONE)],
    )
    def test_every_state_is_reached_and_only_the_last_is_final(self, leads: Any, first: Any, last: Any) -> None:
        reached, front = {first}, [first]
        while front:
            front = [n for state in front for n in leads[state] if n not in reached]
            reached.update(front)
        assert reached == set(leads)
        assert [state for state in leads if not leads[state]] == [last]

    def test_no_answer_is_written_and_never_given(self) -> None:
        machines: tuple[c.Coordinator | mb.Member, ...] = (coordinator(), a_member())
        for machine in machines:
            answers = {method.__name__ for row in machine.answers.values() for method in row.values()}
            for name, method in inspect.getmembers(type(machine), inspect.isfunction):
                asks = inspect.signature(method)
                like = list(asks.parameters) in (["self", "conn", "message", "now"], ["self", "event", "now"])
                if like and asks.return_annotation == "None" and name.startswith("_"):
                    assert name in answers, f"{type(machine).__name__}.{name}"


# ------------------------------------------------------------------------------------------------------- anything


def coordinator(size: int = 3) -> c.Coordinator:
    leader = c.Coordinator(CoordinatorConfig("g", size, "leader"), 0.0, random.Random(1))
    leader.stages = (StageLimit("one", timeout=20.0), StageLimit("two"))
    return leader


def a_member() -> mb.Member:
    return mb.Member(MemberConfig("g", 1, 2, "pod", "i"), 0.0)


def hello(rng: random.Random, size: int = 3) -> m.Hello:
    rank = rng.randrange(size + 1)
    return m.Hello(
        rng.choice(("g", "g", "g", "other")),
        rank,
        size,
        f"i{rank}{rng.choice('aab')}",
        f"10.0.0.{rank}",
        fingerprint={"engine": rng.choice(("1", "1", "1", "2"))},
        protocol=rng.choice((1, 1, 1, 1, 2)),
        last_epoch=rng.choice((None, Epoch(rng.randrange(9), rng.choice(("leader", "before"))))),
        last_members=("i0a", "i1a", "i2a"),
        quiet=rng.choice((0.0, 5.0, 1e9)),
        replaces=rng.choice(((), (f"i{rank}b",))),
        charges=rng.choice(((), (1.0, 2.0, 9.0), (0.0,) * 1000)),
        first_failure=rng.choice((None, CAUSE)),
        died=rng.choice((None, Cause(CauseKind.AGENT, rank, "killed"))),
        attempt=rng.randrange(4),
    )


def said_by_a_member(rng: random.Random, epoch: Epoch | None) -> Any:
    of = rng.choice((epoch, epoch, epoch, Epoch(1, "before"), Epoch(99, "leader"))) or Epoch(1, "leader")
    return rng.choice(
        (
            hello(rng),
            hello(rng),
            m.Ping(rng.randrange(50), rng.randrange(50)),
            m.Ping(rng.randrange(50), rng.randrange(50)),
            m.Answer("x"),
            m.Prepared(of),
            m.Prepared(of),
            m.Unable(of, CAUSE, rng.random() < 0.9),
            m.StageDone(of, rng.randrange(3)),
            m.StageDone(of, rng.randrange(3)),
            m.Failed(of, rng.choice((CAUSE, HANG))),
            m.Stopped(of, 0.1),
            m.Stopped(of, 0.1),
            m.Drained(of),
            m.Leaving(rng.choice((0.0, 0.1, 30.0))) if rng.random() < 0.2 else Tick(),
            m.Report(of, tail=("last words",)),
            m.Evidence(of, (PROCESS,)),
            Closed("reset"),
            Restart() if rng.random() < 0.2 else Tick(),
            Tick(),
        )
    )


@pytest.mark.parametrize("seed", range(30))
def test_nothing_that_members_can_say_makes_the_coordinator_raise(seed: int) -> None:
    """Not even when it is said by the wrong one, of another epoch, twice, or on a connection that is nobody's."""
    rng = random.Random(seed)
    leader, now = coordinator(), 0.0
    for rank in range(3):
        leader.handle(m.Hello("g", rank, 3, f"i{rank}a", f"10.0.0.{rank}"), rank, now)
    for _ in range(400):
        now += rng.choice((0.0, 0.001, 0.25, 3.0, 20.0))
        if rng.random() < 0.5:  # the good members go on as they should
            for rank in range(3):
                leader.handle(m.Ping(int(now * 1000), 10**9), rank, now)
        conn = rng.randrange(5)
        leader.handle(said_by_a_member(rng, leader.epoch), conn, now)
        assert {seat.conn: rank for rank, seat in leader.seats.items()} == leader.roster.by_conn


def test_the_coordinator_is_brought_through_all_its_phases() -> None:
    """The random walk above is no empty exercise."""
    seen = set()
    for seed in range(40):
        rng = random.Random(seed)
        leader, now = coordinator(1), 0.0
        leader.handle(m.Hello("g", 0, 1, "i0a", "10.0.0.0"), 0, now)
        for _ in range(200):
            now += rng.choice((0.001, 0.25))
            leader.handle(m.Ping(int(now * 1000), 10**9), 0, now)
            message = said_by_a_member(rng, leader.epoch)
            if rng.random() < 0.6 and leader.epoch is not None:  # the word that leads on
                done = m.StageDone(leader.epoch, leader.stage)
                message = m.Prepared(leader.epoch) if leader.phase is c.GroupPhase.PREPARING else done
            if not isinstance(message, (m.Hello, Closed)):
                leader.handle(message, 0, now)
            elif leader.missing:
                leader.handle(m.Hello("g", 0, 1, "i0a", "10.0.0.0"), 0, now)
            seen.add(leader.phase)
    assert seen == set(c.GroupPhase)


def said_to_a_member(rng: random.Random, epoch: Epoch | None) -> Any:
    of = rng.choice((epoch, epoch, epoch, Epoch(1, "before"), Epoch(7, "leader"))) or Epoch(1, "leader")
    return rng.choice(
        (
            mb.Connected(),
            mb.Connected(),
            Closed(""),
            m.Accepted("leader", 1),
            m.Accepted("leader", 1),
            m.Rejected(rng.choice(("duplicate", "superseded")), "no", 1.0),
            m.Ack(rng.randrange(99), rng.randrange(99)),
            m.Ack(rng.randrange(99), rng.randrange(99)),
            m.Challenge("x", "rival"),
            m.Prepare(Epoch(rng.randrange(9), "leader"), ("a", "i"), ("1", "2")),
            m.Start(of, rng.randrange(3)),
            m.Running(of),
            m.Drain(of, CAUSE, 3.0),
            m.Stop(of, CAUSE, 1.0),
            m.Goodbye() if rng.random() < 0.2 else Tick(),
            m.Abort(CAUSE, 75, "") if rng.random() < 0.1 else Tick(),
            m.News("running", first_failure=rng.choice((None, CAUSE))),
            mb.Able(of),
            mb.Able(of),
            mb.NotAble(of, CAUSE),
            mb.Done(of, rng.randrange(3)),
            mb.Broke(of, CAUSE),
            mb.Gone(rng.random() < 0.8, "something"),
            mb.Gone(),
            mb.Expired() if rng.random() < 0.3 else Tick(),
            mb.Idle(of),
            mb.Activity(m.Report(of)),
            mb.Examined(of, (PROCESS,)),
            m.Stop(of, HANG, 1.0, 2.0),
            mb.Terminate(rng.choice((0.0, 30.0))) if rng.random() < 0.2 else Tick(),
            Tick(),
        )
    )


def leads_on(member: mb.Member) -> list[Any]:
    """What a member in its state waits for."""
    epoch = member.epoch or Epoch(1, "leader")
    waits_for: dict[mb.State, list[Any]] = {
        mb.State.CLEANING: [mb.Gone()],
        mb.State.SEEKING: [mb.Connected(), m.Accepted("leader", 1)],
        mb.State.SEATED: [m.Ack(99, 9), m.Prepare(Epoch(epoch.n + 1, "leader"), ("a", "i"), ("1", "2"))],
        mb.State.PREPARING: [m.Ack(99, 9), mb.Able(epoch)],
        mb.State.STARTING: [m.Start(epoch, member.stage + 1), m.Running(epoch), mb.Terminate(30.0)],
        mb.State.RUNNING: [m.Ack(99, 9), m.Stop(epoch, CAUSE, 1.0), mb.Terminate(30.0)],
        mb.State.STOPPING: [mb.Gone()],
    }
    return waits_for.get(member.state, [Tick()])


def test_nothing_that_can_be_said_to_a_member_makes_it_raise() -> None:
    """And in every state: with a deadline set whenever something may run, and none when nothing can."""
    seen = set()
    for seed in range(300):
        rng = random.Random(seed)
        member, now = a_member(), 0.0
        deadline: float | None = None
        for _ in range(60):
            now += rng.choice((0.0, 0.01, 0.25, 2.0))
            event = said_to_a_member(rng, member.epoch)
            if rng.random() < 0.5:
                event = rng.choice(leads_on(member))
            for action in member.handle(event, now):
                if isinstance(action, mb.SetDeadline):
                    deadline = action.at
                if isinstance(action, mb.DoStage):
                    assert deadline is not None
                    assert now < deadline
            seen.add(member.state)
            if member.state in (mb.State.STARTING, mb.State.RUNNING):
                assert deadline is not None
            if member.state in (mb.State.SEEKING, mb.State.SEATED, mb.State.LEAVING):
                assert deadline is None
    assert seen == set(mb.State)
