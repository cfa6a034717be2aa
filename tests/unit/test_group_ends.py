"""Which of several ends was the first: the same answer in whatever order they are heard."""

from __future__ import annotations

from itertools import permutations

import pytest

from launcher.group.ends import MOST_BECAUSE, WINDOW, Blame, Ends, Grade, RankEnd, blame, in_trouble, named
from launcher.model import TOLD_TO_STOP, Cause, CauseKind

OOM, SIGNALLED, EXITED, DIED = CauseKind.OOM, CauseKind.SIGNALLED, CauseKind.EXITED, CauseKind.DIED
OWN = ("Traceback (most recent call last):", '  File "step.py", line 1, in step', "ValueError: no such expert")
LOST_2 = ("reference rank 1: lost the rank after, rank 2",)
RESET = ("Traceback (most recent call last):", "RuntimeError: [pair.cc:534] Connection closed by peer [10.0.0.2]:1234")


def end(
    rank: int,
    kind: CauseKind = EXITED,
    code: int | None = 1,
    at: float = 10.0,
    tail: tuple[str, ...] = (),
    told: bool = False,
    doubt: float = 0.01,
) -> RankEnd:
    return RankEnd(Cause(kind, rank, f"{kind.value} {code}", "engine", code, tail), at - doubt, at, told)


def judged(*ends: RankEnd) -> Cause:
    """In all orders of arrival, which makes no difference."""
    found = set()
    for order in permutations(ends):
        heard = Ends({"10.0.0.0": 0, "10.0.0.1": 1, "10.0.0.2": 2})
        for one in order:
            heard.add(one, 10.0)
        found.add(heard.judge())
    assert len(found) == 1, found
    return found.pop()


@pytest.mark.parametrize(
    ("first", "other"),
    [
        # the kernel's word says why there was a signal; a signal why the neighbours end with codes
        (end(2, OOM, 137), end(1, SIGNALLED, 137)),
        (end(2, SIGNALLED, 137), end(1)),
        (end(2, SIGNALLED, 137), end(1, DIED, 1)),
        (end(2, SIGNALLED, 137), end(1, DIED, 0)),
        (end(2, CauseKind.AGENT, None), end(1, CauseKind.LOST, None)),
        (end(2, CauseKind.LOST, None), end(1)),
        (end(2, CauseKind.STOPPED, None), end(1)),
        (end(2), end(1, CauseKind.HEALTH, None)),
        (end(2, SIGNALLED, 137), end(1, CauseKind.HEALTH, None)),
        (end(2, CauseKind.LEADER, None), end(1)),
        # how it ended is not known, on an older kernel
        (end(2, DIED, None), end(1)),
        (end(2, DIED, None), end(1, DIED, 1)),
        (end(2, DIED, None), end(1, DIED, 0)),
        # a worker that ended in good order followed its neighbour
        (end(2, code=41), end(1, DIED, 0)),
        (end(2, code=41, tail=OWN), end(1, code=0)),
        # a victim truly ended first: the first one printed a traceback and gave back its memory
        (end(2, code=3, at=10.4, tail=OWN), end(1, at=10.0, tail=LOST_2)),
        (end(2, code=3, at=10.4, tail=OWN), end(1, at=10.0, tail=RESET)),
        (end(2, code=3, at=10.4), end(1, SIGNALLED, 134, at=10.0, tail=RESET)),
        # the first one told of its peers, too, but after its own trouble
        (end(2, code=3, at=10.0, tail=(*OWN, *RESET)), end(1, at=10.0, tail=RESET)),
        # it ended in good order, and the neighbours blame it
        (end(2, code=0, at=10.0), end(1, at=10.1, tail=LOST_2)),
    ],
)
def test_which_explains_the_other(first: RankEnd, other: RankEnd) -> None:
    told = judged(first, other)
    assert (told.rank, told.kind, told.code) == (first.rank, first.cause.kind, first.cause.code)
    assert not told.rivals
    assert len(told.because) == 1 and told.because[0].startswith(f"rank {other.rank}: ")


