"""Turns: who measures when, so that no contestant always has the quiet minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def alternate(contestants: Sequence[T], rounds: int, what: str = "") -> Iterator[T]:
    """Every contestant once a round, the order moved by one each round. Says on stderr how far it is."""
    for number in range(rounds):
        began = time.monotonic()
        first = number % len(contestants)
        yield from (*contestants[first:], *contestants[:first])
        progress(f"{what} round {number + 1}/{rounds}: {time.monotonic() - began:.1f} s")


def progress(text: str) -> None:
    """What a person who waits wants to know; the results themselves go to stdout."""
    print(f"bench: {text.strip()}", file=sys.stderr, flush=True)
