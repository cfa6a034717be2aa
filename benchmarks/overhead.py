"""What the launcher costs one pod: time from process start to the engine's exec, imports, memory, CPU when steady.

start    the same no-op engine, whose first act is to open a FIFO: executed directly, by `launcher --handoff`, and by
         the launcher that stays (supervised); and `python3 -c pass`, the least that any Python entrypoint costs
imports  where the start of a launcher that stays goes: self time of imports by package, up to the engine's start
steady   a group of pods with the reference engine and no requests: memory (PSS) and CPU of guard and agent together,
         on the leader and on a worker, over a minute a round
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import costs, plot
from benchmarks.pods import group_of, need_pods
from benchmarks.record import Budget, Record
from benchmarks.rounds import alternate, progress
from tests.real.launched import LAUNCHER, LaunchedGroup

ROUNDS = 20
CASES = ("start", "imports", "steady-2", "steady-64")
FLOOR = "python3 -c pass"
EXEC, PSS, CPU = "process start to engine exec", "PSS of guard and agent", "CPU of guard and agent"
STEADY_SECONDS = 60.0
STEADY_ROUNDS = 3
SETTLE_SECONDS = 10.0  #: after the start, before a minute is taken

BUDGETS = (
    Budget("size 1, handoff", "start", EXEC, "launcher --handoff", 20, against=FLOOR),
    Budget("size 1, supervised", "start", EXEC, "launcher", 20, against=FLOOR),
    *(
        budget
        for size in (2, 64)
        for who in ("leader", "worker")
        for budget in (
            Budget(f"memory of the {who}, size {size} [MiB]", f"steady-{size}", PSS, who, 40, statistic="max"),
            Budget(f"CPU of the {who}, size {size} [% of a core]", f"steady-{size}", CPU, who, 0.5),
        )
        if (who, size, budget.measure) != ("leader", 64, CPU)  # it hears every member; the budget is that of size 2
    ),
)


def run(record: Record, rounds: int, cases: list[str]) -> None:
    """Measure. ``rounds`` are those of `start`; a steady minute is taken three times at most."""
    if "start" in cases:
        starts(record, rounds)
    if "imports" in cases:
        imports(record, min(rounds, 10))
    for size in (2, 64):
        if f"steady-{size}" in cases:
            steady(record, size, min(rounds, STEADY_ROUNDS))


# ---------------------------------------------------------------------------------------------------------- start


def starts(record: Record, rounds: int) -> None:
    """Seconds to the engine's exec, contestants alternating."""
    with tempfile.TemporaryDirectory(prefix="launcher-bench-") as folder:
        for name, argv in alternate(list(contestants(Path(folder)).items()), rounds, "start"):
            fifo = Path(folder) / "started"
            record.add("start", EXEC, "ms", name, 1000 * seconds_to_exec(argv, None if name == FLOOR else fifo))


def contestants(folder: Path) -> dict[str, list[str]]:
    """Command lines; each ends by itself, and all but `python3 -c pass` open the FIFO ``folder/started``."""
    fifo, file = folder / "started", folder / "no-op.toml"
    os.mkfifo(fifo)
    engine = ["/bin/sh", "-c", f": > {fifo}"]
    file.write_text(f'name = "no-op"\ncompletes = true\n[all]\ncommand = ["/bin/sh", "-c", ": > {fifo}"]\n')
    launcher = [str(LAUNCHER), "--engine-file", str(file), "--agent-port", str(_free_port())]
    return {
        FLOOR: [sys.executable, "-c", "pass"],
        "direct exec": engine,
        "launcher --handoff": [*launcher, "--handoff"],
        "launcher": launcher,
    }


