"""Restart in place: after a failure the group serves again by itself, one epoch at a time, and remembers the first."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.e2e.group import Group, Witness, running, seconds, until
from tests.lifetimes import began, now

pytestmark = pytest.mark.timing

Print = pytest.CaptureFixture[str]
QUICK = ("--restart-backoff", "0.3", "--max-restarts", "100", "--stop-grace", "1", "--lease", "3")


def hurt(group: Group, what: str, rank: int) -> None:
    os.kill(getattr(group, what)(rank), signal.SIGKILL)


def test_the_group_serves_again_after_each_kill(tmp_path: Path, capsys: Print) -> None:
    """Engine, its child and agent, of leader and worker: the same pods go on; the first failure stays told."""
    rows = []
    with running(tmp_path, 2, *QUICK) as group, Witness(group) as witness:
        epoch = group.until_serving()
        guards = [group.guard(rank) for rank in range(2)]
        for what, rank in [("root", 1), ("root", 0), ("worker", 1), ("agent", 1), ("agent", 0), ("worker", 0)]:
            old = {p.key for p in group.engines()}
            hurt(group, what, rank)
            dead = seconds(lambda: not old & {p.key for p in group.engines()}, "the old epoch's processes dead")  # noqa: B023
            again = seconds(lambda: group.serves(after=epoch), "serving again")  # noqa: B023
            epoch = group.until_serving(after=epoch)
            rows.append(f"{what:6} of rank {rank}: dead after {dead:.2f} s, serving again after {dead + again:.2f} s")
            for status in map(group.status, range(2)):
                assert status["first_failure"]["text"] == "reference was ended by SIGKILL"
                assert status["first_failure"]["rank"] == 1
                assert status["first_failure"]["exit_code"] == 137
                assert status["first_failure"]["cause"] == "signalled"
        assert guards == [group.guard(rank) for rank in range(2)]
        assert [p.poll() for p in group.processes.values()] == [None, None]
        for rank in range(2):
            assert group.output(rank).count("launcher: first failure: ") <= 3  # an agent that was killed starts anew
    witness.check()
    with capsys.disabled():
        print("", *rows, sep="\n")


def test_an_engine_that_takes_long_to_end_is_waited_for(tmp_path: Path) -> None:
    """It takes no notice of TERM, and there is no back-off: the next epoch begins when it has been killed."""
    grace = 2.0
    slow = ("--restart-backoff", "0", "--max-restarts", "9", "--stop-grace", f"{grace:g}")
    with (
        running(tmp_path, 2, *slow, "--", "--ignore-term", "--on-peer-loss", "hang") as group,
        Witness(group) as witness,
    ):
        epoch = group.until_serving()
        killed_at = now()
        hurt(group, "root", 1)
        assert group.until_serving(after=epoch) == epoch + 1
        new = [began(proc.key) for proc in group.engines()]
        assert len(new) == 4
        assert min(new) > killed_at + grace
    witness.check()


def test_the_first_failure_is_told_everywhere(tmp_path: Path) -> None:
    fault = ("--fault-ranks", "1", "--fault-epochs", "1", "--crash-after", "0.2", "--crash-code", "41")
    calm = ("--on-peer-loss", "ignore")  # else rank 0 ends a millisecond later: who was first is told by ages as long
    with running(tmp_path, 2, *QUICK, "--", *fault, *calm) as group:
        group.until_serving(after=1)
        for rank in range(2):
            failure = group.status(rank)["first_failure"]
            assert failure["process"].startswith("reference")
            assert (failure["rank"], failure["exit_code"]) == (1, 41), failure
            assert failure["tail"]
            group.until_said("launcher: first failure: ", rank)
            assert group.status(rank)["restarts"] == 1
        (ended,) = group.status(0)["failures"]
        assert ended["epoch"] == 1
        assert ended["served_s"] is not None


def test_a_cause_is_said_twice_on_each_pod_and_a_good_end_is_none(tmp_path: Path) -> None:
    """Once as it happens, once as the block with the last lines; and going down as asked is no failure anywhere."""
    with running(tmp_path, 3, *QUICK, start=False) as group:
        group.start(0)
        group.until("rank 0 waits for the others", lambda: " waiting for ranks 1, 2" in group.output(0))
        group.start(1)
        group.start(2)
        epoch = group.until_serving()
        for times in (1, 2):
            hurt(group, "root", 1)
            epoch = group.until_serving(after=epoch)
            for rank in range(3):
                said = group.output(rank)
                assert said.count("WARNING stopping the engine") == times, said
                cause = said.count("rank 1: reference was ended by SIGKILL" if rank != 1 else "ended by SIGKILL")
                # the first one's block stays; rank 2 may have been stopped before anybody knew better
                assert cause == 1 + times if rank != 2 else 1 <= cause <= 1 + times, said
        assert all(group.output(0).count(words) == n for words, n in ((" waiting for ranks", 3), (" still ", 0)))
        before = [len(group.output(rank)) for rank in range(3)]
        group.terminate()
        assert group.codes() == [0, 0, 0]
        for rank in range(3):
            said = group.output(rank)[before[rank] :]
            assert "failure" not in said and "although" not in said and "ERROR" not in said, said
        assert "request" in group.output(0)[before[0] :] and "again to stop now" in group.output(0)


def test_the_budget_is_spent(tmp_path: Path) -> None:
    quick = ("--restart-backoff", "0.1", "--max-restarts", "2")
    fault = ("--fault-ranks", "1", "--crash-after", "0.1", "--crash-signal", "11")
    with running(tmp_path, 2, *quick, "--", *fault) as group:
        assert group.codes() == [139, 139]
        for rank in range(2):
            told = group.termination(rank)
            assert told.startswith("exit code 139: 2 restarts within 3600 s are spent (--max-restarts)\n"), told
            assert "first failure: rank 1: reference was ended by SIGSEGV" in told
            assert "injected crash by signal 11" in told
            group.until_said("giving up: 2 restarts within 3600 s are spent", rank)
        assert group.output(0).count("stage started") == 3


def test_a_crash_loop_before_ready_ends_early(tmp_path: Path) -> None:
    fault = (
        "--fault-ranks",
        "1",
        "--startup-seconds",
        "60",
        "--crash-at",
        "startup",
        "--crash-after",
        "0",
        "--crash-code",
        "3",
    )
    with running(tmp_path, 2, "--restart-backoff", "0.1", "--", *fault) as group:
        assert group.codes() == [3, 3]
        assert group.output(0).count("stage started") == 3
        for rank in range(2):
            assert "failed 3 times in a row at the same point before it was ever ready" in group.termination(rank)
            assert "first failure: rank 1: reference ended with exit code 3" in group.termination(rank)
            assert "RuntimeError: injected crash of rank 1" in group.termination(rank)


SPENT = ("--max-restarts", "2", "2 restarts within 3600 s are spent")
AT_ONE_POINT = ("--max-restarts", "9", "failed 3 times in a row at the same point before it was ever ready")


@pytest.mark.parametrize(
    ("option", "most", "reason", "crash"),
    [
        (*SPENT, ("--crash-after", "0.1", "--crash-code", "41")),
        (
            *AT_ONE_POINT,
            ("--startup-seconds", "0.3", "--crash-at", "startup", "--crash-after", "0", "--crash-code", "41"),
        ),
    ],
)
def test_a_group_that_has_given_up_tries_once_a_round_and_serves_when_the_cause_is_gone(
    tmp_path: Path, option: str, most: str, reason: str, crash: tuple[str, ...]
) -> None:
    """The kubelet starts the containers again: one epoch each time, and the first failure stays told."""
    args = ("--restart-backoff", "0.1", option, most, "--state-dir", str(tmp_path / "state"))
    fault = ("--fault-ranks", "1", "--fault-epochs", "1,2,3,4,5", *crash)
    with running(tmp_path, 2, *args, "--", *fault) as group:
        assert group.codes() == [41, 41]
        assert reason in group.termination(0)
        assert group.output(0).count("stage started") == 3
        for epochs in (4, 5):
            for rank in (1, 0):
                group.restart(rank)
            assert group.codes() == [41, 41]
            assert group.output(0).count("stage started") == epochs, group.output(0)
            for rank in range(2):
                told = group.termination(rank)
                assert "first failure: rank 1: reference ended with exit code 41" in told, told
                assert "given up" in told or "are spent" in told, told
        for rank in (1, 0):
            group.restart(rank)
        assert group.until_serving(after=5) == 6
        for rank in range(2):
            failure = group.status(rank)["first_failure"]
            assert (failure["rank"], failure["exit_code"], failure["epoch"]) == (1, 41, 1), failure


def test_a_container_that_is_back_before_its_leader_has_gone_waits_for_the_next(tmp_path: Path) -> None:
    """The leader of a group that has given up stays for a rank that has not heard so. A container that was started
    since then is not told to exit again."""
    args = (*QUICK, "--max-restarts", "1", "--state-dir", str(tmp_path / "state"))
    with running(tmp_path, 3, *args, "--", "--on-peer-loss", "ignore") as group:
        epoch = group.until_serving()
        hurt(group, "root", 1)
        epoch = group.until_serving(after=epoch)
        late = group.agent(2)
        os.kill(late, signal.SIGSTOP)
        hurt(group, "root", 1)
        assert group.code(1) == 137
        back = group.restart(1)
        group.until_said("this leader's group has given up; the next leader is waited for", 1)
        os.kill(late, signal.SIGCONT)
        assert [group.code(0), group.code(2)] == [137, 137]
        for rank in (2, 0):
            group.restart(rank)
        group.until_serving(after=epoch)
        assert group.processes[1] is back and back.poll() is None


def test_the_leaders_launcher_is_recreated(tmp_path: Path, capsys: Print) -> None:
    """Workers keep their process, stop the engine, look the leader up anew and rejoin."""
    with running(tmp_path, 3, *QUICK) as group, Witness(group) as witness:
        group.until_serving()
        workers = [(group.guard(rank), group.agent(rank)) for rank in (1, 2)]
        group.kill_rank(0)
        dead = seconds(lambda: not group.engines(), "engines of the workers dead")
        group.until_phase("seeking", 1, 2)
        assert group.status(1)["first_failure"]["cause"] == "leader_lost"
        group.restart(0)
        again = seconds(lambda: group.serves(after=1), "serving again")
        assert group.until_serving(after=1) == 2
        assert workers == [(group.guard(rank), group.agent(rank)) for rank in (1, 2)]
    witness.check()
    with capsys.disabled():
        print(f"\nleader pod killed: engines dead after {dead:.2f} s; serving {again:.2f} s after its return")


def test_a_worker_comes_back_with_another_address(tmp_path: Path) -> None:
    with running(tmp_path, 2, *QUICK) as group, Witness(group) as witness:
        group.until_serving()
        group.kill_rank(1)
        group.until("the leader misses rank 1", lambda: group.status(0).get("waiting_for") == "waiting for rank 1")
        assert group.status(0)["first_failure"]["rank"] == 1
        group.restart(1, address=f"{group.prefix}.77")
        assert group.until_serving(after=1) == 2
        assert group.status(0)["members"][1]["address"] == f"{group.prefix}.77"
        group.until("it is in the log", lambda: bool(re.search(r"address=\S+\.77 ", group.output(0))))
    witness.check()


def test_a_thawed_agent_rejoins(tmp_path: Path) -> None:
    """Frozen beyond its lease, then thawed: its engine is long dead by its guard's hand, and it joins again."""
    with running(tmp_path, 2, *QUICK) as group, Witness(group) as witness:
        epoch = group.until_serving()
        for rank in (1, 0):
            agent = group.agent(rank)
            os.kill(agent, signal.SIGSTOP)
            group.until("all engines dead", lambda: not group.engines())
            os.kill(agent, signal.SIGCONT)
            epoch = group.until_serving(after=epoch)
            assert group.agent(rank) == agent
    witness.check()


