"""What an autopsy concludes from evidence, how stacks are read, and how much of them is sent."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from launcher.agent.evidence import EvidenceCollector, main_frames
from launcher.agent.redaction import event as redacted
from launcher.api.failure import failure_block, termination_message
from launcher.group import coordinator as co
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.autopsy import EXAMINED, Autopsy, examine
from launcher.group.config import CoordinatorConfig, StageLimit
from launcher.group.events import SendAll, Tick
from launcher.group.lease import Terms
from launcher.group.roster import LOCAL
from launcher.guard.channel import Aborting
from launcher.model import Cause, CauseKind, Epoch, ProcessEvidence

EPOCH = Epoch(3, "leader")
FORWARD = ("forward (model.py:12)", "_call_impl (module.py:1)", "execute_model (worker.py:9)", "loop (worker.py:1)")
REDUCE = ("all_reduce (distributed_c10d.py:2)", "wrapper (c10d_logger.py:8)", "forward (model.py:13)")
POLL = ("select (selectors.py:1)", "serve (server.py:5)")


def worker(frames: tuple[str, ...], state: str = "S", name: str = "Worker_TP0", **more: Any) -> ProcessEvidence:
    return ProcessEvidence(7, name, state, frames=frames, **more)


def found(*ranks: tuple[ProcessEvidence, ...] | ProcessEvidence, size: int = 0, waits: tuple[str, ...] = ()) -> Autopsy:
    """An autopsy of ranks with these processes."""
    evidence = {r: all_ if isinstance(all_, tuple) else (all_,) for r, all_ in enumerate(ranks)}
    return examine(EPOCH, 1.0, "rank 0: it hangs", size or len(ranks), evidence, waits)


def test_the_one_that_does_not_wait_is_named() -> None:
    for rank in range(8):
        like = [worker(REDUCE, name=f"Worker_TP{r}") for r in range(8)]
        like[rank] = worker(FORWARD, "R", name=f"Worker_TP{rank}")
        autopsy = found(*like)
        assert autopsy.rank == rank
        assert autopsy.verdict == f"rank {rank} is in `forward` (running), the other 7 wait in `all_reduce`"


@pytest.mark.parametrize("rank", [0, 1])
def test_of_two_ranks_it_is_the_one_that_does_not_wait_in_a_collective(rank: int) -> None:
    both = [worker(REDUCE), worker(REDUCE)]
    both[rank] = worker(FORWARD, wchan="pipe_read")
    autopsy = found(*both)
    assert autopsy.rank == rank
    assert f"rank {rank} is in `forward` (asleep in the kernel: pipe_read)" in autopsy.verdict
    assert f"rank {1 - rank} waits in `all_reduce`" in autopsy.verdict


@pytest.mark.parametrize("state", ["T", "t"])
@pytest.mark.parametrize("frames", [REDUCE, FORWARD, ()])
def test_one_that_is_stopped_comes_before_all_else(state: str, frames: tuple[str, ...]) -> None:
    autopsy = found(worker(FORWARD), worker(frames, state), worker(REDUCE))
    assert autopsy.rank == 1
    assert autopsy.verdict.startswith(f"rank 1 is stopped (state {state}), ")


def test_one_that_no_signal_reaches_is_named() -> None:
    autopsy = found(worker(REDUCE), worker((), "D", wchan="nfs_wait"))
    assert (autopsy.rank, autopsy.verdict) == (
        1,
        "rank 1 is stuck in the kernel (state D, nfs_wait), rank 0 waits in `all_reduce`",
    )


def test_one_whose_stack_did_not_come_is_not_blamed() -> None:
    autopsy = found(worker(REDUCE), worker((), "S"), worker(REDUCE))
    assert autopsy.rank is None
    assert "rank 1 gave no stack" in autopsy.verdict and "ranks 0, 2 wait in `all_reduce`" in autopsy.verdict


def test_where_nobody_waits_the_majority_decides_and_of_two_nothing_does() -> None:
    assert found(worker(FORWARD), worker(POLL), worker(FORWARD)).rank == 1
    undecided = found(worker(FORWARD), worker(POLL))
    assert undecided.rank is None
    assert undecided.verdict == "rank 0 is in `forward`, rank 1 is in `serve`"
    assert found(worker(FORWARD), worker(POLL), worker(("load (l.py:1)",))).rank is None


def test_all_waiting_names_nobody() -> None:
    autopsy = found(*(worker(REDUCE) for _ in range(4)))
    assert (autopsy.rank, autopsy.verdict) == (None, "ranks 0, 1, 2, 3 wait in `all_reduce`")


def test_processes_of_one_kind_are_compared_whatever_else_a_rank_runs() -> None:
    api = ProcessEvidence(1, "APIServer", "S", frames=POLL)
    core = ProcessEvidence(2, "EngineCore", "S", frames=("get (queue.py:1)", "step (core.py:1)"))
    first = (api, core, worker(REDUCE, name="Worker_TP0"), worker(REDUCE, name="Worker_TP1"))
    second = (worker(REDUCE, name="Worker_TP2"), worker(FORWARD, "R", name="Worker_TP3"))
    autopsy = found(first, second)
    assert autopsy.rank == 1
    assert autopsy.verdict == "rank 1 is in `forward` (running), rank 0 waits in `all_reduce`"
    assert autopsy.telling[1].name in ("Worker_TP2", "Worker_TP3")


def test_an_engine_may_say_where_it_waits_and_a_bad_pattern_changes_nothing() -> None:
    own = ("pull_batch (worker.py:3)",)
    assert found(worker(own), worker(FORWARD)).rank is None
    assert found(worker(own), worker(FORWARD), waits=("^pull_batch$",)).rank == 1
    assert found(worker(REDUCE), worker(FORWARD), waits=("(",)).rank == 1


def test_ranks_without_evidence_are_said() -> None:
    autopsy = found(worker(REDUCE), worker(FORWARD), size=4)
    assert autopsy.rank == 1 and autopsy.verdict.endswith("; no evidence from ranks 2, 3")
    assert found(size=2).verdict == "no rank gave evidence"
    assert "=== rank 1: no evidence came from it" in found(worker(REDUCE), size=2).text


def test_a_large_group_is_compared_quickly_and_its_verdict_is_short() -> None:
    like = [tuple(worker(FORWARD if r % 3 == 0 else REDUCE, name=f"W{r}_{i}") for i in range(8)) for r in range(1024)]
    autopsy = found(*like)
    assert autopsy.rank is None and len(autopsy.verdict) <= 900


@pytest.mark.parametrize("seed", range(60))
def test_any_evidence_has_a_verdict(seed: int) -> None:
    rng = random.Random(seed)

    def words() -> str:
        return rng.choice(("", "forward (m.py:1)", "all_reduce", "\0", "(", "`x` (y", "wrapper", "é" * 50))

    like = {
        rng.randrange(9): tuple(
            ProcessEvidence(1, words(), rng.choice(("", "R", "T", "D", "?")), words(), words(), (words(), words()))
            for _ in range(rng.randrange(4))
        )
        for _ in range(rng.randrange(9))
    }
    autopsy = examine(EPOCH, 0.0, "c", 9, like)
    assert autopsy.verdict and autopsy.text and (autopsy.rank is None or autopsy.rank in like)


# ------------------------------------------------------------------------------------------------------- the stacks

PRINTED = """Fatal Python error: Aborted

Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.12/threading.py", line 359 in wait
  File "/opt/engine/loop.py", line 10 in watch

