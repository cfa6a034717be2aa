"""Where the time of a start went: on rank 0 and on the slowest rank, step by step, so that the sum is the wall time.

Each rank measures its own steps from `prepare` on, and reports them while it starts. When the group serves, what the
leader's clock says beyond a rank's last report belongs to the step that the rank was in. Before `prepare` all ranks
alike waited for their peers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launcher.common.text import size_text
from launcher.group.roster import Seat
from launcher.model import PEERS, REST, STEPS, StartProgress

KEPT = 20  #: starts


@dataclass(frozen=True)
class RankStart:
    """One rank's part of a start."""

    rank: int
    slowest: bool
    steps: Mapping[str, float]  #: seconds by `STEPS`, all of them
    bytes_read: int | None  #: of the weight files
    bytes_per_second: float | None  #: over the whole step

    @property
    def words(self) -> str:
        """Its steps, without those that took no time: "peers 3.1 s, imports 20.1 s, weights 45.0 s (27.1 GiB, ...)"."""
        shown = []
        for step, seconds in self.steps.items():
            more = ""
            if step == "weights" and self.bytes_read and self.bytes_per_second:
                more = f" ({size_text(self.bytes_read)}, {size_text(self.bytes_per_second)}/s)"
            if seconds >= 0.05:
                shown.append(f"{step} {seconds:.1f} s{more}")
        return ", ".join(shown)


@dataclass(frozen=True)
class StartLedger:
    """One start, from the beginning of the wait for peers to the moment that the group served."""

    epoch: int
    at: float  #: when it served, by the leader's clock
    seconds: float
    ranks: tuple[RankStart, ...]  #: rank 0 and the slowest rank; one, if rank 0 is it

    @property
    def slowest(self) -> RankStart:
        return next(one for one in self.ranks if one.slowest)

    @property
    def words(self) -> str:
        """The ledger on one line."""
        ranks = "; ".join(f"{'slowest ' if one.slowest else ''}rank {one.rank}: {one.words}" for one in self.ranks)
        return f"the start took {self.seconds:.1f} s; {ranks}"


def start_of(epoch: int, waited: float, began: float, seats: Iterable[Seat], now: float) -> StartLedger:
    """The start of an epoch whose `prepare` was sent at ``began``, ``waited`` seconds after the wait had begun."""
    took = max(0.0, now - began)
    found = {}
    for seat in seats:
        progress = seat.report.progress if seat.report is not None else None
        found[seat.hello.rank] = (_whole(progress, waited, took), progress)
    slowest = max(sorted(found), key=lambda rank: _busy(found[rank][0]))
    ranks = tuple(_rank_start(rank, rank == slowest, *found[rank]) for rank in sorted({0, slowest} & set(found)))
    return StartLedger(epoch, now, waited + took, ranks)


def _rank_start(rank: int, slowest: bool, steps: Mapping[str, float], progress: StartProgress | None) -> RankStart:
    read = progress.bytes_read if progress is not None else None
    seconds = steps["weights"]
    return RankStart(rank, slowest, steps, read, read / seconds if read and seconds > 0 else None)


def _whole(progress: StartProgress | None, waited: float, took: float) -> dict[str, float]:
    """A rank's steps, which add up to ``waited`` + ``took``. A step that this release does not know is part of REST."""
    steps = dict.fromkeys(STEPS, 0.0)
    current = REST
    if progress is not None:
        for step, seconds in progress.steps.items():
            steps[step if step in steps else REST] += seconds
        current = progress.step if progress.step in steps and progress.step != PEERS else REST
    steps[PEERS] = 0.0
    told = sum(steps.values())
    if told <= took:
        steps[current] += took - told
    else:  # it cannot have taken longer than between our own two messages
        steps = {step: seconds * took / told for step, seconds in steps.items()}
    steps[PEERS] = waited
    return steps


def _busy(steps: Mapping[str, float]) -> float:
    """What decides which rank was the slowest: the time until the engine's own steps were over."""
    return sum(seconds for step, seconds in steps.items() if step not in (PEERS, REST))
