"""A member's clock on the leader's: whatever the delays, the truth lies within the bounds."""

from __future__ import annotations

import random

import pytest

from launcher.group.clock import DRIFT, Offset


@pytest.mark.parametrize("seed", range(50))
def test_the_truth_lies_within(seed: int) -> None:
    """Clocks with any offset, wrong by up to 1 %; words take any time."""
    rng = random.Random(seed)
    ahead, rate, leaders = rng.uniform(-1e6, 1e6), rng.uniform(0.99, 1.01), rng.uniform(0.99, 1.01)

    def member(true: float) -> float:
        return ahead + true * rate

    def leader(true: float) -> float:
        return 77.0 + true * leaders

    slow = rng.choice((0.001, 0.1, 3.0))
    offset, now = Offset(), 0.0
    assert offset.interval(member(0.0), 0.0, leader(0.0)) is None
    for _ in range(40):
        said, now = now, now + rng.uniform(0, slow)
        heard, now = now, now + rng.uniform(0, 0.5)
        sent, now = now, now + rng.uniform(0, slow)
        offset.sent(member(sent), leader(now))
        offset.heard(member(heard), leader(said), leader(now))
        happened, late = now - rng.uniform(0, 1), rng.uniform(0, 0.5)
        noticed = happened + late
        arrived = max(now, noticed) + rng.uniform(0, slow)
        since, until = offset.interval(member(noticed), late * rate, leader(arrived)) or (0.0, 0.0)
        assert since <= leader(happened) <= leader(noticed) <= until + 1e-9
        now = arrived


def test_the_tightest_bounds_are_kept_and_grow_old() -> None:
    offset = Offset()
    offset.sent(10.0, 110.001)
    offset.heard(9.5, 109.499, 110.001)
    offset.sent(10.5, 110.9)  # this one was held up
    heard = 0.502  # seconds ago
    assert offset.interval(10.0, 0.0, 110.001) == pytest.approx((109.999 - heard * DRIFT, 110.001), abs=1e-9)
    since, until = offset.interval(20.0, 0.0, 120.001) or (0.0, 0.0)
    assert (since, until) == pytest.approx((119.999 - (heard + 10) * DRIFT, 120.001), abs=1e-6)


def test_one_clock_does_not_drift_from_itself() -> None:
    offset = Offset(0.0)
    offset.sent(10.0, 110.0)
    offset.heard(9.0, 109.0, 110.0)
    assert offset.interval(500.0, 0.25, 601.0) == (599.75, 600.0)


@pytest.mark.parametrize("leap", [-5.0, 5.0])
def test_a_clock_that_stood_still_is_told_right_from_the_next_beats_on(leap: float) -> None:
    """A machine is suspended for 5 s, shorter than the lease: the member's, or the leader's."""
    offset = Offset()
    for beat in range(10):
        offset.sent(beat, 100.0 + beat)
        offset.heard(beat, 99.99 + beat, 100.0 + beat)
    ahead = 100.0 + leap
    for beat in (10, 11):
        offset.sent(beat, ahead + beat + 0.01)
        offset.heard(beat, ahead + beat - 0.01, ahead + beat + 0.01)
    since, until = offset.interval(11.5, 0.0, ahead + 11.6) or (0.0, 0.0)
    assert since <= ahead + 11.5 <= until and until - since < 0.1
