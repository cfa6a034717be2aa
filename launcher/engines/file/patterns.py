"""Regular expressions of gates: which ones are allowed, so that no line of an engine can block the launcher.

Python's ``re`` backtracks. Nested repeats take exponential time, several long ones in a row the product of their
lengths; a match cannot be interrupted, and the lease would run out. So a pattern is rejected unless its worst case on
one line is harmless (some tenths of a second).
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from launcher.common.last_lines import LINE_LENGTH

LONGEST = 300  #: characters of a pattern
MOST = 10**9  #: ways to match a line, counted roughly


def problem(pattern: str) -> str:
    """What is wrong with a pattern, in words; empty: nothing."""
    if len(pattern) > LONGEST:
        return f"longer than {LONGEST} characters"
    try:
        re.compile(pattern)
        parsed = _parser().parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"no regular expression: {error}"
    try:
        ways = LINE_LENGTH * _ways(parsed, repeated=False)
    except _Nested as nested:
        return str(nested)
    if ways > MOST:
        return "too slow: it has more than two repeats without a small bound (.* or .+, where .{0,9} may do)"
    return ""


class _Nested(Exception):
    pass


def _parser() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from re import _parser  # type: ignore[attr-defined]  # Python 3.11
        except ImportError:
            import sre_parse as _parser
    return _parser


def _ways(parsed: Any, *, repeated: bool) -> int:
    ways = 1
    for operator, value in parsed:
        name = str(operator)
        if name.endswith("_REPEAT"):
            low, high, inner = value
            if repeated or (high != 1 and not _is_one_character(inner)):
                raise _Nested("too slow: a repeat of more than one character, as (...)* or (...)+")
            ways *= (min(int(high), LINE_LENGTH) - min(int(low), LINE_LENGTH) + 1) * _ways(inner, repeated=high != 1)
        elif name == "BRANCH":
            ways *= sum(_ways(one, repeated=repeated) for one in value[1])
        elif name.startswith("GROUPREF"):
            raise _Nested("too slow: a reference to a group")
        elif name == "SUBPATTERN":
            ways *= _ways(value[-1], repeated=repeated)
        elif name.startswith("ASSERT"):
            ways *= _ways(value[1], repeated=repeated)
        elif name == "ATOMIC_GROUP":
            ways *= _ways(value, repeated=repeated)
    return ways


def _is_one_character(parsed: Any) -> bool:
    return len(parsed) == 1 and str(parsed[0][0]) in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "CATEGORY")
