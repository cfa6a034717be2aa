"""This pod's part of the engine, one epoch after another: made ready, started, watched, drained, stopped, cleaned up.

The member says when (its actions are carried out here), the guard does the starting and killing, and what happens
to the processes is told to the member as events. Nothing is decided here about the group.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launcher.agent import cleanup
from launcher.agent.guard_client import GuardLine
from launcher.agent.stages import BEGAN, OOM_BESIDE, StageRunner, how_it_ended
from launcher.engines import limits
from launcher.engines.base import Engine, PlanContext
from launcher.errors import LauncherError
from launcher.group import member as me
from launcher.group import messages as m
from launcher.guard import channel as guard
from launcher.log import Log
from launcher.model import Cause, CauseKind, Epoch, Health, Identity, NodeFacts, Plan, Process, Shared
from launcher.node import exit_watcher, leftovers, process_activity, tree
from launcher.node.lateness import Lateness
from launcher.node.pressure import Pressure
from launcher.planning import steps
from launcher.settings import Settings

if TYPE_CHECKING:
    from launcher.agent.health import HealthWatch
    from launcher.group.proof import Secrets

MOST_REFUSALS = 3  #: in a row, each after some ten seconds: so often a GPU's memory may keep an epoch from starting


class PodEngine:
    """The engine's processes on this pod.

    ``tell`` takes the member's events; ``state`` is the member's; ``task`` runs a coroutine whose failure is not lost;
    ``before_handoff`` says good-bye to the group.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        identity: Identity,
        environ: Mapping[str, str],
        incarnation: str,
        secrets: Secrets | None,
        line: GuardLine,
        log: Log,
        *,
        tell: Callable[[Any], None],
        state: Callable[[], me.State],
        task: Callable[[Coroutine[Any, Any, None]], object],
        before_handoff: Callable[[], Coroutine[Any, Any, None]],
        pressure: Pressure | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._identity = identity
        self._environ = environ
        self._incarnation = incarnation
        self._secrets = secrets
        self._line = line
        self._log = log
        self._tell = tell
        self._state = state
        self._task = task
        self._before_handoff = before_handoff
        self._pressure = pressure or Pressure(time.monotonic())
        self.health_failures: Counter[str] = Counter()  #: failed health checks of all epochs, by reason
        self.facts = NodeFacts()  #: what was learned of this node
        self.network: Mapping[str, str] = {}  #: variables for the collectives that the launcher adds
        self.plan: Plan | None = None
        self.epoch: Epoch | None = None
        self.serving = False
        self.draining = False
        self._drain_by = 0.0
        self.health: HealthWatch | None = None
        self._said_polls = False
        self._going = False  # the epoch was stopped in good order: what ends now is no failure
        self._own = ""  # this pod's address in this epoch, where others may reach it
        self.pids: tuple[int, ...] = ()
        self.recorded: dict[tree.Key, None] = {}  #: processes of this epoch, and ended ones whose sessions live on
        self._epoch_token = engine.epoch_token
        self._stops = 0
        self._preparing: Epoch | None = None
        self._frozen_since: dict[tree.Key, float] = {}
        self._reported: m.Report | None = None
        self._before: cleanup.Before | None = None
        self._scratch: list[str] = []
        self._not_back = ""  # GPU memory that an ended epoch still holds, in words
        self._refusals = 0  # how often in a row that has kept an epoch from starting
        self.stages = StageRunner(
            identity.rank,
            line.send,
            lambda epoch, stage: tell(me.Done(epoch, stage)),
            self._broke,
            self._oom_killed,
            lambda epoch, cause, age, doubt: tell(me.Broke(epoch, cause, age, doubt, True)),
        )
        self.deadline: float | None = None  #: when the guard kills by itself
        self.lateness = Lateness()  #: of this loop, marked with every beat
        self._said: Cause | None = None  #: the failure that our log told last
        self._vital = exit_watcher.Vital(self._vital_ended, lambda: self.stages.pids)

    @property
    def completes(self) -> bool:
        """Whether the engine does a piece of work and is then done."""
        return self.plan is not None and self.plan.completes

    @property
    def shm_before(self) -> leftovers.Snapshot | None:
        """What was in /dev/shm before the latest epoch; None: none was prepared."""
        return self._before.shm if self._before is not None else None

    async def ask(self, argv: Sequence[str], timeout: float) -> tuple[int, str]:
        """Run a short program in the engine's environment: its exit code and output."""
        return await self._line.ask(argv, timeout, self._environ)

    @property
    def _cookie(self) -> str | None:
        """What every process of this epoch carries in its environment, until it wipes that: a hint only."""
        return f"{self._incarnation}.{self.epoch.n}" if self.epoch is not None else None

    # ------------------------------------------------------------------------------------------------------- ready

    def mint(self, epoch: Epoch) -> tuple[str, Mapping[str, Any]]:
        """The epoch's token, made by the leader. With a secret each side derives it: only which secret is sent."""
        if not self._epoch_token:
            return "", {}
        if self._secrets is None:
            return os.urandom(32).hex(), {}
        from launcher.group.proof import key_id

        return key_id(self._secrets.newest), {}

    def plan_for(self, shared: Shared) -> Plan:
        """This rank's plan with an epoch's addresses and ports. Raises LauncherError where it can't work."""
        bind = steps.bind(self._settings, shared.addresses[self._identity.rank])
        context = PlanContext(self._settings, self._identity, self.facts, shared, bind)
        plan = self._engine.plan(context, self._identity.rank)
        return steps.with_environment(plan, self.network)

    async def prepare(self, shared: Shared) -> None:
        """All but the start: the plan, free ports, a clean /dev/shm to compare with. Tells Able or NotAble.

        Each wait may see this epoch stopped and the next one prepared, or even run: then nothing here is of use.
        """
        if self._state() is not me.State.PREPARING:
            return  # it was stopped before this could begin
        self._preparing = shared.epoch
        try:
            shared = self._with_token(shared)
        except LauncherError as error:  # the kubelet will bring the secret
            self._tell(me.NotAble(shared.epoch, Cause(CauseKind.UNABLE, self._identity.rank, str(error))))
            return
        try:
            self.plan = self.plan_for(shared)
            taken = steps.taken_ports(self.plan, shared.addresses[self._identity.rank])
        except LauncherError as error:
            cause = Cause(CauseKind.UNABLE, self._identity.rank, str(error))
            self._tell(me.NotAble(shared.epoch, cause, False))
            return
        except Exception as error:  # of an engine that others wrote, or over what the leader said of this epoch
            self._log.block([f"launcher: {line}" for line in traceback.format_exc().splitlines()])
            text = f"the engine's plan for this epoch cannot be made: {type(error).__name__}: {error}"[:500]
            self._tell(me.NotAble(shared.epoch, Cause(CauseKind.UNABLE, self._identity.rank, text), False))
            return
        text = self._not_back
        if taken:
            text = f"{taken} is in use on this pod by something that is not of this group"
        refused = bool(text) and await self._still_not_back(shared.epoch, taken)
        if self._preparing != shared.epoch:
            return
        if refused:
            self._tell(me.NotAble(shared.epoch, Cause(CauseKind.UNABLE, self._identity.rank, text)))
            return
        before = await cleanup.before_epoch(self.ask)
        if self._preparing != shared.epoch:
            return
        self._before = before
        self._scratch += [folder for folder in self.plan.scratch if folder not in self._scratch]
        await cleanup.sweep(self._scratch)
        if self._preparing != shared.epoch:
            return
        self._scratch = self._scratch[-2:]
        self.epoch, self.draining, self._going = shared.epoch, False, False
        self._own = steps.reachable_address(shared.addresses[self._identity.rank])
        self._log.epoch = str(shared.epoch.n)
        self.recorded.clear()
        self._frozen_since.clear()
        self._reported = None
        environ = {**self._environ, "LAUNCHER_COOKIE": self._cookie or ""}
        self.stages.begin(shared.epoch, self.plan, environ)
        self._tell(me.Able(shared.epoch))

    def _with_token(self, shared: Shared) -> Shared:
        return steps.with_token(shared, self._secrets, self._identity.group, self._epoch_token)

    async def _still_not_back(self, epoch: Epoch, taken: str) -> bool:
        """GPU memory that an earlier epoch kept is looked at once more before this one is refused.

        Not for ever: nothing of ours runs any more, so it may be somebody else's, on a GPU that is shared.
        """
        if taken or self._before is None:
            return True
        _, not_back = await cleanup.after_epoch(self._before, self.ask)
        if self._preparing != epoch:
            return True
        self._refusals = self._refusals + 1 if not_back else 0
        if self._refusals > MOST_REFUSALS:
            self._log(f"{not_back}: it does not come back, is the GPU shared? Going on", level="warning")
            self._refusals, not_back = 0, ""
        self._not_back = not_back
        return bool(not_back)

    # ------------------------------------------------------------------------------------------------------- start

    def start_stage(self, stage: int) -> None:
        """Start this rank's processes of one stage; Done follows."""
        assert self.plan is not None and self.epoch is not None
        if stage >= len(self.plan.stages):
            text = f"the leader asked for stage {stage}; this rank's plan has {len(self.plan.stages)}"
            self._broke(self.epoch, Cause(CauseKind.UNABLE, self._identity.rank, text))
            return
        if self._settings.handoff:
            self._task(self._hand_off(self.plan.stages[stage].processes[0]))
            return
        self.stages.start(stage)

    async def _hand_off(self, process: Process) -> None:
        """The group is whole: the engine takes the launcher's place. From here on nobody supervises."""
        self._log("hands off: the engine takes this process's place", {"program": process.argv[0]})
        await self._before_handoff()
        self._line.send_and_wait(guard.Handoff(process.argv, process.environment(self._environ), process.cwd))
        os._exit(0)

    def _broke(self, epoch: Epoch, cause: Cause, noticed: float = 0.0, doubt: float = 0.0) -> None:
        cause = limits.explained(cause)
        going = self.draining or self._going
        if not going and not self._identity.is_leader:  # there the group's log says it in the same moment
            self._log("failure", {"cause": cause.text, "process": cause.process}, "error")
            self._said = replace(cause, rank=self._identity.rank)
        self._tell(me.Broke(epoch, cause, noticed, doubt))

    def serve(self) -> None:
        """All ranks run: from now on the engine's health counts."""
        from launcher.agent.health import HealthWatch

        assert self.plan is not None and self.epoch is not None
        self.serving, self.draining = True, False
        epoch, health = self.epoch, self.plan.health
        if not self._identity.is_leader:
            health = Health()
        name = self.plan.stages[-1].processes[0].name if self.plan.stages[-1].processes else "the engine"
        self.health = HealthWatch(
            self._identity.rank,
            self._settings,
            health,
            name,
            lambda cause, noticed: self._broke(epoch, replace(cause, tail=self.stages.output.telling), noticed),
            lambda: self._tell(me.Idle(epoch)),
            steps.api_traffic(self.plan),
            requests=steps.api_requests(self.plan),
            signs=self._signs,
            fair=lambda: self._pressure.clock(time.monotonic()),
            starved=lambda: self._pressure.words,
            say=self._log,
            failures=self.health_failures,
            own=self._own,
        )
        self.health.start()
        self.look()  # who runs now is known from now on, also should the guard be killed

    def drain(self, seconds: float) -> None:
        """Not ready any more; Idle follows when no request is left, at most ``seconds`` from now."""
        self.draining, self._drain_by = True, time.monotonic() + seconds
        if self.completes and self.epoch is not None:
            self._tell(me.Idle(self.epoch))  # there are no callers to wait for
        elif self.health is not None and self._identity.is_leader:
            self.health.drain(lambda: self._log(self.drain_words))
        else:
            self._log("draining: the leader waits for the requests in flight", {"at_most_s": round(seconds, 1)})

    @property
    def drain_words(self) -> str:
        """What a drain waits for, and how to end it."""
        count = self.health.in_flight if self.health is not None else None
        what = "" if count is None else f"{count:g} request{'' if count == 1 else 's'} in flight, "
        left = max(0.0, self._drain_by - time.monotonic())
        return f"draining: {what}at most {left:.0f} s; SIGTERM (or Ctrl-C) again to stop now"

    # -------------------------------------------------------------------------------------------------------- stop

    def stop(self, grace: float, cause: Cause) -> None:
        """TERM, then KILL after ``grace`` seconds, for the whole tree; Gone follows."""
        self.serving = False
        if self.health is not None:
            self.health.stop()
            self.health = None
        if grace == self._settings.stop_grace and self.plan is not None and self.plan.stop_grace is not None:
            grace = self.plan.stop_grace  # the engine file's own; the lease still ends it
        self._preparing = None
        self._vital.forget()
        self.stages.cancel()
        self._stops += 1
        known = self._identity.is_leader or str(cause) == str(self._said)  # this log has just said why
        if cause.kind is not CauseKind.DRAIN:
            self._log("stopping the engine", {"why": "" if known else str(cause), "grace": grace}, "warning")
        else:
            self._going = True
            self._log("stopping the engine", {"why": str(cause), "grace": grace})
        name = f"stop-{self._stops}"
        self._line.send(guard.Stop(name, None, grace) if grace > 0 else guard.Kill(name, None))

    async def _stopped(self, report: guard.Stopped) -> None:
        """The guard says that nothing runs; the rest of the epoch's traces go too, then the member may say so.

        Each wait may see a later stop come. Then that one looks around itself, and what was seen here says nothing any
        more: by the time that it is known, the next epoch's engine may run.
        """
        if self._is_old(report):
            return
        self._vital.settle()
        if not report.clean:
            left = ", ".join(f"pid {pid} ({name}, state {state})" for pid, _, name, state in report.left)
            self._tell(me.Gone(False, f"could not be killed: {left}"))
            await asyncio.sleep(1.0)
            if self._is_old(report):
                return
            self._stops += 1
            self._line.send(guard.Kill(f"stop-{self._stops}", None))
            return
        if self._before is not None:
            removed, not_back = await cleanup.after_epoch(self._before, self.ask)
            if removed:
                self._log("removed what the engine left in /dev/shm", {"files": len(removed)})
            if self._is_old(report):
                return
            self._not_back = not_back
            if self._not_back:
                self._log(self._not_back, level="error")
        self.pids = ()
        self._tell(me.Gone(True, seconds=report.seconds))

    def _is_old(self, report: guard.Stopped) -> bool:
        """Whether it answers an earlier stop than the latest."""
        return report.id != f"stop-{self._stops}"

    def kill_without_guard(self, frozen: tree.Key | None = None) -> None:
        """The guard is dead, or ``frozen``: what it guarded is ours to end, at once."""
        tree.kill_tree_without_guard(self.recorded, guard=frozen, cookie=self._cookie)

    # ------------------------------------------------------------------------------------------------------- watch

    def hear(self, report: guard.Report) -> None:
        """What the guard says of processes and stops."""
        if isinstance(report, guard.Started):
            self.recorded[(report.pid, report.start_time)] = None
        if isinstance(report, guard.Stopped):
            self._task(self._stopped(report))
        elif isinstance(report, guard.Orphaned):
            self._vital.orphaned(report.pid)
        else:
            self.stages.hear(report)

    def look(self) -> None:
        """Once a second: the process tree under the guard; frozen processes, signs of life, who runs."""
        if self.epoch is None or self._line.guarding is None:
            return
        now = time.monotonic()
        procs = [p for p in tree.descendants(self._line.guarding.pid) if p.pid != os.getpid()]
        self.recorded = tree.still_ours(self.recorded, procs)
        self.pids = tuple(p.pid for p in procs if not p.gone)
        self._frozen_since = process_activity.stopped_since(self._frozen_since, procs, now)
        for key in process_activity.frozen(self._frozen_since, now)[:1]:
            comm = next(p.comm for p in procs if p.key == key)
            frozen = now - self._frozen_since[key]
            text = f"process {key[0]} ({comm}) has been stopped (state T) for {frozen:.0f} s"
            if self._state() in (me.State.STARTING, me.State.RUNNING):
                self._broke(self.epoch, Cause(CauseKind.STOPPED, self._identity.rank, text, comm), frozen)
        self._vital.see(procs, self._vital_names())
        if self._vital.polls and not self._said_polls:
            self._said_polls = True
            self._log(
                "no pidfd here (gVisor, or an old kernel): the end of an engine process is noticed by a look a second"
            )
        for one in self.stages.overdue(now):
            waits = (
                f"{one.process.name} is not ready after {now - one.since:.0f} s: waiting until {one.process.gate.words}"
            )
            last = [f"launcher:   | {line}" for line in one.lines.last[-3:]]
            self._log.block([f"launcher: {waits}{'; its last lines:' if last else ''}", *last], "info")
        starting = self._state() is me.State.STARTING  # once it serves, tokens tell whether it works
        self._report(process_activity.activity(procs) + self.stages.bytes if starting else 0)

    def _signs(self) -> int:
        """A number that moves with CPU time, bytes and output of this rank's engine."""
        if self._line.guarding is None:
            return 0
        procs = tree.descendants(self._line.guarding.pid)
        return process_activity.activity(p for p in procs if p.pid != os.getpid()) + self.stages.bytes

    def _vital_names(self) -> tuple[str, ...]:
        """Which processes of the tree must live on, once they are there."""
        if self.plan is None or self.draining or self._state() not in (me.State.STARTING, me.State.RUNNING):
            return ()
        return tuple(name for stage in self.plan.stages for p in stage.processes for name in p.vital)

    def _vital_ended(self, end: exit_watcher.End) -> None:
        if self.epoch is None or self.draining or end.along:
            return  # or it went with its root, of which the guard will tell
        if end.killed and self.deadline is not None and time.monotonic() - end.age >= self.deadline:
            return  # by the guard, at the deadline, of which it will tell
        if not end.killed and self._state() is me.State.STARTING:
            return  # a process that ends by itself while the engine starts is the engine's own affair
        if end.status == 0 and end.parent_lives:
            self._log("an engine process exited with 0 and its parent runs on", {"pid": end.pid, "process": end.name})
            return
        who, rank, tail = (
            f"process {end.pid} ({end.name}) of the engine",
            self._identity.rank,
            self.stages.output.telling,
        )
        if end.status is None:
            text, kind = f"{who} ended although nobody asked it to", CauseKind.DIED
            if self._oom_killed():
                text, kind = f"{text}; {OOM_BESIDE}", CauseKind.OOM
            cause = Cause(kind, rank, text, end.name, None, tail)
        else:
            code = os.waitstatus_to_exitcode(end.status)
            report = guard.Exited("", None if code < 0 else code, -code if code < 0 else None, "")
            cause = how_it_ended(rank, who, report, tail, self._oom_killed)
            cause = replace(cause, kind=cause.kind if end.killed else CauseKind.DIED, process=end.name)
        self._broke(self.epoch, cause, end.age, max(self.lateness.seconds(), min(end.age, BEGAN)))

    def _oom_killed(self) -> bool:
        before, now = self._before.oom_kills if self._before else None, leftovers.oom_kills()
        return before is not None and now is not None and now > before

    def _report(self, activity: int) -> None:
        """Tell the leader what changed; while starting, every sign of life counts."""
        if self.epoch is None:
            return
        report = m.Report(
            self.epoch,
            self.pids[:64],
            "ok" if self.health is not None and self.health.ok else "",
            activity,
            self.stages.output.last,
        )
        if report != self._reported:
            self._reported = report
            self._tell(me.Activity(report))
