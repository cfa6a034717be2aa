"""The one place that wires the rooms together: settings, identity, plan, group, guard. It owns the event loop.

The agent starts nothing itself: processes are ordered of the guard, and the guard's reports come in as events. It
decides nothing about the group: the coordinator (on rank 0) and the member do, and their actions are carried out here.
Every event goes through one queue, in the order of arrival, so the state machines are never entered twice at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import memory, planning, roles, vital
from launcher.engines.base import Engine, PlanContext
from launcher.errors import ExitCode, LauncherError
from launcher.group import coordinator as co
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.events import Closed, Hang, Note, Say, SayAll, Tick
from launcher.group.lease import Terms
from launcher.log import Log
from launcher.memory import Keeper
from launcher.process import channel as guard
from launcher.process import tree, watch
from launcher.settings import Settings
from launcher.stages import StageRunner, how_it_ended, signal_name
from launcher.status import Timeline, failure_block, metrics_page, status_object, termination_message
from launcher.words import Cause, CauseKind, Epoch, Health, Identity, NodeFacts, Plan, Shared

if TYPE_CHECKING:
    from launcher.group.link import LeaderLink, MemberLink
    from launcher.health import HealthWatch

SCAN_EVERY = 1.0  #: seconds between looks at the process tree
GUARD_SILENT = 5  #: the guard answers pings at once; so many in a row without an answer and it is frozen
OF_THE_GUARD = ("LAUNCHER_REPLACES", "LAUNCHER_PREVIOUS_AGENT", "LAUNCHER_LAST_EPOCH")  #: from it to us, no further
JOIN_TIMEOUT = 1800.0  #: where nobody restarts pods for us


def main(fd: int, settings: Settings, environ: Mapping[str, str], warnings: Sequence[str]) -> int:
    """Run one pod's launcher on the guard's channel ``fd``. Returns the exit code."""
    channel = guard.GuardChannel(fd)
    agent = Agent(channel, settings, environ, warnings)
    return asyncio.run(agent.run())


class Agent:
    """One pod's agent, from start to exit."""

    def __init__(
        self, channel: guard.GuardChannel, settings: Settings, environ: Mapping[str, str], warnings: Sequence[str]
    ) -> None:
        self.settings = settings
        self.identity: Identity = planning.identity_of(settings, environ)[0]
        self.environ = {
            k: v for k, v in roles.environment(environ, self.identity.rank).items() if k not in OF_THE_GUARD
        }
        self.terms = Terms(settings.lease)
        self.incarnation = secrets.token_hex(6)
        self.log = Log(self._write, self.identity.rank, settings.log_format, settings.log_level)
        self.timeline = Timeline()
        self.facts = NodeFacts()
        self.plan: Plan | None = None
        self.epoch: Epoch | None = None
        self.serving = False
        self.draining = False
        self.pids: tuple[int, ...] = ()
        self.detected: float | None = None
        self._warnings = list(warnings)
        self._channel = channel
        self._secret = planning.secret_of(settings)
        self._engine: Engine = planning.engine_of(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: asyncio.Future[me.Exit] | None = None
        self._queue: deque[tuple[str, Any, int]] = deque()
        self._pumping = False
        self._guard: guard.Guarding | None = None
        self._pings = 0
        self._ponged = 0
        self._stops = 0
        self._recorded: dict[tuple[int, int], None] = {}
        self._asks: dict[str, asyncio.Future[tuple[str, guard.Exited | guard.NotStarted]]] = {}
        self._asked_output: dict[str, str] = {}
        self._frozen_since: dict[tree.Key, float] = {}
        self._activity = 0
        self._reported: m.Report | None = None
        self._network_env: dict[str, str] = {}
        self._leader_link: LeaderLink | None = None
        self._member_link: MemberLink | None = None
        self._health: HealthWatch | None = None
        self._before: planning.Before | None = None
        self._scratch: list[str] = []
        self._not_back = ""  # GPU memory that an ended epoch still holds, in words
        self._remembered: Epoch | None = None
        self._phase = ""
        self._told_failure: Cause | None = None
        self.coordinator: co.Coordinator | None = None
        self._ray_token = bool(settings.engine_file is None and settings.engine == "vllm")
        self._keeper = Keeper(settings.state_dir, self.identity.rank)
        former = self._keeper.before
        last = _last_epoch(environ) or former.last
        now = time.monotonic()
        join = join_timeout(settings, self.identity)
        if self.identity.is_leader:
            self.coordinator = co.Coordinator(
                co.Config(
                    group=self.identity.group,
                    size=self.identity.size,
                    incarnation=self.incarnation,
                    terms=self.terms,
                    max_restarts=settings.max_restarts,
                    restart_window=settings.restart_window,
                    restart_backoff=settings.restart_backoff,
                    stop_grace=settings.stop_grace,
                    join_timeout=join,
                    startup_timeout=settings.startup_timeout,
                    startup_stall_timeout=settings.startup_stall_timeout or None,
                    mint=self._mint,
                    highest_n=last[0].n if last else 0,
                ),
                now,
                random.Random(),
            )
        self.member = me.Member(
            me.Config(
                group=self.identity.group,
                rank=self.identity.rank,
                size=self.identity.size,
                name=self.identity.name,
                incarnation=self.incarnation,
                terms=self.terms,
                stop_grace=settings.stop_grace,
                join_timeout=join,
                may_restart=settings.max_restarts > 0,
                replaces=tuple(r for r in environ.get("LAUNCHER_REPLACES", "").split(",") if r)[-64:],
                died=_former_death(environ, self.identity.rank) or former.killed(self.identity.rank),
                last=last,
            ),
            now,
        )
        killed = former.killed(self.identity.rank)
        self.member.news = m.News(
            "gathering", charged=former.charged + (killed is not None), first_failure=former.first_failure or killed
        )
        self._vital = vital.Vital(self._vital_ended)
        self.stages = StageRunner(
            self.identity.rank, self._channel_send, self._stage_done, self._engine_broke, self._oom_killed
        )

    # ---------------------------------------------------------------------------------------------- the three lines

    async def run(self) -> int:
        """Startup, main loop, shutdown."""
        self._start_loop()
        try:
            await self._startup()
            leaving = await self._done()
        except LauncherError as error:
            self.log.block([f"launcher: {line}" for line in str(error).split("\n")])
            leaving = me.Exit(int(error.code), None, str(error))
        return await self._shutdown(leaving)

    def _start_loop(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._finished = loop.create_future()
        loop.set_exception_handler(self._bug)
        loop.add_reader(self._channel.fileno(), self._read_guard)
        self._channel_send(guard.Policy(self.settings.max_restarts > 0))
        self._channel_send(guard.Incarnation(self.incarnation))

    async def _startup(self) -> None:
        for warning in self._warnings:
            self.log(warning, level="warning")
        who = self.identity
        self.log(
            "started",
            {"group": who.group, "rank": f"{who.rank}/{who.size}", "source": who.source, "leader": who.leader},
        )
        self._enter("starting")
        for step in (self._listen, self._learn):
            await asyncio.wait([self._task(step()), self._finished_future], return_when=asyncio.FIRST_COMPLETED)
            if self._finished_future.done():
                return  # told to go, or it can't work
        self._task(self._beat())
        self._task(self._scan())
        self._to_member(me.Gone())  # the guard killed whatever a former agent left before it forked this one

    async def _done(self) -> me.Exit:
        return await self._finished_future

    @property
    def _finished_future(self) -> asyncio.Future[me.Exit]:
        assert self._finished is not None
        return self._finished

    async def _shutdown(self, leaving: me.Exit) -> int:
        if self._health is not None:
            self._health.stop()
        cause = leaving.cause if leaving.code else None
        if cause is not None:
            self._tell_failure(cause, leaving.text)
        self._write_termination(cause, leaving)
        self._remember(clean=True)
        if self._leader_link is not None:
            await self._leader_link.close()
        elif self._member_link is not None:
            await asyncio.sleep(0.05)  # what was just said is still in the socket's hands
            self._member_link.hang()
        why = leaving.text.partition("\n")[0] or ("" if leaving.code else "told to go")
        self.log("exits", {"code": leaving.code, "why": why})
        return leaving.code

    # --------------------------------------------------------------------------------------------------- start-up

    async def _listen(self) -> None:
        """HTTP for probes on every pod; on the leader the group's port. Ports that are taken are errors in words."""
        from launcher import http

        host = planning.listen_host(self.settings)
        secret = self._secret.decode("utf-8", "replace") if self._secret else ""
        pages = http.Pages(self._ready, lambda: metrics_page(self), lambda: status_object(self), secret)
        try:
            await http.listen(pages, host, self.settings.agent_port)
        except OSError as error:
            raise planning.port_error("agent_port", self.settings, error) from None
        if self.identity.alone or not self.identity.is_leader:
            return
        from launcher.group.link import LeaderLink

        self._leader_link = LeaderLink(
            self.identity.group,
            self._secret,
            most=4 * self.identity.size + 64,
            heard=lambda conn, message: self._to_coordinator(message, conn),
            closed=lambda conn, why: self._to_coordinator(Closed(why), conn),
            stranger=lambda where, what: self.log(
                "a stranger was turned away", {"address": where, "what": what}, "warning"
            ),
        )
        try:
            await self._leader_link.listen([host] if host else None, self.settings.group_port)
        except OSError as error:
            raise planning.port_error("group_port", self.settings, error) from None
        if self._secret is None and not (host or "").startswith("127."):
            self.log(
                "the group port is open to whoever reaches it: give --token-file, or a NetworkPolicy",
                level="warning",
            )

    async def _learn(self) -> None:
        """What must be known before hello: own address, versions, GPUs; and whether all this can work."""
        leader: tuple[str, ...] = ()
        if not self.identity.alone and self.identity.address is None:
            leader = await self._resolve_leader()
        self.facts = await planning.learn(self.settings, self._engine, self.environ, self._ask)
        checked = self._engine.check(self.settings, self.identity, self.facts)
        for warning in checked.warnings:
            self.log(warning, level="warning")
        for why in checked.why:
            self.log(why)
        address = self._learn_network(leader)
        names = tuple(address if r == self.identity.rank else f"<rank {r}>" for r in range(self.identity.size))
        outline = self._plan_for(planning.sketch(self.identity, names))
        self.member.address = address
        self._recall(address)
        self.member.fingerprint = planning.fingerprint(self.settings, self._engine, self.facts)
        if self.coordinator is not None:
            self.coordinator.stages = tuple(co.Stage(s.name, s.timeout, s.on_timeout) for s in outline.stages)
        if not self.identity.alone and not self.identity.is_leader:
            self._make_member_link()

    def _recall(self, address: str) -> None:
        """What the launcher before us in this pod left in --state-dir.

        As PID 1 we know that all it ran is gone: its PID namespace ended with it. The place tells a folder that was
        wrongly shared between pods, or that outlived one.
        """
        former, here = self._keeper.before, memory.place(self.identity.name, address)
        if former.incarnation and former.place == here and self._guard is not None and self._guard.init:
            self.member.replace(former.incarnation)
        killed = former.killed(self.identity.rank)
        if killed is not None:
            self.log(killed.text, level="warning")
        self._remember(incarnation=self.incarnation, place=here, clean=False)

    def _remember(self, **changes: Any) -> None:
        if not self._keeper.remember(**changes):
            self.log("--state-dir cannot be written; going on without", {"why": self._keeper.trouble}, "warning")

    def _learn_network(self, leader: tuple[str, ...]) -> str:
        if self.identity.alone:
            return self.identity.address or "127.0.0.1"
        nccl = planning.nccl_version(self.facts)
        found = planning.network(self.settings, self.identity, self.environ, leader, nccl)
        for warning in found.warnings:
            self.log(warning, level="warning")
        self.log("own address", {"address": found.address, "why": found.why})
        for note in found.notes:
            self.log(note)
        self._network_env = found.ours
        return found.address

    async def _resolve_leader(self) -> tuple[str, ...]:
        from launcher.network.names import wait_for_address

        limit = join_timeout(self.settings, self.identity)
        deadline = time.monotonic() + limit if limit and not self.member.epoch else None
        return await wait_for_address(self.identity.leader, deadline, self.log.waiting)

    def _make_member_link(self) -> None:
        from launcher.group.link import MemberLink

        def failed(why: str) -> None:
            self.log.waiting(f"waiting for the leader {self.identity.leader}: {why}")
            self.member.refusal = why

        self._member_link = MemberLink(
            self.identity.group,
            self._secret,
            self.settings.group_port,
            resolve=self._resolve_leader,
            connected=lambda _: self._to_member(me.Connected()),
            heard=self._to_member,
            closed=lambda why: self._to_member(Closed(why)),
            failed=failed,
        )

    async def _ask(self, argv: Sequence[str], timeout: float) -> tuple[int, str]:
        """Have the guard run a short program; its exit code (127: it can't be started) and its output."""
        name = f"ask-{len(self._asks)}-{secrets.token_hex(2)}"
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asks[name] = future
        self._asked_output[name] = ""
        self._channel_send(guard.Spawn(name, "question", tuple(argv), self.environ, None, True))
        try:
            output, report = await asyncio.wait_for(future, timeout)
        except asyncio.TimeoutError:
            self._channel_send(guard.Kill(name, (name,)))
            return 124, f"no answer within {timeout:g} s"
        finally:
            self._asks.pop(name, None)
            self._asked_output.pop(name, None)
        if isinstance(report, guard.NotStarted):
            return 127, report.text
        return report.code if report.code is not None else 128 + (report.signal or 0), output

    # ------------------------------------------------------------------------------------------------- the one queue

    def _to_member(self, event: Any) -> None:
        self._queue.append(("member", event, 0))
        self._pump()

    def _to_coordinator(self, event: Any, conn: int) -> None:
        self._queue.append(("coordinator", event, conn))
        self._pump()

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue:
                machine, event, conn = self._queue.popleft()
                now = time.monotonic()
                if machine == "member":
                    for action in self.member.handle(event, now):
                        self._member_acts(action)
                elif self.coordinator is not None:
                    for action in self.coordinator.handle(event, conn, now):
                        self._coordinator_acts(action)
                self._publish()
        finally:
            self._pumping = False

    def _coordinator_acts(self, action: co.Action) -> None:
        if isinstance(action, Note):
            self.log(action.event, action.fields, action.level)
            return
        if isinstance(action, Hang):
            if action.conn != co.LOCAL and self._leader_link is not None:
                self._leader_link.hang(action.conn)
            return
        conns = action.conns if isinstance(action, SayAll) else (action.conn,)
        if co.LOCAL in conns:
            self._queue.append(("member", action.message, 0))
        if self._leader_link is not None:
            self._leader_link.say([c for c in conns if c != co.LOCAL], action.message)

    def _member_acts(self, action: Any) -> None:
        if isinstance(action, Note):
            self.log(action.event, action.fields, action.level)
        elif isinstance(action, Say):
            self._say(action.message)
        elif isinstance(action, me.SetDeadline):
            self._channel_send(guard.Deadline(action.at))
        elif isinstance(action, Hang):
            if self._member_link is not None:
                self._member_link.hang()
        elif isinstance(action, me.Dial):
            self._dial(action.delay)
        elif isinstance(action, me.DoPrepare):
            self._task(self._prepare(action.shared))
        elif isinstance(action, me.DoStage):
            self._start_stage(action.stage)
        elif isinstance(action, me.DoServe):
            self._serve()
        elif isinstance(action, me.DoDrain):
            self._drain()
        elif isinstance(action, me.DoStop):
            self._stop(action.grace, action.cause)
        elif isinstance(action, me.Exit) and not self._finished_future.done():
            self._finished_future.set_result(action)

    def _say(self, message: Any) -> None:
        if self.coordinator is not None:
            self._queue.append(("coordinator", message, co.LOCAL))
        elif self._member_link is not None:
            self._member_link.say(message)

    def _dial(self, delay: float) -> None:
        if self._member_link is not None:
            self._member_link.dial(delay)
        elif delay <= 0:
            self._queue.append(("member", me.Connected(), 0))
        else:
            assert self._loop is not None
            self._loop.call_later(delay, self._to_member, me.Connected())

    # ---------------------------------------------------------------------------------------------------- an epoch

    def _mint(self, epoch: Epoch) -> tuple[str, Mapping[str, Any]]:
        """Ray's token of an epoch. With a secret it is derived on each side and not sent."""
        return ("" if self._secret else secrets.token_hex(32), {}) if self._ray_token else ("", {})

    def _plan_for(self, shared: Shared) -> Plan:
        context = PlanContext(self.settings, self.identity, self.facts, shared, planning.bind(self.settings))
        plan = self._engine.plan(context, self.identity.rank)
        return planning.with_environment(plan, self._network_env)

    async def _prepare(self, shared: Shared) -> None:
        shared = planning.with_token(shared, self._secret, self.identity.group, self._ray_token)
        try:
            self.plan = self._plan_for(shared)
            taken = planning.taken_ports(self.plan, shared.addresses[self.identity.rank])
        except LauncherError as error:
            cause = Cause(CauseKind.UNABLE, self.identity.rank, str(error))
            self._to_member(me.NotAble(shared.epoch, cause, False))
            return
        text = self._not_back
        if taken:
            text = f"{taken} is in use on this pod by something that is not of this group"
        if text and await self._still_not_back(text, taken):
            self._to_member(me.NotAble(shared.epoch, Cause(CauseKind.UNABLE, self.identity.rank, text)))
            return
        self._before = await planning.before_epoch(self._ask)
        self._scratch += [folder for folder in self.plan.scratch if folder not in self._scratch]
        await planning.sweep(self._scratch)
        self._scratch = self._scratch[-2:]
        self.epoch = shared.epoch
        self.log.epoch = str(shared.epoch.n)
        self._recorded.clear()
        self._frozen_since.clear()
        self._reported = None
        environ = {**self.environ, "LAUNCHER_COOKIE": f"{self.incarnation}.{shared.epoch.n}"}
        self.stages.begin(shared.epoch, self.plan, environ)
        self._to_member(me.Able(shared.epoch))

    async def _still_not_back(self, text: str, taken: str) -> bool:
        """GPU memory that an earlier epoch kept is looked at once more before this one is refused."""
        if taken or self._before is None:
            return True
        _, self._not_back = await planning.after_epoch(self._before, self._ask)
        return bool(self._not_back)

    def _start_stage(self, stage: int) -> None:
        assert self.plan is not None
        if self.settings.handoff:
            self._task(self._hand_off(self.plan.stages[stage].processes[0]))
            return
        self.stages.start(stage)

    async def _hand_off(self, process: Any) -> None:
        """The group is whole: the engine takes the launcher's place. From here on nobody supervises."""
        from launcher.stages import environment

        self.log("hands off: the engine takes this process's place", {"program": process.argv[0]})
        if self._leader_link is not None:
            await self._leader_link.close()
        self._channel_send(guard.Handoff(process.argv, environment(self.environ, process), process.cwd))
        os.set_blocking(self._channel.fileno(), True)
        self._channel.flush()
        os._exit(0)

    def _stage_done(self, epoch: Epoch, stage: int) -> None:
        self._to_member(me.Done(epoch, stage))

    def _engine_broke(self, epoch: Epoch, cause: Cause) -> None:
        self.log("failure", {"cause": cause.text, "process": cause.process}, "info" if self.draining else "error")
        self._to_member(me.Broke(epoch, cause))

    def _serve(self) -> None:
        from launcher.health import HealthWatch

        assert self.plan is not None and self.epoch is not None
        self.serving, self.draining = True, False
        epoch, health = self.epoch, self.plan.health
        if not self.identity.is_leader:
            health = Health()
        name = self.plan.stages[-1].processes[0].name if self.plan.stages[-1].processes else "the engine"
        self._health = HealthWatch(
            self.identity.rank,
            self.settings,
            health,
            name,
            lambda cause: self._engine_broke(epoch, cause),
            lambda: self._to_member(me.Idle(epoch)),
            planning.api_traffic(self.plan),
        )
        self._health.start()
        if self._guard is not None:  # who runs now is known from now on, also should the guard be killed
            self._look_at_tree(self._guard.pid)

    def _drain(self) -> None:
        self.draining = True
        if self._health is not None and self.identity.is_leader:
            self._health.drain()

    def _stop(self, grace: float, cause: Cause) -> None:
        self.serving = False
        if self._health is not None:
            self._health.stop()
            self._health = None
        if grace == self.settings.stop_grace and self.plan is not None and self.plan.stop_grace is not None:
            grace = self.plan.stop_grace  # the engine file's own; the lease still ends it
        self._vital.forget()
        self.stages.cancel(grace)
        self._stops += 1
        if cause.kind is not CauseKind.DRAIN:
            self.log("stopping the engine", {"why": str(cause), "grace": grace}, "warning")
        else:
            self.log("stopping the engine", {"why": cause.text, "grace": grace})
        name = f"stop-{self._stops}"
        self._channel_send(guard.Stop(name, None, grace) if grace > 0 else guard.Kill(name, None))

    async def _stopped(self, report: guard.Stopped) -> None:
        """The guard says that nothing runs; the rest of the epoch's traces go too, then the member may say so."""
        if not report.clean:
            left = ", ".join(f"pid {pid} ({name}, state {state})" for pid, _, name, state in report.left)
            self._to_member(me.Gone(False, f"could not be killed: {left}"))
            await asyncio.sleep(1.0)
            self._stops += 1
            self._channel_send(guard.Kill(f"stop-{self._stops}", None))
            return
        if self._before is not None:
            removed, self._not_back = await planning.after_epoch(self._before, self._ask)
            if removed:
                self.log("removed what the engine left in /dev/shm", {"files": len(removed)})
            if self._not_back:
                self.log(self._not_back, level="error")
        self.pids = ()
        self._to_member(me.Gone(True, seconds=report.seconds))

    # ------------------------------------------------------------------------------------------------ from the guard

    def _channel_send(self, order: guard.Order) -> None:
        self._channel.send(order)
        if self._channel.wants_write and self._loop is not None:
            self._loop.add_writer(self._channel.fileno(), self._write_guard)

    def _write_guard(self) -> None:
        self._channel.flush()
        if not self._channel.wants_write and self._loop is not None:
            self._loop.remove_writer(self._channel.fileno())

    def _write(self, text: str) -> None:
        self._channel_send(guard.Say(2, text))

    def _read_guard(self) -> None:
        for report in self._channel.receive():
            self._hear_guard(report)

    def _hear_guard(self, report: guard.Report) -> None:
        if isinstance(report, (guard.Started, guard.NotStarted, guard.Output, guard.Exited)):
            if report.id in self._asks:
                self._hear_answer(report)
            else:
                if isinstance(report, guard.Started):
                    self._recorded[(report.pid, report.start_time)] = None
                self.stages.hear(report)
        elif isinstance(report, guard.Stopped):
            if report.id == f"stop-{self._stops}":
                self._task(self._stopped(report))
        elif isinstance(report, guard.LeaseExpired):
            self._to_member(me.Expired())
        elif isinstance(report, guard.SignalReceived):
            self._signal(report.number)
        elif isinstance(report, guard.Pong):
            self._ponged = self._pings
        elif isinstance(report, guard.Guarding):
            self._guard = report
        elif isinstance(report, guard.Dropped):
            self.log("output was dropped: nobody read it fast enough", {"bytes": report.bytes}, "warning")
        elif isinstance(report, guard.GuardLost):
            self._guard_lost()

    def _hear_answer(self, report: guard.Started | guard.NotStarted | guard.Output | guard.Exited) -> None:
        if isinstance(report, guard.Output):
            self._asked_output[report.id] = (self._asked_output[report.id] + report.data)[-(1 << 16) :]
        elif not isinstance(report, guard.Started) and not self._asks[report.id].done():
            self._asks[report.id].set_result((self._asked_output[report.id], report))

    def _guard_lost(self) -> None:
        """kill -9 of the guard: what it guarded is ours to end, at once; then nobody can reap for us, so exit."""
        tree.kill_tree_without_guard(self._recorded, cookie=self._cookie)
        self._last_words(CauseKind.AGENT, "the launcher's guard process was killed; the engine was ended")
        os.set_blocking(2, False)  # nobody may read it, and nobody else is left to write there
        with contextlib.suppress(OSError):
            os.write(2, b"launcher: the guard process was killed; the engine was ended\n")
        os._exit(128 + signal.SIGKILL)

    def _last_words(self, kind: CauseKind, text: str) -> None:
        """Tell the leader, or as the leader tell all, why we end: the words are in the kernel's hands on return."""
        with contextlib.suppress(Exception):  # whatever comes of it, we end
            if self.epoch is not None:
                self._to_member(me.Broke(self.epoch, Cause(kind, self.identity.rank, text, "launcher")))

    @property
    def _cookie(self) -> str | None:
        return f"{self.incarnation}.{self.epoch.n}" if self.epoch is not None else None

    def _signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self.log("told to go", {"signal": signal_name(number), "grace": self.settings.grace})
            if self._finished_future.done():
                return
            self._to_member(me.Terminate(self.settings.grace))
        else:
            self._channel_send(guard.Deliver(number))

    def _oom_killed(self) -> bool:
        before, now = self._before.oom_kills if self._before else None, planning.oom_kills()
        return before is not None and now is not None and now > before

    # ---------------------------------------------------------------------------------------------------- time passes

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.terms.beat / 2)
            if self.coordinator is not None:
                self._to_coordinator(Tick(), co.LOCAL)
            self._to_member(Tick())

    async def _scan(self) -> None:
        """Once a second: the process tree (frozen processes, signs of life, pids), and whether the guard lives."""
        while True:
            await asyncio.sleep(SCAN_EVERY)
            if self._pings - self._ponged >= GUARD_SILENT:  # counted, not timed: we may have been frozen ourselves
                self._guard_frozen()
                return
            self._pings += 1
            self._channel_send(guard.Ping(self._pings))
            if self.stages.pids and self._guard is not None:
                self._look_at_tree(self._guard.pid)

    def _look_at_tree(self, root: int) -> None:
        if self.epoch is None:
            return
        now = time.monotonic()
        procs = [p for p in tree.descendants(root) if p.pid != os.getpid()]
        for p in procs:
            self._recorded[p.key] = None
        self.pids = tuple(p.pid for p in procs if not p.gone)
        self._frozen_since = watch.stopped_since(self._frozen_since, procs, now)
        for key in watch.frozen(self._frozen_since, now)[:1]:
            comm = next(p.comm for p in procs if p.key == key)
            text = f"process {key[0]} ({comm}) has been stopped (state T) for {now - self._frozen_since[key]:.0f} s"
            if self.member.state in (me.State.STARTING, me.State.RUNNING):
                self._engine_broke(self.epoch, Cause(CauseKind.STOPPED, self.identity.rank, text, comm))
        self._vital.see(procs, self._vital_names())
        self._activity = planning.activity(procs) + self.stages.bytes
        self._report()

    def _vital_names(self) -> tuple[str, ...]:
        """Which processes of the tree must live on, while the group serves."""
        if self.plan is None or self.draining or self.member.state is not me.State.RUNNING:
            return ()
        return tuple(name for stage in self.plan.stages for p in stage.processes for name in p.vital)

    def _vital_ended(self, pid: int, name: str, status: int | None) -> None:
        if self.epoch is None or self.draining:
            return
        if any(vital.ending(root) for root in self.stages.pids):
            return  # it went with its root, of which the guard will tell
        who, rank = f"process {pid} ({name}) of the engine", self.identity.rank
        if status is None:
            text = f"{who} ended although nobody asked it to"
            cause = Cause(CauseKind.DIED, rank, text, name, None, self.stages.output.last)
        else:
            code = os.waitstatus_to_exitcode(status)
            report = guard.Exited("", None if code < 0 else code, -code if code < 0 else None, "")
            cause = how_it_ended(rank, who, report, self.stages.output.last, self._oom_killed)
            kind = CauseKind.DIED if cause.kind is CauseKind.EXITED else cause.kind
            cause = replace(cause, kind=kind, process=name)
        self._engine_broke(self.epoch, cause)

    def _report(self) -> None:
        """Tell the leader what changed; while starting, every sign of life counts."""
        if self.epoch is None:
            return
        starting = self.member.state is me.State.STARTING
        report = m.Report(
            self.epoch,
            self.pids[:64],
            "ok" if self._health is not None and self._health.ok else "",
            self._activity if starting else 0,
            self.stages.output.last,
        )
        if report != self._reported:
            self._reported = report
            self._to_member(me.Activity(report))

    def _guard_frozen(self) -> None:
        """The guard sits stopped: it can neither start, reap nor kill. We kill for it, and end: our place in the group
        is of no use, and a kubelet that finds no /livez ends the pod. A guard that thaws starts a new agent."""
        self.log("the guard process does not answer: ending the engine for it", level="error")
        if self._guard is not None and self.epoch is not None:
            key = (self._guard.pid, self._guard.start_time)
            tree.kill_tree_without_guard(self._recorded, guard=key, cookie=self._cookie)
        self._last_words(CauseKind.STOPPED, "the launcher's guard process is frozen; the engine was killed")
        os.kill(os.getpid(), signal.SIGKILL)

    # ------------------------------------------------------------------------------------------------ what people see

    def _publish(self) -> None:
        phase = self.shown_phase
        if phase != self._phase:
            self._enter(phase)
        news = self.member.news
        if news.phase in ("gathering", "mismatched", "fenced", "stopping") and news.text:
            self.log.waiting(news.text)
        first = self.coordinator.history.first if self.coordinator is not None else news.first_failure
        stopping = phase in ("stopping", "aborted") or self.member.state is me.State.STOPPING
        settled = not stopping and not self._finished_future.done()  # until then a better word may come
        if settled and first is not None and first != self._told_failure:
            self._tell_failure(first, "")
        if self.member.address:
            self._remember(charged=news.charged, first_failure=news.first_failure)
            self._remember_epoch()

    def _remember_epoch(self) -> None:
        """The next agent of this guard, and the next container of this pod, must know of this epoch."""
        epoch = self.member.epoch
        if epoch is not None and epoch != self._remembered:
            self._remembered = epoch
            self._channel_send(guard.Remember(memory.epoch_text(epoch, self.member.epoch_members)))
            self._remember(last=(epoch, self.member.epoch_members))

    @property
    def shown_phase(self) -> str:
        if self.member.state in (me.State.CLEANING, me.State.SEEKING):
            return "seeking" if not self.identity.is_leader else "starting"
        if self.coordinator is not None:
            return self.coordinator.shown_phase
        return self.member.news.phase

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self.timeline.enter(phase)

    def _ready(self) -> tuple[bool, str]:
        if self.identity.rank != 0 and self.settings.worker_ready == "never":
            return False, "a worker is never ready (--worker-ready never)"
        if not self.serving:
            return False, f"not serving: {self.shown_phase}"
        if self.draining:
            return False, "draining"
        if self._health is not None and not self._health.ok:
            return False, f"the engine is not well: {self._health.words}"
        return True, "serving"

    def _tell_failure(self, cause: Cause, reason: str) -> None:
        if cause == self._told_failure:  # the block is printed once
            self.log.block([f"launcher: giving up: {reason} (first failure: {cause})"])
            return
        self._told_failure = cause
        self.log.block(failure_block(cause, reason, self.member.news.restarts))

    def _write_termination(self, cause: Cause | None, leaving: me.Exit) -> None:
        text = termination_message(cause or self.member.news.first_failure, leaving.code, leaving.text)
        path = Path(self.settings.termination_log)
        if text and path.exists():
            try:
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                self.log(
                    "the termination message could not be written", {"path": path, "why": error.strerror}, "warning"
                )

    # ------------------------------------------------------------------------------------------------------- our bugs

    def _task(self, work: Any) -> asyncio.Task[Any]:
        assert self._loop is not None
        task = self._loop.create_task(work)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if isinstance(error, LauncherError):
            if not self._finished_future.done():
                self._finished_future.set_exception(error)
            return
        assert self._loop is not None
        self._bug(self._loop, {"exception": error})

    def _bug(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """An exception that nobody expected: say all of it and end; the guard takes the engine down."""
        error = context.get("exception")
        lines = traceback.format_exception(error) if isinstance(error, BaseException) else [str(context.get("message"))]
        self.log.block(["launcher: a bug of the launcher, please report it:", *"".join(lines).splitlines()])
        if not self._finished_future.done():
            self._finished_future.set_result(me.Exit(int(ExitCode.SOFTWARE), None, "a bug of the launcher"))


def join_timeout(settings: Settings, identity: Identity) -> float | None:
    """Seconds for the first gathering; None: never gives up."""
    if settings.join_timeout is not None:
        return settings.join_timeout or None
    return None if identity.waits_forever else JOIN_TIMEOUT


def _last_epoch(environ: Mapping[str, str]) -> tuple[Epoch, tuple[str, ...]] | None:
    text = environ.get("LAUNCHER_LAST_EPOCH")
    return memory.epoch_from(text) if text else None


def _former_death(environ: Mapping[str, str], rank: int) -> Cause | None:
    how = environ.get("LAUNCHER_PREVIOUS_AGENT")
    return Cause(CauseKind.AGENT, rank, f"the launcher's agent process was {how}", "launcher") if how else None
