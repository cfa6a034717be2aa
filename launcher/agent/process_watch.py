"""Watches an epoch's processes, all of the tree under the guard: frozen ones, ends of vital ones, signs of life.

The guard reports only what it started itself; engines start most of their processes on their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from launcher.agent.context import AgentContext
from launcher.agent.model_reads import ModelReads
from launcher.agent.stages import BEGAN, OOM_BESIDE, StageRunner, how_it_ended
from launcher.agent.start_watch import StartWatch
from launcher.group import member as me
from launcher.group import messages as m
from launcher.guard import channel as guard
from launcher.model import Cause, CauseKind, Epoch, Plan, StartProgress
from launcher.node import exit_watcher, process_activity, tree
from launcher.node.lateness import Lateness

if TYPE_CHECKING:
    from launcher.agent.health import HealthWatch


@dataclass
class EpochRun:
    """One epoch on this pod. It is made when the pod is able to start, and replaced by the next one's."""

    epoch: Epoch
    plan: Plan
    own: str  #: this pod's address, where others may reach it
    serving: bool = False
    drain_by: float | None = None  #: it drains, at most until then
    stopping_cleanly: bool = False  #: it was stopped after a drain: what ends now is no failure
    health: HealthWatch | None = None

    @property
    def draining(self) -> bool:
        return self.drain_by is not None