def test_a_thawed_guard_starts_a_new_agent(tmp_path: Path) -> None:
    with running(tmp_path, 2, *QUICK) as group, Witness(group) as witness:
        epoch = group.until_serving()
        agent = group.agent(1)
        os.kill(group.guard(1), signal.SIGSTOP)
        group.until("all engines dead", lambda: not group.engines())
        os.kill(group.guard(1), signal.SIGCONT)
        group.until_serving(after=epoch)
        assert group.agent(1) != agent
        assert "guard process is frozen" in group.status(0)["first_failure"]["text"]
    witness.check()


def test_shared_memory_is_given_back_epoch_after_epoch(tmp_path: Path) -> None:
    """What a killed engine leaves in /dev/shm is removed, and files that others use are not touched.

    It stays open here: other groups on this machine, too, would take it for what their engines left.
    """
    other = Path(f"/dev/shm/of-somebody-else-{os.getpid()}")
    with running(tmp_path, 2, *QUICK, "--", "--shm-bytes", "1000000") as group, other.open("w"):
        try:
            epoch = group.until_serving()
            for _ in range(3):
                left = shm(group)
                assert len(left) == 2
                hurt(group, "root", 1)
                epoch = group.until_serving(after=epoch)
                assert len(shm(group)) == 2
                assert not left & shm(group)
            assert other.exists()
        finally:
            other.unlink()
        group.until(
            "it is in the log",
            lambda: bool("removed what the engine left in /dev/shm files=" in group.output(0) + group.output(1)),
        )
        group.terminate()
        group.terminate()
        group.codes()
        assert not shm(group)


