"""Does a value have the type that an annotation says? For values that other people's code returns."""

from __future__ import annotations

import collections.abc
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from launcher.common.text import printable


def mismatch(value: object, expected: Any, where: str) -> str:
    """What is wrong, as "stages[0].name is 3, not a str"; empty: nothing. Looks into containers and dataclasses.

    ``bool`` is no ``int`` here, an ``int`` is a ``float``, and neither NaN nor infinity is a number.
    """
    if expected is Any or expected is object:
        return ""
    if expected is None or expected is type(None):
        return "" if value is None else _wrong(value, expected, where)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        found = [mismatch(value, one, where) for one in arguments]
        # Of X | None what is wrong with X says most.
        return "" if not all(found) else found[0] if len(found) == 2 and arguments[1] is type(None) else found[-1]
    plain = origin or expected
    if plain is float:
        fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return "" if fine else _wrong(value, expected, where)
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        return _wrong(value, expected, where)
    if is_dataclass(plain):
        hints = typing.get_type_hints(plain)
        return _first(mismatch(getattr(value, f.name), hints[f.name], _inside(where, f.name)) for f in fields(plain))
    if plain is tuple and arguments[-1:] == (...,):
        items = enumerate(typing.cast("tuple[object, ...]", value))
        return _first(mismatch(item, arguments[0], f"{where}[{i}]") for i, item in items)
    if issubclass(plain, collections.abc.Mapping) and arguments:
        pairs = list(typing.cast("Mapping[object, object]", value).items())
        return _first(mismatch(key, arguments[0], f"a key of {where}") for key, _ in pairs) or _first(
            mismatch(item, arguments[1], f"{where}[{key!r}]") for key, item in pairs
        )
    if issubclass(plain, collections.abc.Set) and arguments:
        members = typing.cast("Iterable[object]", value)
        return _first(mismatch(item, arguments[0], f"a member of {where}") for item in members)
    return ""


def _first(found: Iterable[str]) -> str:
    return next((text for text in found if text), "")


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(value: object, expected: Any, where: str) -> str:
    wanted = expected.__name__ if isinstance(expected, type) and not typing.get_args(expected) else str(expected)
    for module in ("typing.", "collections.abc.", "launcher.model."):
        wanted = wanted.replace(module, "")
    return f"{where or 'it'} is {shown(value)}, not {wanted}"


def shown(value: object) -> str:
    """``repr`` of a value of other people's code: one line, short, and it never raises."""
    try:
        text = repr(value)
    except BaseException as error:  # a __repr__ may do anything, SystemExit too
        text = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return printable(text, 80)
