"""Patterns of engine files: those that could keep the launcher busy are refused."""

from __future__ import annotations

import re
import time

import pytest

from launcher.engines.file.patterns import problem


@pytest.mark.parametrize(
    "pattern",
    [
        "ready",
        "^INFO .*listening on .*:8000$",
        r"(?i)server (is )?(up|ready) after \d{1,6}(\.\d{1,3})? s",
        r"\bport=\d+\b.*ready",
        "[^ ]+ ready|serving",
        "(?:abc)?x",
    ],
)
def test_what_people_write_is_taken(pattern: str) -> None:
    assert problem(pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(a+)+$", "more than one character"),
        ("(a|a)*b", "more than one character"),
        ("(?:a?){30}b", "more than one character"),
        ("(a*)*?b", "more than one character"),
        (".*.*.*x", "more than two repeats"),
        ("a?" * 40 + "b", "too slow"),
        ("[ab]{0,200}[bc]{0,200}[cd]{0,200}e", "more than two repeats"),
        (r"(\w+) \1", "reference to a group"),
        ("(unclosed", "no regular expression"),
        ("x" * 400, "longer than"),
        ("(" * 150 + ")" * 150, ""),
    ],
)
def test_what_could_take_long_is_refused(pattern: str, words: str) -> None:
    assert words in problem(pattern)


@pytest.mark.parametrize("pattern", [".*.*x", "a+a+$", r"\w*\w*x{0,3}y", "(a|ab)?(d*)(e*)f"])
def test_the_worst_that_is_taken_is_harmless(pattern: str) -> None:
    """CPU time: a busy machine is no failure."""
    assert problem(pattern) == ""
    began = time.process_time()
    re.search(pattern, "a" * 400 + "b")
    assert time.process_time() - began < 5.0
