"""How often a group may start again."""

from __future__ import annotations

import random

import pytest

from launcher.group.budget import SAME_POINT, STEADY, Budget
from launcher.model import Cause, CauseKind

CRASH = Cause(CauseKind.EXITED, 1, "it ended with 1", "engine", 1)
LOST = Cause(CauseKind.LOST, 2, "its launcher is gone")
DRAIN = Cause(CauseKind.DRAIN, 0, "it received SIGTERM")


def budget(most: int = 10, window: float = 3600.0) -> Budget:
    return Budget(most, window, random.Random(1))


def test_the_budget_is_spent_with_the_restart_after_the_last() -> None:
    b = budget(2)
    assert not b.judge(LOST, "serve", 5.0, True, 1.0).give_up
    assert not b.judge(LOST, "serve", 5.0, True, 2.0).give_up
    last = b.judge(LOST, "serve", 5.0, True, 3.0)
    assert last.give_up
    assert "2 restarts within 3600 s are spent (--max-restarts)" in last.reason


def test_none_allowed() -> None:
    assert "--max-restarts 0" in budget(0).judge(CRASH, "serve", None, True, 1.0).reason


def test_charges_leave_the_window() -> None:
    b = budget(2, window=100.0)
    for now in (0.0, 50.0, 101.0, 151.0, 202.0):
        assert not b.judge(LOST, "serve", 5.0, True, now).give_up
    assert b.charged(1000.0) == 0
    assert b.total == 5


def test_backoff_doubles_to_its_limit_and_starts_anew_after_steady_service() -> None:
    b = Budget(100, 1e9, random.Random(1), first=0.5, longest=4.0)
    delays = [b.judge(LOST, "serve", 5.0, True, float(n)).delay for n in range(6)]
    for delay, whole in zip(delays, (0.5, 1.0, 2.0, 4.0, 4.0, 4.0), strict=True):
        assert whole / 2 <= delay <= whole
    assert b.judge(LOST, "serve", STEADY, True, 10.0).delay <= 0.5


def test_a_drain_costs_nothing_and_lengthens_nothing() -> None:
    b = budget()
    for n in range(20):
        assert b.judge(DRAIN, "serve", 5.0, False, float(n)).delay == 0.0
    assert b.charged(20.0) == b.total == 0
    assert b.judge(CRASH, "serve", None, True, 21.0).delay <= 0.5


def test_what_is_not_charged_waits_all_the_same() -> None:
    b = budget(0)
    verdict = b.judge(Cause(CauseKind.UNABLE, 1, "the port is taken"), "serve", None, False, 1.0)
    assert not verdict.give_up
    assert verdict.delay > 0
    assert b.charged(1.0) == 0


def test_the_same_point_thrice_before_it_was_ever_ready() -> None:
    b = budget(100)
    verdicts = [b.judge(CRASH, "serve", None, True, float(n)).give_up for n in range(SAME_POINT)]
    assert verdicts == [False, False, True]


@pytest.mark.parametrize(
    ("cause", "stage", "served"),
    [
        (Cause(CauseKind.EXITED, 1, "x", "engine", 2), "serve", None),  # another code
        (CRASH, "ray", None),  # another stage
        (CRASH, "serve", 3.0),  # it was ready
        (LOST, "serve", None),  # not the engine's doing
    ],
)
def test_another_point_between_breaks_the_row(cause: Cause, stage: str, served: float | None) -> None:
    b = budget(100)
    for now, (c, s, t) in enumerate([(CRASH, "serve", None), (CRASH, "serve", None), (cause, stage, served)]):
        assert not b.judge(c, s, t, True, float(now)).give_up
    assert not b.judge(CRASH, "serve", None, True, 9.0).give_up


def test_what_is_inherited_is_as_old_as_it_is() -> None:
    """Members that remember the same charges, each as far as it has heard, and what was charged here."""
    b = budget(10, window=100.0)
    b.judge(LOST, "serve", 5.0, True, 1000.0)
    b.inherit((20.0, 70.0, 99.0), 1010.0)
    b.inherit((20.5, 101.0), 1010.0)
    assert b.ages(1010.0) == (10.0, 70.0, 99.0), "the newest of each place; what is out of the window is not taken"
    assert (b.charged(1012.0), b.charged(1041.0), b.charged(1101.0)) == (2, 1, 0)
    assert b.total == 3


def test_inheritance_fills_up_and_never_spends_the_last() -> None:
    b = budget(3)
    b.inherit((0.0, 0.0), 0.0)
    b.inherit((0.0,), 0.0)
    assert b.charged(0.0) == 2
    b.inherit((0.0,) * 1000, 0.0)
    assert b.charged(0.0) == 3, "a member that says a thousand is not believed beyond the limit"
    assert b.judge(LOST, "serve", 1.0, True, 1.0).give_up


def test_a_group_that_gave_up_has_one_attempt() -> None:
    """Members remember it beyond their containers: the restarts that are left do not matter."""
    b = budget(10)
    b.inherit((20.0, 10.0), 100.0, gave_up=8.0)
    b.inherit((20.0,), 100.0)
    verdict = b.judge(CRASH, "serve", None, True, 110.0)
    assert verdict.give_up
    assert "the one attempt that it had since then failed as well" in verdict.reason


def test_the_attempt_is_not_spent_by_what_is_not_the_engines_doing() -> None:
    b = budget(10)
    b.inherit((), 100.0, gave_up=8.0)
    assert not b.judge(DRAIN, "serve", None, False, 101.0).give_up
    assert not b.judge(CRASH, "serve", None, False, 102.0).give_up, "nothing had been started"
    assert not b.judge(LOST, "serve", None, True, 103.0).give_up
    assert b.judge(CRASH, "serve", None, True, 104.0).give_up


def test_a_group_that_was_ready_since_begins_anew() -> None:
    b = budget(10)
    b.inherit((), 100.0, gave_up=8.0)
    assert not b.judge(CRASH, "serve", 3.0, True, 101.0).give_up
    assert [b.judge(CRASH, "serve", None, True, 102.0 + n).give_up for n in range(SAME_POINT)] == [False, False, True]


def test_after_the_window_nothing_is_left_of_it() -> None:
    b = budget(10, window=100.0)
    b.inherit((), 1000.0, gave_up=101.0)
    assert not b.judge(CRASH, "serve", None, True, 1001.0).give_up
    b = budget(10, window=100.0)
    b.inherit((), 1000.0, gave_up=50.0)
    assert not b.judge(CRASH, "serve", None, True, 1051.0).give_up
