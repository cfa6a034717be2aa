"""Crashes random ranks of real groups on an overloaded machine, and counts how often the first failure is told right.

    python -m tests.e2e.first_failure --crashes 200 --size 4 --busy 20

Each crash is a group of its own with the reference engine: one rank, drawn at random, ends with a random exit code or
by a random signal, its main process or a worker; its neighbours end because of that, with codes of their own. Every
rank's launcher has a clock of its own (`unshare --time`, where this user may), and busy processes keep the machine's
load up; they end by themselves. A crash is told *right* if every rank's log names the rank that crashed, *probably* if
it says so with that word and the right rank first, *wrong* otherwise; and every launcher must exit with that rank's
code.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.group import Group
from tests.load import busy

PATIENCE = 180.0  #: for a whole group from its start to its end, on a machine that has no time
SIGNALS = (
    *(signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL),
    *(signal.SIGFPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1),
)
TOLD = re.compile(r"launcher: first failure: (probably )?rank (\d+): (.*)")


@dataclass(frozen=True)
class Crash:
    """What is done to a group: ``code`` or ``signal`` of a process of ``rank``, ``after`` it serves."""

    rank: int
    process: str
    code: int
    signal: int
    after: float

    @property
    def expected(self) -> int | None:
        """What the launchers must exit with; None: as told, for a worker's end is one of two ends of its rank."""
        if self.process == "worker":
            return None
        return 128 + self.signal if self.signal else self.code

    def options(self) -> list[str]:
        """The reference engine's."""
        how = ["--crash-signal", str(self.signal)] if self.signal else ["--crash-code", str(self.code)]
        who = ["--crash-ranks", str(self.rank), "--crash-process", self.process]
        return [*who, *how, "--crash-after", f"{self.after:.2f}"]

    def __str__(self) -> str:
        how = signal.Signals(self.signal).name if self.signal else f"code {self.code}"
        return f"rank {self.rank} {self.process} {how}"


@dataclass(frozen=True)
class Told:
    """What came of it. ``verdict``: right, probably, or wrong."""

    crash: Crash
    verdict: str
    words: str
    seconds: float


def draw(rng: random.Random, size: int) -> Crash:
    process = rng.choice(("main", "main", "main", "worker"))
    number = int(rng.choice(SIGNALS)) if process == "worker" or rng.random() < 0.4 else 0
    if process == "worker" and number in (signal.SIGTERM, signal.SIGINT):
        number = int(signal.SIGKILL)  # the workers ignore those
    return Crash(rng.randrange(size), process, rng.choice((1, 1, 2, 3, rng.randint(1, 255))), number, rng.uniform(0, 1))


class ApartInTime(Group):
    """A group whose ranks have a clock each: CLOCK_MONOTONIC is a random number of seconds ahead."""

    offsets: tuple[int, ...] = ()

    def command(self, rank: int, *more: str) -> list[str]:
        own = ["unshare", "--time", "--monotonic", str(self.offsets[rank])] if self.offsets else []
        return [*own, *super().command(rank, *more)]


def clocks_apart(size: int, rng: random.Random) -> tuple[int, ...]:
    """An offset for each rank; nothing where the kernel or this user may not make a time namespace."""
    probe = ["unshare", "--time", "--monotonic", "1000", "true"]
    try:
        allowed = subprocess.run(probe, capture_output=True, check=False, timeout=60).returncode == 0
    except OSError:
        allowed = False
    return tuple(rng.randrange(0, 10**7) for _ in range(size)) if allowed else ()


def crash(folder: Path, size: int, what: Crash, offsets: tuple[int, ...] = (), *args: str) -> Told:
    """Make a group, crash it, and judge what its launchers said."""
    folder.mkdir(exist_ok=True)
    group = ApartInTime(folder, size, "--max-restarts", "0", *args, "--", *what.options(), start=False)
    group.offsets = offsets
    began = time.monotonic()
    group.start_all()
    try:
        codes = group.codes(PATIENCE)
        verdict, words = judge(what, codes, [group.output(rank) for rank in range(size)])
    finally:
        group.close()
    return Told(what, verdict, words, time.monotonic() - began)


def judge(what: Crash, codes: list[int], said: list[str]) -> tuple[str, str]:
    told = [TOLD.search(text) for text in said]
    if not all(told):
        return "wrong", f"ranks {[r for r, one in enumerate(told) if one is None]} tell no first failure; codes {codes}"
    first = [(bool(one[1]), int(one[2]), one[3]) for one in told if one is not None]
    words = first[0][2]
    if any(rank != what.rank for _, rank, _ in first):
        return "wrong", f"told are ranks {[rank for _, rank, _ in first]}: {words}"
    code = what.expected
    if code is None:
        shown = re.search(r"launcher:   process .*, exit code (\d+)", said[0])
        code = int(shown[1]) if shown else codes[0]
    if any(one != code for one in codes):
        return "wrong", f"exit codes {codes}, expected {code}: {words}"
    if not what.signal and f"launcher:   | RuntimeError: injected crash of rank {what.rank}" not in said[0]:
        return "wrong", f"its traceback is not in the leader's block: {words}"
    return ("probably" if any(likely for likely, _, _ in first) else "right"), words


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.first_failure", description=__doc__)
    parser.add_argument("--crashes", type=int, default=200)
    parser.add_argument("--size", type=int, default=4, help="ranks of each group")
    parser.add_argument("--busy", type=int, default=20, help="processes that keep the machine's load up")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--minutes", type=float, default=60.0, help="no crash is begun after that")
    parser.add_argument("--keep", type=Path, help="folder for the logs of what was not told right")
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    offsets = clocks_apart(options.size, rng)
    print(f"seed {options.seed}, clocks {'apart' if offsets else 'alike: no time namespaces here'}", flush=True)
    counts: Counter[str] = Counter()
    end = time.monotonic() + options.minutes * 60
    with busy(options.busy, apart=True):
        for number in range(options.crashes):
            if time.monotonic() > end:
                print("out of time")
                break
            what = draw(rng, options.size)
            offsets = clocks_apart(options.size, rng) if offsets else ()
            folder = Path(tempfile.mkdtemp(prefix="first-failure-"))
            try:
                told = crash(folder, options.size, what, offsets)
                verdict, words, took = told.verdict, told.words, f"{told.seconds:.1f} s"
            except AssertionError as error:
                verdict, words, took = "broken", str(error)[:2000], "-"
            counts[verdict] += 1
            print(f"{number + 1}: {verdict}: {what}: {words} ({took}, load {os.getloadavg()[0]:.0f})", flush=True)
            if options.keep and verdict != "right":
                shutil.copytree(folder, options.keep / f"{options.seed}-{number + 1}", dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    return 1 if counts["wrong"] or counts["broken"] or counts["probably"] * 10 > options.crashes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
