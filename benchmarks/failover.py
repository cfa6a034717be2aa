"""Something breaks under a group that serves: how long until it is noticed, all is stopped, and it serves again.

Pods with a launcher as PID 1 and the reference engine, whose start takes 1 s and whose ranks do not end by themselves
when a peer is gone, so that whatever ends is ended by the launcher. A random rank is hit each round:

kill -9     of an engine process (the root or its worker), or of a launcher process (agent or guard; a killed guard is a
            killed container, which is started again at once)
SIGSTOP     of all engine processes of the rank, or of its agent
partition   the rank's packets are lost: all, or only those to it or from it

"noticed" is the first line in any launcher's log that says so; "all stopped" is the end of the last engine process
that lived when the fault struck, by pidfd; "serves again" is the leader's /readyz in a later epoch, counted from the
fault, or where something had to be mended first (a network, a frozen process) from the mending. The restart back-off is
held at 0.25 to 0.5 s, else it would double with every round.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import costs, plot
from benchmarks.pods import SERVING_SECONDS, group_of
from benchmarks.record import Budget, Record
from benchmarks.rounds import alternate, progress
from launcher.node.tree import Proc, scan
from tests.lifetimes import Ends, now
from tests.notices import Notices
from tests.pods import until
from tests.real.launched import AGENT, LaunchedGroup

ROUNDS = 30
SIZES = (4, 64)
KINDS = ("kill -9", "SIGSTOP", "partition")
CASES = tuple(f"size {size}, {kind}" for size in SIZES for kind in KINDS)
FLOOR = None
NOTICED, STOPPED, AGAIN = "until noticed", "until all is stopped", "until it serves again"
STARTUP_SECONDS = 1
ARGUMENTS = [
    *("--engine", "reference", "--restart-backoff", "0.5s", "--max-restarts", "100000", "--state-dir", "/tmp/state"),
    *("--", "--startup-seconds", str(STARTUP_SECONDS), "--on-peer-loss", "hang"),
]
LEASE, FROZEN = 10.0, 5.0


def _budgets() -> tuple[Budget, ...]:
    found = []
    for size in SIZES:
        for victim in ("engine process", "launcher process"):
            case = f"size {size}, kill -9"
            found.append(
                Budget(f"{case} of the {victim}: all stopped [s]", case, STOPPED, victim, 1.0, statistic="p95")
            )
        case = f"size {size}, SIGSTOP"
        found.append(Budget(f"{case} of an engine: noticed [s]", case, NOTICED, "engine process", 7.0, statistic="max"))
        found.append(
            Budget(f"{case} of a launcher: all stopped [s]", case, STOPPED, "launcher process", LEASE, statistic="max")
        )
        case = f"size {size}, partition"
        found += [
            Budget(f"{case}, {way}: all stopped [s]", case, STOPPED, way, LEASE, statistic="max")
            for way in ("both ways", "one way")
        ]
    return tuple(found)


BUDGETS = _budgets()


def run(record: Record, rounds: int, cases: list[str]) -> None:
    """Rounds of each kind, on one group of each size."""
    for size in SIZES:
        kinds = [kind for kind in KINDS if f"size {size}, {kind}" in cases]
        if not kinds:
            continue
        with group_of(size, ARGUMENTS) as group:
            notices = Notices(group)
            for number, kind in enumerate(alternate(kinds, rounds, f"failover, size {size}")):
                victims = VICTIMS[kind]
                victim = victims[number // len(kinds) % len(victims)]
                took = one_round(group, notices, victim)
                for measure, seconds in took.items():
                    record.add(f"size {size}, {kind}", measure, "s", victim.name, seconds)
                progress(f"{kind}, {victim.name}: " + ", ".join(f"{what} {s:.2f} s" for what, s in took.items()))


# ------------------------------------------------------------------------------------------------------- one round


@dataclass(frozen=True)
class Victim:
    """What is hit: ``strike`` returns what mends it once all is stopped, or None where nothing has to be."""

    name: str
    strike: Callable[[LaunchedGroup, int, Ranks], Callable[[], None] | None]


def one_round(group: LaunchedGroup, notices: Notices, victim: Victim) -> dict[str, float]:
    """Hit a random rank; seconds until it was noticed, until all was stopped, until the group served again."""
    epoch = int(group.status()["epoch"])
    rank = random.randrange(group.size)
    ranks = Ranks(group)
    notices.read()  # what was said before is no notice
    with Ends() as ends:
        for proc in ranks.all_engines:
            ends.watch(proc.key)
        wall, began = time.time(), now()
        mend = victim.strike(group, rank, ranks)
        stopped = ends.last(60.0) - began
        mended = began
        if mend is not None:
            mend()
            mended = now()
    revive(group)
    served = until_serving_again(group, epoch)
    noticed = notices.first(wall)
    took = {} if noticed is None else {NOTICED: noticed - wall}
    return {**took, STOPPED: stopped, AGAIN: served - mended}


def until_serving_again(group: LaunchedGroup, epoch: int) -> float:
    """When the leader's /readyz is 200 in a later epoch."""
    leader = group.pods[0]

    def ready() -> float | None:
        revive(group)
        if leader.http(f"http://{leader.ip}:{AGENT}/readyz", timeout=2).status != 200:
            return None
        at = now()
        return at if int(group.status().get("epoch") or 0) > epoch else None

    return until(ready, SERVING_SECONDS, "the group serves again") or 0.0