class ProcessWatch:
    """One pod's. ``state`` is the member's; ``broke(epoch, cause, noticed, doubt)`` hears of failures."""

    def __init__(
        self,
        context: AgentContext,
        stages: StageRunner,
        state: Callable[[], me.State],
        broke: Callable[[Epoch, Cause, float, float], None],
        oom_killed: Callable[[], bool],
        start: StartWatch,
    ) -> None:
        self._context = context
        self._stages = stages
        self._start = start
        self._reads = ModelReads(start, context.environ)
        self._state = state
        self._broke = broke
        self._oom_killed = oom_killed
        self._run: EpochRun | None = None
        self._recorded: dict[tree.Key, None] = {}  # processes of this epoch, and ended ones whose sessions live on
        self._frozen_since: dict[tree.Key, float] = {}
        self._reported: m.Report | None = None
        self._exits = exit_watcher.Vital(self._vital_ended, lambda: self._stages.pids)
        self._logged_polling = False
        self.pids: tuple[int, ...] = ()  #: of this epoch's engine, as last seen
        self.deadline: float | None = None  #: when the guard kills by itself
        self.lateness = Lateness()  #: of the event loop, marked with every beat

    def begin(self, run: EpochRun) -> None:
        """A new epoch is about to start."""
        self._run = run
        self._recorded.clear()
        self._frozen_since.clear()
        self._reported = None
        self._reads.begin(run.plan.weights)

    def stopping(self) -> None:
        """The epoch's processes are being stopped: their exits are expected."""
        self._exits.forget()

    def stopped(self) -> None:
        """The guard reports that nothing runs any more."""
        self._exits.settle()

    def gone(self) -> None:
        self.pids = ()

    def started(self, report: guard.Started) -> None:
        self._recorded[(report.pid, report.start_time)] = None

    def orphaned(self, pid: int) -> None:
        self._exits.orphaned(pid)

    def kill_without_guard(self, cookie: str | None, frozen: tree.Key | None = None) -> None:
        """The guard is dead, or ``frozen``: kill what it guarded, at once."""
        tree.kill_tree_without_guard(self._recorded, guard=frozen, cookie=cookie)

    # ---------------------------------------------------------------------------------------------- once a second

    def look(self) -> None:
        """Look at the process tree: frozen processes, vital ones, signs of life, and stages that take long."""
        run, procs = self._run, self._processes()
        if run is None or procs is None:
            return
        now = time.monotonic()
        self._recorded = tree.still_ours(self._recorded, procs)
        self.pids = tuple(p.pid for p in procs if not p.gone)
        self._find_frozen(run, procs, now)
        self._exits.see(procs, self._vital_names(run))
        if self._exits.polls and not self._logged_polling:
            self._logged_polling = True
            self._context.log("no pidfd here (gVisor, or an old kernel): exits of engine processes are polled for")
        self._remind(now)
        self._reads.look([p.pid for p in procs if not p.gone])
        starting = self._state() is me.State.STARTING  # once it serves, tokens tell whether it works
        self._report(run, process_activity.activity(procs) + self._stages.bytes if starting else 0)

    def _find_frozen(self, run: EpochRun, procs: list[tree.Proc], now: float) -> None:
        self._frozen_since = process_activity.stopped_since(self._frozen_since, procs, now)
        for key in process_activity.frozen(self._frozen_since, now)[:1]:
            comm = next(p.comm for p in procs if p.key == key)
            frozen = now - self._frozen_since[key]
            text = f"process {key[0]} ({comm}) has been stopped (state T) for {frozen:.0f} s"
            if self._state() in (me.State.STARTING, me.State.RUNNING):
                cause = Cause(CauseKind.STOPPED, self._context.identity.rank, text, comm)
                self._broke(run.epoch, cause, frozen, 0.0)

    def _vital_names(self, run: EpochRun) -> tuple[str, ...]:
        """Which processes of the tree must live on, once they are there."""
        if run.draining or self._state() not in (me.State.STARTING, me.State.RUNNING):
            return ()
        return tuple(name for stage in run.plan.stages for p in stage.processes for name in p.vital)

    def _remind(self, now: float) -> None:
        for one in self._stages.overdue(now):
            name, seconds = one.process.name, now - one.since
            waits = f"{name} is not ready after {seconds:.0f} s: waiting until {one.process.gate.words}"
            last = [f"launcher:   | {line}" for line in one.lines.last[-3:]]
            self._context.log.block([f"launcher: {waits}{'; its last lines:' if last else ''}", *last], "info")

    def _report(self, run: EpochRun, activity: int) -> None:
        """Tell the leader what changed; while the engine starts, every sign of life counts."""
        health = "ok" if run.health is not None and run.health.ok else ""
        self._tell(m.Report(run.epoch, self.pids[:64], health, activity, self._stages.output.last, self.progress))

    def report_step(self) -> None:
        """Tell the leader at once that another step of the start has begun, or that the last one is over."""
        if self._run is not None and self._state() is me.State.STARTING:
            before = self._reported or m.Report(self._run.epoch)
            self._tell(replace(before, tail=self._stages.output.last, progress=self.progress))

    def _tell(self, report: m.Report) -> None:
        if report != self._reported:
            self._reported = report
            self._context.tell(me.Activity(report))

    @property
    def last_line(self) -> str:
        """What this rank's engine printed last."""
        return self._stages.output.last[-1] if self._stages.output.last else ""

    @property
    def progress(self) -> StartProgress | None:
        """How far this rank's start is; None: nothing starts."""
        gate, answer = self._stages.waits_for
        return self._start.progress(gate, answer)

    def signs(self) -> int:
        """A number that moves with CPU time, bytes and output of this rank's engine."""
        procs = self._processes()
        return 0 if procs is None else process_activity.activity(procs) + self._stages.bytes

    def _processes(self) -> list[tree.Proc] | None:
        """All below the guard but this agent; None: the guard is not known yet."""
        guarding = self._context.guard.guarding
        return None if guarding is None else [p for p in tree.descendants(guarding.pid) if p.pid != os.getpid()]

    # ------------------------------------------------------------------------------------------ vital processes

    def _vital_ended(self, end: exit_watcher.End) -> None:
        run = self._run
        if run is None or run.draining or end.along:
            return  # it went with its root, which the guard reports
        if end.killed and self.deadline is not None and time.monotonic() - end.age >= self.deadline:
            return  # the guard killed it at the deadline, and reports that
        if not end.killed and self._state() is me.State.STARTING:
            return  # while the engine starts, its processes come and go
        if end.status == 0 and end.parent_lives:
            fields = {"pid": end.pid, "process": end.name}
            self._context.log("an engine process exited with 0 and its parent runs on", fields)
            return
        doubt = max(self.lateness.seconds(), min(end.age, BEGAN))
        self._broke(run.epoch, self._why_ended(end), end.age, doubt)

    def _why_ended(self, end: exit_watcher.End) -> Cause:
        who, rank = f"process {end.pid} ({end.name}) of the engine", self._context.identity.rank
        tail = self._stages.output.telling
        if end.status is None:
            text, kind = f"{who} exited unexpectedly", CauseKind.DIED
            if self._oom_killed():
                text, kind = f"{text}; {OOM_BESIDE}", CauseKind.OOM
            return Cause(kind, rank, text, end.name, None, tail)
        code = os.waitstatus_to_exitcode(end.status)
        report = guard.Exited("", None if code < 0 else code, -code if code < 0 else None, "")
        cause = how_it_ended(rank, who, report, tail, self._oom_killed)
        return replace(cause, kind=cause.kind if end.killed else CauseKind.DIED, process=end.name)
