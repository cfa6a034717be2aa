"""Five ranks, a random fault every few seconds, and in the end a group that serves.

    ./run.sh slow -m chaos tests/e2e/test_chaos.py

LAUNCHER_CHAOS_SECONDS (120) says how long, LAUNCHER_CHAOS_SEED replays the choices of a run (not its timing). All the
while no process of one epoch may live beside one of another; at the end nothing may be left over. The launcher of one
rank (drawn from the seed) is spared what would end it, so that in the end it is as old as the run, has seen all of it,
and may not have grown. What no launcher can help is not done to it: while a guard is frozen its rank is left alone, for
nobody could kill that rank's engine (docs/protocol.md, "one epoch").
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from launcher.node.tree import Key, read
from tests.e2e.group import Group, Witness, running

SIZE = 5
SECONDS = float(os.environ.get("LAUNCHER_CHAOS_SECONDS", "120"))
SEED = int(os.environ.get("LAUNCHER_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
ARGS = (
    *("--lease", "4", "--restart-backoff", "0.5", "--max-restarts", "1000000", "--restart-window", "1h"),
    *("--stop-grace", "1", "--drain-settle", "0.2", "--grace", "20"),
    *("--", "--shm-bytes", "100000"),
)


KILLS = ("kill_root", "kill_worker", "kill_agent", "kill_guard", "kill_all", "terminate", "terminate_twice")
STOPS = ("stop_worker", "stop_agent", "stop_guard", "stop_launcher")
#: What a launcher lives through. A guard that thaws ends an agent that has killed for it; a lone agent just rejoins.
SPARING = ("kill_root", "kill_worker", "stop_worker", "stop_agent")


class Chaos:
    """Does things to a group, and knows what it has done."""

    def __init__(self, group: Group, rng: random.Random) -> None:
        self.group, self.rng = group, rng
        self.spared = rng.randrange(SIZE)
        self.began = time.monotonic()
        self.done: Counter[str] = Counter()
        self.log: list[str] = []
        self.served = 0  #: the last epoch that was seen to serve
        self.thaw: dict[int, tuple[float, int, bool]] = {}  #: pid -> when, whose rank, whether it is a guard
        self.back: dict[int, float] = {}  #: rank -> when it is started again
        self.trees: dict[int, set[Key]] = {}  #: rank -> what ran there before its launcher was killed

    def fault(self) -> None:
        """One fault on one rank that can bear it."""
        frozen = {rank for _, rank, guard in self.thaw.values() if guard}
        able = [r for r in range(SIZE) if r not in self.back and r not in frozen and self.alive(r)]
        if not able:
            return
        rank = self.rng.choice(able)
        name = self.rng.choice(SPARING if rank == self.spared else (*KILLS, *STOPS, "kill_root", "kill_agent"))
        try:
            getattr(self, name)(rank)
        except (AssertionError, IndexError, StopIteration, ProcessLookupError):
            return  # there is no such process just now
        self.done[name] += 1
        self.log.append(f"{time.monotonic() - self.began:6.1f} s: {name} of rank {rank}")

    def alive(self, rank: int) -> bool:
        return self.group.processes[rank].poll() is None

    def kill_root(self, rank: int) -> None:
        os.kill(self.group.root(rank), signal.SIGKILL)

    def kill_worker(self, rank: int) -> None:
        os.kill(self.group.worker(rank), signal.SIGKILL)

    def kill_agent(self, rank: int) -> None:
        os.kill(self.group.agent(rank), signal.SIGKILL)

    def kill_guard(self, rank: int) -> None:
        self.trees[rank] = {p.key for p in self.group.tree(rank)}
        os.kill(self.group.guard(rank), signal.SIGKILL)
        self.back[rank] = time.monotonic() + self.rng.uniform(0, 4)

    def kill_all(self, rank: int) -> None:
        self.group.kill_rank(rank)
        self.back[rank] = time.monotonic() + self.rng.uniform(0, 8)

    def terminate(self, rank: int) -> None:
        self.group.terminate(rank)
        self.back[rank] = time.monotonic() + self.rng.uniform(0, 4)

    def terminate_twice(self, rank: int) -> None:
        self.group.terminate(rank)
        time.sleep(0.05)
        self.terminate(rank)

    def stop_worker(self, rank: int) -> None:
        self.freeze(self.group.worker(rank), rank, False)

    def stop_agent(self, rank: int) -> None:
        self.freeze(self.group.agent(rank), rank, False)

    def stop_guard(self, rank: int) -> None:
        if any(whose == rank for _, whose, _ in self.thaw.values()):
            raise AssertionError("with its agent frozen too nobody could kill its engine")
        self.freeze(self.group.guard(rank), rank, True)

    def stop_launcher(self, rank: int) -> None:
        """Guard and agent, while the engine runs on: its peers stop, and the next epoch waits for it."""
        if any(whose == rank for _, whose, _ in self.thaw.values()):
            raise AssertionError("part of it is frozen already")
        agent, seconds = self.group.agent(rank), self.rng.uniform(0.2, 9)
        self.freeze(self.group.guard(rank), rank, True, seconds)
        self.freeze(agent, rank, True, seconds)

    def freeze(self, pid: int, rank: int, guard: bool, seconds: float = 0.0) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.thaw[pid] = (time.monotonic() + (seconds or self.rng.uniform(0.2, 9)), rank, guard)

    def mend(self, *, now: bool = False) -> None:
        """Thaw and start again what is due."""
        at = time.monotonic()
        for pid, (due, _, _) in list(self.thaw.items()):
            if now or at >= due:
                del self.thaw[pid]
                if (found := read(pid)) is not None and found.stopped:
                    os.kill(pid, signal.SIGCONT)
        for rank in range(SIZE):
            if self.alive(rank) or not (now or at >= self.back.get(rank, 0)) or not self.buried(rank):
                continue
            self.back.pop(rank, None)
            self.group.restart(rank)
            self.log.append(f"{at - self.began:6.1f} s: rank {rank} is started again")

    def buried(self, rank: int) -> bool:
        """A container's processes are gone before the next one starts."""
        return not any(
            (p := read(pid)) and p.key == (pid, start) and not p.gone for pid, start in self.trees.get(rank, ())
        )


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + 300)
def test_chaos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tell(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    tell(f"\nchaos for {SECONDS:g} s; replay with LAUNCHER_CHAOS_SEED={SEED}")
    with running(tmp_path, SIZE, *ARGS) as group, Witness(group) as witness:
        group.until_serving()
        chaos = Chaos(group, random.Random(SEED))
        spared = (group.guard(chaos.spared), group.agent(chaos.spared))
        try:
            storm(chaos, chaos.began + SECONDS / 8)  # by then it has imported what it needs of all this
            before = group.resident(chaos.spared)
            storm(chaos, chaos.began + SECONDS)
            calm = time.monotonic()
            group.until("everybody is back", lambda: settle(chaos))
            group.until_serving(patience=90)
            witness.check()
        except BaseException:
            tell("\n".join(chaos.log))
            raise
        tell(f"{sum(chaos.done.values())} faults, {group.epoch()} epochs: {dict(sorted(chaos.done.items()))}")
        tell(f"serving {time.monotonic() - calm:.1f} s after the last fault; {len(group.engines())} engine processes")
        assert (group.guard(chaos.spared), group.agent(chaos.spared)) == spared, "\n".join(chaos.log)
        after = group.resident(chaos.spared)
        tell(
            f"resident KiB of guard and agent of rank {chaos.spared}, never killed: {before} at first, {after} at last"
        )
        assert len(group.engines()) == 2 * SIZE
        assert after[0] < 1.15 * before[0] and after[1] < 1.15 * before[1]
        failed = [line for rank in range(SIZE) for line in group.output(rank).splitlines() if "Traceback" in line]
        assert not failed, failed


def storm(chaos: Chaos, until: float) -> None:
    """Faults while the group recovers from others, and faults while it serves."""
    rng = chaos.rng
    while time.monotonic() < until:
        chaos.fault()
        if rng.random() < 0.25:
            chaos.fault()
        patient = rng.random() < 0.6
        end = time.monotonic() + (20.0 if patient else rng.uniform(0, 3))
        while time.monotonic() < min(end, until):
            chaos.mend()
            time.sleep(0.1)
            if patient and chaos.group.serves(after=chaos.served):
                chaos.served = chaos.group.epoch()
                break


def settle(chaos: Chaos) -> bool:
    chaos.mend(now=True)
    return all(map(chaos.alive, range(SIZE)))
