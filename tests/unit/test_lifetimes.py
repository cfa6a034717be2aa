"""What the fault tests judge by: beginnings and ends of real processes, on one clock."""

from __future__ import annotations

import subprocess
import time

import pytest

from launcher.node.tree import Key, read
from tests.conftest import COLUMNS, table_lines
from tests.lifetimes import TICK, Ends, began, now


def sleeper() -> tuple[subprocess.Popen[bytes], Key]:
    process = subprocess.Popen(["sleep", "600"])
    found = read(process.pid)
    assert found is not None
    return process, found.key


def test_one_ends_before_or_after_another_begins() -> None:
    before = now()
    with Ends() as ends:
        first, old = sleeper()
        ends.watch(old)
        second, met = sleeper()  # while the first one lives
        time.sleep(3 * TICK)
        assert ends.left == [old]
        first.kill()
        first.wait()
        assert before - TICK <= began(old) <= began(met) <= ends.last(30) <= now()
        third, after = sleeper()
        ends.watch(met)
        for process in (second, third):
            process.kill()
            process.wait()
        assert began(met) + TICK < ends.at[old] <= began(after) + TICK
        assert ends.last(30) == ends.at[met] >= ends.at[old]


def test_a_zombie_has_ended_and_so_has_one_whose_pid_is_anothers() -> None:
    process, key = sleeper()
    with Ends() as ends:
        ends.watch(key)
        process.kill()
        ends.last(30)  # nobody has waited for it
        process.wait()
        other, theirs = sleeper()
        ends.watch((theirs[0], theirs[1] - 1))
        ends.watch((key[0], key[1] - 1))
        assert not ends.left
        ends.watch(theirs)
        with pytest.raises(AssertionError, match="still live"):
            ends.last(0.01)
        other.kill()
        other.wait()


def test_the_table_is_as_wide_as_it_must_be() -> None:
    first, second = table_lines([("sglang", "kill -9 engine, rank 0", "-", "0.02 s", "1.00 s", "rank 0: it ended")])
    assert [first.index(name) for name in COLUMNS] == [
        second.index(cell) for cell in ("sglang", "kill", "- ", "0.02", "1.00", "rank 0: it")
    ]
