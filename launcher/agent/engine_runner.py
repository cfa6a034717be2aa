"""This pod's part of the engine, one epoch after another: prepared, started, watched, drained, stopped, cleaned up.

The member says when (the agent carries out its actions here), the guard starts and kills, and what happens to the
processes goes to the member as events. Nothing is decided here about the group.
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

from launcher.agent.cleanup import Cleanup
from launcher.agent.context import AgentContext
from launcher.agent.evidence import EvidenceCollector
from launcher.agent.process_watch import EpochRun, ProcessWatch
from launcher.agent.stages import StageRunner
from launcher.agent.start_watch import StartWatch
from launcher.engines import limits
from launcher.engines.base import Engine, PlanContext
from launcher.errors import LauncherError
from launcher.group import member as me
from launcher.guard import channel as guard
from launcher.model import NO_FAILURE, Cause, CauseKind, Epoch, Health, NodeFacts, Plan, Process, Shared
from launcher.network import connections
from launcher.node import leftovers, tree
from launcher.planning import own_ports, pod_network, steps

if TYPE_CHECKING:
    from launcher.agent.health import HealthWatch


class EngineRunner:
    """The engine's processes on this pod.

    ``state`` is the member's; ``before_handoff`` takes this pod out of the group.
    """

    def __init__(
        self,
        context: AgentContext,
        engine: Engine,
        state: Callable[[], me.State],
        before_handoff: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._context = context
        self._rank = context.identity.rank
        self._log = context.log
        self._tell = context.tell
        self._state = state
        self._before_handoff = before_handoff
        self._evidence = EvidenceCollector()
        self._run: EpochRun | None = None  # the latest epoch that this pod was able to start
        self._preparing: Epoch | None = None
        self._stops = 0
        self._logged: Cause | None = None  # the latest failure that this pod's log names
        self.adapter = engine  #: what knows the engine
        self.facts = NodeFacts()  #: what was learned of this node
        self.network: Mapping[str, str] = {}  #: variables for the collectives that the launcher adds
        self.health_failures: Counter[str] = Counter()  #: failed health checks of all epochs, by reason
        self.ordered = asyncio.Event()  #: set once the guard has answered to the engine's first process
        self.cleanup = Cleanup(self.ask, context.log)
        self.stages = StageRunner(
            self._rank,
            context.guard.send,
            self._stage_done,
            self._broke,
            self.cleanup.oom_killed,
            lambda epoch, cause, age, doubt: self._tell(me.Broke(epoch, cause, age, doubt, True)),
        )
        self.start = StartWatch(self._step_begins)
        self.stages.hear_lines = self.start.hear
        self.watch = ProcessWatch(context, self.stages, state, self._broke, self.cleanup.oom_killed, self.start)

    @property
    def epoch(self) -> Epoch | None:
        return self._run.epoch if self._run is not None else None

    @property
    def plan(self) -> Plan | None:
        return self._run.plan if self._run is not None else None

    @property
    def completes(self) -> bool:
        """Whether the engine does a piece of work and is then done."""
        return self._run is not None and self._run.plan.completes

    @property
    def serving(self) -> bool:
        return self._run is not None and self._run.serving

    @property
    def draining(self) -> bool:
        return self._run is not None and self._run.draining

    @property
    def health(self) -> HealthWatch | None:
        return self._run.health if self._run is not None else None

    @property
    def shm_before(self) -> leftovers.Snapshot | None:
        """What was in /dev/shm before the latest epoch; None: none was prepared."""
        return self.cleanup.before.shm if self.cleanup.before is not None else None

    async def ask(self, argv: Sequence[str], timeout: float) -> tuple[int, str]:
        """Run a short program in the engine's environment: its exit code and output."""
        return await self._context.guard.ask(argv, timeout, self._context.environ)

    @property
    def _cookie(self) -> str | None:
        """What the epoch's processes carry in their environment: a hint only, because they may wipe it."""
        return f"{self._context.incarnation}.{self._run.epoch.n}" if self._run is not None else None

    @property
    def _stacks(self) -> Mapping[str, str]:
        """Has every Python of the engine print its stacks when it is aborted; a user's own value wins."""
        return {"PYTHONFAULTHANDLER": "1"} if self._context.settings.autopsy == "on" else {}

    # ------------------------------------------------------------------------------------------------------- ready

    def mint(self, epoch: Epoch) -> tuple[str, Mapping[str, Any]]:
        """The epoch's token, made by the leader. With a secret each side derives it: only which secret is sent."""
        secrets = self._context.secrets
        if not self.adapter.epoch_token:
            return "", {}
        if secrets is None:
            return os.urandom(32).hex(), {}
        from launcher.group.proof import key_id

        return key_id(secrets.newest), {}

    def plan_for(self, shared: Shared) -> Plan:
        """This rank's plan with an epoch's addresses and ports. Raises LauncherError where it can't work."""
        settings, identity = self._context.settings, self._context.identity
        bind = own_ports.bind_address(settings, shared.addresses[self._rank])
        context = PlanContext(settings, identity, self.facts, shared, bind, self._context.environ)
        return steps.with_environment(self.adapter.plan(context, self._rank), self.network)

    async def prepare(self, shared: Shared) -> None:
        """Do everything but the start: the plan, free ports, a record of what was there before. Tells Able or NotAble.

        Each wait may see this epoch stopped and the next one prepared, or even run: then nothing here counts any more.
        """
        if self._state() is not me.State.PREPARING:
            return  # it was stopped before this could begin
        self._preparing = epoch = shared.epoch
        self.start.begin()
        plan = self._plan_of(shared)
        if plan is None:
            return
        taken = self._taken_ports(plan, shared)
        if taken is None:
            return

        def current() -> bool:
            return self._preparing == epoch

        text = self.cleanup.not_back
        if taken:
            text = taken
        refused = bool(taken or (text and await self.cleanup.still_not_back(current)))
        if not current():
            return
        if refused:
            self._unable(epoch, text)
            return
        await self.cleanup.before_epoch(plan.scratch, current)
        if not current():
            return
        self._run = EpochRun(epoch, plan, pod_network.reachable_address(shared.addresses[self._rank]))
        self._log.epoch = str(epoch.n)
        self.start.planned(plan)
        self.watch.begin(self._run)
        self.stages.begin(epoch, plan, {**self._stacks, **self._context.environ, "LAUNCHER_COOKIE": self._cookie or ""})
        self._tell(me.Able(epoch))

    def _plan_of(self, shared: Shared) -> Plan | None:
        """This epoch's plan; None: it cannot be made, and the leader knows why."""
        try:
            shared = steps.with_token(
                shared, self._context.secrets, self._context.identity.group, self.adapter.epoch_token
            )
        except LauncherError as error:
            self._unable(shared.epoch, str(error))  # the kubelet will bring the secret
            return None
        try:
            return self.plan_for(shared)
        except LauncherError as error:
            self._unable(shared.epoch, str(error), retry=False)
        except Exception as error:  # in a plug-in, or over the epoch's values from the leader
            self._log.block([f"launcher: {line}" for line in traceback.format_exc().splitlines()])
            text = f"the engine's plan for this epoch cannot be made: {type(error).__name__}: {error}"[:500]
            self._unable(shared.epoch, text, retry=False)
        return None

    def _taken_ports(self, plan: Plan, shared: Shared) -> str | None:
        """The first port of the plan that is in use, in words; None: a port cannot work, and the leader knows why."""
        try:
            return own_ports.taken_ports(plan, shared.addresses[self._rank])
        except LauncherError as error:
            self._unable(shared.epoch, str(error), retry=False)
            return None

    def _unable(self, epoch: Epoch, text: str, retry: bool = True) -> None:
        self._tell(me.NotAble(epoch, Cause(CauseKind.UNABLE, self._rank, text), retry))

    # ------------------------------------------------------------------------------------------------------- start

    def start_stage(self, stage: int) -> None:
        """Start this rank's processes of one stage; Done follows."""
        assert self._run is not None
        stages = self._run.plan.stages
        if stage >= len(stages):
            text = f"the leader ordered stage {stage}; this rank's plan has {len(stages)}"
            self._broke(self._run.epoch, Cause(CauseKind.UNABLE, self._rank, text))
            return
        if self._context.settings.handoff:
            self._context.task(self._hand_off(stages[stage].processes[0]))
            return
        self.start.stage(stage)
        self.stages.start(stage)

    def _step_begins(self) -> None:
        self.watch.report_step()

    def _stage_done(self, epoch: Epoch, stage: int) -> None:
        self.watch.report_step()
        self._tell(me.Done(epoch, stage))

    async def _hand_off(self, process: Process) -> None:
        """The group is whole: the engine replaces the launcher. From here on nothing supervises it."""
        self._log("hands off: the engine replaces this process", {"program": process.argv[0]})
        await self._before_handoff()
        environ = process.environment(self._context.environ)
        self._context.guard.send_and_wait(guard.Handoff(process.argv, environ, process.cwd))
        os._exit(0)

    def _broke(self, epoch: Epoch, cause: Cause, noticed: float = 0.0, doubt: float = 0.0) -> None:
        cause = limits.explained(cause)
        expected = self._run is not None and (self._run.draining or self._run.stopping_cleanly)
        if not expected and self._rank != 0:  # on rank 0 the group's log names it in the same moment
            self._log("failure", {"cause": cause.text, "process": cause.process}, "error")
            self._logged = replace(cause, rank=self._rank)
        self._tell(me.Broke(epoch, cause, noticed, doubt))

    def serve(self) -> None:
        """All ranks run: from now on the engine's health counts."""
        from launcher.agent.health import HealthInputs, HealthWatch

        run = self._run
        assert run is not None
        run.serving, run.drain_by = True, None
        self.start.end()
        last = run.plan.stages[-1].processes
        pressure = self._context.pressure
        inputs = HealthInputs(
            moving=connections.traffic(run.plan.api_port),
            requests=connections.requests_on(run.plan.api_port),
            signs=self.watch.signs,
            fair=lambda: pressure.clock(time.monotonic()),
            starved=lambda: pressure.words,
            say=self._log,
            failures=self.health_failures,
            own=run.own,
        )
        run.health = HealthWatch(
            self._rank,
            self._context.settings,
            Health() if self._rank else run.plan.health,
            last[0].name if last else "the engine",
            lambda cause, noticed: self._broke(run.epoch, replace(cause, tail=self.stages.output.telling), noticed),
            lambda: self._tell(me.Idle(run.epoch)),
            inputs,
        )
        run.health.start()
        self.watch.look()  # the running processes are known from now on, also should the guard be killed

    def drain(self, seconds: float) -> None:
        """Not ready any more; Idle follows when no request is left, at most ``seconds`` from now."""
        run = self._run
        if run is None:
            return
        run.drain_by = time.monotonic() + seconds
        if run.plan.completes:
            self._tell(me.Idle(run.epoch))  # there are no callers to wait for
        elif run.health is not None and self._rank == 0:
            run.health.drain(lambda: self._log(self.drain_words))
        else:
            self._log("draining: the leader waits for the requests in flight", {"at_most_s": round(seconds, 1)})

    @property
    def drain_words(self) -> str:
        """What a drain waits for, and how to end it."""
        run = self._run
        if run is None or run.drain_by is None:
            return ""
        count = run.health.in_flight if run.health is not None else None
        what = "" if count is None else f"{count:g} request{'' if count == 1 else 's'} in flight, "
        left = max(0.0, run.drain_by - time.monotonic())
        return f"draining: {what}at most {left:.0f} s; SIGTERM (or Ctrl-C) again to stop now"

    # -------------------------------------------------------------------------------------------------------- stop

    def stop(self, grace: float, cause: Cause, autopsy: float = 0.0) -> None:
        """TERM, then KILL after ``grace`` seconds, for the whole tree; Gone follows.

        ``autopsy``: gather evidence for so many seconds instead, then KILL; Examined comes before Gone.
        """
        run, settings = self._run, self._context.settings
        if run is not None:
            run.serving = False
            if run.health is not None:
                run.health.stop()
                run.health = None
            if grace == settings.stop_grace and run.plan.stop_grace is not None:
                grace = run.plan.stop_grace  # the engine file's own; the lease still ends it
            run.stopping_cleanly |= cause.kind in NO_FAILURE
        self._preparing = None
        self.start.end()
        self.watch.stopping()
        self.stages.cancel()
        self._stops += 1
        if cause.kind in NO_FAILURE:
            self._log("stopping the engine", {"why": str(cause), "grace": grace})
        else:
            known = self._rank == 0 or str(cause) == str(self._logged)  # this log has just named it
            self._log("stopping the engine", {"why": "" if known else str(cause), "grace": grace}, "warning")
        name = f"stop-{self._stops}"
        if autopsy > 0:
            self._evidence.begin(name)
            self._context.guard.send(guard.Stop(name, None, grace, autopsy))
        else:
            self._context.guard.send(guard.Stop(name, None, grace) if grace > 0 else guard.Kill(name, None))

    async def _stopped(self, report: guard.Stopped) -> None:
        """The guard reports that nothing runs: clean up what the epoch left, then report it to the member.

        A later stop may come during each wait. It cleans up by itself, and this one's result no longer counts: the next
        epoch's engine may be running by then.
        """

        def latest() -> bool:
            return report.id == f"stop-{self._stops}"

        if not latest():
            return
        self.watch.stopped()
        self._tell_evidence()
        if not report.clean:
            left = ", ".join(f"pid {pid} ({name}, state {state})" for pid, _, name, state in report.left)
            self._tell(me.Gone(False, f"could not be killed: {left}"))
            await asyncio.sleep(1.0)
            if latest():
                self._stops += 1
                self._context.guard.send(guard.Kill(f"stop-{self._stops}", None))
            return
        await self.cleanup.after_epoch(latest)
        if not latest():
            return
        self.watch.gone()
        self._tell(me.Gone(True, seconds=report.seconds))

    def _tell_evidence(self) -> None:
        """Before anything that takes time: the leader waits for no evidence, only for `stopped`."""
        evidence = self._evidence.take()
        if evidence is not None and self._run is not None:
            self._tell(me.Examined(self._run.epoch, evidence))

    def kill_without_guard(self, frozen: tree.Key | None = None) -> None:
        """The guard is dead, or ``frozen``: kill what it guarded, at once."""
        self.watch.kill_without_guard(self._cookie, frozen)

    # ------------------------------------------------------------------------------------------------ from the guard

    def hear(self, report: guard.Report) -> None:
        """Handle a report of the guard on processes and stops."""
        self.ordered.set()
        if isinstance(report, guard.Output):
            self._evidence.printed(report.data)
        if isinstance(report, guard.Started):
            self.watch.started(report)
        if isinstance(report, guard.Stopped):
            self._context.task(self._stopped(report))
        elif isinstance(report, guard.Aborting):
            self._evidence.aborting(report)
        elif isinstance(report, guard.Orphaned):
            self.watch.orphaned(report.pid)
        else:
            self.stages.hear(report)
