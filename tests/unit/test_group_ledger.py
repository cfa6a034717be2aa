"""The ledger of a start: whatever ranks report, the sum is the wall time, and the slowest rank is named."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.group import ledger
from launcher.group import messages as m
from launcher.group.lease import Contact
from launcher.group.metrics import Measures
from launcher.group.roster import Seat
from launcher.model import STEPS, Epoch, StartProgress

EPOCH = Epoch(1, "l")


def seat(rank: int, progress: StartProgress | None) -> Seat:
    found = Seat(rank, m.Hello("g", rank, 9, f"m{rank}", "10.0.0.1"), Contact(0.0), 0.0)
    found.part.report = m.Report(EPOCH, progress=progress)
    return found


def start(*progress: StartProgress | None, waited: float = 3.0, took: float = 100.0) -> ledger.StartLedger:
    return ledger.start_of(1, waited, 50.0, [seat(rank, one) for rank, one in enumerate(progress)], 50.0 + took)


def told(step: str, read: int | None = None, **steps: float) -> StartProgress:
    return StartProgress(step=step, bytes_read=read, steps=steps)


def test_where_the_time_went_on_rank_0_and_on_the_slowest() -> None:
    found = start(
        told("rest", 100, preparing=1, imports=20, weights=30, rest=40),
        told("rest", 100, preparing=1, imports=20, weights=25, rest=40),
        told("rest", 240, preparing=1, imports=20, weights=60, compile=5, graphs=4, rest=2),
    )
    assert [(one.rank, one.slowest) for one in found.ranks] == [(0, False), (2, True)]
    first, slowest = found.ranks
    assert first.steps["peers"] == slowest.steps["peers"] == 3
    assert (first.steps["rest"], slowest.steps["rest"]) == (49, 10), "what came after its last report"
    assert (slowest.bytes_read, slowest.bytes_per_second) == (240, 4)
    assert found.seconds == sum(first.steps.values()) == sum(slowest.steps.values()) == 103


def test_what_comes_after_the_last_report_belongs_to_the_step_that_went_on() -> None:
    (only,) = start(told("weights", preparing=1, imports=9, weights=10)).ranks
    assert (only.rank, only.slowest, only.steps["weights"]) == (0, True, 90)


def test_a_rank_that_reports_nothing_and_one_that_knows_other_steps() -> None:
    first, slowest = start(None, told("quantize", imports=10, quantize=70)).ranks
    assert first.steps == {**dict.fromkeys(STEPS, 0.0), "peers": 3.0, "rest": 100.0}
    assert slowest.steps == {**dict.fromkeys(STEPS, 0.0), "peers": 3.0, "imports": 10.0, "rest": 90.0}


def test_in_words() -> None:
    found = start(told("rest", 5 << 30, preparing=0.01, imports=20, weights=50), took=80.0)
    assert found.words == (
        "the start took 83.0 s; slowest rank 0: peers 3.0 s, imports 20.0 s, "
        "weights 50.0 s (5 GiB, 102 MiB/s), rest 10.0 s"
    )


@given(
    st.lists(
        st.none()
        | st.builds(
            StartProgress,
            step=st.sampled_from(STEPS) | st.text(max_size=3),
            bytes_read=st.none() | st.integers(0, 2**63),
            steps=st.dictionaries(st.sampled_from(STEPS) | st.text(max_size=3), st.floats(0, 1e9), max_size=9),
        ),
        min_size=1,
        max_size=5,
    ),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
)
def test_it_always_adds_up(progress: list[StartProgress | None], waited: float, took: float) -> None:
    found = start(*progress, waited=waited, took=took)
    for one in found.ranks:
        assert abs(sum(one.steps.values()) - found.seconds) <= 1e-6 * max(1.0, found.seconds)
        assert list(one.steps) == list(STEPS) and all(value >= 0 for value in one.steps.values())
    assert sum(one.slowest for one in found.ranks) == 1
    assert found.ranks[0].rank == 0
    measures = Measures()
    measures.started(found)
    assert {step: one.count for step, one in measures.start_steps.items()} == dict.fromkeys(STEPS, 1)


def test_the_latest_starts_are_kept() -> None:
    measures = Measures()
    for _ in range(25):
        measures.started(start(None))
    assert len(measures.starts) == ledger.KEPT == 20
