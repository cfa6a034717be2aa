"""One fate: whatever is killed, ends or freezes, on any rank, ends the engine on all, and all say what came first.

Here no restart is allowed (``--max-restarts 0``), so every launcher has to end, with the code of the taxonomy.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.group import Group, running, seconds
from tests.kernel import tells_the_reaped

pytestmark = pytest.mark.timing

Print = pytest.CaptureFixture[str]
NO_RESTART = ("--max-restarts", "0", "--stop-grace", "1")


def first_cause(group: Group, rank: int) -> str:
    """The first failure as the printed block of a rank has it."""
    blocks = re.findall(r"^launcher: first failure: (.*)$", group.output(rank), re.M)
    assert len(blocks) == 1, group.output(rank)
    return str(blocks[0])


def check_end(group: Group, code: int, cause: str, *, ranks: tuple[int, ...] = (), tail: str = "") -> None:
    """Every launcher (of ``ranks``) ends with this code, and says the same cause wherever people look."""
    for rank in ranks or range(group.size):
        assert group.code(rank) == code, group.words()
        assert re.fullmatch(cause, first_cause(group, rank)), group.words()
        told = group.termination(rank)
        assert re.search(f"^exit code {code}", told) and re.search(f"first failure: {cause}$", told, re.M), told
        assert not tail or (tail in told and tail in group.output(rank)), group.words()
    assert len({first_cause(group, rank) for rank in ranks or range(group.size)}) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_9_of_the_engine(tmp_path: Path, rank: int, capsys: Print) -> None:
    with running(tmp_path, 2, *NO_RESTART) as group:
        group.until_serving()
        os.kill(group.root(rank), signal.SIGKILL)
        dead = seconds(lambda: not group.engines(), "all engine processes dead")
        check_end(group, 137, f"rank {rank}: reference was ended by SIGKILL", tail="the chain is whole")
        with capsys.disabled():
            print(f"\nkill -9 of the engine of rank {rank}: every engine process dead after {dead:.2f} s")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.chaos), 1])
def test_kill_9_of_a_child_of_the_engine(tmp_path: Path, rank: int) -> None:
    with running(tmp_path, 2, *NO_RESTART) as group:
        group.until_serving()
        victim = group.worker(rank)
        os.kill(victim, signal.SIGKILL)
        how = "was ended by SIGKILL" if tells_the_reaped() else ".*ended.*"  # an older kernel may not know, or who else
        hit = rf"rank {rank}: process {victim} \(reference: worker \d+\) of the engine {how}"
        check_end(group, group.code(0), hit if tells_the_reaped() else f"({hit}|rank {rank}: reference ended.*)")
        assert group.code(0) == 137 or not tells_the_reaped()
        group.until_said("was ended by signal 9", rank)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", ["agent", "guard"])
def test_kill_9_of_the_launcher(tmp_path: Path, what: str, rank: int, capsys: Print) -> None:
    size = 3 if rank == 0 else 2
    with running(tmp_path, size, *NO_RESTART) as group:
        group.until_serving()
        os.kill(getattr(group, what)(rank), signal.SIGKILL)
        dead = seconds(lambda: not group.engines(), "all engine processes dead")
        others = tuple(r for r in range(size) if r != rank)
        gone = r"rank 0: the leader is gone: .*" if rank == 0 else rf"rank {rank}: its launcher at \S+ is gone: .*"
        if what == "guard":
            gone = f"rank {rank}: the launcher's guard process was killed; the engine was ended"
        check_end(group, 75, gone, ranks=others)
        assert group.code(rank) == 137
        said = "the agent was killed by signal 9" if what == "agent" else "the guard process was killed"
        group.until("its last words", lambda: said in group.output(rank))
        with capsys.disabled():
            print(f"\nkill -9 of the {what} of rank {rank}: every engine process dead after {dead:.2f} s")


def test_kill_9_of_a_whole_pod(tmp_path: Path) -> None:
    """Nobody is left there to tell: what its engine said last is known to the leader, who was told as it came."""
    with running(tmp_path, 2, *NO_RESTART, "--", "--fault-ranks", "1", "--output-rate", "2", *CALM) as group:
        group.until_serving()
        # With what runs there goes what it said last.
        group.until("rank 1 has reported", lambda: len(group.status(0)["members"][1]["engine_pids"]) == 2)
        group.kill_rank(1)
        check_end(group, 75, r"rank 1: its launcher at \S+ is gone: the connection closed.*", ranks=(0,))
        told, said = group.termination(0), group.output(1).splitlines()
        words = [line.removeprefix("  | ") for line in told.splitlines() if line.startswith("  | ")]
        assert words and set(words) <= set(said), (words, said)
        assert all(line.startswith("reference rank 1: ") for line in words), told
        assert all(f"launcher:   | {line}" in group.output(0) for line in words)


# The neighbour takes no notice of a broken chain, so there is no doubt about who was first.
CALM = ("--on-peer-loss", "ignore")


@pytest.mark.parametrize(("rank", "code"), [(0, 255), (1, 0), (1, 3)])
def test_the_engine_ends_while_it_serves(tmp_path: Path, rank: int, code: int) -> None:
    crash = ("--crash-after", "0.2", "--crash-code", str(code))
    with running(tmp_path, 2, *NO_RESTART, "--", "--fault-ranks", str(rank), *crash, *CALM) as group:
        check_end(
            group,
            code or 76,
            rf"rank {rank}: reference (ended|exited unexpectedly) with exit code {code}.*",
            tail="injected crash",
        )


@pytest.mark.parametrize("at", ["startup", "serving"])
def test_an_end_with_0_that_nobody_asked_for(tmp_path: Path, at: str) -> None:
    crash = ("--crash-at", at, "--crash-after", "0.1", "--crash-code", "0")
    with running(tmp_path, 1, *NO_RESTART, "--", "--startup-seconds", "0.5", *crash) as group:
        check_end(group, 76, "rank 0: reference exited unexpectedly with exit code 0")


@pytest.mark.parametrize(("rank", "code"), [(0, 3), (1, 7)])
def test_the_engine_ends_while_it_starts(tmp_path: Path, rank: int, code: int) -> None:
    crash = ("--crash-at", "startup", "--crash-after", "0.1", "--crash-code", str(code))
    slow = ("--startup-seconds", "60", "--fault-ranks", str(rank))
    with running(tmp_path, 2, *NO_RESTART, "--", *slow, *crash, *CALM) as group:
        check_end(group, code or 76, rf"rank {rank}: reference ended with exit code {code}.*", tail="injected crash")


def test_a_signal_ends_the_engine_alone(tmp_path: Path) -> None:
    with running(tmp_path, 1, *NO_RESTART, "--", "--crash-after", "0.2", "--crash-signal", "11") as group:
        check_end(group, 139, "rank 0: reference was ended by SIGSEGV", tail="injected crash by signal 11")


def test_a_frozen_engine_process_is_a_failure(tmp_path: Path, capsys: Print) -> None:
    with running(tmp_path, 2, *NO_RESTART) as group:
        group.until_serving()
        began = time.monotonic()
        os.kill(group.worker(1), signal.SIGSTOP)
        seconds(lambda: not group.engines(), "all engine processes dead")
        took = time.monotonic() - began
        check_end(group, 75, r"rank 1: process \d+ \(reference: work\) has been stopped \(state T\) for \d+ s")
        assert took > 4.9
        with capsys.disabled():
            print(f"\nSIGSTOP of an engine process: every engine process dead after {took:.2f} s")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_agent_costs_a_lease(tmp_path: Path, rank: int, capsys: Print) -> None:
    with running(tmp_path, 2, *NO_RESTART, "--lease", "3") as group:
        group.until_serving()
        agent = group.agent(rank)
        began = time.monotonic()
        os.kill(agent, signal.SIGSTOP)
        seconds(lambda: not group.engines(), "all engine processes dead")
        took = time.monotonic() - began
        cause = (
            r"rank 1: the leader was silent for .* s: the lease ran out and the engine was killed"
            if rank == 0
            else r"rank 1: no sign of life from its launcher at \S+ for .* s"
        )
        check_end(group, 75, cause, ranks=(1 - rank,))
        assert group.processes[rank].poll() is None
        os.kill(agent, signal.SIGCONT)
        assert group.code(rank) == 75
        with capsys.disabled():
            print(f"\nSIGSTOP of the agent of rank {rank}, lease 3 s: every engine process dead after {took:.2f} s")


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.chaos)])
def test_a_frozen_guard_has_its_agent_kill_for_it(tmp_path: Path, rank: int, capsys: Print) -> None:
    with running(tmp_path, 2, *NO_RESTART) as group:
        group.until_serving()
        began = time.monotonic()
        os.kill(group.guard(rank), signal.SIGSTOP)
        seconds(lambda: not group.engines(), "all engine processes dead")
        took = time.monotonic() - began
        check_end(group, 75, f"rank {rank}: the launcher's guard process is frozen; .*", ranks=(1 - rank,))
        group.until("nobody answers for it any more", lambda: not group.status(rank))
        os.kill(group.guard(rank), signal.SIGCONT)
        assert group.code(rank) == 137
        with capsys.disabled():
            print(f"\nSIGSTOP of the guard of rank {rank}: every engine process dead after {took:.2f} s")
