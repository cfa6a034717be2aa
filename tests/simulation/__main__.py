"""Replay one schedule and read its history, or run many and count.

python -m tests.simulation SEED
python -m tests.simulation --soak 10000 [--first 0] [--jobs 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation.schedule import Outcome, run, story


def replay(seed: int, last: int) -> int:
    outcome = run(seed)
    print(story(outcome, last))
    print(f"seed {seed}: {outcome.broken or 'all promises held'}")
    return 1 if outcome.broken else 0


def _one(seed: int) -> Outcome:
    outcome = run(seed)
    outcome.log = []
    return outcome


def outcomes(first: int, schedules: int, jobs: int) -> Iterable[Outcome]:
    seeds = range(first, first + schedules)
    if jobs < 2:
        yield from map(_one, seeds)
        return
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap_unordered(_one, seeds, chunksize=20)


def soak(first: int, schedules: int, jobs: int) -> int:
    began = time.monotonic()
    done, events, simulated, epochs, ran, drains, thawed, strangers, gave_up = 0, 0, 0.0, 0, 0, 0, 0, 0, 0
    faults: Counter[str] = Counter()
    broken: list[Outcome] = []
    longest = Outcome(-1)
    for o in outcomes(first, schedules, jobs):
        done += 1
        events, simulated, epochs, ran = events + o.events, simulated + o.seconds, epochs + o.epochs, ran + o.ran
        drains, gave_up = drains + o.drains, gave_up + o.gave_up
        thawed, strangers = thawed + o.thawed, strangers + o.strangers
        faults += o.faults
        longest = max(longest, o, key=lambda o: o.recovery)
        if o.broken:
            broken.append(o)
            print(f"seed {o.seed}: {o.broken}", flush=True)
    print(
        f"{done} schedules, {simulated / 3600:.1f} simulated hours, {events} events, {epochs} epochs, "
        f"{ran} of them ran, {drains} drains, {gave_up} groups gave up, "
        f"longest recovery {longest.recovery:.1f} s (seed {longest.seed}), "
        f"{thawed} starts beside a thawed node, {strangers} beside strangers; {time.monotonic() - began:.0f} s"
    )
    print("faults: " + ", ".join(f"{name} {n}" for name, n in faults.most_common()))
    by_promise = Counter(o.promise for o in broken)
    print(f"broken: {len(broken)} {dict(by_promise)}")
    return 1 if broken else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.splitlines()[0])
    parser.add_argument("seed", nargs="?", type=int, help="replay this one")
    parser.add_argument("--last", type=int, default=0, help="print only that many last lines")
    parser.add_argument("--soak", type=int, default=0, help="run that many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed of a soak")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    said = parser.parse_args()
    if said.soak:
        return soak(said.first, said.soak, said.jobs)
    if said.seed is None:
        parser.error("give a seed, or --soak N")
    return replay(said.seed, said.last)


if __name__ == "__main__":
    sys.exit(main())
