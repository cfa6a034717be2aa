"""What nobody expected is said, all of it, and ends the launcher with 70; what was typed wrong is said in words."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.e2e.group import Group, running

#: The launcher with a bug in the leader's state machine, at the first word of another rank.
BUGGY = """
from launcher.group import coordinator

prepared = coordinator.Coordinator._prepared

def buggy(self, conn, message, now):
    if conn:
        raise AssertionError("a bug on purpose")
    prepared(self, conn, message, now)

coordinator.Coordinator._prepared = buggy

from launcher.__main__ import main

main()
"""


class WithABug(Group):
    def command(self, rank: int, *more: str) -> list[str]:
        script = self.folder / "buggy.py"
        script.write_text(BUGGY)
        command = super().command(rank, *more)
        return [sys.executable, str(script), *command[1:]] if rank == 0 else command


def test_a_bug_of_the_leader_that_shows_at_a_members_word_ends_it(tmp_path: Path) -> None:
    """Not only what its own clock brings: a word from a connection is answered in that connection's task."""
    group = WithABug(tmp_path, 2)
    try:
        assert group.code(0) == 70
        group.until_said("a bug of the launcher, please report it", 0)
        group.until_said("AssertionError: a bug on purpose", 0)
    finally:
        group.close()


def test_a_name_that_can_never_resolve(tmp_path: Path) -> None:
    with running(tmp_path, 2, start=False) as group:
        group.start(1, env={"LAUNCHER_LEADER": "a..b", "LAUNCHER_ADDRESS": "10.9.9.9"})
        assert group.code(1) == 78
        group.until_said("'a..b' cannot be a DNS name", 1)


def test_arguments_that_are_not_utf_8_reach_the_engine_on_every_rank(tmp_path: Path) -> None:
    name = b"m\xff".decode(errors="surrogateescape")
    with running(tmp_path, 2, "--served-model-name", name) as group:
        group.until_serving()
        assert "Traceback" not in group.output(0) + group.output(1)
