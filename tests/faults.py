"""Faults for groups of real pods, and the witness that no two epochs ran at once. Shared by all engines' tests.

What is expected when a part is frozen (SIGSTOP) stands beside its fault. A scenario breaks something of a rank; the
group must serve again by itself, with the cause kept.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping

from tests.pods import until
from tests.real.launched import LAUNCHER, LaunchedGroup

Fault = Callable[[LaunchedGroup, int], None]
Scenario = tuple[Fault, int]


class Witness:
    """Looks at all processes of all pods ten times a second; knows whether two epochs ever ran at the same time."""

    def __init__(self, group: LaunchedGroup) -> None:
        self._group = group
        self._stop = threading.Event()
        self._old: dict[tuple[int, int], str] = {}
        self.mixed = ""
        self.gone_at: float | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self) -> None:
        """Everything that runs now is the old epoch."""
        self._old = self._alive()
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _alive(self) -> dict[tuple[int, int], str]:
        return {
            (p.pid, p.started): f"rank {rank}: {p.command[:200]}"
            for rank in list(self._group.pods)
            for p in self._group.engine_processes(rank)
        }

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            alive = self._alive()
            old = [words for key, words in alive.items() if key in self._old]
            # what ends has no command line any more; a launcher that is killed looks so for a moment
            new = [words for key, words in alive.items() if key not in self._old and not words.endswith("]")]
            if not old and self.gone_at is None:
                self.gone_at = time.monotonic()
            if old and new and not self.mixed:
                self.mixed = f"old {old} beside new {new}"


def survives(group: LaunchedGroup, name: str, scenario: Scenario, seconds: float) -> str:
    """Break it, see it come back within ``seconds``. Returns what was measured, in a line; AssertionError with logs."""
    fault, rank = scenario
    epoch = group.status()["epoch"]
    witness = Witness(group)
    witness.begin()
    began = time.monotonic()
    fault(group, rank)
    status = group.until_serving(epoch + 1, seconds)
    back = time.monotonic() - began
    witness.end()
    assert not witness.mixed, f"{name}: two epochs ran at once: {witness.mixed}\n{group.logs()}"
    assert witness.gone_at is not None, f"{name}: the old epoch still runs\n{group.logs()}"
    failure = status["first_failure"]
    assert failure is not None, f"{name}: no cause was kept\n{group.logs()}"
    return (
        f"{name:<45} old epoch dead {witness.gone_at - began:6.2f} s  serving {back:6.2f} s  "
        f"rank {failure['rank']}: {failure['text']}"
    )


def _launcher_pids(group: LaunchedGroup, rank: int) -> tuple[int, int]:
    """(guard, agent) as the machine sees them."""
    own = [p for p in group.pods[rank].processes() if str(LAUNCHER) in p.command and p.state != "Z"]
    guard = next(p for p in own if p.pid_inside == 1)
    return guard.pid, next(p.pid for p in own if p.parent == guard.pid)


def recreate(group: LaunchedGroup, rank: int, ip: str | None = None) -> None:
    """The pod is deleted and made anew, as Kubernetes does: with another address."""
    old = group.pods.pop(rank)
    group.processes.pop(rank).kill_all()
    old.close()
    group.pod(rank, ip=ip)
    group.start(rank)


def kill_engine(group: LaunchedGroup, rank: int) -> None:
    os.kill(group.engine_processes(rank)[0].pid, signal.SIGKILL)


def kill_agent(group: LaunchedGroup, rank: int) -> None:
    os.kill(_launcher_pids(group, rank)[1], signal.SIGKILL)


def kill_guard(group: LaunchedGroup, rank: int) -> None:
    """PID 1 dies, and with it everything in the pod; the kubelet starts the container again."""
    os.kill(_launcher_pids(group, rank)[0], signal.SIGKILL)
    until(lambda: group.processes[rank].returncode is not None, 30, "the container to end")
    group.start(rank)


def recreate_pod(group: LaunchedGroup, rank: int) -> None:
    recreate(group, rank, ip=str(group.cluster.subnet[100 + rank]))


def stop_engine(group: LaunchedGroup, rank: int) -> None:
    """Expected: after 5 s in state T the epoch ends on all ranks."""
    for p in group.engine_processes(rank):
        os.kill(p.pid, signal.SIGSTOP)


def stop_agent(group: LaunchedGroup, rank: int) -> None:
    """Expected: the guard kills its engine when the lease runs out; the others stop; it rejoins when it thaws."""
    pid = _launcher_pids(group, rank)[1]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: not group.engine_processes(rank), 30, "the guard to kill the engine of a frozen agent")
    os.kill(pid, signal.SIGCONT)


def stop_guard(group: LaunchedGroup, rank: int) -> None:
    """Expected: the agent misses the guard's answers, kills the engine itself, and the guard's thaw ends the pod."""
    guard, _ = _launcher_pids(group, rank)
    os.kill(guard, signal.SIGSTOP)
    until(lambda: not group.engine_processes(rank), 40, "the engine to be ended for a frozen guard")
    os.kill(guard, signal.SIGCONT)
    with_time = time.monotonic() + 15
    while time.monotonic() < with_time and group.processes[rank].returncode is None:
        time.sleep(0.1)
    if group.processes[rank].returncode is not None:
        group.start(rank)


def stop_pod(group: LaunchedGroup, rank: int) -> None:
    """Expected: the others stop within the lease and wait for it; its guard kills its engine the moment it thaws."""
    pod = group.pods[rank]
    pod.freeze()
    _pass(20)
    pod.thaw()


def _pass(seconds: float) -> None:
    began = time.monotonic()
    until(lambda: time.monotonic() - began > seconds, seconds + 10)


def cut(seconds: float, how: str) -> Fault:
    """The pod's network fails for a time: ``link``, or packets lost ``in``, ``out``."""

    def fault(group: LaunchedGroup, rank: int) -> None:
        pod = group.pods[rank]
        pod.link_down() if how == "link" else pod.drop(how)  # type: ignore[arg-type]
        _pass(seconds)
        pod.link_up() if how == "link" else pod.undrop(how)  # type: ignore[arg-type]

    return fault


