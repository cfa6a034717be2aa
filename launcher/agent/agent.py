"""The one place that wires the rooms together: settings, identity, plan, group, guard. It owns the event loop.

The agent starts nothing itself: processes are ordered of the guard, and the guard's reports come in as events. It
decides nothing about the group: the coordinator (on rank 0) and the member do, and their actions are carried out here.
Every event goes through one queue, in the order of arrival, so the state machines are never entered twice at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import resource
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launcher.agent import redaction, state_file
from launcher.agent.engine_runner import PodEngine
from launcher.agent.guard_client import GuardLine
from launcher.agent.preflight_watch import Lookout
from launcher.agent.state_file import Keeper
from launcher.api.failure import Telling
from launcher.api.status import Timeline, metrics_page, monotonic_of, status_object, wall_clock
from launcher.common import tasks
from launcher.common.addresses import is_loopback
from launcher.common.text import signal_name
from launcher.engines.base import Engine
from launcher.errors import ExitCode, LauncherError
from launcher.group import coordinator as co
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.events import Closed, Hang, Note, Say, SayAll, Tick, own_gap
from launcher.group.lease import Terms
from launcher.guard import channel as guard
from launcher.log import Log
from launcher.model import Cause, CauseKind, Epoch, Identity, Plan, Shared
from launcher.node import descriptors, leftovers
from launcher.node.pressure import Pressure
from launcher.planning import steps
from launcher.settings import Settings

if TYPE_CHECKING:
    from launcher.api.visitors import Visitors
    from launcher.group.link import LeaderLink, MemberLink

SCAN_EVERY = 1.0  #: seconds between looks at the process tree
OF_THE_ENGINE = (guard.Started, guard.NotStarted, guard.Output, guard.Exited, guard.Orphaned, guard.Stopped)
LOOK_AGAIN = 0.05  #: seconds between looks whether everybody has heard the leader's last words
PAGES_AFTER = 0.2  #: seconds at most; with one pod the engine's start goes first
CONTAINED_EVERY = 60.0  #: seconds at least between two lines about errors over connections
LAST_WRITE = 2.0  #: seconds for the state file, when nothing else is left to do
PATH_SECONDS = 3.0  #: for a connection to rank 0's own address
JOIN_TIMEOUT = 1800.0  #: where nobody restarts pods for us
LINGER_MORE = 15.0  #: seconds, over 1.5 leases: for a rank that was lost to end its engine, and to dial again


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
        self.identity: Identity = steps.identity_of(settings, environ)[0]
        self.incarnation = os.urandom(6).hex()  #: by which the guard, and the state file, know us
        self.timeline = Timeline()
        self._line = GuardLine(channel, self._hear_guard)
        self.log = Log(self._line.say, self.identity.rank, settings.log_format, settings.log_level)
        self._warnings = list(warnings)
        self._secrets = steps.secret_of(settings)
        if self._secrets is not None:
            _leave_no_core()  # it would hold the secret; engines are started by the guard, and keep their limit
        self._shares = descriptors.shares(descriptors.raise_limit(), self.identity.size, self.identity.is_leader)
        self._adapter: Engine = steps.engine_of(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: asyncio.Future[me.Exit] | None = None
        self._contained, self._contained_at = 0, -CONTAINED_EVERY  # errors over connections; when one was last named
        self._engine_started = asyncio.Event()
        self._queue: deque[tuple[str, Any, int]] = deque()
        self._pumping = False
        self._leader_link: LeaderLink | None = None
        self.visitors: Visitors | None = None  #: who asks this pod's pages
        self._member_link: MemberLink | None = None
        self._remembered: tuple[Epoch, tuple[str, ...], leftovers.Snapshot | None] | None = None
        self._last_epoch, self._shm_before = state_file.handed_on(environ)
        self._kept_news: m.News | None = None
        self.phase = "setup"  #: as people see it
        self._telling = Telling(self.log, settings.termination_log, settings.last_lines == "on")
        self._keeper = Keeper(settings.state_dir, self.identity.rank)
        #: How the launcher before us in this pod ended, unless in good order: the guard saw how, the file only that.
        self._hurried = asyncio.Event()  #: told to go when the end had begun
        self._died = _former_death(environ, self.identity.rank) or self._keeper.before.killed(self.identity.rank)
        self._relocated = False  # rank 0's own address was corrected by where a member arrived
        self._arrived: set[int] = set()  # connections of members whose way to us was looked at
        self._elsewhere: set[tuple[int, str]] = set()  # members that arrived at another address, as logged
        self._recalled = False  # whether --state-dir speaks of us, and no more of the launcher before
        self.environ = steps.engine_environment(environ, self.identity.rank)
        self._known_secrets = redaction.known(
            settings.engine_args,
            self.environ,
            *([self._secrets.newest.decode("utf-8", "replace")] if self._secrets else ()),
        )
        self.lookout = Lookout(settings, self.identity, self.environ, self.log)
        self.pressure = Pressure(time.monotonic())
        self.member = self._new_member(environ)
        self.engine = PodEngine(
            self._adapter,
            settings,
            self.identity,
            self.environ,
            self.incarnation,
            self._secrets,
            self._line,
            self.log,
            tell=self._to_member,
            state=lambda: self.member.state,
            task=self._task,
            before_handoff=self._before_handoff,
            pressure=self.pressure,
        )
        self.coordinator = self._new_coordinator() if self.identity.is_leader else None

    def _new_member(self, environ: Mapping[str, str]) -> me.Member:
        """This rank's state machine, told what is known of the launcher that ran here before."""
        settings, who, former = self.settings, self.identity, self._keeper.before
        killed = former.killed(who.rank)
        config = me.Config(
            group=who.group,
            rank=who.rank,
            size=who.size,
            name=who.name,
            incarnation=self.incarnation,
            terms=Terms(settings.lease),
            stop_grace=settings.stop_grace,
            join_timeout=join_timeout(settings, who),
            rejoin_timeout=rejoin_timeout(settings, who),
            may_restart=settings.max_restarts > 0,
            replaces=tuple(filter(state_file.is_incarnation, environ.get("LAUNCHER_REPLACES", "").split(",")))[-64:],
            died=self._died,
            last=self._last_epoch or former.last,
        )
        member = me.Member(config, time.monotonic())
        now = time.time()
        ages = tuple(max(0.0, now - at) for at in former.charges if now - at <= settings.restart_window)
        member.news = m.News(
            "gathering",
            charges=ages if killed is None else (0.0, *ages),
            first_failure=former.first_failure or (killed and self._died),
            first_epoch=former.first_epoch,
        )
        member.first_at = former.first_at and monotonic_of(former.first_at)
        return member

    def _new_coordinator(self) -> co.Coordinator:
        """The group's state machine, on rank 0."""
        settings, last = self.settings, self.member.config.last
        config = co.Config(
            group=self.identity.group,
            size=self.identity.size,
            incarnation=self.incarnation,
            terms=Terms(settings.lease),
            max_restarts=settings.max_restarts,
            restart_window=settings.restart_window,
            restart_backoff=settings.restart_backoff,
            stop_grace=settings.stop_grace,
            join_timeout=join_timeout(settings, self.identity),
            linger=linger(settings, self.identity),
            startup_timeout=settings.startup_timeout,
            startup_stall_timeout=settings.startup_stall_timeout or None,
            mint=self.engine.mint,
            highest_n=last[0].n if last else 0,
        )
        return co.Coordinator(config, time.monotonic(), random.Random())

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
        tasks.start_threads()
        self._line.open()
        self._line.send(guard.Policy(self.settings.max_restarts > 0))
        self._line.send(guard.Incarnation(self.incarnation))

    async def _startup(self) -> None:
        for warning in (*self._warnings, *steps.secret_warnings(self.settings)):
            self.log(warning, level="warning")
        if self._secrets is not None:
            self._secrets.warn = lambda text: self.log(text, level="warning")
        who = self.identity
        self.log(
            "started",
            {"group": who.group, "size": who.size, "source": who.source, "leader": who.leader},
        )
        self._enter("setup")
        for step in (self._listen, self._learn):
            await asyncio.wait([self._task(step()), self._finished_future], return_when=asyncio.FIRST_COMPLETED)
            if self._finished_future.done():
                return  # told to go, or it can't work
        self._task(self._beat())
        await self._tidy_up()
        self._to_member(me.Gone())  # the guard killed whatever a former agent left before it forked this one

    async def _tidy_up(self) -> None:
        """The agent before us was killed in an epoch: nobody has looked what its engine left in /dev/shm."""
        if self._shm_before is not None:
            removed = await asyncio.to_thread(leftovers.remove, self._shm_before)
            if removed:
                self.log("removed what the engine left in /dev/shm", {"files": len(removed)})

    async def _done(self) -> me.Exit:
        return await self._finished_future

    @property
    def _finished_future(self) -> asyncio.Future[me.Exit]:
        assert self._finished is not None
        return self._finished

    async def _shutdown(self, leaving: me.Exit) -> int:
        if self.engine.health is not None:
            self.engine.health.stop()
        cause = leaving.cause if leaving.code else None
        if cause is not None:
            self._telling.failure(cause, self.member.news.restarts, leaving.text)
        self._telling.termination(cause or self.member.news.first_failure, leaving.code, leaving.text)
        if self._recalled:  # else what is remembered is not ours, and we know nothing of what it left
            self._remember(clean=leaving.code != ExitCode.SOFTWARE)  # else what runs is ended by the guard, after us
            self._keeper.settle(LAST_WRITE)
        await self._linger()
        await self._close_leader_link()
        if self._member_link is not None:
            await asyncio.sleep(0.05)  # what was just said is still in the socket's hands
            self._member_link.hang()
        why = leaving.text.partition("\n")[0] or (
            "" if leaving.code else "the work is done" if self.engine.completes else "told to go"
        )
        self.log("exits", {"code": leaving.code, "why": why})
        return leaving.code

    async def _linger(self) -> None:
        """The group has given up: who was here hangs up when he has heard it, and who comes late hears it, too."""
        leader, said = self.coordinator, False
        while leader is not None and leader.lingers(time.monotonic()) and not self._hurried.is_set():
            if not said and time.monotonic() - leader.phase_since > co.HEARING_SECONDS:
                said = True
                self.log("stays to tell the ranks that are away", {"at_most_s": round(leader.config.linger, 1)})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), LOOK_AGAIN)

    async def _before_handoff(self) -> None:
        self._remember(handed_off=True)
        self._keeper.settle(LAST_WRITE)
        await self._close_leader_link()

    async def _close_leader_link(self) -> None:
        if self._leader_link is not None:
            await self._leader_link.close()

    # --------------------------------------------------------------------------------------------------- start-up

    async def _listen(self) -> None:
        """HTTP for probes on every pod; on the leader the group's port. Ports that are taken are errors in words."""
        from launcher.network.listening import bind

        host = steps.listen_host(self.settings)
        try:
            sockets = bind(host, self.settings.agent_port)
        except OSError as error:
            raise steps.port_error("agent_port", self.settings, error) from None
        self._task(self._serve_pages(sockets))
        if self.identity.alone or not self.identity.is_leader:
            return
        from launcher.group.link import LeaderLink

        if not self._shares.enough:
            self.log(
                "too few open files for this size of group: raise the container's nofile limit",
                {"limit": descriptors.engine_limit()[1], "size": self.identity.size},
                "warning",
            )
        self._leader_link = LeaderLink(
            self.identity.group,
            self._secrets,
            most=self._shares.guests,
            size=self.identity.size,
            heard=self._hear_member,
            closed=self._member_closed,
            stranger=lambda where, what: self.log(
                "a stranger was turned away", {"address": where, "what": what}, "warning"
            ),
        )
        try:
            self._leader_link.listen(bind(host, self.settings.group_port))
        except OSError as error:
            raise steps.port_error("group_port", self.settings, error) from None
        if self._secrets is None and not is_loopback(host or ""):
            self.log(
                "the group port is open to whoever reaches it: give --token-file, or a NetworkPolicy",
                level="warning",
            )

    async def _serve_pages(self, sockets: Sequence[socket.socket]) -> None:
        """With one pod the engine goes first: what serves HTTP takes as long to import as all else together."""
        if self.identity.alone:
            await asyncio.wait([self._task(self._engine_started.wait()), self._finished_future], timeout=PAGES_AFTER)
        from launcher.api import server

        pages = server.Pages(
            self.ready,
            lambda: metrics_page(self),
            lambda: status_object(self),
            secrets=lambda: self._secrets.accepted() if self._secrets else (),
            details=self.settings.status_details,
            host_network=lambda: steps.on_host_network(self.environ),
        )
        self.visitors = server.listen(pages, sockets, self._shares.visits)

    async def _learn(self) -> None:
        """What must be known before hello: own address, versions, GPUs; and whether all this can work."""
        leader: tuple[str, ...] = ()
        if not self.identity.alone and self.identity.address is None:
            leader = await self._resolve_leader()
        self.lookout.warm_up()  # while the versions are asked
        facts = self.engine.facts = await steps.learn(self.settings, self._adapter, self.environ, self.engine.ask)
        checked = self._adapter.check(self.settings, self.identity, facts)
        for warning in checked.warnings:
            self.log(warning, level="warning")
        for why in checked.why:
            self.log(why)
        network = self._learn_network(leader)
        address = network.address if network else self.identity.address or "127.0.0.1"
        outline = self.engine.plan_for(steps.outline(self.identity, address))
        self.member.address = address
        self._recall(address)
        self.member.fingerprint = steps.fingerprint(self.settings, self._adapter, facts)
        looked = self._task(self._look_around(outline, network))
        if not self.identity.alone:
            await looked
        if self.coordinator is not None:
            self.coordinator.stages = tuple(co.Stage(s.name, s.timeout, s.on_timeout) for s in outline.stages)
        if not self.identity.alone and not self.identity.is_leader:
            self._make_member_link()

    def _recall(self, address: str) -> None:
        """What the launcher before us in this pod left in --state-dir.

        Nothing that it ran is left if it ended in good order, and if we are PID 1: its PID namespace ended with it. The
        place tells a folder that was wrongly shared between pods, or that outlived one.
        """
        former, here = self._keeper.before, state_file.place(self.identity.name, address)
        is_init = self._line.guarding is not None and self._line.guarding.init
        if former.incarnation and former.place == here and (former.clean or is_init):
            self.member.replace(former.incarnation)
        killed = former.killed(self.identity.rank)
        if killed is not None:
            self.log((self._died or killed).text, level="warning")
        if self._keeper.set_aside:
            self.log("the state file is not used", {"why": self._keeper.set_aside}, "warning")
        self._remember(incarnation=self.incarnation, place=here, clean=False, handed_off=False)
        self._recalled = True

    def _remember(self, **changes: Any) -> None:
        if not self._keeper.remember(**changes):
            self.log("--state-dir cannot be written; going on without", {"why": self._keeper.trouble}, "warning")

    async def _look_around(self, outline: Plan, network: steps.Network | None) -> None:
        self.member.facts = await self.lookout.preflight(self.engine.facts, outline, network)

    def _compare(self) -> None:
        if self.coordinator is not None and not self.identity.alone:
            self.lookout.compare({rank: seat.hello.facts for rank, seat in self.coordinator.seats.items()})

    def _learn_network(self, leader: tuple[str, ...], why: str = "") -> steps.Network | None:
        if self.identity.alone:
            alone = steps.network_alone(self.settings, self.identity, self.environ)
            if alone is None:
                return None
            found = alone
        else:
            nccl = steps.nccl_version(self.engine.facts)
            found = steps.network(self.settings, self.identity, self.environ, leader, nccl)
        for warning in found.warnings:
            self.log(warning, level="warning")
        self.log("own address", {"address": found.address, "why": why or found.why})
        for note in found.notes:
            self.log(note)
        self.engine.network = found.ours
        return found

    async def _resolve_leader(self) -> tuple[str, ...]:
        from launcher.network.names import wait_for_address

        limit = (rejoin_timeout if self.member.epoch else join_timeout)(self.settings, self.identity)
        deadline = time.monotonic() + limit if limit else None
        return await wait_for_address(self.identity.leader, deadline, self.log.waiting)

    def _make_member_link(self) -> None:
        from launcher.group.link import MemberLink

        def failed(why: str) -> None:
            self.member.refusal = f"waiting for the leader {self.identity.leader}: {why}"
            self.log.waiting(self.member.refusal)

        self._member_link = MemberLink(
            self.identity.group,
            self._secrets,
            self.settings.group_port,
            resolve=self._resolve_leader,
            connected=lambda _: self._to_member(me.Connected()),
            heard=self._to_member,
            closed=lambda why: self._to_member(Closed(why)),
            failed=failed,
            task=self._task,
            unread=lambda why: self._to_member(me.Unreadable(why)),
        )

    def _hear_member(self, conn: int, message: Any) -> None:
        if isinstance(message, m.Ping) and conn not in self._arrived:
            # It has a seat and answers on this connection: before that its word changes nothing.
            rank = self.coordinator.rank_of(conn) if self.coordinator is not None else None
            if rank is not None and self._leader_link is not None:
                self._arrived.add(conn)
                self._arrived_at(self._leader_link.own_address(conn), rank)
        self._to_coordinator(message, conn)

    def _member_closed(self, conn: int, why: str) -> None:
        self._arrived.discard(conn)
        self._to_coordinator(Closed(why), conn)

    def _arrived_at(self, address: str, rank: int) -> None:
        """Where a member reaches rank 0 is evidence of rank 0's address, better than a guess by the default route.

        Debian's /etc/hosts, for one, gives a machine's own name as 127.0.1.1.
        """
        from launcher.network.addresses import holder, interfaces

        own = self.member.address
        if not address or not own or address == own or is_loopback(address) or is_loopback(own):
            return
        guessed = self.identity.address is None and self.settings.interface is None and not self._relocated
        waiting = self.coordinator is not None and self.coordinator.phase is co.Phase.WAITING
        if not (guessed and waiting and holder(address, interfaces())):
            if (rank, address) not in self._elsewhere:
                self._elsewhere.add((rank, address))
                where = {"own": own, "member": rank, "arrived_at": address}
                self.log("a member reaches rank 0 at another address than rank 0's own", where, "warning")
            return
        self._relocated = True
        self.identity = replace(self.identity, address=address)
        found = self._learn_network((address,), f"rank {rank} reaches this pod there")
        if found is not None:
            self.member.address = address
            assert self.coordinator is not None
            self.coordinator.relocate(address)

    async def _prepare(self, shared: Shared) -> None:
        """Prepare an epoch, unless rank 0's address is one that this pod cannot reach: the engine would hang on it."""
        trouble = await self._path_trouble(shared)
        if self.member.epoch != shared.epoch:
            return
        if trouble:
            cause = Cause(CauseKind.UNABLE, self.identity.rank, trouble)
            # A group that may not try again ends with this answer; another waits until the address is right.
            self._to_member(me.NotAble(shared.epoch, cause, retry=self.settings.max_restarts > 0))
        else:
            await self.engine.prepare(shared)

    async def _path_trouble(self, shared: Shared) -> str:
        """Why rank 0's address cannot be reached from here; empty: it can, or the group's link proves it."""
        from launcher.network import probe
        from launcher.network.addresses import same_address

        leader = shared.addresses[0]
        reached = self._member_link.reached if self._member_link is not None else ""
        if not reached or same_address(reached, leader):
            return ""
        where = {"rank 0": leader, "reached_at": reached}
        self.log("rank 0's own address is another one than that at which this pod reaches it", where, "warning")
        why = await probe.why_unreachable(leader, self.settings.group_port, PATH_SECONDS)
        if not why:
            return ""
        return (
            f"rank {self.identity.rank} cannot reach rank 0 at {leader}, its own address ({why}), while the "
            f"group's link "
            f"goes to {reached}: give rank 0 --address {reached} or --interface"
        )

    # ------------------------------------------------------------------------------------------------- the one queue

    def _to_member(self, event: Any) -> None:
        # from here its words go to the leader, and to all who ask
        self._queue.append(("member", redaction.event(event, self._known_secrets), 0))
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
                self._handle(*self._queue.popleft())
                self._publish()
        except Exception as error:  # whoever brought the event, a library's task perhaps, would keep it to itself
            self._failed(error)
        finally:
            self._pumping = False
            if self._leader_link is not None:
                self._leader_link.flush()

    def _handle(self, machine: str, event: Any, conn: int) -> None:
        now = time.monotonic()
        if machine == "member":
            for action in self.member.handle(event, now):
                self._member_acts(action)
        elif self.coordinator is not None:
            for action in self.coordinator.handle(event, conn, now):
                self._coordinator_acts(action)

    def _coordinator_acts(self, action: co.Action) -> None:
        if isinstance(action, Note):
            self.log(action.event, action.fields, action.level)
            return
        if isinstance(action, Hang):
            self._arrived.discard(action.conn)
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
            self._line.send(guard.Deadline(action.at))
            self.engine.deadline = action.at
        elif isinstance(action, Hang):
            if self._member_link is not None:
                self._member_link.hang()
        elif isinstance(action, me.Dial):
            self._dial(action.delay)
        elif isinstance(action, me.DoPrepare):
            self._task(self._prepare(action.shared))
        elif isinstance(action, me.DoStage):
            self.engine.start_stage(action.stage)
        elif isinstance(action, me.DoServe):
            self.engine.serve()
            if self.engine.completes:
                self.log("the work is done on all ranks")
                self._to_member(me.Terminate(self.settings.grace))
        elif isinstance(action, me.DoDrain):
            self.engine.drain(action.seconds)
        elif isinstance(action, me.DoStop):
            self.engine.stop(action.grace, action.cause)
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

    # ------------------------------------------------------------------------------------------------ from the guard

    def _hear_guard(self, report: guard.Report) -> None:
        if isinstance(report, OF_THE_ENGINE):
            self._engine_started.set()
            self.engine.hear(report)
        elif isinstance(report, guard.LeaseExpired):
            self._to_member(me.Expired())
        elif isinstance(report, guard.SignalReceived):
            self._signal(report.number)
        elif isinstance(report, guard.Dropped):
            self.log("output was dropped: nobody read it fast enough", {"bytes": report.bytes}, "warning")
        elif isinstance(report, guard.GuardLost):
            self._guard_lost()

    def _guard_lost(self) -> None:
        """kill -9 of the guard: what it guarded is ours to end, at once; then nobody can reap for us, so exit."""
        self.engine.kill_without_guard()
        self._last_words(CauseKind.AGENT, "the launcher's guard process was killed; the engine was ended")
        os.set_blocking(2, False)  # nobody may read it, and nobody else is left to write there
        with contextlib.suppress(OSError):
            os.write(2, b"launcher: the guard process was killed; the engine was ended\n")
        os._exit(128 + signal.SIGKILL)

    def _last_words(self, kind: CauseKind, text: str) -> None:
        """Tell the leader, or as the leader tell all, why we end: the words are in the kernel's hands on return."""
        with contextlib.suppress(Exception):  # whatever comes of it, we end
            if self.engine.epoch is not None:
                self._to_member(me.Broke(self.engine.epoch, Cause(kind, self.identity.rank, text, "launcher")))

    def _signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self.log("told to go", {"signal": signal_name(number), "grace": self.settings.grace})
            if self._finished_future.done():
                self._hurried.set()
                return
            self._to_member(me.Terminate(self.settings.grace))
        else:
            self._line.send(guard.Deliver(number))

    # ---------------------------------------------------------------------------------------------------- time passes

    async def _beat(self) -> None:
        """Time passes for the state machines. In the same breath, for waking costs more than either, a look around."""
        tick, look_at = self.member.config.terms.beat / 2, 0.0
        pause = min(tick, SCAN_EVERY)
        self.pressure.beat(time.monotonic(), pause)
        while True:
            await asyncio.sleep(pause)
            self.engine.lateness.mark()
            gap = self.pressure.beat(time.monotonic(), pause)
            if gap:
                self.log(own_gap(gap), level="warning")
            if self.coordinator is not None:
                self.coordinator.put_off = self.pressure.put_off
                self._to_coordinator(Tick(), co.LOCAL)
            self._to_member(Tick())
            now = time.monotonic()
            if now >= look_at:
                look_at = now + SCAN_EVERY - tick / 2  # the tick that is nearest
                self._look()

    def _look(self) -> None:
        """Once a second: the process tree (frozen processes, signs of life, pids), and whether the guard lives."""
        if not self._line.ping():
            self._guard_frozen()
        elif self.engine.stages.pids:
            self.engine.look()

    def _guard_frozen(self) -> None:
        """The guard sits stopped: it can neither start, reap nor kill. We kill for it, and end: our place in the group
        is of no use, and a kubelet that finds no /livez ends the pod. A guard that thaws starts a new agent."""
        self.log("the guard process does not answer: ending the engine for it", level="error")
        frozen = self._line.guarding
        if frozen is not None and self.engine.epoch is not None:
            self.engine.kill_without_guard((frozen.pid, frozen.start_time))
        self._last_words(CauseKind.STOPPED, "the launcher's guard process is frozen; the engine was killed")
        os.kill(os.getpid(), signal.SIGKILL)

    # ------------------------------------------------------------------------------------------------ what people see

    def _publish(self) -> None:
        phase = self._phase_now
        if phase != self.phase:
            self._enter(phase)
        news = self.member.news
        if self.member.state not in (me.State.CLEANING, me.State.SEEKING):  # there it is the leader that is waited for
            told = news.phase in ("gathering", "mismatched", "fenced", "stopping")
            bound = {} if news.wait is None else {"at_most_s": round(news.wait, 1)}
            self.log.waiting(news.text if told else "", bound)
        first = self.coordinator.history.first if self.coordinator is not None else news.first_failure
        stopping = phase in ("stopping", "aborted") or self.member.state is me.State.STOPPING
        settled = not stopping and not self._finished_future.done()  # until then a better word may come
        if settled and first is not None:
            self._telling.failure(first, news.restarts)
        if self.member.address:
            if news is not self._kept_news:
                self._kept_news = news
                at = self.member.first_at
                first_at = None if news.first_failure is None or at is None else round(wall_clock(at), 1)
                charges = tuple(round(time.time() - age) for age in self.member.charges(time.monotonic()))
                self._remember(
                    charges=charges, first_failure=news.first_failure, first_epoch=news.first_epoch, first_at=first_at
                )
            self._remember_epoch()
            self._remember_name()

    def _remember_name(self) -> None:
        """A launcher that was taken over goes on under a new name: those after it in this pod must know both."""
        if self.member.incarnation != self.incarnation:
            self.incarnation = self.member.incarnation
            self._line.send(guard.Incarnation(self.incarnation))
            self._remember(incarnation=self.incarnation)

    def _remember_epoch(self) -> None:
        """The next agent of this guard, and the next container of this pod, must know of this epoch."""
        epoch, members, shm = self.member.epoch, self.member.epoch_members, self.engine.shm_before
        if epoch is not None and (epoch, members, shm) != self._remembered:
            self._remembered = (epoch, members, shm)
            self._line.send(guard.Remember(state_file.epoch_text(epoch, members, shm)))
            self._remember(last=(epoch, members))

    @property
    def _phase_now(self) -> str:
        if self.member.state in (me.State.CLEANING, me.State.SEEKING):
            return "seeking" if not self.identity.is_leader else "setup"
        if self.coordinator is not None:
            return self.coordinator.shown_phase
        return self.member.news.phase

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self.timeline.enter(phase)
        if phase == "preparing":
            self._compare()

    def ready(self) -> tuple[bool, str]:
        if self.identity.rank != 0 and self.settings.worker_ready == "never":
            return False, "a worker is never ready (--worker-ready never)"
        if not self.engine.serving:
            return False, f"not serving: {self.phase}"
        if self.engine.draining:
            return False, self.engine.drain_words
        if self.engine.health is not None and not self.engine.health.ok:
            return False, f"the engine is not well: {self.engine.health.words}"
        return True, "serving"

    @property
    def turned_away(self) -> int:
        """Connections to the group port that were closed before they were a member's."""
        return self._leader_link.turned_away if self._leader_link is not None else 0

    @property
    def connection_errors(self) -> dict[str, float]:
        """Connections that were closed because of what came on them, by kind, for the metrics."""
        links = [link.errors for link in (self._leader_link, self._member_link) if link is not None]
        unexpected = sum(one.unexpected for one in links) + self._contained
        return {"protocol": sum(one.protocol for one in links), "unexpected": unexpected}

    # ------------------------------------------------------------------------------------------------------- our bugs

    def _task(self, work: Any) -> asyncio.Task[Any]:
        return tasks.start(work, self._failed)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, LauncherError):
            if not self._finished_future.done():
                self._finished_future.set_exception(error)
            return
        assert self._loop is not None
        self._bug(self._loop, {"exception": error})

    def _contain(self, context: Mapping[str, Any]) -> None:
        """An error over a connection: it is closed and counted, and named once a minute."""
        self._contained += 1
        now = time.monotonic()
        if now - self._contained_at >= CONTAINED_EVERY:
            self._contained_at = now
            why = f"{context.get('message', '')}: {context.get('exception')!r}"[:300]
            self.log("an error over a connection", {"why": why, "so_far": self._contained}, "warning")
        transport = context.get("transport")
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()

    def _bug(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """An exception that nobody expected: say all of it and end; the guard takes the engine down.

        Unless it is a connection's or a library's own: whoever is on the other end of a connection must not end a pod.
        """
        error = context.get("exception")
        if not _is_ours(context):
            self._contain(context)
            return
        lines = traceback.format_exception(error) if isinstance(error, BaseException) else [str(context.get("message"))]
        self.log.block(["launcher: a bug of the launcher, please report it:", *"".join(lines).splitlines()])
        if not self._finished_future.done():
            self._finished_future.set_result(me.Exit(int(ExitCode.SOFTWARE), None, "a bug of the launcher"))


def _is_ours(context: Mapping[str, Any]) -> bool:
    """Whether what the event loop reports was raised by the launcher's own code, and not over a connection."""
    if any(context.get(key) is not None for key in ("transport", "protocol", "socket", "server")):
        return False
    error = context.get("exception")
    if isinstance(error, MemoryError) or not isinstance(error, BaseException):
        return isinstance(error, BaseException)  # without one it is a library's complaint
    if "handle" not in context and "future" not in context and "task" not in context:
        return True  # handed on by `_failed`
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.partition(".")[0] == "launcher" for name in modules)


