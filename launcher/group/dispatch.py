"""Turns the tables of the two state machines, as written, into a lookup by state and event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

_State = TypeVar("_State", bound=Enum)
_Answer = TypeVar("_Answer", bound=Callable[..., None])


def by_state(
    states: type[_State], rows: Mapping[type[Any], tuple[_Answer, ...]]
) -> dict[_State, dict[type[Any], _Answer]]:
    """``rows``: for each event the method that answers it in each state, in the order of the states."""
    columns = zip(*rows.values(), strict=True)
    return {state: dict(zip(rows, column, strict=True)) for state, column in zip(states, columns, strict=True)}
