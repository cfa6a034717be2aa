"""Each rule of the protocol is needed, and the simulation sees its loss."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import ALL, Mutation
from tests.simulation.plots import PLOTS
from tests.simulation.schedule import run

#: Schedules within which a broken rule must show: drawn ones, or of its plot.
MOST, MOST_OF_PLOT = 400, 30


def caught(mutation: Mutation) -> str:
    plot = PLOTS[mutation.plot] if mutation.plot else None
    for seed in range(MOST_OF_PLOT if plot else MOST):
        broken = run(seed, mutation.rules, plot).broken
        if broken:
            return f"seed {seed}: {broken}"
    return ""


@pytest.mark.parametrize("name", [name for name, mutation in ALL.items() if not mutation.covered])
def test_a_broken_rule_is_caught(name: str) -> None:
    assert caught(ALL[name]), f"nobody missed the rule that {ALL[name].rule}"


@pytest.mark.parametrize("name", PLOTS)
def test_the_rules_hold_in_every_plot(name: str) -> None:
    for seed in range(5):
        assert not run(seed, plot=PLOTS[name]).broken, f"plot {name}, seed {seed}"
