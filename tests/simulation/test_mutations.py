"""Each rule of the protocol is needed, and the simulation sees its loss."""

from __future__ import annotations

import pytest

from tests.simulation.cluster import Rules
from tests.simulation.mutations import ALL, together
from tests.simulation.plots import PLOTS, Plot
from tests.simulation.schedule import run

#: Schedules within which a broken rule must show: drawn ones, or of its plot; and in which a covered one must not.
MOST, MOST_OF_PLOT, QUIET = 400, 30, 10


def caught(rules: Rules, plot: Plot | None, most: int) -> str:
    for seed in range(most):
        broken = run(seed, rules, plot).broken
        if broken:
            return f"seed {seed}: {broken}"
    return ""


@pytest.mark.parametrize("name", [name for name, mutation in ALL.items() if not mutation.covered])
def test_a_broken_rule_is_caught(name: str) -> None:
    mutation = ALL[name]
    plot = PLOTS[mutation.plot] if mutation.plot else None
    found = caught(mutation.rules, plot, MOST_OF_PLOT if plot else MOST)
    assert found, f"nobody missed the rule that {mutation.rule}"


@pytest.mark.parametrize("name", [name for name, mutation in ALL.items() if mutation.covered])
def test_a_covered_rule_is_caught_without_its_cover(name: str) -> None:
    """Where both matter each may be broken alone, and not both: so the cover is what it is said to be."""
    mutation = ALL[name]
    cover, plot = ALL[mutation.cover], PLOTS[mutation.plot]
    assert not caught(mutation.rules, plot, QUIET), f"it is not covered that {mutation.rule}"
    assert not caught(cover.rules, plot, QUIET), f"this plot needs no pair to miss the rule that {cover.rule}"
    assert caught(together(mutation, cover), plot, MOST_OF_PLOT), f"nobody missed that {mutation.rule}"


def test_rules_broken_together_are_both_broken() -> None:
    both = together(ALL["AbleWithoutLease"], ALL["StartsWithoutLease"], ALL["AnyEpoch"])
    assert issubclass(both.member, (ALL["AbleWithoutLease"].rules.member,))
    assert issubclass(both.member, (ALL["StartsWithoutLease"].rules.member,))
    assert issubclass(both.coordinator, (ALL["AnyEpoch"].rules.coordinator,))
    assert both.guard is Rules().guard


@pytest.mark.parametrize("name", PLOTS)
def test_the_rules_hold_in_every_plot(name: str) -> None:
    for seed in range(5):
        assert not run(seed, plot=PLOTS[name]).broken, f"plot {name}, seed {seed}"
