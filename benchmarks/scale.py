"""How a group grows: one real leader (guard and agent), and up to 1,023 members that are real to it.

Each member has its own connection and its own state machine; they live many to a process (scale_members.py), on the
same cores as the leader. Nothing real runs behind them, so what is measured is the protocol, the link and the leader.

formation   all but one are seated; the last one dials: until `start` is at every member
at once     all dial in the same moment: until `start` is at every member
stop        the engine of one member fails: until `stop` is at every member
idle        the group serves: CPU and memory of the leader
storm       one member is missing and a tenth of the others reconnect every second: CPU of the leader, time from hello
            to accepted; then the storm ends, the last one dials: until `start` is at every member
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import costs, plot
from benchmarks.record import ROOT, Budget, Record
from benchmarks.rounds import alternate, progress
from launcher.planning import steps
from launcher.settings import Settings
from tests.real.launched import LAUNCHER

ROUNDS = 3
SIZES = (2, 8, 32, 128, 512, 1024)
CASES = tuple(f"size {size}" for size in SIZES)
FLOOR = None
WHO = "launcher"
LAST, AT_ONCE, STOP = "last member dials to start at all", "all dial at once to start at all", "failure to stop at all"
MEMORY, EACH, IDLE = "PSS of the leader", "PSS for each member", "CPU of the leader while it serves"
STORM_CPU, STORM_WAIT = "CPU of the leader in a storm of reconnects", "hello to accepted in the storm"
STORM_AFTER = "last member dials after the storm to start at all"
FAILED = "tries without a group within a minute"
IDLE_SECONDS = 10.0
STORM_SECONDS = 10.0
PATIENCE = 60.0
PER_PROCESS = 512  #: members
GROUP = "bench/scale"

BUDGETS = (
    Budget("size 2, last member to start at all [s]", "size 2", LAST, WHO, 0.1),
    Budget("size 1,024, last member to start at all [s]", "size 1024", LAST, WHO, 3.0),
    Budget("size 1,024, all at once to start at all [s]", "size 1024", AT_ONCE, WHO, 3.0),
)


def run(record: Record, rounds: int, cases: list[str]) -> None:
    """Measure the sizes asked for, one after the other in each round."""
    _raise_file_limit()
    for case in alternate([c for c in CASES if c in cases], rounds, "scale"):
        size = int(case.split()[1])
        for measure in (_at_once, _last_and_stop, *((_storm,) if size > 2 else ())):
            with crowd(size) as group:
                try:
                    measure(record, case, group)
                except NoGroup as error:
                    progress(f"{case}: {error}")
                    record.add(case, FAILED, "tries", WHO, 1)
        progress(case)


# ------------------------------------------------------------------------------------------------------ the group


class NoGroup(RuntimeError):
    """The group did not get so far in time: this machine is too slow, or too busy, for so many."""


class Crowd:
    """A leader, and processes of members."""

    def __init__(self, size: int, leader: subprocess.Popen[bytes], log: Path, homes: list[Home]) -> None:
        self.size = size
        self.leader = leader
        self._log = log
        self._homes = homes

    @property
    def ranks(self) -> list[int]:
        return list(range(1, self.size))

    def do(self, word: str, ranks: list[int], **more: Any) -> None:
        """An order to the processes of these members; all are sent before the first answer is read."""
        asked = [(home, [r for r in ranks if r in home.ranks]) for home in self._homes]
        asked = [(home, mine) for home, mine in asked if mine]
        for home, mine in asked:
            home.say({"do": word, "ranks": mine, "rank": mine[0], **more})
        for home, _ in asked:
            home.hear()

    def told(self) -> dict[str, Any]:
        """What happened since the last reset, all processes together."""
        for home in self._homes:
            home.say({"do": "tell"})
        marks: dict[str, list[float]] = {}
        waits: list[float] = []
        failures: list[str] = []
        for home in self._homes:
            said = home.hear()
            waits += said["waits"]
            failures += said["failures"]
            for what, (count, first, last) in said["marks"].items():
                found = marks.setdefault(what, [0, first, last])
                found[0] += count
                found[1:] = [min(found[1], first), max(found[2], last)]
        return {"marks": marks, "waits": waits, "failures": failures}

    def reset(self) -> None:
        self.do("reset", self.ranks)

    def until(self, what: str, count: int) -> dict[str, Any]:
        """What is told once ``what`` has happened to ``count`` members."""
        deadline = time.monotonic() + PATIENCE
        while True:
            said = self.told()
            if said["marks"].get(what, [0])[0] >= count:
                return said
            if self.leader.poll() is not None or time.monotonic() > deadline:
                seen = {mark: found[0] for mark, found in said["marks"].items()}
                last = "\n".join(self._log.read_text().splitlines()[-5:])
                raise NoGroup(
                    f"{what} not at {count} members within {PATIENCE:g} s: {seen}, {said['failures']}\n{last}"
                )
            time.sleep(0.05)

    def cpu(self) -> float:
        return costs.cpu_seconds(costs.guard_and_agent(self.leader.pid))

    def memory(self) -> float:
        return costs.pss(costs.guard_and_agent(self.leader.pid))


class Home:
    """One process of members."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.ranks = set(spec["ranks"])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale_members", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self.hear()

    def say(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of members has ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def crowd(size: int) -> Iterator[Crowd]:
    """A leader that waits for ``size`` - 1 members, none of which has dialled yet."""
    prefix = f"127.{os.getpid() % 200 + 20}.{time.monotonic_ns() // 1000 % 250 + 1}"
    leader, port = f"{prefix}.1", 9470
    with tempfile.TemporaryDirectory(prefix="launcher-bench-") as folder, contextlib.ExitStack() as closing:
        file, log = Path(folder) / "no-op.toml", Path(folder) / "log"
        file.write_text('name = "no-op"\n[all]\ncommand = ["sleep", "infinity"]\n')
        settings = Settings(engine_file=str(file), max_restarts=1000)
        spec = {
            "size": size,
            "leader": leader,
            "port": port,
            "group": GROUP,
            "lease": settings.lease,
            "fingerprint": _fingerprint(settings),
        }
        process = _start_leader(file, log, size, leader)
        closing.callback(_end, process)
        homes: list[Home] = []
        for first in range(1, size, PER_PROCESS):
            homes.append(Home({**spec, "ranks": list(range(first, min(first + PER_PROCESS, size)))}))
            closing.callback(homes[-1].close)
        _wait(lambda: b"waiting for" in log.read_bytes(), process, log)
        yield Crowd(size, process, log, homes)


def _fingerprint(settings: Settings) -> dict[str, str]:
    """What the leader will find out of itself, so that the members are like it."""

    async def ask(argv: Sequence[str], timeout: float) -> tuple[int, str]:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout)  # noqa: ASYNC221
        return done.returncode, done.stdout

    engine = steps.engine_of(settings)
    facts = asyncio.run(steps.learn(settings, engine, os.environ, ask))
    return steps.fingerprint(settings, engine, facts)