def revive(group: LaunchedGroup) -> None:
    """Containers that ended are started again, as the kubelet does (which waits longer each time)."""
    for rank, process in list(group.processes.items()):
        if process.returncode is not None:
            group.start(rank)


class Ranks:
    """Who runs where, by one scan of the machine's processes."""

    def __init__(self, group: LaunchedGroup) -> None:
        self.launcher: dict[int, tuple[int, int]] = {}  #: rank -> guard, agent
        self.engine: dict[int, list[Proc]] = {}  #: rank -> the engine's processes, the root first
        table = scan()
        for rank, process in group.processes.items():
            self.launcher[rank] = costs.guard_and_agent(process.pid)
            agent = self.launcher[rank][1]
            self.engine[rank] = [p for p in table.below([process.pid]) if p.pid != agent and not p.gone]

    @property
    def all_engines(self) -> list[Proc]:
        return [p for engine in self.engine.values() for p in engine]


# --------------------------------------------------------------------------------------------------------- faults


def _kill_engine(group: LaunchedGroup, rank: int, ranks: Ranks) -> None:
    os.kill(random.choice(ranks.engine[rank]).pid, signal.SIGKILL)


def _kill_launcher(group: LaunchedGroup, rank: int, ranks: Ranks) -> None:
    os.kill(random.choice(ranks.launcher[rank]), signal.SIGKILL)


def _freeze_engine(group: LaunchedGroup, rank: int, ranks: Ranks) -> None:
    for proc in ranks.engine[rank]:
        os.kill(proc.pid, signal.SIGSTOP)


def _freeze_launcher(group: LaunchedGroup, rank: int, ranks: Ranks) -> Callable[[], None]:
    agent = ranks.launcher[rank][1]
    os.kill(agent, signal.SIGSTOP)
    return lambda: os.kill(agent, signal.SIGCONT)


def _cut(group: LaunchedGroup, rank: int, ranks: Ranks) -> Callable[[], None]:
    group.pods[rank].drop()
    return group.pods[rank].undrop


def _cut_one_way(group: LaunchedGroup, rank: int, ranks: Ranks) -> Callable[[], None]:
    way = random.choice(("in", "out"))
    group.pods[rank].drop(way)  # type: ignore[arg-type]
    return lambda: group.pods[rank].undrop(way)  # type: ignore[arg-type]


VICTIMS = {
    "kill -9": (Victim("engine process", _kill_engine), Victim("launcher process", _kill_launcher)),
    "SIGSTOP": (Victim("engine process", _freeze_engine), Victim("launcher process", _freeze_launcher)),
    "partition": (Victim("both ways", _cut), Victim("one way", _cut_one_way)),
}


# ------------------------------------------------------------------------------------------------------------ plot


def draw(record: Record, path: Path) -> None:
    """Distributions: a row for each measure, a column for each kind of fault."""
    measures = (NOTICED, STOPPED, AGAIN)
    figure, axes = plot.figure_of(len(measures), len(KINDS))
    for row, measure in enumerate(measures):
        for column, kind in enumerate(KINDS):
            found = [one for one in record.series if one.measure == measure and one.case.endswith(kind)]
            plot.steps(axes[row][column], found, f"{kind}: {measure}", [f"size {size}" for size in SIZES])
            plot.legend_below(axes[row][column])
    plot.save(figure, path, record)