def test_of_two_ends_alike_the_earlier_is_the_first() -> None:
    told = judged(end(3, code=7, at=10.0), end(1, code=8, at=10.1), end(0, code=9, at=10.2))
    assert (told.rank, told.code, told.rivals) == (3, 7, ())


def test_of_two_that_cannot_be_told_apart_one_is_the_first_probably() -> None:
    told = judged(end(3, code=7, at=10.0, tail=("a",)), end(1, code=8, at=10.05, tail=("b",), doubt=0.2))
    assert (told.rank, told.rivals, str(told)) == (1, (3,), "probably rank 1: exited 8")
    assert told.tail == ("b", "it may have been rank 3: exited 7; its last lines:", "a")


def test_whom_a_neighbour_names_decides_between_two_that_cannot_be_told_apart() -> None:
    for tail in (LOST_2, RESET):
        told = judged(end(2, code=7), end(0, code=8, doubt=0.2), end(1, at=10.0, tail=tail))
        assert (told.rank, told.rivals) == (2, ())


def test_a_signal_after_an_end_that_blames_nobody_is_doubtful() -> None:
    told = judged(end(2, SIGNALLED, 137, at=10.5), end(1, at=10.0))
    assert (told.rank, told.rivals) == (2, (1,))
    assert judged(end(2, SIGNALLED, 137, at=10.5, doubt=0.6), end(1, at=10.0)).rivals == ()


def test_an_end_with_0_before_one_with_a_code_that_says_nothing_is_doubtful() -> None:
    """Which of them led? An engine in trouble of its own says so, and one that blames a peer is a victim."""
    for doubt in (0.05, 0.4):  # within the other's interval, and around it
        led = judged(end(2, code=41, at=10.2, doubt=0.2), end(1, code=0, at=10.1 + doubt / 2, doubt=doubt))
        assert (led.rank, led.code, led.rivals) == (2, 41, (1,)), "most that end with 0 have followed"
    likely = judged(end(2, code=41, at=10.2, doubt=0.2), end(1, code=0, at=10.1, doubt=0.2))
    assert (likely.rank, likely.code, likely.rivals) == (1, 0, (2,))
    certain_first = judged(end(2, code=41, at=10.2), end(1, code=0, at=10.0))
    assert (certain_first.rank, certain_first.code, certain_first.rivals) == (1, 0, (2,))
    three = judged(end(2, code=41, at=10.2), end(3, code=42, at=10.25, doubt=0.1), end(1, code=0, at=10.0))
    assert (three.rank, three.rivals) == (1, (3, 2))
    for certain in (end(2, code=41, at=9.5), end(2, code=41, at=10.2, tail=OWN)):
        assert judged(certain, end(1, code=0, at=10.0)).rivals == ()
    blamed = judged(end(2, code=41, at=10.2), end(1, code=0, at=10.0), end(3, at=10.3, tail=LOST_2))
    assert (blamed.rank, blamed.rivals) == (2, ())
    unnamed = judged(end(2, code=41, at=10.2), end(1, code=0, at=10.0), end(3, at=10.3, tail=("broken pipe",)))
    assert (unnamed.rank, unnamed.rivals) == (1, (2,))
    followed = judged(end(2, code=41, at=10.2), end(1, DIED, 0, at=10.0))
    assert (followed.rank, followed.rivals) == (2, ())


def test_own_trouble_before_a_lost_peer_is_doubtful_after_a_victim() -> None:
    told = judged(end(2, code=3, at=10.4, tail=(*OWN, *RESET)), end(1, at=10.0, tail=RESET))
    assert (told.rank, told.rivals) == (2, (1,))


def test_what_came_long_after_explains_nothing() -> None:
    late = end(2, SIGNALLED, 137, at=10.0 + WINDOW + 0.1)
    heard = Ends({})
    heard.add(end(1), 10.0)
    heard.add(late, 12.0)
    assert heard.judge().rank == 1


