"""What a rank's stages make of the guard's reports."""

from __future__ import annotations

import pytest

from launcher.process import channel as guard
from launcher.stages import how_it_ended
from launcher.words import CauseKind


@pytest.mark.parametrize(
    ("code", "oom", "words"), [(1, True, "out of memory"), (1, False, ""), (0, True, ""), (0, False, "")]
)
def test_a_root_that_ends_because_a_worker_was_killed_for_memory(code: int, oom: bool, words: str) -> None:
    cause = how_it_ended(2, "vllm", guard.Exited("x", code, None, ""), (), lambda: oom)
    assert (cause.kind, cause.code) == (CauseKind.EXITED, code)
    assert ("out of memory" in cause.text) is bool(words)
