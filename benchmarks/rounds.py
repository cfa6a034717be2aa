"""Turns: who measures when, so that no contestant always has the quiet minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_until = float("inf")


def stop_after(seconds: float) -> None:
    """From now on no round begins that would not end within ``seconds``, judged by the longest before it."""
    global _until
    _until = time.monotonic() + seconds


def alternate(contestants: Sequence[T], rounds: int, what: str = "") -> Iterator[T]:
    """Every contestant once a round, the order moved by one each round. Says on stderr how far it is."""
    longest = 0.0
    for number in range(rounds):
        began = time.monotonic()
        if number and began + longest > _until:
            progress(f"{what}: stopped after {number} of {rounds} rounds, the time is over")
            return
        first = number % len(contestants)
        yield from (*contestants[first:], *contestants[:first])
        longest = max(longest, time.monotonic() - began)
        progress(f"{what} round {number + 1}/{rounds}: {time.monotonic() - began:.1f} s")


def progress(text: str) -> None:
    """What a person who waits wants to know; the results themselves go to stdout."""
    print(f"bench: {text.strip()}", file=sys.stderr, flush=True)
