"""A launcher that did not run: it says so of itself, and calls nobody else silent."""

from __future__ import annotations

import pytest

from launcher.group.lease import Terms
from launcher.group.own_gap import OwnGap

TERMS = Terms(10.0)


def ticked(until: float, start: float = 0.0) -> OwnGap:
    gap = OwnGap(TERMS, start)
    now = start
    while now < until:
        now += TERMS.beat / 2
        gap.event(now)
    return gap


def test_no_gap_explains_nothing() -> None:
    gap = ticked(20.0)
    assert not gap.seconds and not gap.explains(9.0, 20.0) and not gap.recent(20.0)


@pytest.mark.parametrize("length", [3.0, 7.0, 12.0, 3600.0])
def test_a_silence_that_is_our_own_gap(length: float) -> None:
    gap = ticked(20.0)
    now = 20.0 + length
    gap.event(now)
    assert gap.seconds == pytest.approx(length)
    assert gap.explains(length + TERMS.beat, now)
    assert not gap.explains(length + 6.0, now), "it was silent long before"
    assert gap.recent(now) == (length >= TERMS.lost_after)
    assert f"did not run for {length:.1f} s" in gap.words


def test_a_gap_that_is_over_explains_nothing() -> None:
    gap = ticked(20.0)
    gap.event(32.0)
    for step in range(1, 40):
        gap.event(32.0 + step * TERMS.beat / 2)
    assert not gap.explains(12.0, 41.75) and not gap.recent(41.75)