def seconds_to_exec(argv: list[str], fifo: Path | None, patience: float = 60.0) -> float:
    """From the start of ``argv`` to the moment the FIFO is opened by whoever becomes the engine; None: to its end.

    A launcher that stays is killed then; what it had still to do does not run into the next measurement.
    """
    opened = select.poll()
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK) if fifo else -1
    began = time.perf_counter()
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=plain_environment()
    )
    try:
        if fifo:
            opened.register(reader, select.POLLIN)  # a writer that came and went is a hang-up
            done = bool(opened.poll(patience * 1000))
        else:
            done = process.wait(patience) == 0
        took = time.perf_counter() - began
    finally:
        process.kill()
        _, said = process.communicate(timeout=patience)  # until the agent, too, has let go of the pipe
        if fifo:
            os.close(reader)
    if not done:
        raise RuntimeError(f"{' '.join(argv)}: no engine within {patience:g} s: {said.decode(errors='replace')}")
    return took


def plain_environment() -> dict[str, str]:
    """Nothing that says who this pod is, or that changes how Python starts."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCHER_", "POD_", "PYTHON"))}


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# -------------------------------------------------------------------------------------------------------- imports


def imports(record: Record, rounds: int, shown: int = 12) -> None:
    """Self time of imports by top-level package, guard and agent together (-X importtime slows all alike).

    What serves the pages is imported after the engine's start and does not count.
    """
    with tempfile.TemporaryDirectory(prefix="launcher-bench-") as folder:
        command = contestants(Path(folder))["launcher"]  # its engine ends, and so does it
        samples: list[Counter[str]] = []
        for _ in alternate([command], rounds, "imports"):
            asked = {**plain_environment(), "PYTHONPROFILEIMPORTTIME": "1"}
            with open(os.open(Path(folder) / "started", os.O_RDONLY | os.O_NONBLOCK)):
                done = subprocess.run(command, env=asked, capture_output=True, text=True, check=True, timeout=60)
            samples.append(by_package(done.stderr.partition(" stage started ")[0]))
    average: Counter[str] = Counter()
    for sample in samples:
        average.update(sample)
    for package, _ in average.most_common(shown):
        record.add("imports", "self time", "ms", package, *(sample[package] / 1000 for sample in samples))
    record.add("imports", "self time", "ms", "all packages", *(sample.total() / 1000 for sample in samples))


def by_package(text: str) -> Counter[str]:
    """Microseconds of self time by top-level package, from what -X importtime prints."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if not line.startswith("import time:") or len(fields) != 3 or not fields[0].strip().isdigit():
            continue
        found[fields[2].strip().partition(".")[0]] += int(fields[0])
    return found


# --------------------------------------------------------------------------------------------------------- steady


def steady(record: Record, size: int, rounds: int) -> None:
    """PSS and CPU of the launcher's processes of rank 0 and of rank 1, in pods that have their own /proc."""
    need_pods()
    case = f"steady-{size}"
    with group_of(size, ["--engine", "reference"]) as group:
        time.sleep(SETTLE_SECONDS)
        ranks = {"leader": 0, "worker": 1}
        for _ in range(rounds):
            before = {who: _cpu(group, rank) for who, rank in ranks.items()}
            began = time.monotonic()
            time.sleep(STEADY_SECONDS)
            took = time.monotonic() - began
            for who, rank in ranks.items():
                used = _cpu(group, rank) - before[who]
                record.add(case, CPU, "% of a core", who, 100 * used / took)
                record.add(case, PSS, "MiB", who, costs.pss(costs.guard_and_agent(group.processes[rank].pid)))
            progress(f"{case}: a minute")


def _cpu(group: LaunchedGroup, rank: int) -> float:
    return costs.cpu_seconds(costs.guard_and_agent(group.processes[rank].pid))


# ----------------------------------------------------------------------------------------------------------- plot


def draw(record: Record, path: Path) -> None:
    """Boxes for all but the imports, which are many."""
    plot.boxes(record, path, lambda one: one.case != "imports" or one.contestant in _biggest(record), columns=3)


def _biggest(record: Record) -> list[str]:
    found = [one for one in record.series if one.case == "imports" and one.contestant != "all packages"]
    return [one.contestant for one in sorted(found, key=lambda one: -one.median)[:6]]
