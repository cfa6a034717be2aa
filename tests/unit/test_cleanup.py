"""What is asked after an epoch, and what no answer means."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from launcher.agent.cleanup import UNKNOWN_TRIES, Before, after_epoch
from launcher.node import leftovers

BEFORE = Before(leftovers.snapshot(), {"GPU-1": 500}, None)
NO_ANSWER = (127, "the lease has run out")


def kept(*answers: tuple[int, str]) -> tuple[str, int]:
    """Words about GPU memory after these answers, the last one again and again; and how often it was asked."""
    asked = 0

    async def ask(argv: Sequence[str], timeout: float) -> tuple[int, str]:
        nonlocal asked
        asked += 1
        return answers[min(asked, len(answers)) - 1]

    return asyncio.run(after_epoch(BEFORE, ask))[1], asked


def test_gpu_memory_that_is_back_is_asked_once() -> None:
    assert kept((0, "GPU-1, 510\n")) == ("", 1)


def test_no_answer_does_not_say_that_it_is_back() -> None:
    assert kept(NO_ANSWER, (0, "GPU-1, 70000\n"), (0, "GPU-1, 500\n")) == ("", 3)


def test_a_question_that_is_never_answered_holds_nobody_up() -> None:
    assert kept(NO_ANSWER) == ("", UNKNOWN_TRIES)


def test_what_was_known_last_is_told() -> None:
    words, _ = kept((0, "GPU-1, 70000\n"), NO_ANSWER)
    assert words == "GPU GPU-1 holds 69500 MiB more than before the engine"