def _leave_no_core() -> None:
    """A limit of 1 byte: too small for a file, and the one that a core_pattern with a pipe heeds (core(5))."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with contextlib.suppress(OSError, ValueError):  # a hard limit of 0 is below
        resource.setrlimit(resource.RLIMIT_CORE, (1, hard))


def join_timeout(settings: Settings, identity: Identity) -> float | None:
    """Seconds for the first gathering; None: never gives up."""
    if settings.join_timeout is not None:
        return settings.join_timeout or None
    return None if identity.waits_forever else JOIN_TIMEOUT


def rejoin_timeout(settings: Settings, identity: Identity) -> float | None:
    """Seconds for a leader that is gone after an epoch; None: the platform brings it back, and it is waited for."""
    return None if identity.waits_forever else join_timeout(settings, identity)


def linger(settings: Settings, identity: Identity) -> float:
    """Seconds that the leader of a group that has given up stays for a rank that is away.

    0 where the platform brings a leader back, which tells it in its turn, and where no restart is allowed, for then a
    rank that has lost its leader ends by itself.
    """
    if identity.waits_forever or not settings.max_restarts:
        return 0.0
    return min(1.5 * settings.lease + LINGER_MORE, join_timeout(settings, identity) or math.inf)


def _former_death(environ: Mapping[str, str], rank: int) -> Cause | None:
    how = environ.get("LAUNCHER_PREVIOUS_AGENT", "")[:300]
    return Cause(CauseKind.AGENT, rank, f"the launcher's agent process was {how}", "launcher") if how else None
