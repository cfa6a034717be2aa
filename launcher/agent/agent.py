"""The agent: it owns the event loop, and wires settings, group, engine and guard.

It starts nothing itself: it sends orders to the guard, and the guard's reports come in as events. It decides nothing
about the group: the coordinator (on rank 0) and the member do, and their actions are carried out here. All events go
through one queue, in the order of arrival, so that the state machines are never entered twice at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from launcher.agent import redaction, startup, state_file
from launcher.agent.addresses import Addresses
from launcher.agent.context import AgentContext
from launcher.agent.engine_runner import EngineRunner
from launcher.agent.guard_client import GuardClient
from launcher.agent.links import Links
from launcher.agent.loop_errors import LoopErrors
from launcher.agent.preflight_watch import PreflightWatch
from launcher.agent.reporting import Reporter
from launcher.agent.state_file import StateFile
from launcher.common import tasks
from launcher.common.text import signal_name
from launcher.errors import ExitCode, LauncherError
from launcher.group import coordinator as co
from launcher.group import member as me
from launcher.group.events import Hang, Note, Send, SendAll, Tick
from launcher.group.last_words import HEARING_SECONDS
from launcher.group.own_gap import own_gap
from launcher.group.roster import LOCAL
from launcher.guard import channel as guard
from launcher.identity import look_at
from launcher.log import Log
from launcher.model import Cause, CauseKind, Shared
from launcher.node import leftovers
from launcher.node.pressure import Pressure
from launcher.planning import steps
from launcher.settings import Settings

SCAN_EVERY = 1.0  #: seconds between looks at the process tree
OF_THE_ENGINE = (
    *(guard.Started, guard.NotStarted, guard.Output, guard.Exited),
    *(guard.Aborting, guard.Orphaned, guard.Stopped),
)
LOOK_AGAIN = 0.05  #: seconds between looks whether all ranks have heard why the group gave up


def main(fd: int, settings: Settings, environ: Mapping[str, str], warnings: Sequence[str]) -> int:
    """Run one pod's agent on the guard's channel ``fd``. Returns the exit code."""
    channel = guard.GuardChannel(fd)
    agent = Agent(channel, settings, environ, warnings)
    return asyncio.run(agent.run())


class Agent:
    """One pod's agent, from start to exit."""

    def __init__(
        self, channel: guard.GuardChannel, settings: Settings, environ: Mapping[str, str], warnings: Sequence[str]
    ) -> None:
        identity = steps.identity_of(settings, environ)[0]
        self.guard = GuardClient(channel, self._hear_guard)
        self.log = Log(self.guard.say, identity.rank, settings.log_format, settings.log_level)
        self._warnings = list(warnings)
        secrets = steps.secret_of(settings)
        if secrets is not None:
            startup.forbid_core_dumps()
        environment = steps.engine_environment(environ, identity.rank)
        own = [secrets.newest.decode("utf-8", "replace")] if secrets else []
        self.context = AgentContext(
            settings,
            identity,
            environment,
            os.urandom(6).hex(),
            secrets,
            self.guard,
            self.log,
            Pressure(time.monotonic()),
            self._to_member,
            self._task,
            redaction.known(settings.engine_args, environment, *own),
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: asyncio.Future[me.Exit] | None = None
        self._hurried = asyncio.Event()  # SIGTERM came when the agent was about to exit
        self._queue: deque[Callable[[], None]] = deque()
        self._pumping = False
        last, self._shm_before = state_file.handed_on(environ)
        file = StateFile(settings.state_dir, identity.rank)
        self.member = startup.new_member(self.context, environ, file.before, last)
        self.engine = EngineRunner(
            self.context, steps.engine_of(settings), lambda: self.member.state, self._before_handoff
        )
        self.coordinator = (
            startup.new_coordinator(self.context, self.member.config.last, self.engine.mint, self.engine.adapter.waits)
            if identity.is_leader
            else None
        )
        self._loop_errors = LoopErrors(self.log)
        self._addresses = Addresses(self.context, self.member, self.coordinator, self.engine)
        self._links = Links(
            self.context, self.member, self.coordinator, self._addresses, self._loop_errors, self._to_coordinator
        )
        watch = PreflightWatch(settings, identity, self.context.environ, self.log)
        parts = (self.context, self.member, self.coordinator, self.engine, self._links)
        self._reporter = Reporter(*parts, watch, file)
        self._startup = startup.Startup(*parts, self._reporter, watch)

    # ------------------------------------------------------------------------------------ startup, loop, shutdown

    async def run(self) -> int:
        """Startup, main loop, shutdown."""
        self._start_loop()
        try:
            await self._start()
            leaving = await self._finished_future
        except LauncherError as error:
            self.log.block([f"launcher: {line}" for line in str(error).split("\n")])
            leaving = me.Exit(int(error.code), None, str(error))
        return await self._shut_down(leaving)

    def _start_loop(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._finished = loop.create_future()
        loop.set_exception_handler(self._uncaught)
        tasks.start_threads()
        self.guard.open()
        self.guard.send(guard.Policy(self.context.settings.max_restarts > 0))
        self.guard.send(guard.Incarnation(self.context.incarnation))

    async def _start(self) -> None:
        who, secrets = self.context.identity, self.context.secrets
        for warning in (*self._warnings, *steps.secret_warnings(self.context.settings)):
            self.log(warning, level="warning")
        if secrets is not None:
            secrets.warn = lambda text: self.log(text, level="warning")
        self.log.look_at = look_at.command(who, self.context.environ, steps.namespace_of(self.context.settings))
        self.log("started", {"group": who.group, "size": who.size, "source": who.source, "leader": who.leader})
        self._reporter.enter("setup")
        for step in (self._startup.listen, self._startup.learn):
            await asyncio.wait([self._task(step()), self._finished_future], return_when=asyncio.FIRST_COMPLETED)
            if self._finished_future.done():
                return  # it received SIGTERM, or it can't work
        self._task(self._beat())
        await self._tidy_up()
        self._to_member(me.Gone())  # the guard killed whatever a former agent left before it forked this one

    async def _tidy_up(self) -> None:
        """If the previous agent was killed mid-epoch, its engine's /dev/shm segments were never removed."""
        if self._shm_before is not None:
            removed = await asyncio.to_thread(leftovers.remove, self._shm_before)
            if removed:
                self.log("removed what the engine left in /dev/shm", {"files": len(removed)})

    @property
    def _finished_future(self) -> asyncio.Future[me.Exit]:
        assert self._finished is not None
        return self._finished

    async def _shut_down(self, leaving: me.Exit) -> int:
        if self.engine.health is not None:
            self.engine.health.stop()
        self._reporter.exiting(leaving)
        await self._linger()
        await self._links.close()
        if self._links.has_leader:
            await asyncio.sleep(0.05)  # for the socket to take what was just said
            self._links.hang_up_leader()
        why = leaving.text.partition("\n")[0]
        if not why and not leaving.code:
            why = "the work is done" if self.engine.completes else "received a signal to stop"
        self.log("exits", {"code": leaving.code, "why": why})
        return leaving.code

    async def _linger(self) -> None:
        """The group has given up: wait until all ranks have heard it, including those that come late."""
        leader, logged = self.coordinator, False
        while leader is not None and leader.lingers(time.monotonic()) and not self._hurried.is_set():
            if not logged and time.monotonic() - leader.phase_since > HEARING_SECONDS:
                logged = True
                self.log("lingering to tell absent ranks", {"at_most_s": round(leader.config.linger, 1)})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), LOOK_AGAIN)

    async def _before_handoff(self) -> None:
        self._reporter.handing_off()
        await self._links.close()

    # ------------------------------------------------------------------------------------------------- the one queue

    def _to_member(self, event: Any) -> None:
        # From here its text goes to the leader, and to all who ask.
        self._queue.append(partial(self._member_hears, redaction.event(event, self.context.redacted)))
        self._pump()

    def _to_coordinator(self, event: Any, conn: int) -> None:
        self._queue.append(partial(self._coordinator_hears, event, conn))
        self._pump()

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue:
                self._queue.popleft()()
                self._reporter.publish(self._finished_future.done())
        except Exception as error:  # the caller, a library's task perhaps, would keep it to itself
            self._failed(error)
        finally:
            self._pumping = False
            self._links.flush()

    def _member_hears(self, event: Any) -> None:
        for action in self.member.handle(event, time.monotonic()):
            self._member_acts(action)

    def _coordinator_hears(self, event: Any, conn: int) -> None:
        if self.coordinator is not None:
            for action in self.coordinator.handle(event, conn, time.monotonic()):
                self._coordinator_acts(action)

    def _coordinator_acts(self, action: co.Action) -> None:
        if isinstance(action, Note):
            self.log(action.event, action.fields, action.level)
            return
        if isinstance(action, Hang):
            self._links.hang_up(action.conn)
            return
        conns = action.conns if isinstance(action, SendAll) else (action.conn,)
        if LOCAL in conns:
            self._queue.append(partial(self._member_hears, action.message))
        self._links.say_to_members(conns, action.message)

    def _member_acts(self, action: Any) -> None:
        if isinstance(action, Note):
            self.log(action.event, action.fields, action.level)
        elif isinstance(action, Send):
            self._say_to_leader(action.message)
        elif isinstance(action, me.SetDeadline):
            self.guard.send(guard.Deadline(action.at))
            self.engine.watch.deadline = action.at
        elif isinstance(action, Hang):
            self._links.hang_up_leader()
        elif isinstance(action, me.Dial):
            self._dial(action.delay)
        elif isinstance(action, me.DoPrepare):
            self._task(self._prepare(action.shared))
        elif isinstance(action, me.DoStage):
            self.engine.start_stage(action.stage)
        elif isinstance(action, me.DoServe):
            self._serve()
        elif isinstance(action, me.DoDrain):
            self.engine.drain(action.seconds)
        elif isinstance(action, me.DoStop):
            self.engine.stop(action.grace, action.cause, action.autopsy)
        elif isinstance(action, me.Exit) and not self._finished_future.done():
            self._finished_future.set_result(action)

    def _say_to_leader(self, message: Any) -> None:
        if self.coordinator is not None:
            self._queue.append(partial(self._coordinator_hears, message, LOCAL))
        else:
            self._links.say_to_leader(message)

    def _dial(self, delay: float) -> None:
        if self._links.has_leader:
            self._links.dial(delay)
        elif delay <= 0:
            self._queue.append(partial(self._member_hears, me.Connected()))
        else:
            assert self._loop is not None
            self._loop.call_later(delay, self._to_member, me.Connected())

    async def _prepare(self, shared: Shared) -> None:
        """Prepare an epoch, unless rank 0's address is one that this pod cannot reach: the engine would hang on it."""
        trouble = await self._addresses.path_trouble(shared, self._links.reached)
        if self.member.epoch != shared.epoch:
            return
        if trouble:
            cause = Cause(CauseKind.UNABLE, self.context.identity.rank, trouble)
            # A group that may not try again ends with this answer; another waits until the address is right.
            self._to_member(me.NotAble(shared.epoch, cause, retry=self.context.settings.max_restarts > 0))
        else:
            await self.engine.prepare(shared)

    def _serve(self) -> None:
        self.engine.serve()
        if self.engine.completes:
            self.log("the work is done on all ranks")
            self._to_member(me.Terminate(self.context.settings.grace))

    # ------------------------------------------------------------------------------------------------ from the guard

    def _hear_guard(self, report: guard.Report) -> None:
        if isinstance(report, OF_THE_ENGINE):
            self.engine.hear(report)
        elif isinstance(report, guard.LeaseExpired):
            self._to_member(me.Expired())
        elif isinstance(report, guard.SignalReceived):
            self._signal(report.number)
        elif isinstance(report, guard.Dropped):
            self.log("output was dropped: it was not read fast enough", {"bytes": report.bytes}, "warning")
        elif isinstance(report, guard.GuardLost):
            self._guard_lost()

    def _signal(self, number: int) -> None:
        if number not in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self.guard.send(guard.Deliver(number))
            return
        grace = self.context.settings.grace
        self.log("received signal", {"signal": signal_name(number), "grace": grace})
        if self._finished_future.done():
            self._hurried.set()
        else:
            self._to_member(me.Terminate(grace))

    def _guard_lost(self) -> None:
        """The guard was killed: kill at once what it guarded, and exit, because nothing can be reaped without it."""
        self.engine.kill_without_guard()
        self._last_words(CauseKind.AGENT, "the launcher's guard process was killed; the engine was ended")
        os.set_blocking(2, False)  # the reader may be stuck, and the guard no longer writes there for us
        with contextlib.suppress(OSError):
            os.write(2, b"launcher: the guard process was killed; the engine was ended\n")
        os._exit(128 + signal.SIGKILL)

    def _guard_frozen(self) -> None:
        """The guard is stopped (SIGSTOP): it can neither start, reap nor kill. Kill the engine for it, and exit.

        This pod's place in the group is of no use, and a kubelet that finds no /livez restarts it. A guard that is
        continued starts a new agent.
        """
        self.log("the guard process does not answer: killing the engine for it", level="error")
        frozen = self.guard.guarding
        if frozen is not None and self.engine.epoch is not None:
            self.engine.kill_without_guard((frozen.pid, frozen.start_time))
        self._last_words(CauseKind.STOPPED, "the launcher's guard process is frozen; the engine was killed")
        os.kill(os.getpid(), signal.SIGKILL)

    def _last_words(self, kind: CauseKind, text: str) -> None:
        """Tell the leader, or on the leader all members, why this agent ends. On return the kernel has the message."""
        with contextlib.suppress(Exception):  # whatever comes of it, this is the end
            if self.engine.epoch is not None:
                cause = Cause(kind, self.context.identity.rank, text, "launcher")
                self._to_member(me.Broke(self.engine.epoch, cause))

    # ---------------------------------------------------------------------------------------------------- time passes

    async def _beat(self) -> None:
        """Tick the state machines and look at the pod, both in one loop, because waking up costs the most."""
        pressure = self.context.pressure
        tick, look_at = self.member.config.terms.tick, 0.0
        pause = min(tick, SCAN_EVERY)
        pressure.beat(time.monotonic(), pause)
        while True:
            await asyncio.sleep(pause)
            self.engine.watch.lateness.mark()
            gap = pressure.beat(time.monotonic(), pause)
            if gap:
                self.log(own_gap(gap), level="warning")
            if self.coordinator is not None:
                self.coordinator.put_off = pressure.put_off
                self._to_coordinator(Tick(), LOCAL)
            self._to_member(Tick())
            now = time.monotonic()
            if now >= look_at:
                look_at = now + SCAN_EVERY - tick / 2  # the nearest tick
                self._look()

    def _look(self) -> None:
        """Once a second: the process tree (frozen processes, signs of life, pids), and whether the guard lives."""
        if not self.guard.ping():
            self._guard_frozen()
        elif self.engine.stages.pids:
            self.engine.watch.look()

    # -------------------------------------------------------------------------------------------------------- errors

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return tasks.start(work, self._failed)

    def _failed(self, error: BaseException) -> None:
        if not isinstance(error, LauncherError):
            assert self._loop is not None
            self._uncaught(self._loop, {"exception": error})
        elif not self._finished_future.done():
            self._finished_future.set_exception(error)

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """A bug ends the agent, and the guard then ends the engine. An error over a connection does not."""
        if self._loop_errors.contain(context):
            return
        self._loop_errors.report_bug(context)
        if not self._finished_future.done():
            self._finished_future.set_result(me.Exit(int(ExitCode.SOFTWARE), None, "a bug of the launcher"))
