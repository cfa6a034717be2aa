"""Whole numbers in texts of others."""

from __future__ import annotations

MOST_DIGITS = 18  #: of a number that a machine counts with; reading n digits takes n squared steps


def is_whole(text: str) -> bool:
    """Whether ``int`` reads it, quickly: `str.isdigit` is also true of "²", and Python refuses 5,000 digits."""
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
