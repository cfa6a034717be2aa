"""`python -m tests.fuzz --minutes N`: attack every target in turns, count the inputs, name the seed of a failure."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

from tests.fuzz.targets import TARGETS, attack

TURN = 1.0  #: seconds for one target, then the next


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; may be repeated")
    parser.add_argument("--first", type=int, default=None, help="the first seed; by default one of the clock's")
    parser.add_argument("--seed", type=int, default=None, help="replay this one input and show what is raised")
    asked = parser.parse_args()
    names = asked.target or list(TARGETS)
    if asked.seed is not None:
        for name in names:
            attack(name, random.Random(f"{name} {asked.seed}"))
        return 0
    first = time.time_ns() if asked.first is None else asked.first
    counts, broken, slowest = dict.fromkeys(names, 0), dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    until = time.monotonic() + asked.minutes * 60
    while time.monotonic() < until:
        for name in names:
            turn = min(until, time.monotonic() + TURN)
            while time.monotonic() < turn:
                seed = first + counts[name]
                counts[name] += 1
                began = time.thread_time()
                try:
                    attack(name, random.Random(f"{name} {seed}"))
                except Exception:
                    broken[name] += 1
                    if broken[name] <= 3:
                        print(f"python -m tests.fuzz --target {name} --seed {seed}", traceback.format_exc(), flush=True)
                slowest[name] = max(slowest[name], time.thread_time() - began)
    for name in names:
        print(f"{name:14} {counts[name]:>9} inputs  {broken[name]:>5} broken  slowest {slowest[name]:.2f} s of CPU")
    print(f"{'all':14} {sum(counts.values()):>9} inputs  {sum(broken.values()):>5} broken  first seed {first}")
    return int(any(broken.values()))


if __name__ == "__main__":
    sys.exit(main())