def wrong_dns(group: LaunchedGroup, rank: int) -> None:
    """The leader is made anew, and for a minute its name leads to an address where nobody is."""
    fqdn = group.pods[0].fqdn
    recreate(group, 0, ip=str(group.cluster.subnet[120]))
    group.cluster.dns.set(fqdn, str(group.cluster.subnet[200]))
    _pass(60)
    group.cluster.dns.set(fqdn, group.pods[0].ip)


#: On four ranks. Which rank does what: rank 0 leads.
ON_FOUR: Mapping[str, Scenario] = {
    "kill -9 engine, rank 2": (kill_engine, 2),
    "kill -9 engine, rank 0": (kill_engine, 0),
    "kill -9 agent, rank 3": (kill_agent, 3),
    "kill -9 agent, rank 0": (kill_agent, 0),
    "kill -9 guard (container), rank 1": (kill_guard, 1),
    "kill -9 guard (container), rank 0": (kill_guard, 0),
    "pod recreated with another address, rank 2": (recreate_pod, 2),
    "leader pod recreated with another address": (recreate_pod, 0),
    "SIGSTOP engine, rank 1": (stop_engine, 1),
    "SIGSTOP agent, rank 2": (stop_agent, 2),
    "SIGSTOP agent, rank 0": (stop_agent, 0),
    "SIGSTOP guard, rank 1": (stop_guard, 1),
    "SIGSTOP the whole pod for 20 s, rank 3": (stop_pod, 3),
    "link down 30 s, rank 3": (cut(30, "link"), 3),
    "link down 15 s, rank 0": (cut(15, "link"), 0),
    "packets to rank 1 lost 15 s": (cut(15, "in"), 1),
    "packets from rank 1 lost 15 s": (cut(15, "out"), 1),
    "DNS wrong for 60 s, leader recreated": (wrong_dns, 0),
}

#: The same on two.
ON_TWO: Mapping[str, Scenario] = {
    name.replace(f"rank {rank}", f"rank {min(rank, 1)}"): (fault, min(rank, 1))
    for name, (fault, rank) in ON_FOUR.items()
}
