"""launcher.data beside the standard library: the same words, the same meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from launcher import data


def _classes(made: Any, field: Any) -> dict[str, Any]:
    """The same classes by either module."""

    @made(frozen=True, order=True)
    class Epoch:
        n: int
        leader: str

    @made
    class Seat:
        conn: int
        tail: list[int] = field(default_factory=list)
        done: int = -2

        def __post_init__(self) -> None:
            self.double = self.conn * 2

    @made(frozen=True)
    class Cause:
        kind: str
        secret: str = field(default="s", repr=False)
        facts: dict[str, int] = field(default_factory=dict, hash=False)
        origin: str = field(default="", compare=False)

    @made(frozen=True)
    class Later(Epoch):
        text: str = "text"

    return {c.__name__: c for c in (Epoch, Seat, Cause, Later)}


OURS, THEIRS = _classes(data.dataclass, data.field), _classes(dataclasses.dataclass, dataclasses.field)

SAYS: dict[str, Callable[[dict[str, Any]], object]] = {
    "repr": lambda c: repr(c["Epoch"](1, "a")).rpartition(".")[2],
    "repr without secrets": lambda c: repr(c["Cause"]("k", "hidden")).rpartition(".")[2],
    "by name": lambda c: c["Epoch"](leader="a", n=1) == c["Epoch"](1, "a"),
    "other class": lambda c: c["Epoch"](1, "a") == (1, "a"),
    "hash": lambda c: hash(c["Epoch"](1, "a")),
    "hash without a field": lambda c: hash(c["Cause"]("k", "s", {"a": 1})) == hash(c["Cause"]("k")),
    "not compared": lambda c: c["Cause"]("k", origin="x") == c["Cause"]("k", origin="y"),
    "order": lambda c: (c["Epoch"](1, "b") < c["Epoch"](2, "a"), c["Epoch"](2, "a") >= c["Epoch"](2, "a")),
    "no order of seats": lambda c: c["Seat"](1) < c["Seat"](2),
    "no hash of seats": lambda c: hash(c["Seat"](1)),
    "defaults": lambda c: (c["Seat"](3).tail, c["Seat"](3).done, c["Seat"].done, hasattr(c["Seat"], "tail")),
    "own list": lambda c: c["Seat"](1).tail is not c["Seat"](1).tail,
    "after init": lambda c: c["Seat"](3).double,
    "inherited": lambda c: repr(c["Later"](1, "a")).rpartition(".")[2],
    "frozen": lambda c: setattr(c["Epoch"](1, "a"), "n", 2),
    "frozen, delete": lambda c: delattr(c["Epoch"](1, "a"), "n"),
    "too many": lambda c: c["Epoch"](1, "a", 3),
    "too few": lambda c: c["Epoch"](1),
    "twice": lambda c: c["Epoch"](1, n=1, leader="a"),
    "unknown": lambda c: c["Epoch"](1, "a", more=1),
    "standard fields": lambda c: [f.name for f in dataclasses.fields(c["Cause"])],
    "standard replace": lambda c: dataclasses.replace(c["Seat"](1), done=5).done,
    "standard asdict": lambda c: dataclasses.asdict(c["Seat"](1, [1, 2])),
    "is a dataclass": lambda c: [dataclasses.is_dataclass(one) for one in (c["Seat"], c["Epoch"](1, "a"))],
    "match": lambda c: c["Epoch"].__match_args__,
}


@pytest.mark.parametrize("what", SAYS)
def test_it_says_what_the_standard_library_says(what: str) -> None:
    def said(classes: dict[str, Any]) -> object:
        try:
            return SAYS[what](classes)
        except (TypeError, AttributeError) as error:
            return TypeError if isinstance(error, TypeError) else AttributeError

    assert said(OURS) == said(THEIRS)


def test_its_own_fields_replace_and_asdict() -> None:
    seat = OURS["Seat"](1, [1, 2])
    assert [f.name for f in data.fields(seat)] == ["conn", "tail", "done"]
    assert data.replace(seat, done=5).done == 5
    assert data.asdict(seat) == {"conn": 1, "tail": [1, 2], "done": -2}


def test_what_it_does_not_know_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="default_factory"):

        @data.dataclass
        class Shared:
            items: list[int] = []  # noqa: RUF012

    with pytest.raises(TypeError, match="without a default follows"):

        @data.dataclass
        class Disordered:
            first: int = 1
            second: str  # type: ignore[misc]
