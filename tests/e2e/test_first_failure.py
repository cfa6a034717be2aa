"""The rank that crashed is named, with its own last words, and its neighbours as what they are (`first_failure.py`)."""

from __future__ import annotations

import random
import re
import signal
from pathlib import Path

import pytest

from tests.e2e.first_failure import Crash, clocks_apart, crash, draw
from tests.e2e.group import running
from tests.load import busy


@pytest.mark.parametrize(
    "what",
    [Crash(2, "main", 3, 0, 0.2), Crash(0, "main", 0, int(signal.SIGSEGV), 0.2), Crash(1, "main", 1, 0, 0.0)],
    ids=str,
)
def test_the_rank_that_crashed_is_named(tmp_path: Path, what: Crash) -> None:
    told = crash(tmp_path, 3, what, clocks_apart(3, random.Random(1)))
    assert told.verdict in ("right", "probably"), told


def test_the_others_are_told_as_ended_because_of_it(tmp_path: Path) -> None:
    with running(
        tmp_path, 3, "--max-restarts", "0", "--", "--crash-ranks", "1", "--crash-code", "7", "--crash-after", "0"
    ) as group:
        assert group.codes() == [7, 7, 7]
        for rank in range(3):
            block = group.output(rank).partition("launcher: first failure: ")[2]
            assert re.match(r"(probably )?rank 1: reference ended with exit code 7", block), block
            assert "launcher:   | RuntimeError: injected crash of rank 1" in block
            # whom the group's stop reaches before it has noticed the loss is not listed
            listed = re.findall(r"launcher:   \| rank [02]: .* exit code 1, saying: .*lost the .*rank", block)
            told = re.search(r"launcher:   (\d) more ranks? ended because of it:", block)
            assert len(listed) == (int(told[1]) if told else 0), block


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("size", [4, 8])
def test_beside_a_load_no_wrong_rank_is_named(tmp_path: Path, size: int) -> None:
    rng = random.Random()
    with busy(12, apart=True):
        told = [crash(tmp_path / str(n), size, draw(rng, size), clocks_apart(size, rng)) for n in range(10)]
    assert not [one for one in told if one.verdict == "wrong"], told
    assert len([one for one in told if one.verdict == "probably"]) <= 2, told
