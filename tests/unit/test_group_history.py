"""What came first is kept, and the better of two explanations is told."""

from __future__ import annotations

from itertools import product

import pytest

from launcher.group.budget import STEADY
from launcher.group.history import History, explains_better
from launcher.words import Cause, CauseKind, Epoch


def cause(kind: CauseKind, rank: int = 1, text: str = "x") -> Cause:
    return Cause(kind, rank, text)


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        (CauseKind.OOM, CauseKind.SIGNALLED, True),  # the kernel's word says why there was a signal
        (CauseKind.SIGNALLED, CauseKind.EXITED, True),  # neighbours end with codes
        (CauseKind.AGENT, CauseKind.LOST, True),  # how it was lost
        (CauseKind.LOST, CauseKind.EXITED, True),
        (CauseKind.STOPPED, CauseKind.EXITED, True),
        (CauseKind.EXITED, CauseKind.HEALTH, True),
        (CauseKind.EXITED, CauseKind.EXITED, False),  # the first to arrive stays
        (CauseKind.HEALTH, CauseKind.SIGNALLED, False),
        (CauseKind.LEADER, CauseKind.LOST, False),
    ],
)
def test_which_explains_better(new: CauseKind, old: CauseKind, better: bool) -> None:
    assert explains_better(cause(new), cause(old)) is better


def test_nothing_explains_what_explains_it() -> None:
    for a, b in product(CauseKind, CauseKind):
        assert not (explains_better(cause(a, 1), cause(b, 2)) and explains_better(cause(b, 2), cause(a, 1)))


class TestFirst:
    def test_it_stays(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.EXITED), 1.0, None)
        history.record(Epoch(2, "l"), cause(CauseKind.OOM, 3), 2.0, 20.0)
        assert history.first == cause(CauseKind.EXITED)
        assert history.first_epoch == Epoch(1, "l")

    def test_a_drain_is_no_failure(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.DRAIN), 1.0, 20.0)
        assert history.first is None
        assert len(history.ended) == 1

    def test_steady_service_begins_a_new_run(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.EXITED), 1.0, None)
        history.record(Epoch(2, "l"), cause(CauseKind.OOM), 2.0, STEADY)
        assert history.first == cause(CauseKind.OOM)

    def test_twenty_endings_are_kept(self) -> None:
        history = History()
        for n in range(30):
            history.record(Epoch(n, "l"), cause(CauseKind.EXITED), float(n), None)
        assert [e.epoch.n for e in history.ended] == list(range(10, 30))


class TestInheritance:
    def test_a_member_remembers(self) -> None:
        history = History()
        history.inherit(None)
        history.inherit(cause(CauseKind.EXITED, 3))
        history.inherit(cause(CauseKind.OOM, 4))
        assert history.first == cause(CauseKind.EXITED, 3)

    def test_an_older_failure_wins_over_the_end_of_the_leader(self) -> None:
        for order in ((CauseKind.LEADER, CauseKind.EXITED), (CauseKind.EXITED, CauseKind.LEADER)):
            history = History()
            for kind in order:
                history.inherit(cause(kind))
            assert history.first == cause(CauseKind.EXITED)

    def test_how_the_leader_was_killed_says_more_than_that_it_is_gone(self) -> None:
        died = cause(CauseKind.AGENT, 0)
        for death_first in (True, False):
            history = History()
            if death_first:
                history.inherit_death(died)
            history.inherit(cause(CauseKind.LEADER, 0))
            if not death_first:
                history.inherit_death(died)
            assert history.first == died
            history.inherit(cause(CauseKind.EXITED, 2))
            assert history.first == cause(CauseKind.EXITED, 2), "and an older failure more than either"


class TestRefine:
    def test_who_was_lost_says_how(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), Cause(CauseKind.LOST, 2, "closed", tail=("last words",)), 1.0, 5.0)
        assert history.refine(2, cause(CauseKind.AGENT, 2))
        assert history.first == Cause(CauseKind.AGENT, 2, "x", tail=("last words",))
        assert history.ended[-1].cause == history.first

    def test_of_another_launcher_of_the_rank_it_explains_nothing(self) -> None:
        """A pod that took the rank since, or a launcher that never was in the epoch, was killed for its own reasons."""
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.LOST, 2), 1.0, 5.0, "first")
        assert not history.refine(2, cause(CauseKind.AGENT, 2), ("second",))
        assert history.refine(2, cause(CauseKind.AGENT, 2), ("zeroth", "first"))

    def test_who_came_back_had_not_died(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.LOST, 2), 1.0, 5.0, "first")
        history.came_back("another")
        history.came_back("first")
        assert not history.refine(2, cause(CauseKind.AGENT, 2), ("first",))

    def test_only_of_its_own_rank_and_only_of_a_loss(self) -> None:
        history = History()
        assert not history.refine(2, cause(CauseKind.AGENT, 2))
        history.record(Epoch(1, "l"), cause(CauseKind.LOST, 2), 1.0, 5.0)
        assert not history.refine(1, cause(CauseKind.AGENT, 1))
        history.record(Epoch(2, "l"), cause(CauseKind.EXITED, 2), 2.0, 5.0)
        assert not history.refine(2, cause(CauseKind.AGENT, 2))
        assert history.first == cause(CauseKind.LOST, 2)

    def test_a_later_loss_does_not_touch_the_first(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.EXITED, 3), 1.0, None)
        history.record(Epoch(2, "l"), cause(CauseKind.LOST, 2), 2.0, None)
        assert not history.refine(2, cause(CauseKind.AGENT, 2))
        assert history.first == cause(CauseKind.EXITED, 3)
        assert history.ended[-1].cause == cause(CauseKind.AGENT, 2)
