"""What a rank's stages make of the guard's reports."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest

from launcher.agent.stages import StageRunner, how_it_ended
from launcher.guard import channel as guard
from launcher.model import CauseKind, Epoch, Gate, Health, Plan, Process, Stage
from launcher.node import tree


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
        (((1, "\x1b[36m(raylet pid=7)\x1b[0m 2026-11-28 17:00:00,123 INFO -- REA\x1b[1mDY\x1b[0m: now\n"),), True),
        (((1, "RE ADY\n"),), False),
        (((1, "READY"),), False),
    ],
)
def test_a_line_that_opens_a_gate_is_one_of_one_stream(pieces: tuple[tuple[int, str], ...], opens: bool) -> None:
    """Wherever it stands in the line, and in whatever colours."""
    assert opened(Gate("line", "READY"), pieces) is opens


@pytest.mark.parametrize(
    ("pattern", "line", "opens"),
    [
        (
            r"^\d{4}-\S+ INFO .*listening on \S+:8000$",
            "\x1b[32m2026-11-28 INFO\x1b[0m now listening on 10.0.0.1:8000",
            True,
        ),
        (r"^READY", "not READY", False),
        (r"(?i)ready", "all is Ready now", True),
    ],
)
def test_a_pattern_that_opens_a_gate(pattern: str, line: str, opens: bool) -> None:
    assert opened(Gate("pattern", pattern), ((1, line + "\n"),)) is opens


def opened(gate: Gate, pieces: tuple[tuple[int, str], ...]) -> bool:
    done: list[Any] = []
    stages = StageRunner(0, done.append, lambda *stage: done.append(stage), lambda *_: None, lambda: False)
    plan = Plan(0, (Stage("serve", (Process("engine", ("x",), gate=gate),)),))
    stages.begin(Epoch(1, "a"), plan, {})
    stages.start(0)
    name = done.pop().id
    for stream, data in pieces:
        stages.hear(guard.Output(name, stream, data))
    assert done in ([], [(Epoch(1, "a"), 0)])
    return bool(done)


def test_a_gate_that_stays_closed_says_so_now_and_then() -> None:
    orders: list[Any] = []
    stages = StageRunner(0, orders.append, lambda *_: None, lambda *_: None, lambda: False)
    processes = (Process("a", ("x",), gate=Gate("line", "READY")), Process("b", ("x",), gate=Gate("line", "UP")))
    stages.begin(Epoch(1, "a"), Plan(0, (Stage("serve", processes),)), {})
    stages.start(0)
    for number, order in enumerate(orders):
        stages.hear(guard.Started(order.id, 4242 + number, 1))
    stages.hear(guard.Output(orders[1].id, 1, "it is UP\n"))
    began = time.monotonic()
    said = [passed for passed in range(0, 1200, 10) if stages.overdue(began + passed)]
    for at, expected in zip(said, (60, 120, 240, 480, 780, 1080), strict=True):
        assert 0 <= at - expected <= 30
    (one,) = stages.overdue(began + 5000)
    assert (one.process.name, one.process.gate.words) == ("a", "it prints a line that contains 'READY'")
    stages.cancel()
    assert not stages.overdue(began + 10_000)


def test_work_that_is_to_be_done_is_no_start_that_takes_long() -> None:
    orders: list[Any] = []
    stages = StageRunner(0, orders.append, lambda *_: None, lambda *_: None, lambda: False)
    plan = Plan(0, (Stage("work", (Process("a", ("x",), gate=Gate("exited")),)),), completes=True)
    stages.begin(Epoch(1, "a"), plan, {})
    stages.start(0)
    stages.hear(guard.Started(orders[0].id, 4242, 1))
    assert not stages.overdue(time.monotonic() + 10_000)


def test_probes_are_no_sign_of_life_and_a_traceback_is_told_whole() -> None:
    broke: list[Any] = []
    orders: list[Any] = []
    stages = StageRunner(0, orders.append, lambda *_: None, lambda *failure: broke.append(failure), lambda: False)
    plan = Plan(
        0, (Stage("serve", (Process("engine", ("x",)),)),), health=Health(url="http://127.0.0.1:1/are-you-well")
    )
    stages.begin(Epoch(1, "a"), plan, {})
    stages.start(0)
    traceback = ["Traceback (most recent call last):", *['  File "x.py"'] * 50, "ValueError: no"]
    stages.hear(guard.Output(orders[0].id, 2, "\n".join([*traceback, ""])))
    before = stages.bytes
    for _ in range(200):
        stages.hear(guard.Output(orders[0].id, 1, 'INFO: 127.0.0.1:1 - "GET /are-you-well HTTP/1.1" 200 OK\n'))
    assert stages.bytes == before
    stages.hear(guard.Exited(orders[0].id, 1, None, ""))
    ((_, cause, *_),) = broke
    assert cause.tail == tuple(traceback)


def serving() -> tuple[StageRunner, str, list[Any]]:
    """Stages of which the only process has been ordered, the guard's name for it, and the failures to come."""
    broke: list[Any] = []
    orders: list[Any] = []
    stages = StageRunner(0, orders.append, lambda *_: None, lambda *failure: broke.append(failure), lambda: False)
    stages.begin(Epoch(1, "a"), Plan(0, (Stage("serve", (Process("engine", ("x",)),)),)), {})
    stages.start(0)
    return stages, orders[0].id, broke


def test_the_guards_own_tail_is_read_alike() -> None:
    """The agent may have begun to listen after the engine had printed."""
    stages, name, broke = serving()
    stages.hear(guard.Exited(name, 1, None, "\n".join(map(str, range(100)))))
    ((_, cause, *_),) = broke
    assert cause.tail == tuple(map(str, range(80, 100)))


@pytest.mark.parametrize("told", [True, False])
def test_what_the_guard_ended_itself_is_no_failure(told: bool) -> None:
    """At the deadline it kills, and says why when all is dead: an agent that thaws hears of the single ends first."""
    stages, name, broke = serving()
    stages.hear(guard.Exited(name, None, 9, "", told))
    assert [cause.kind for _, cause, *_ in broke] == ([] if told else [CauseKind.SIGNALLED])


def test_a_second_order_to_stop_does_not_make_our_own_term_come_first() -> None:
    stages, name, broke = serving()
    with subprocess.Popen(["sleep", "60"]) as process:
        stages.hear(guard.Started(name, process.pid, 1))
        stages.cancel()
        process.terminate()  # by the guard, as ordered; it has ended, and is not yet reaped
        while not tree.ending(process.pid):
            time.sleep(0.01)
        stages.cancel()
    stages.hear(guard.Exited(name, None, 15, "", told=True))
    assert not broke


@pytest.mark.parametrize("told", [True, False])
def test_an_end_before_our_stop_is_a_failure_unless_the_guard_brought_it_about(told: bool) -> None:
    """The guard's deadline may pass a moment before the leader's verdict: then our stop finds the engine dying."""
    stages, name, broke = serving()
    with subprocess.Popen(["sleep", "60"]) as process:
        stages.hear(guard.Started(name, process.pid, 1))
        process.kill()
        while not tree.ending(process.pid):
            time.sleep(0.01)
        stages.cancel()
    stages.hear(guard.Exited(name, None, 9, "", told))
    assert [cause.kind for _, cause, *_ in broke] == ([] if told else [CauseKind.SIGNALLED])
