"""Hostile input, a little of it: the soak (`python -m tests.fuzz`) makes more of the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, attack

EXAMPLES = 8


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_raises_what_nobody_foresaw(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def attacked(rng: random.Random) -> None:
        attack(name, rng)

    attacked()


@pytest.mark.parametrize("name", TARGETS)
def test_nor_do_these_seeds(name: str) -> None:
    for seed in range(EXAMPLES):
        attack(name, random.Random(f"{name} {seed}"))