class TestToldToStop:
    def test_it_explains_nothing(self) -> None:
        told = judged(end(1, tail=LOST_2), end(2, SIGNALLED, 137, at=9.0, told=True), end(0, EXITED, 1, told=True))
        assert told.rank == 1 and told.because == ()

    def test_unless_its_own_trouble_had_begun_and_all_others_blame_a_peer(self) -> None:
        dying = end(2, code=3, at=12.0, tail=(*OWN, TOLD_TO_STOP, "bye"), told=True)
        told = judged(end(1, tail=LOST_2), end(0, at=10.1, tail=RESET), dying)
        assert (told.rank, told.code, told.rivals) == (2, 3, (1,))
        assert judged(end(1, tail=OWN), dying).rank == 1

    @pytest.mark.parametrize("tail", [(TOLD_TO_STOP, *OWN), (*LOST_2, TOLD_TO_STOP, *OWN), (TOLD_TO_STOP,), ()])
    def test_what_it_says_when_it_is_told_is_no_evidence(self, tail: tuple[str, ...]) -> None:
        assert judged(end(1, tail=LOST_2), end(2, code=3, tail=tail, told=True)).rank == 1


def test_a_rank_tells_the_most_of_itself() -> None:
    """Its root ends with 1 because somebody killed its worker."""
    told = judged(end(2, SIGNALLED, 137, at=10.1), end(2, EXITED, 1, at=10.0), end(1, tail=LOST_2))
    assert (told.rank, told.code, told.rivals) == (2, 137, ())
    assert [line.partition(":")[0] for line in told.because] == ["rank 1"]


def test_a_launcher_that_had_said_why_leaves_to_begin_anew() -> None:
    heard = Ends({})
    heard.add(end(2, CauseKind.LEADER, None), 10.0)
    heard.add(end(2, CauseKind.LOST, None), 10.1)
    assert heard.judge().kind is CauseKind.LEADER


def test_of_lost_launchers_the_first_that_is_heard_of_stays() -> None:
    heard = Ends({})
    for rank in (3, 1):
        heard.add(end(rank, CauseKind.LOST, None), 10.0)
    assert (heard.judge().rank, heard.judge().rivals) == (3, ())
    heard.explain(3, Cause(CauseKind.AGENT, 3, "killed"))
    assert heard.judge().kind is CauseKind.AGENT


def test_what_is_told_is_bounded() -> None:
    heard = Ends({})
    for rank in range(200):
        for _ in range(9):
            heard.add(end(rank, at=10.0 + rank), 10.0)
    told = heard.judge()
    assert told.rank == 0 and len(told.because) == MOST_BECAUSE + 1
    assert told.because[-1] == f"and {199 - MOST_BECAUSE} more"
    assert len(heard.all) == 800 and len(heard.of_each_rank) == 64


@pytest.mark.parametrize(
    "line",
    [
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "BrokenPipeError: [Errno 32] Broken pipe",
        "[rank1]: RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.244.1.7]:54321",
        "RuntimeError: [pair.cc:547] Read error [10.0.0.2]:9: Connection reset by peer",
        "torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "Last error: socketProgress: Connection closed by remote peer pod-2.svc<53245>",
        "torch.distributed.DistNetworkError: Connection was likely closed. Did the remote server shutdown or crash?",
        "reference rank 1: lost the rank after, rank 2",
        "reference rank 0: lost the last rank, rank 3",
        "reference rank 1: failed to pass a batch on to rank 2: Broken pipe",
        "worker: peer 10.0.0.3 died",
        "all_reduce failed: peer rank 3 is gone",
        "engine: lost connection to node 2",
    ],
)
def test_lines_that_blame_a_peer(line: str) -> None:
    assert blame(("loading", line)) is Blame.FIRST
    assert blame(("ValueError: no such expert", line)) is Blame.AFTER
    assert not in_trouble((line,))


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: no such expert",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: injected crash of rank 2",
        "Fatal Python error: Segmentation fault",
        "AssertionError: expected 4 ranks",
    ],
)
def test_lines_of_an_engine_in_trouble_of_its_own(line: str) -> None:
    assert blame((line,)) is Blame.NONE and in_trouble((line,))


