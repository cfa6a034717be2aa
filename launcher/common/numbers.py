"""Whole numbers in texts of others."""

from __future__ import annotations

MOST_DIGITS = 18  #: of a number that a machine counts with; reading n digits takes n squared steps


def is_whole(text: str) -> bool:
    """Whether ``int`` reads it, quickly: `str.isdigit` is also true of "²", and Python refuses 5,000 digits."""
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS


def check_document(document: object) -> None:
    """Refuse a TOML or YAML document with a whole number of more than 64 bits. Raises ValueError.

    ``0xFFF...`` may be of any length, and Python does not even print one of 5,000 digits in an error.
    """
    seen: set[int] = set()  # of YAML, which may refer to a part often, or to itself
    rest = [document]
    while rest:
        value = rest.pop()
        if isinstance(value, int) and value.bit_length() > 64:
            raise ValueError("a whole number in it has more than 64 bits")
        if isinstance(value, (dict, list, set, tuple)) and id(value) not in seen:
            seen.add(id(value))
            rest += [*value, *value.values()] if isinstance(value, dict) else value