def shm(group: Group) -> set[str]:
    """Files in /dev/shm of this group's engines."""
    said = "".join(group.output(rank) for rank in range(group.size))
    return {path for path in re.findall(r"left (/dev/shm/reference-\S+)", said) if Path(path).exists()}


@pytest.mark.chaos
def test_twenty_kills_leave_shared_memory_flat(tmp_path: Path, capsys: Print) -> None:
    with running(tmp_path, 2, *QUICK, "--", "--shm-bytes", "8000000") as group, Witness(group) as witness:
        epoch = group.until_serving()
        used, memory = [shm_used()], []
        for turn in range(20):
            hurt(group, "root", turn % 2)
            epoch = group.until_serving(after=epoch)
            assert len(shm(group)) == 2
            used.append(shm_used())
            memory.append([size for rank in range(2) for size in group.resident(rank)])
        # Others make files there too, and remove them: what stays is ours.
        until("/dev/shm is as it was", lambda: shm_used() <= max(used[:5]) + 8_000_000 // 1024, words=lambda: str(used))
    witness.check()
    with capsys.disabled():
        print(f"\n/dev/shm in KiB over 20 kills: {used}")
        print(f"resident KiB of each guard and agent after the 5th, {memory[4]}, and the last, {memory[-1]}")
    assert all(last < 1.1 * before for before, last in zip(memory[4], memory[-1], strict=True)), memory


def shm_used() -> int:
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024
