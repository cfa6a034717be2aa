"""Runs one rank's stages: has the guard start their processes, waits for their gates, and reports how each one ended.

It gets a plan when an epoch is prepared, a stage number when the leader starts a stage, and every report of the guard.
Its callbacks say that a stage is done, that something broke (how many seconds ago, and how much earlier it may have
been), or that a process ended which our own stop had reached. It decides nothing.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.common import tasks
from launcher.common.last_lines import LastLines, Lines, probes_of, without_colours
from launcher.common.text import signal_name
from launcher.guard import channel as guard
from launcher.model import TOLD_TO_STOP, Cause, CauseKind, Epoch, Gate, Plan, Process
from launcher.network import probe
from launcher.node import tree

#: A root often exits with a code of its own because the kernel killed a worker deep in its tree.
OOM_BESIDE = "in this epoch the kernel has killed processes of this pod: out of memory (raise the pod's memory limit)"
MOST_OF_STOPPED = 40  #: last lines that are reported of a process that our own stop has ended
BEGAN = 1.0  #: seconds: what had begun to end when a stop came may have begun so long before
POLL_FIRST, POLL_LAST = (
    0.05,
    1.0,
)  #: seconds between checks of a gate: often at first, then rarely while the engine loads
REMIND_FIRST, REMIND_LAST = 60.0, 300.0  #: seconds to log lines about a closed gate, doubling


@dataclass
class StageProcess:
    """A process that the guard was ordered to start."""

    process: Process
    stage: int
    pid: int | None = None
    start_time: int = 0
    gate_open: bool = False
    answer: str = ""  #: what its gate answered last
    ended: bool = False
    since: float = field(default_factory=time.monotonic)
    remind: float = REMIND_FIRST  #: seconds from ``since`` to the next log line about its gate
    lines: LastLines = field(default_factory=LastLines)  #: of both streams, as they came
    streams: dict[int, Lines] = field(default_factory=lambda: {1: Lines(), 2: Lines()})


class StageRunner:
    """One rank's engine, epoch after epoch."""

    def __init__(
        self,
        rank: int,
        order: Callable[[guard.Spawn], None],
        done: Callable[[Epoch, int], None],
        broke: Callable[[Epoch, Cause, float, float], None],
        killed_by_oom: Callable[[], bool],
        ended: Callable[[Epoch, Cause, float, float], None] = lambda *_: None,
    ) -> None:
        self._rank = rank
        self._order = order
        self._done = done
        self._broke = broke
        self._ended = ended
        self._killed_by_oom = killed_by_oom
        self._plan: Plan | None = None
        self._epoch: Epoch | None = None
        self._environ: Mapping[str, str] = {}
        self._live = False
        self._stop_at = 0.0
        self._went_before: list[StageProcess] = []
        self._stage = -1
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        self.running: dict[str, StageProcess] = {}
        self._probes: re.Pattern[str] | None = None
        self.output = LastLines()  #: of all processes together: the last lines of this rank
        self.bytes = 0  #: of output so far that no probe caused: a sign of life
        self.hear_lines: Callable[[Iterable[str]], None] = lambda lines: None  #: hears what is printed

    def begin(self, epoch: Epoch, plan: Plan, environ: Mapping[str, str]) -> None:
        """A new epoch: what will run, and the environment that the plan's variables are added to."""
        self._epoch, self._plan, self._environ = epoch, plan, environ
        self._live, self._stage = True, -1
        self.running.clear()
        gates = [p.gate for stage in plan.stages for p in stage.processes]
        urls = [plan.health.url, plan.health.metrics_url, *(g.target for g in gates if g.kind == "http")]
        self._probes = probes_of(urls)
        self.output = LastLines(self._probes)

    def start(self, stage: int) -> None:
        """Start this rank's processes of a stage; ``done`` follows when all their gates are open."""
        if self._plan is None or not self._live:
            return
        self._stage = stage
        processes = self._plan.stages[stage].processes
        for process in processes:
            self._count += 1
            name = f"{process.name}-{self._count}"
            one = self.running[name] = StageProcess(process, stage, lines=LastLines(self._probes))
            for stream in one.streams.values():
                one.lines.follow(stream)
                self.output.follow(stream)
            self._order(guard.Spawn(name, process.name, process.argv, process.environment(self._environ), process.cwd))
        if not processes:
            self._check_done()

    def cancel(self) -> None:
        """The engine is being stopped: from now on an exit is a failure only if the stop had not reached the process.

        A process that is exiting already may be the cause of the stop, if another rank's report was faster. So it is
        reported, however late (freeing a GPU's memory may take seconds). What the stop has reached exits because of the
        stop, whatever the code: some engines answer TERM by killing their whole tree, themselves included (SGLang's
        kill_process_tree), or abort while CUDA is torn down. A second stop changes nothing.
        """
        if not self._live:
            return
        self._live = False
        self._stop_at = time.monotonic()
        self._went_before = [r for r in self.running.values() if r.pid and not r.ended and tree.ending(r.pid)]
        for one in self.running.values():
            if not one.ended:
                one.lines.add([TOLD_TO_STOP])
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(r.pid for r in self.running.values() if r.pid is not None and not r.ended)

    # ------------------------------------------------------------------------------------- what the guard reports

    def hear(self, report: guard.Report) -> None:
        """Handle a report of the guard; those on other processes are ignored."""
        name = getattr(report, "id", None)
        one = self.running.get(name) if isinstance(name, str) else None
        if one is None:
            return
        if isinstance(report, guard.Started):
            one.pid, one.start_time = report.pid, report.start_time
            self._watch_gate(one)
        elif isinstance(report, guard.NotStarted):
            one.ended = True
            why = f"{one.process.name} could not be started: {one.process.argv[0]}: {report.text}"
            self._fail(one, Cause(CauseKind.SPAWN, self._rank, why, one.process.name))
        elif isinstance(report, guard.Output):
            self._hear_output(one, report)
        elif isinstance(report, guard.Exited):
            self._hear_exit(one, report)

    def _hear_output(self, one: StageProcess, report: guard.Output) -> None:
        stream = one.streams[report.stream]  # the two come interleaved
        new = stream.feed(report.data)
        one.lines.add(new)
        self.hear_lines((*new, stream.part))
        self.bytes += max(0, len(report.data) - self.output.add(new))
        if not one.gate_open and any(_opens(one.process.gate, line) for line in new):
            self._open_gate(one)

    def _hear_exit(self, one: StageProcess, report: guard.Exited) -> None:
        one.ended = True
        if report.code == 0 and (one.process.gate.kind == "exited" or one.process.completes):
            self._open_gate(one)
            return
        tail = one.lines.telling or _telling(report.tail)
        now = time.monotonic()
        age = max(0.0, now - report.at) if report.at else 0.0
        if report.told:
            # Our own stop ended it, or the guard at the deadline, which it reports as well. The guard marks nothing
            # that was exiting already: what is marked and was exiting before our stop was killed at the deadline.
            cause = how_it_ended(self._rank, one.process.name, report, tail[-MOST_OF_STOPPED:], lambda: False)
            if self._epoch is not None and not self._live:
                self._ended(self._epoch, cause, age, report.doubt)
            return
        tail = tuple(line for line in tail if line != TOLD_TO_STOP)  # it was not
        cause = how_it_ended(self._rank, one.process.name, report, tail, self._killed_by_oom)
        doubt = report.doubt
        if one in self._went_before and now - age > self._stop_at:
            age, doubt = now - self._stop_at, BEGAN
        if self._epoch is not None:
            self._broke(self._epoch, cause, age, doubt)

    def _fail(self, one: StageProcess, cause: Cause) -> None:
        if self._epoch is not None and self._live:
            self._broke(self._epoch, cause, 0.0, 0.0)

    # ------------------------------------------------------------------------------------------------------ gates

    def overdue(self, now: float) -> list[StageProcess]:
        """Processes whose gates have been closed for long, for a line in the log; each comes up now and then."""
        if not self._live or self._plan is None:
            return []
        work = len(self._plan.stages) - 1 if self._plan.completes else -1  # the work itself may take days
        waiting = [r for r in self.running.values() if r.pid and not r.ended and not r.gate_open and r.stage != work]
        found = [r for r in waiting if now - r.since >= r.remind]
        for one in found:
            one.remind = now - one.since + min(one.remind, REMIND_LAST)
        return found

    @property
    def waits_for(self) -> tuple[str, str]:
        """The gate that the current stage waits for, and its last answer; empty: none."""
        closed = [r for r in self.running.values() if r.stage == self._stage and not r.ended and not r.gate_open]
        return (closed[0].process.gate.question, closed[0].answer) if closed else ("", "")

    def _watch_gate(self, one: StageProcess) -> None:
        gate = one.process.gate
        if gate.kind == "started" and not gate.settle:
            self._open_gate(one)
        elif gate.kind in ("started", "tcp", "http"):
            self._spawn_task(self._await_gate(one, gate))

    def _spawn_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = tasks.start(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await_gate(self, one: StageProcess, gate: Gate) -> None:
        if gate.kind == "started":
            await asyncio.sleep(gate.settle)
        else:
            pause = POLL_FIRST
            while not one.ended:
                one.answer = await _refusal(gate)
                if not one.answer:
                    break
                await asyncio.sleep(pause)
                pause = min(pause * 1.3, POLL_LAST)
        if not one.ended:
            self._open_gate(one)

    def _open_gate(self, one: StageProcess) -> None:
        if not one.gate_open:
            one.gate_open = True
            self._check_done()

    def _check_done(self) -> None:
        if self._epoch is None or not self._live:
            return
        mine = [r for r in self.running.values() if r.stage == self._stage]
        if all(r.gate_open for r in mine):
            self._done(self._epoch, self._stage)


def _opens(gate: Gate, line: str) -> bool:
    """Whether a gate waits for this line. Log lines have prefixes and colours."""
    if gate.kind == "line":
        return gate.target in without_colours(line)
    return gate.kind == "pattern" and re.search(gate.target, without_colours(line)) is not None


def _telling(text: str) -> tuple[str, ...]:
    kept, source = LastLines(), Lines()
    kept.follow(source)
    kept.add(source.feed(text))
    return kept.telling


async def _refusal(gate: Gate) -> str:
    """What a gate answers while it is closed; empty: it is open."""
    if gate.kind == "tcp":
        host, _, port = gate.target.rpartition(":")
        if not port.isdecimal():
            return f"{gate.target!r} is no host:port"
        return await probe.why_unreachable(host.strip("[]"), int(port), 2.0)
    reply = await probe.ask(gate.target, 5.0, insecure=True)
    return "" if reply.ok else reply.words


def how_it_ended(
    rank: int, name: str, report: guard.Exited, tail: tuple[str, ...], killed_by_oom: Callable[[], bool]
) -> Cause:
    """The cause of an exit that was not ordered."""
    if report.signal is not None:
        code = 128 + report.signal
        if report.signal == signal.SIGKILL and killed_by_oom():
            text = f"{name} was killed by the kernel: out of memory (raise the pod's memory limit, or lower its use)"
            return Cause(CauseKind.OOM, rank, text, name, code, tail)
        return Cause(CauseKind.SIGNALLED, rank, f"{name} was ended by {signal_name(report.signal)}", name, code, tail)
    if report.code == 0:
        text = f"{name} exited unexpectedly with exit code 0"
        return Cause(CauseKind.EXITED, rank, text, name, 0, tail)
    text = f"{name} ended with exit code {report.code}"
    if killed_by_oom():
        text += f"; {OOM_BESIDE}"
    return Cause(CauseKind.EXITED, rank, text, name, report.code, tail)
