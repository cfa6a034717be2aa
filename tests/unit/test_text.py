"""Text for people: what cannot be printed, what is too long, what was perhaps meant."""

from __future__ import annotations

import signal

import pytest

from launcher.common import text


@pytest.mark.parametrize(
    ("value", "most", "shown"),
    [
        ("plain", 64, "plain"),
        ("a\x1b[31mb\nc", 64, "a?[31mb?c"),
        ("0123456789", 10, "0123456789"),
        ("0123456789A", 10, "0123456..."),
        (None, 10, "None"),
        (7.5, 10, "7.5"),
    ],
)
def test_printable(value: object, most: int, shown: str) -> None:
    assert text.printable(value, most) == shown


def test_a_near_word_is_suggested_before_what_else_can_be_done() -> None:
    assert text.did_you_mean("vlm", ["sglang", "vllm"]) == "did you mean vllm?"
    assert text.did_you_mean("vlm", ["sglang", "vllm"], "Give one") == "did you mean vllm? Give one"
    assert text.did_you_mean("zzz", ["sglang", "vllm"], "Give one") == "Give one"
    assert text.nearest("zzz", ["sglang", "vllm"]) == ""
    assert text.nearest("plam", ["plan", "status"], 0.9) == ""


def test_every_signal_has_a_name() -> None:
    assert text.signal_name(9) == "SIGKILL"
    assert text.signal_name(signal.SIGRTMIN) == "SIGRTMIN"
    assert text.signal_name(signal.SIGRTMIN + 6) == "SIGRTMIN+6"
    assert text.signal_name(signal.SIGRTMAX) == "SIGRTMAX"
    assert text.signal_name(200) == "signal 200"
