"""Why the group gave up reaches every member, however much there is to say."""

from __future__ import annotations

import random
from typing import Any

import pytest

from launcher.group import coordinator as c
from launcher.group import messages as m
from launcher.group.config import CoordinatorConfig, StageLimit
from launcher.group.events import Send, SendAll
from launcher.model import Cause, CauseKind


def test_a_long_reason_of_one_that_can_never_take_part_is_read_by_the_others() -> None:
    leader = c.Coordinator(CoordinatorConfig("g", 2, "leader"), 0.0, random.Random(1))
    leader.stages = (StageLimit("serve"),)
    said: list[Any] = []

    def hear(event: Any, conn: int) -> None:
        for action in leader.handle(event, conn, 0.0):
            if isinstance(action, (Send, SendAll)):
                said.append(m.decode(m.encode(action.message), m.LEADER_SAYS))

    for conn in (0, 1):
        hear(m.Hello("g", conn, 2, f"i{conn}", f"10.0.0.{conn}"), conn)
        mark = next(word.mark for word in reversed(said) if isinstance(word, (m.Accepted, m.Ack)))
        hear(m.Ping(1, mark), conn)
    assert leader.epoch is not None
    text = "no such folder: " + 2000 * "x"
    hear(m.Unable(leader.epoch, Cause(CauseKind.UNABLE, 0, text), False), 0)
    for conn in (0, 1):
        hear(m.Stopped(leader.epoch), conn)
    aborts = [word for word in said if isinstance(word, m.Abort)]
    assert aborts and all(word.text.startswith("no such folder") and word.code == 78 for word in aborts)


@pytest.mark.parametrize("kind", [CauseKind.EXITED, CauseKind.DIED])
def test_an_engine_that_ended_with_0_unasked_has_its_own_code(kind: CauseKind) -> None:
    """Whether it was the root or a process deep in its tree."""
    assert c.exit_code(Cause(kind, 0, "it ended", "engine", 0)) == 76
    assert c.exit_code(Cause(kind, 0, "it ended", "engine", 3)) == 3