Current thread 0x00007f02 (most recent call first):
  File "/opt/engine/model.py", line 12 in forward
  File "<string>", line ??? in <module>

Extension modules: numpy, torch (total: 2)
"""


def test_the_main_threads_stack_is_read() -> None:
    assert main_frames(PRINTED.splitlines()) == ("forward (engine/model.py:12)", "<module> (<string>:???)")
    newer = PRINTED.replace("Current thread 0x00007f02", "Current thread 0x00007f02 [MainThread]")
    assert main_frames(newer.splitlines())[0] == "forward (engine/model.py:12)"
    nobodys = PRINTED.replace("Current thread", "Thread")
    assert main_frames(nobodys.splitlines())[0] == "forward (engine/model.py:12)"
    other = PRINTED.replace("Current thread", "Thread").replace("Thread 0x00007f01", "Current thread 0x00007f01")
    assert main_frames(other.splitlines())[0] == "forward (engine/model.py:12)", "whoever received the signal"
    cut = [*other.splitlines(), "..."]
    assert main_frames(cut)[0] == "wait (python3.12/threading.py:359)"
    assert main_frames(["Aborted (core dumped)"]) == ()


def test_what_is_printed_belongs_to_the_process_that_was_named_last() -> None:
    collector = EvidenceCollector()
    assert collector.take() is None
    collector.begin("stop-1")
    collector.printed("before anything was examined")
    collector.aborting(Aborting("stop-1", 5, "Worker_TP0", "R", "", "running"))
    collector.printed("an unfinished line of its own\n" + PRINTED[:40])
    collector.printed(PRINTED[40:])
    collector.aborting(Aborting("stop-0", 6, "of another order", "S", "", ""))
    collector.aborting(Aborting("stop-1", 7, "APIServer", "S", "poll", "7"))
    taken = collector.take()
    assert taken is not None
    first, second = taken
    assert (first.pid, first.frames[0], first.text[0]) == (
        5,
        "forward (engine/model.py:12)",
        "Fatal Python error: Aborted",
    )
    assert (second.pid, second.wchan, second.text) == (7, "poll", ())
    assert collector.take() is None, "it is told once"


def test_evidence_fits_whatever_was_printed_and_frames_go_first() -> None:
    lines = tuple('"\\\x00é' * 100 for _ in range(4000))
    all_ = [ProcessEvidence(1, "n" * 500, "S", "w" * 500, "s" * 500, FORWARD * 30, lines) for _ in range(100)]
    for size in (2, 64, 4096):
        sent = m.Evidence(EPOCH, m.evidence_that_fits(all_, size))
        text = m.encode(sent)
        assert len(text.encode()) <= m.MAX_FROM_MEMBER
        assert m.decode(text, m.MEMBER_SAYS) == sent
    assert sent.processes[0].frames, "of 4,096 ranks, too"


def test_secrets_are_masked_in_what_was_printed() -> None:
    told = me.Examined(EPOCH, (worker(FORWARD, text=("key sk-123456789 leaked",)),))
    assert "sk-123456789" not in repr(redacted(told, ("sk-123456789",)))


def test_people_see_the_verdict() -> None:
    cause = Cause(CauseKind.HANG, 0, "no tokens", "engine", autopsy="rank 1 is in `forward`, rank 0 waits in `recv`")
    assert "launcher:   autopsy: rank 1 is in `forward`, rank 0 waits in `recv`" in failure_block(cause)
    assert "\nautopsy: rank 1 is in `forward`" in termination_message(cause, 75, "giving up")


# ------------------------------------------------------------------------------------------------------ the protocol


@pytest.mark.parametrize("lease", [1.0, 2.0, 5.0, 10.0, 60.0])
def test_an_autopsy_is_over_before_the_first_guard_acts(lease: float) -> None:
    terms = Terms(lease)
    assert terms.autopsy == pytest.approx(min(2.0, 0.2 * lease))
    for silence in (x * lease / 100 for x in range(100)):
        left = terms.autopsy_left(silence)
        assert 0.0 <= left <= terms.autopsy
        first_guard = (0.8 / 1.01 - 0.075 / 0.99) * lease
        assert not left or silence + left + 0.1 * lease < first_guard
    assert terms.autopsy_left(2 * terms.beat) == terms.autopsy, "where all is well there is time for all of it"


def leader_in(state: co.GroupPhase, **more: Any) -> tuple[co.Coordinator, float]:
    leader, now = co.Coordinator(CoordinatorConfig("g", 2, "leader", **more), 0.0, random.Random(1)), 1.0
    leader.stages = (StageLimit("one"),)
    for rank in range(2):
        leader.handle(m.Hello("g", rank, 2, f"i{rank}", f"10.0.0.{rank}"), rank, now)
        leader.handle(m.Ping(1, 1 << 40), rank, now)
    leader.handle(Tick(), LOCAL, now)
    assert leader.epoch is not None
    words: list[Any] = [m.Prepared(leader.epoch), m.StageDone(leader.epoch, 0)]
    for word in words[: [co.GroupPhase.PREPARING, co.GroupPhase.STARTING, co.GroupPhase.RUNNING].index(state)]:
        for rank in range(2):
            leader.handle(word, rank, now)
    assert leader.phase is state
    return leader, now


def stops(actions: list[Any]) -> list[m.Stop]:
    return [a.message for a in actions if isinstance(a, SendAll) and isinstance(a.message, m.Stop)]


@pytest.mark.parametrize("kind", CauseKind)
@pytest.mark.parametrize("phase", [co.GroupPhase.PREPARING, co.GroupPhase.STARTING, co.GroupPhase.RUNNING])
def test_only_a_verdict_on_running_processes_is_examined(kind: CauseKind, phase: co.GroupPhase) -> None:
    leader, now = leader_in(phase)
    assert leader.epoch is not None
    (stop,) = stops(leader.handle(m.Failed(leader.epoch, Cause(kind, 1, "so")), 1, now))
    examined = kind in EXAMINED and phase is not co.GroupPhase.PREPARING and kind is not CauseKind.DRAIN
    assert stop.autopsy == (2.0 if examined else 0.0)
    assert {k.value for k in EXAMINED} == {"no_progress", "unhealthy", "start_stalled", "frozen"}


def test_off_means_off() -> None:
    leader, now = leader_in(co.GroupPhase.RUNNING, autopsy=False)
    assert leader.epoch is not None
    (stop,) = stops(leader.handle(m.Failed(leader.epoch, Cause(CauseKind.HANG, 1, "so")), 1, now))
    assert stop.autopsy == 0.0
    for rank in range(2):
        leader.handle(m.Evidence(leader.epoch, (worker(FORWARD),)), rank, now)
        leader.handle(m.Stopped(leader.epoch), rank, now)
    assert leader.history.autopsy is None and leader.history.first is not None
    assert leader.history.first.autopsy == ""


def test_an_older_member_stops_as_always_and_the_verdict_says_that_it_told_nothing() -> None:
    """It does not know the field of `stop` that asks for evidence, and knows no word for it."""
    leader, now = leader_in(co.GroupPhase.RUNNING)
    epoch = leader.epoch
    assert epoch is not None
    (stop,) = stops(leader.handle(m.Failed(epoch, Cause(CauseKind.HANG, 0, "so")), 0, now))
    before = re.sub(r',"autopsy":2\.0', "", m.encode(stop))
    assert m.decode(before, m.LEADER_SAYS).autopsy == 0.0
    leader.handle(m.Stopped(epoch), 1, now)
    leader.handle(m.Evidence(epoch, (worker(FORWARD),)), 0, now)
    leader.handle(m.Evidence(epoch, ()), 0, now)  # said twice: the first counts
    leader.handle(m.Stopped(epoch), 0, now)
    found_now = leader.history.autopsy
    assert found_now is not None and found_now.verdict == "rank 0 is in `forward`; no evidence from rank 1"
    assert leader.history.first is not None and leader.history.first.autopsy == found_now.verdict
    assert leader.phase is co.GroupPhase.WAITING
