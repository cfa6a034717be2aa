"""The last words of a leader reach everybody: that its epoch is over, or why the group gave up.

If none come at all, nobody waits for ever where no platform brings a leader back.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from launcher.group import messages as m
from launcher.model import Epoch
from tests.e2e.group import Group, Witness, running
from tests.e2e.test_launcher_strangers import UPGRADE, connect, masked

LONG = 120.0  #: patience on a busy machine
QUICK = ("--restart-backoff", "0.2", "--stop-grace", "1")


def test_a_leader_that_leaves_in_good_order_leaves_no_fence(tmp_path: Path) -> None:
    """Its successor knows nothing, as that of a pod that was deleted. A fence would last for longer than a minute."""
    with running(tmp_path, 3, *QUICK, "--lease", "100") as group, Witness(group) as witness:
        group.until_serving()
        group.terminate(0)
        assert group.code(0, LONG) == 0
        before = [len(group.output(rank)) for rank in range(3)]
        group.restart(0)
        group.until_serving(after=1, patience=75)
        for rank in range(3):
            assert "to run out" not in group.output(rank)[before[rank] :], group.words()
    witness.check()


def refused(group: Group, hello: m.Hello, why: bytes) -> None:
    """Say a hello, and read until it is refused."""
    with connect(group) as stranger:
        stranger.settimeout(LONG)
        stranger.sendall(UPGRADE + masked(m.encode(hello).encode()))
        said = b""
        while why not in said and (data := stranger.recv(65536)):
            said += data
        assert why in said, said


def test_a_hello_that_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    """It tells of an epoch whose number is as high as can be, and of members that are nowhere."""
    with running(tmp_path, 2, *QUICK, "--lease", "60") as group:
        epoch = group.until_serving()
        poison = {"last_epoch": Epoch(m.MOST_EPOCHS, "nobody"), "last_members": ("a", "b"), "charges": (0.0,) * 99}
        name = str(group.status(0)["group"])
        for rank, why in ((0, b"duplicate"), (1, b"duplicate"), (5, b"rank_range")):
            refused(group, m.Hello(name, rank, 2, f"liar{rank}", "10.9.9.9", **poison), why)  # type: ignore[arg-type]
        os.kill(group.root(1), signal.SIGKILL)
        assert group.until_serving(after=epoch) == epoch + 1
        os.kill(group.agent(0), signal.SIGKILL)
        assert group.until_serving(after=epoch + 1) == epoch + 2


def test_one_that_comes_when_the_group_has_given_up_is_told_why(tmp_path: Path) -> None:
    """The budget is spent by the loss of a whole pod: it is not there to hear the verdict, and comes back later."""
    with running(tmp_path, 3, *QUICK, "--max-restarts", "1", "--lease", "40") as group:
        epoch = group.until_serving()
        os.kill(group.root(1), signal.SIGKILL)
        group.until_serving(after=epoch)
        group.kill_rank(2)
        verdict = group.code(1, LONG)
        assert verdict not in (0, 69)
        assert group.processes[0].poll() is None, "rank 2 has not heard it"
        group.restart(2)
        assert [group.code(rank, LONG) for rank in (2, 0)] == [verdict, verdict]
        for rank in range(3):
            assert "1 restarts within 3600 s are spent (--max-restarts)" in group.termination(rank)


def test_a_leader_that_is_gone_for_good_is_not_waited_for_without_end(tmp_path: Path) -> None:
    with running(tmp_path, 2, *QUICK, start=False) as group:
        group.start(0)
        group.until("rank 0 waits for rank 1", lambda: " waiting for rank 1" in group.output(0))
        group.start(1, "--join-timeout", "12")
        group.until_serving()
        group.kill_rank(0)
        assert group.code(1, LONG) == 69
        assert "the leader did not come back within 12 s (--join-timeout)" in group.output(1)
        assert not group.engines()
