"""Limits that engines set themselves: recognised, listed, and no reason to spend all restarts at once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from launcher.engines.limits import LIMITS, Limit, explained
from launcher.group.budget import SAME_LIMIT, SAME_POINT, Budget
from launcher.model import Cause, CauseKind

DOCS = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
ENDED = Cause(CauseKind.EXITED, 1, "vllm ended with exit code 1", "vllm", 1)


def cause(*tail: str) -> Cause:
    return Cause(ENDED.kind, ENDED.rank, ENDED.text, ENDED.process, ENDED.code, tail)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda one: f"{one.engine}, {one.what}")
def test_each_limit_is_recognised_and_in_the_docs(limit: Limit) -> None:
    told = explained(
        cause("before", f"\x1b[31m(EngineCore pid=7) ERROR\x1b[0m RuntimeError: {limit.prints} and more", "x")
    )
    assert told.text.startswith(f"{ENDED.text}; {limit.engine}'s own ")
    assert limit.what in told.text and limit.why in told.text
    row = next(line for line in DOCS.read_text().splitlines() if f"`{limit.prints}`" in line)
    assert row.startswith(f"| {limit.engine} | {limit.what} |")
    for name in limit.raise_it.split(", "):
        assert (name.split()[0] if name else "hard-coded") in row


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("DP Coordinator process failed to report ZMQ addresses within timeout=120 seconds during startup.", "120 s"),
        ("DP Coordinator process failed to report ZMQ addresses within 30 s", "30 s"),
        ("Did not receive response from front-end process within 7 minutes", "420 s"),
        ("Timed out waiting for engine core processes to start. This is ... Waited 900s (configured by ...", "900 s"),
        (
            "torch.distributed.DistStoreError: Timed out after 61 seconds waiting for clients. 1/2 clients joined.",
            "61 s",
        ),
        ("The client socket has timed out after 1500ms while trying to connect to (10.0.0.1, 29501).", "2 s"),
    ],
)
def test_the_number_is_the_one_that_ran_out(line: str, words: str) -> None:
    assert f"own {words} limit" in explained(cause(line)).text


@pytest.mark.parametrize("tail", [(), ("ValueError: no such model",), ("waiting for clients", "timed out")])
def test_other_ends_stay_as_they_are(tail: tuple[str, ...]) -> None:
    assert explained(cause(*tail)) == cause(*tail)


def test_a_lost_member_is_not_explained_by_what_its_engine_said_last() -> None:
    lost = Cause(CauseKind.LOST, 1, "its launcher is gone", tail=(LIMITS[0].prints,))
    assert explained(lost) == lost


def test_slowness_does_not_spend_all_restarts_at_once() -> None:
    slow = explained(cause(LIMITS[0].prints))
    assert slow.limit
    budget = Budget(10, 3600.0, random.Random(1), longest=60.0)
    now, pauses = 0.0, []
    for _ in range(SAME_LIMIT - 1):
        verdict = budget.judge(slow, "engine", None, True, now)
        assert not verdict.give_up
        pauses.append(verdict.delay)
        now += 150.0 + verdict.delay
    for pause, whole in zip(pauses, (15.0, 30.0, 60.0, 120.0, 240.0), strict=True):
        assert whole / 2 <= pause <= whole
    last = budget.judge(slow, "engine", None, True, now)
    assert last.give_up and f"{SAME_LIMIT} times in a row" in last.reason


def test_a_failure_of_another_kind_is_judged_as_ever() -> None:
    budget = Budget(10, 3600.0, random.Random(1), longest=60.0)
    for n in range(SAME_POINT):
        verdict = budget.judge(ENDED, "engine", None, True, float(n))
    assert verdict.give_up
    peers = explained(cause("RPC call to execute_model timed out"))
    assert not peers.limit, "a hang is no slowness: it starts again at once"
