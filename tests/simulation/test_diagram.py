"""docs/protocol.md shows the tables as they are."""

from __future__ import annotations

import pytest

from tests.simulation.diagram import MACHINES, PAGE, drawn
from tests.simulation.mutations import ALL
from tests.simulation.plots import PLOTS


def test_the_page_is_in_step_with_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert drawn(page) == page, "run python -m tests.simulation.diagram"


@pytest.mark.parametrize("name", MACHINES)
def test_every_edge_has_words_and_no_words_are_left_over(name: str) -> None:
    words, leads, _, _ = MACHINES[name]
    assert set(words) == {(state, after) for state, nexts in leads.items() for after in nexts}


def test_every_plot_is_for_something_and_exists() -> None:
    assert {mutation.plot for mutation in ALL.values() if mutation.plot} <= set(PLOTS)
