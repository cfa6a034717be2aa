"""`launcher restart` on the leader's table: in every phase, what it ends, what it costs, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.group import coordinator as c
from launcher.group import messages as m
from launcher.group.events import Note, Restart, SendAll, Tick
from launcher.group.roster import LOCAL
from launcher.model import CauseKind, Epoch
from tests.unit.test_group_rules import CAUSE, NOW, brought_to, seated

UNDER_WAY = [c.GroupPhase.PREPARING, c.GroupPhase.STARTING, c.GroupPhase.RUNNING]
ENDING = [c.GroupPhase.DRAINING, c.GroupPhase.STOPPING]


def stops(actions: list[Any]) -> list[m.Stop]:
    return [a.message for a in actions if isinstance(a, SendAll) and isinstance(a.message, m.Stop)]


def stopped(leader: c.Coordinator, epoch: Epoch, at: float) -> list[Any]:
    return [action for rank in range(2) for action in leader.handle(m.Stopped(epoch), rank, at)]


@pytest.mark.parametrize("phase", UNDER_WAY)
def test_all_ranks_stop_and_a_new_epoch_begins_at_once(phase: c.GroupPhase) -> None:
    leader, epoch = brought_to(phase)
    assert leader.restart_refusal() == ""
    (stop,) = stops(leader.handle(Restart("127.0.0.1"), LOCAL, NOW))
    assert leader.phase is c.GroupPhase.STOPPING
    assert stop.cause.kind is CauseKind.DRAIN, "a member of any release reads it, and sees no failure in it"
    assert "by hand" in stop.cause.text
    stopped(leader, epoch, NOW)
    assert (leader.phase, leader.epoch) == (c.GroupPhase.PREPARING, Epoch(epoch.n + 1, epoch.leader))


@pytest.mark.parametrize("phase", UNDER_WAY)
def test_it_costs_nothing_and_is_no_failure(phase: c.GroupPhase) -> None:
    leader, epoch = brought_to(phase)
    leader.handle(Restart(), LOCAL, NOW)
    stopped(leader, epoch, NOW)
    (ended,) = leader.history.ended
    assert (ended.epoch, ended.cause.kind) == (epoch, CauseKind.RESTART)
    assert (leader.history.first, leader.budget.total, leader.budget.charged(NOW)) == (None, 0, 0)
    assert not any(leader.measures.failures.values())


def backing_off() -> tuple[c.Coordinator, Epoch]:
    leader, epoch = brought_to(c.GroupPhase.RUNNING)
    leader.handle(m.Failed(epoch, CAUSE), 0, NOW)
    stopped(leader, epoch, NOW)
    assert leader.wait is c.Wait.BACKOFF
    return leader, epoch


def test_an_earlier_first_failure_stays() -> None:
    leader, epoch = backing_off()
    first = leader.history.first
    assert first is not None
    leader.handle(Restart(), LOCAL, NOW)
    assert leader.phase is c.GroupPhase.PREPARING
    leader.handle(Restart(), LOCAL, NOW)
    second = leader.epoch
    assert second is not None and second != epoch
    stopped(leader, second, NOW)
    assert leader.history.first == first


def test_a_back_off_ends() -> None:
    leader, _ = backing_off()
    assert leader.restart_refusal() == ""
    actions = leader.handle(Restart("10.0.0.9"), LOCAL, NOW)
    assert leader.phase is c.GroupPhase.PREPARING
    assert any(isinstance(a, Note) and a.fields.get("who") == "10.0.0.9" for a in actions)


@pytest.mark.parametrize("phase", ENDING)
def test_an_epoch_that_ends_already_is_left_alone(phase: c.GroupPhase) -> None:
    leader, _ = brought_to(phase)
    before = leader.cause
    assert stops(leader.handle(Restart(), LOCAL, NOW)) == []
    assert (leader.phase, leader.cause) == (phase, before)
    assert "is ending already" in leader.restart_refusal()


def test_a_group_that_gathers_is_told_what_it_waits_for() -> None:
    leader = seated()
    leader.handle(m.Leaving(30.0), 1, NOW)
    leader.handle(Restart(), LOCAL, NOW)
    assert leader.phase is c.GroupPhase.WAITING
    assert leader.restart_refusal().startswith("no epoch runs: waiting for")


def test_a_group_that_has_given_up_does_not_begin_again() -> None:
    leader, epoch = brought_to(c.GroupPhase.STARTING)
    leader.handle(m.Unable(epoch, CAUSE, False), 1, NOW)
    stopped(leader, epoch, NOW)
    assert leader.phase is c.GroupPhase.ABORTED
    leader.handle(Restart(), LOCAL, NOW)
    leader.handle(Tick(), LOCAL, NOW)
    assert leader.phase is c.GroupPhase.ABORTED
    assert "given up" in leader.restart_refusal()


def test_a_rank_that_fails_as_all_stop_is_no_failure_either() -> None:
    leader, epoch = brought_to(c.GroupPhase.RUNNING)
    leader.handle(Restart(), LOCAL, NOW)
    leader.handle(m.Failed(epoch, CAUSE), 1, NOW)
    stopped(leader, epoch, NOW)
    assert leader.history.first is None and leader.history.ended[-1].cause.kind is CauseKind.RESTART
