"""Faults for groups of real pods, and the witness that no two epochs met. Shared by all engines' tests.

What is expected when a part is frozen (SIGSTOP) stands beside its fault. A scenario breaks something of a rank; the
group must serve again by itself, with the cause kept.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launcher.engines import versions
from launcher.node.tree import Key, Proc, Table, scan
from tests.lifetimes import TICK, Ends, began, now
from tests.notices import Notices
from tests.pods import PodProcess, until
from tests.real.launched import LAUNCHER, LaunchedGroup

Fault = Callable[[LaunchedGroup, int], None]
Scenario = tuple[Fault, int]


class Witness:
    """Knows of every process of every engine when it began and when it ended, and so whether two epochs ever met.

    Beginnings are the kernel's, so it is enough to look ten times a second for what is new. A pod that was taken out of
    the group is looked at as long as it lives.
    """

    def __init__(self, group: LaunchedGroup) -> None:
        self._group = group
        self._programs: dict[int, tuple[int, PodProcess]] = {}  #: pid of a guard -> rank, program
        self._epochs: dict[Key, int] = {}
        self._words: dict[Key, str] = {}
        self._sessions: dict[int, int] = {}  #: session -> epoch
        self._ends = Ends()
        self._old = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Witness:
        """Everything that runs now is the old epoch."""
        self._old = int(self._group.status()["epoch"])
        self._ends.__enter__()
        self._look(self._old)
        assert self._epochs, "no engine runs"
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._ends.__exit__(*exception)

    def stopped(self) -> float | None:
        """When the last process of the old epoch had ended; None while one lives."""
        ends = [self._ends.at.get(key) for key, epoch in list(self._epochs.items()) if epoch == self._old]
        return None if None in ends else max(end for end in ends if end is not None)

    def check(self) -> None:
        """All processes of an epoch had ended before the first of a later one began."""
        for epoch in sorted(set(self._epochs.values())):
            later = [key for key, other in self._epochs.items() if other > epoch]
            if not later:
                return
            first = min(later, key=began)
            for key in (key for key, other in self._epochs.items() if other == epoch):
                end = self._ends.at.get(key)
                words = f"{self._words[key]} of epoch {epoch} "
                words += "still lives" if end is None else f"ended {end - began(first):.3f} s after"
                words += f", and {self._words[first]} of epoch {self._epochs[first]} began"
                assert end is not None and end <= began(first) + TICK, f"two epochs ran at once: {words}"

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self._look()

    def _look(self, epoch: int | None = None) -> None:
        for rank, program in list(self._group.processes.items()):
            self._programs[program.pid] = (rank, program)
        table = scan()
        for guard, (rank, program) in list(self._programs.items()):
            if program.returncode is not None:
                del self._programs[guard]
                continue
            for proc in table.below([guard]):  # parents first
                if proc.key in self._epochs:
                    continue
                found = epoch if epoch is not None and _is_engine(proc) else self._epoch_of(proc, guard, table)
                if found is not None:
                    self._epochs[proc.key] = found
                    self._words[proc.key] = f"rank {rank}: pid {proc.pid} ({_command(proc.pid)[:100]})"
                    self._sessions[proc.session] = found
                    self._ends.watch(proc.key)

    def _epoch_of(self, proc: Proc, guard: int, table: Table) -> int | None:
        """By its environment, or where it has overwritten that by its parent's or its session's; None: no engine's."""
        if not _is_engine(proc):
            return None
        environ = _read(f"/proc/{proc.pid}/environ").split(b"\0")
        for one in environ:
            if one.startswith(b"LAUNCHER_COOKIE=") and b"." in one:
                return int(one.rpartition(b".")[2])
        if proc.ppid == guard and any(one.startswith(b"PATH=") for one in environ):
            return None  # what the launcher asks in passing
        parent = table.procs.get(proc.ppid)
        known = self._epochs.get(parent.key) if parent else None
        return self._sessions.get(proc.session) if known is None else known


def _is_engine(proc: Proc) -> bool:
    """Not the launcher's own, nor what it asks in passing, nor what is ending and has no command line any more."""
    command = _command(proc.pid)
    return not proc.gone and bool(command) and not any(own in command for own in (str(LAUNCHER), versions.PREFIX))


def _command(pid: int) -> str:
    return _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


@dataclass(frozen=True)
class Survived:
    """What was measured of a fault. Seconds after it."""

    engine: str
    fault: str
    noticed: float | None  #: by the first line in the log of any launcher
    stopped: float
    serving: float
    failure: str

    @property
    def row(self) -> tuple[str, ...]:
        """As the table at the end of the session has it (tests/conftest.py)."""
        noticed = "-" if self.noticed is None else f"{self.noticed:.2f} s"
        return (self.engine, self.fault, noticed, f"{self.stopped:.2f} s", f"{self.serving:.2f} s", self.failure)


def survives(group: LaunchedGroup, engine: str, name: str, scenario: Scenario, seconds: float) -> Survived:
    """Break it, see it come back within ``seconds``. Returns what was measured; AssertionError with logs."""
    fault, rank = scenario
    epoch = int(group.status()["epoch"])
    notices = Notices(group)
    with Witness(group) as witness:
        wall, at = time.time(), now()
        fault(group, rank)
        status = group.until_serving(epoch + 1, seconds)
        serving = now() - at
    stopped, noticed = witness.stopped(), notices.first(wall)
    try:
        assert stopped is not None, "the old epoch still runs"
        witness.check()
        failure = status["first_failure"]
        assert failure is not None, "no cause was kept"
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}\n{group.logs()}") from None
    words = f"rank {failure['rank']}: {failure['text']}"
    if (failed := int(status["epoch"]) - epoch) > 1:
        words += f" ({failed} epochs failed until it served)"
    return Survived(engine, name, None if noticed is None else noticed - wall, stopped - at, serving, words)


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


def replace_while_cut(group: LaunchedGroup, rank: int) -> None:
    """A node is cut off and its pod deleted by force, as Kubernetes does: another takes the rank while its engine runs.

    Expected: the next epoch begins only when the lease of the first pod's engine is over, by which its guard has killed
    it; nobody can ask that guard.
    """
    former, program = group.pods.pop(rank), group.processes.pop(rank)
    former.give_up_name()
    group.pod(rank, ip=str(group.cluster.subnet[150 + rank]))
    former.link_down()
    group.start(rank)
    # With its engine the guard ends what it cannot reach; the launcher itself would wait for its leader for ever.
    until(lambda: not group.engine_processes_of(former), 60, "the guard of the cut off pod to kill its engine")
    program.kill_all()
    former.close()


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
    "node cut off, its rank taken by another pod, rank 2": (replace_while_cut, 2),
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
