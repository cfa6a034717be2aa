"""A short subset for CI: ratios, never times, each against what was recorded on the day it was last looked at.

Every ratio is taken within one run, contestants alternating, so a slow or busy machine slows both sides of it. A ratio
fails when it is more than twice the recorded one in the best of three tries; one good try is enough, for a neighbour
can only make things worse. No root, no network but loopback.

start handoff, start supervised   wall time from process start to engine exec, over `python3 -c pass`
start CPU                         CPU time of a launcher with --handoff up to the engine's exec, over the same
formation                         CPU time of the leader for a group of 128, over that of a plain WebSocket server to
                                  which as many clients connect and say as many words
memory                            PSS of guard and agent of that leader, over that of the plain server before anybody
                                  came
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import costs, overhead, scale
from benchmarks.record import aligned, machine
from benchmarks.rounds import alternate, progress

BASELINE = Path(__file__).with_name("ci.json")
WORSE = 2.0
TRIES = 3
SIZE = 128
START_ROUNDS = 7


def main(update: bool) -> int:
    """Print what was found; 1 if a ratio is more than ``WORSE`` times the recorded one in every try."""
    recorded: dict[str, float] = {} if update else json.loads(BASELINE.read_text(encoding="utf-8"))["ratios"]
    best: dict[str, float] = {}
    for number in range(TRIES):
        began = time.monotonic()
        wanted = [name for name in MEASURES if update or _worse(best.get(name), recorded.get(name))]
        if not wanted:
            break
        for measure in dict.fromkeys(MEASURES[name] for name in wanted):
            for name, ratio in measure().items():
                best[name] = min(ratio, best.get(name, ratio))
        progress(f"try {number + 1} of {TRIES}: {time.monotonic() - began:.1f} s")
    if update:
        body = {"machine": machine(), "ratios": {name: round(ratio, 3) for name, ratio in best.items()}}
        BASELINE.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        recorded = best
    rows = [("ratio", "now", "recorded", "fails above", "")]
    for name, ratio in best.items():
        bad = _worse(ratio, recorded.get(name))
        limit = WORSE * recorded[name]
        rows.append((name, f"{ratio:.2f}", f"{recorded[name]:.2f}", f"{limit:.2f}", "WORSE" if bad else "fine"))
    print(aligned(rows, left=1))
    failed = [name for name in MEASURES if _worse(best[name], recorded.get(name))]
    if failed:
        print(
            f"benchmarks ci: {', '.join(failed)}: more than {WORSE:g} x what {BASELINE.name} says, {TRIES} times\n"
            "  fix: find out why (python -m benchmarks overhead), or if it is meant: python -m benchmarks ci --update"
        )
    return int(bool(failed))


def _worse(ratio: float | None, recorded: float | None) -> bool:
    """Not yet known to be good."""
    return ratio is None or recorded is None or ratio > WORSE * recorded


# ---------------------------------------------------------------------------------------------------------- start


def start() -> dict[str, float]:
    """Wall time to the engine's exec, over the least that a Python program takes."""
    with tempfile.TemporaryDirectory(prefix="launcher-bench-") as folder:
        ways = overhead.contestants(Path(folder))
        took: dict[str, list[float]] = {name: [] for name in ways}
        for name in alternate([name for name in ways if name != "direct exec"], START_ROUNDS, "ci: start"):
            fifo = None if name == overhead.FLOOR else Path(folder) / "started"
            took[name].append(overhead.seconds_to_exec(ways[name], fifo))
    floor = min(took[overhead.FLOOR])
    return {
        "start handoff": min(took["launcher --handoff"]) / floor,
        "start supervised": min(took["launcher"]) / floor,
    }


def start_cpu() -> dict[str, float]:
    """CPU time, which a busy machine hardly changes."""
    with tempfile.TemporaryDirectory(prefix="launcher-bench-") as folder:
        ways = overhead.contestants(Path(folder))
        used: dict[str, list[float]] = {}
        for name in alternate([overhead.FLOOR, "launcher --handoff"], START_ROUNDS, "ci: start CPU"):
            with open(os.open(Path(folder) / "started", os.O_RDONLY | os.O_NONBLOCK)):
                used.setdefault(name, []).append(_cpu_of(ways[name]))
    return {"start CPU": min(used["launcher --handoff"]) / min(used[overhead.FLOOR])}


def _cpu_of(argv: list[str]) -> float:
    """User and system seconds of a command and its children."""
    null, env = subprocess.DEVNULL, overhead.plain_environment()
    process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


# ------------------------------------------------------------------------------------------------ group and memory


def group() -> dict[str, float]:
    """A group of 128 on one leader: what forming it and holding it costs that leader."""
    with scale.crowd(SIZE) as crowd:
        before = crowd.cpu()
        crowd.do("dial", crowd.ranks)
        crowd.until("serving", SIZE - 1)
        used, memory = crowd.cpu() - before, crowd.memory()
    with subprocess.Popen([sys.executable, "-c", PLAIN], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        least = costs.pss([server.pid])
        before = costs.cpu_seconds([server.pid])
        asyncio.run(_clients(port))
        plain = costs.cpu_seconds([server.pid]) - before
        server.kill()
    return {"formation": used / plain, "memory": memory / least}


PLAIN = """
import asyncio
from websockets.asyncio.server import serve
async def echo(connection):
    async for text in connection:
        await connection.send(text)
async def main():
    async with serve(echo, "127.0.0.1", 0, compression=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()
asyncio.run(main())
"""

WORDS = 8  #: a member says about as much until it serves: hello, prepared, done, pings


async def _clients(port: int) -> None:
    from websockets.asyncio.client import connect

    async def client() -> None:
        async with connect(f"ws://127.0.0.1:{port}/", compression=None, open_timeout=60) as connection:
            for _ in range(WORDS):
                await connection.send("x" * 200)
                await connection.recv()

    await asyncio.gather(*(client() for _ in range(SIZE - 1)))


Measure = Callable[[], Mapping[str, Any]]
MEASURES: dict[str, Measure] = {
    "start handoff": start,
    "start supervised": start,
    "start CPU": start_cpu,
    "formation": group,
    "memory": group,
}

if __name__ == "__main__":
    sys.exit(main(update=False))