@pytest.mark.parametrize(
    "line",
    [
        "[W socket.cpp:759] The client socket has failed to connect to [engine-0]:29500 (errno: 111 - refused).",
        "INFO: 10.0.0.9:1234 - GET /health HTTP/1.1 200 OK",
        "Waiting for all 4 ranks; rank 2 has joined",
        "INFO 11-28 parallel_state.py: rank 0 in world size 2 is assigned as DP rank 0, TP rank 0",
    ],
)
def test_lines_of_a_healthy_engine(line: str) -> None:
    assert blame((line,)) is Blame.NONE and not in_trouble((line,))


def test_who_is_named() -> None:
    addresses = {"10.0.0.2": 2, "fd00::3": 3}
    assert named(RESET, 1, addresses) == {2}
    assert named(LOST_2, 1, addresses) == {2}
    assert named(("[rank1]: Connection reset by peer [fd00::3]:80",), 1, addresses) == {3}
    assert named(("rank 2 has joined", "Connection reset by peer"), 1, addresses) == frozenset()


def test_grades_are_of_the_kinds_of_evidence() -> None:
    assert end(1, SIGNALLED, 134, tail=RESET).grade is Grade.VICTIM
    assert end(1, SIGNALLED, 137, tail=RESET).grade is Grade.HIT
    assert end(1, SIGNALLED, 139).grade is Grade.HIT
    assert end(1, DIED, 0).grade is Grade.FOLLOWED


@pytest.mark.parametrize(
    ("other", "explains"),
    [
        (end(1, code=0, at=10.02), False),
        (end(1, code=1, at=10.02), False),
        (end(1, code=1, at=10.3, doubt=0.25, tail=LOST_2), False),
        (end(1, code=1, at=10.1, doubt=0.25), False),  # it may have been before, and tells of nothing
        (end(1, DIED, 1, at=10.02), False),
        (end(1, SIGNALLED, 134, at=10.4), False),
        (end(1, code=1, at=10.1, doubt=0.25, tail=OWN), True),
        (end(1, SIGNALLED, 137, at=10.1, doubt=0.25), True),
        (end(1, code=1, at=9.5), True),
        (end(1, code=0, at=9.5), True),
    ],
)
@pytest.mark.parametrize("kind", [CauseKind.HEALTH, CauseKind.HANG, CauseKind.STALL, CauseKind.TIMEOUT])
def test_what_our_stop_brings_about_explains_no_verdict(kind: CauseKind, other: RankEnd, explains: bool) -> None:
    cause = judged(RankEnd(Cause(kind, 0, "seen while it ran"), 9.99, 10.0), other)
    assert (cause.rank == 1) is explains, cause


@pytest.mark.parametrize(
    "effect",
    [
        end(1, code=1, at=10.2, tail=(*OWN, TOLD_TO_STOP), told=True),
        end(1, code=1, at=9.9, tail=(*OWN, TOLD_TO_STOP), told=True),
        end(1, code=0, at=10.2, told=True),
        end(1, SIGNALLED, 137, at=10.2),
        end(1, code=1, at=10.2, tail=(*OWN, *RESET)),
    ],
)
@pytest.mark.parametrize("kind", [CauseKind.HEALTH, CauseKind.HANG, CauseKind.STALL, CauseKind.TIMEOUT])
def test_no_effect_of_our_stop_takes_the_place_of_a_verdict(kind: CauseKind, effect: RankEnd) -> None:
    """Not even of an engine that had errors in its last lines before it was stopped."""
    told = judged(end(0, kind, None, at=9.0), effect, end(2, code=1, at=10.3, tail=RESET))
    assert (told.rank, told.kind, told.rivals) == (0, kind, ())
