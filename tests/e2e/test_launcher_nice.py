"""Guard and agent go before the engine where CPU is short; the engine runs with the nice value that we came with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.guard.execute import NICER
from tests.e2e.group import running


def nice_of(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


def may_go_first() -> bool:
    own = nice_of(0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, own - 1)
    except OSError:
        return False
    os.setpriority(os.PRIO_PROCESS, 0, own)
    return True


def test_the_launcher_goes_first_and_the_engine_does_not(tmp_path: Path) -> None:
    came_with = nice_of(0)
    with running(tmp_path, 1) as group:
        group.until_serving()
        assert {nice_of(p.pid) for p in group.engine(0)} == {came_with}
        if not may_go_first():
            pytest.skip("needs CAP_SYS_NICE")
        own = max(-20, came_with - NICER)
        assert (nice_of(group.guard(0)), nice_of(group.agent(0))) == (own, own)