def _start_leader(file: Path, log: Path, size: int, address: str) -> subprocess.Popen[bytes]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCHER_", "POD_"))}
    identity = ["--rank", "0", "--size", str(size), "--leader", address, "--address", address, "--group-id", GROUP]
    with log.open("wb") as out:
        return subprocess.Popen(
            [str(LAUNCHER), "--engine-file", str(file), "--max-restarts", "1000", *identity],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environ,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Two SIGTERMs are an order to stop now; a leader that does not is killed."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        for _ in range(2):
            process.terminate()
            process.wait(1.0)
    process.kill()
    process.wait()


def _wait(true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the leader did not begin to wait: {log.read_text()[-3000:]}")
        time.sleep(0.02)


def _raise_file_limit() -> None:
    """1,024 connections need more than the 1,024 descriptors that a shell may give."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --------------------------------------------------------------------------------------------------------- measures


def _took(said: dict[str, Any], begin: str, end: str) -> float:
    """Seconds from the first ``begin`` to the last ``end``."""
    return float(said["marks"][end][2] - said["marks"][begin][1])


def _at_once(record: Record, case: str, group: Crowd) -> None:
    group.do("dial", group.ranks)
    record.add(case, AT_ONCE, "s", WHO, _took(group.until("started", group.size - 1), "dialled", "started"))


def _seat_all_but_the_last(group: Crowd) -> None:
    if group.size > 2:
        group.do("dial", group.ranks[:-1])
        group.until("accepted", group.size - 2)
        time.sleep(2.0)  # four beats: all have proven their leases, and what the arrival cost is paid
    group.reset()


def _last_and_stop(record: Record, case: str, group: Crowd) -> None:
    _seat_all_but_the_last(group)
    group.do("dial", group.ranks[-1:])
    record.add(case, LAST, "s", WHO, _took(group.until("started", group.size - 1), "dialled", "started"))
    group.until("serving", group.size - 1)
    time.sleep(2.0)
    before, began = group.cpu(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    record.add(case, IDLE, "% of a core", WHO, 100 * (group.cpu() - before) / (time.monotonic() - began))
    memory = group.memory()
    record.add(case, MEMORY, "MiB", WHO, memory)
    least = record.find(CASES[0], MEMORY, WHO)
    if group.size > 2 and least is not None:
        record.add(case, EACH, "KiB", WHO, 1024 * (memory - least.median) / (group.size - 2))
    group.reset()
    group.do("fail", group.ranks[:1])
    record.add(case, STOP, "s", WHO, _took(group.until("stopped", group.size - 1), "failed", "stopped"))


def _storm(record: Record, case: str, group: Crowd) -> None:
    _seat_all_but_the_last(group)
    before, began = group.cpu(), time.monotonic()
    group.do("churn", group.ranks[:-1], share=0.1, seconds=STORM_SECONDS)
    time.sleep(STORM_SECONDS)
    used, took = group.cpu() - before, time.monotonic() - began
    waits = sorted(1000 * wait for wait in group.told()["waits"])
    record.add(case, STORM_CPU, "% of a core", WHO, 100 * used / took)
    record.add(case, STORM_WAIT, "ms", WHO, *waits[:: max(1, len(waits) // 100)])
    time.sleep(1.0)
    group.reset()
    group.do("dial", group.ranks[-1:])
    record.add(case, STORM_AFTER, "s", WHO, _took(group.until("started", group.size - 1), "dialled", "started"))


# -------------------------------------------------------------------------------------------------------------- plot


def draw(record: Record, path: Path) -> None:
    """Each measure over the size of the group."""
    measures = (LAST, AT_ONCE, STOP, MEMORY, IDLE, STORM_CPU)
    figure, axes = plot.figure_of(2, 3)
    for index, measure in enumerate(measures):
        points = [(int(one.case.split()[1]), one) for one in record.series if one.measure == measure]
        if points:
            plot.curve(axes[index // 3][index % 3], sorted(points, key=lambda pair: pair[0]), measure)
    plot.save(figure, path, record)
