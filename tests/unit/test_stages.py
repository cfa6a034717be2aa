"""What a rank's stages make of the guard's reports."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest

from launcher.process import channel as guard
from launcher.process import tree
from launcher.stages import StageRunner, how_it_ended
from launcher.words import CauseKind, Epoch, Gate, Plan, Process, Stage


@pytest.mark.parametrize(
    ("code", "oom", "words"), [(1, True, "out of memory"), (1, False, ""), (0, True, ""), (0, False, "")]
)
def test_a_root_that_ends_because_a_worker_was_killed_for_memory(code: int, oom: bool, words: str) -> None:
    cause = how_it_ended(2, "vllm", guard.Exited("x", code, None, ""), (), lambda: oom)
    assert (cause.kind, cause.code) == (CauseKind.EXITED, code)
    assert ("out of memory" in cause.text) is bool(words)


@pytest.mark.parametrize(
    ("pieces", "opens"),
    [
        (((1, "REA"), (2, "a warning\n"), (1, "DY\n")), True),
        (((2, "REA"), (1, "DY\n")), False),
        (((2, "READY\n"),), True),  # many servers log there
        (((1, "not READY\n"),), False),
    ],
)
def test_a_line_that_opens_a_gate_is_one_of_one_stream(pieces: tuple[tuple[int, str], ...], opens: bool) -> None:
    done: list[Any] = []
    stages = StageRunner(0, done.append, lambda *stage: done.append(stage), lambda *_: None, lambda: False)
    plan = Plan(0, (Stage("serve", (Process("engine", ("x",), gate=Gate("line", "READY")),)),))
    stages.begin(Epoch(1, "a"), plan, {})
    stages.start(0)
    name = done.pop().id
    for stream, data in pieces:
        stages.hear(guard.Output(name, stream, data))
    assert done == ([(Epoch(1, "a"), 0)] if opens else [])


@pytest.mark.parametrize("told", [True, False])
def test_what_the_guard_ended_itself_is_no_failure(told: bool) -> None:
    """At the deadline it kills, and says why when all is dead: an agent that thaws hears of the single ends first."""
    broke: list[Any] = []
    orders: list[Any] = []
    stages = StageRunner(0, orders.append, lambda *_: None, lambda *failure: broke.append(failure), lambda: False)
    stages.begin(Epoch(1, "a"), Plan(0, (Stage("serve", (Process("engine", ("x",)),)),)), {})
    stages.start(0)
    stages.hear(guard.Exited(orders[0].id, None, 9, "", told))
    assert [cause.kind for _, cause, _ in broke] == ([] if told else [CauseKind.SIGNALLED])


def test_a_second_order_to_stop_does_not_make_our_own_term_come_first() -> None:
    broke: list[Any] = []
    orders: list[Any] = []
    stages = StageRunner(0, orders.append, lambda *_: None, lambda *failure: broke.append(failure), lambda: False)
    stages.begin(Epoch(1, "a"), Plan(0, (Stage("serve", (Process("engine", ("x",)),)),)), {})
    stages.start(0)
    with subprocess.Popen(["sleep", "60"]) as process:
        stages.hear(guard.Started(orders[0].id, process.pid, 1))
        stages.cancel()
        process.terminate()  # by the guard, as ordered; it has ended, and is not yet reaped
        while not tree.ending(process.pid):
            time.sleep(0.01)
        stages.cancel()
    stages.hear(guard.Exited(orders[0].id, None, 15, "", told=True))
    assert not broke
