"""From an agent with settings to one that can join its group: ports, the node's facts, address, fingerprint, links."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from launcher.agent import state_file
from launcher.agent.context import AgentContext
from launcher.agent.engine_runner import EngineRunner
from launcher.agent.links import Links
from launcher.agent.preflight_watch import PreflightWatch
from launcher.agent.reporting import Reporter
from launcher.agent.requests import OperatorRequests
from launcher.agent.state_file import SavedState
from launcher.agent.timeline import monotonic_of
from launcher.agent.timeouts import join_timeout, linger, rejoin_timeout
from launcher.api.metrics import metrics_page
from launcher.api.status import status_object
from launcher.group import coordinator as co
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.config import CoordinatorConfig, MemberConfig, StageLimit
from launcher.group.lease import Terms
from launcher.model import Cause, CauseKind, Epoch, Plan
from launcher.planning import own_ports, pod_network, steps
from launcher.planning.pod_network import Network

if TYPE_CHECKING:
    import socket

PAGES_AFTER = 0.2  #: seconds at most that the pages of a pod that is alone wait for its engine's start


class Startup:
    """The steps, in order: `listen`, then `learn`."""

    def __init__(
        self,
        context: AgentContext,
        member: me.Member,
        coordinator: co.Coordinator | None,
        engine: EngineRunner,
        links: Links,
        reporter: Reporter,
        watch: PreflightWatch,
    ) -> None:
        self._context = context
        self._member = member
        self._coordinator = coordinator
        self._engine = engine
        self._links = links
        self._reporter = reporter
        self._watch = watch

    async def listen(self) -> None:
        """Serve the pages on every pod, and on rank 0 the group port. Raises LauncherError if a port is taken."""
        from launcher.network.listening import bind

        settings, who = self._context.settings, self._context.identity
        host = own_ports.listen_host(settings)
        try:
            sockets = bind(host, settings.agent_port)
        except OSError as error:
            raise own_ports.port_error("agent_port", settings, error) from None
        self._context.task(self._serve_pages(sockets))
        if who.is_leader and not who.alone:
            self._links.listen(host)

    async def _serve_pages(self, sockets: Sequence[socket.socket]) -> None:
        """In a pod that is alone the engine goes first: the HTTP server takes as long to import as all else."""
        if self._context.identity.alone:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._engine.ordered.wait(), PAGES_AFTER)
        from launcher.api import server

        settings, secrets, report = self._context.settings, self._context.secrets, self._reporter
        asked = OperatorRequests(
            self._context.identity, settings.agent_port, self._coordinator, self._links.tell_coordinator
        )
        pages = server.Pages(
            report.ready,
            lambda: metrics_page(report.snapshot()),
            lambda: status_object(report.snapshot()),
            secrets=lambda: secrets.accepted() if secrets else (),
            details=settings.status_details,
            host_network=lambda: pod_network.on_host_network(self._context.environ),
            autopsy=report.autopsy_text,
            restart=asked.restart,
            last_lines=asked.last_lines,
        )
        self._links.visitors = server.listen(pages, sockets, self._links.shares.visits)

    async def learn(self) -> None:
        """Learn what the hello contains: own address, versions, GPUs. Raises LauncherError if the plan can't work."""
        settings, who, log = self._context.settings, self._context.identity, self._context.log
        adapter, member = self._engine.adapter, self._member
        leader: tuple[str, ...] = ()
        if not who.alone and who.address is None:
            leader = await self._links.addresses.resolve_leader()
        self._watch.warm_up()  # while the versions are queried
        facts = await steps.learn(settings, adapter, self._context.environ, self._engine.ask)
        self._engine.facts = facts
        checked = adapter.check(settings, who, facts)
        for warning in checked.warnings:
            log(warning, level="warning")
        for why in checked.why:
            log(why)
        network = self._links.addresses.learn(leader)
        address = network.address if network else who.address or "127.0.0.1"
        outline = self._engine.plan_for(steps.outline(who, address))
        member.address = address
        self._links.addresses.own_is_known()
        self._reporter.recall(member.address)
        member.fingerprint = steps.fingerprint(settings, adapter, facts)
        preflight = self._context.task(self._preflight(outline, network))
        if not who.alone:
            await preflight
        if self._coordinator is not None:
            self._coordinator.stages = tuple(StageLimit(s.name, s.timeout, s.on_timeout) for s in outline.stages)
        if not who.is_leader:
            self._links.connect()

    async def _preflight(self, outline: Plan, network: Network | None) -> None:
        self._member.facts = await self._watch.preflight(self._engine.facts, outline, network)


def new_member(
    context: AgentContext, environ: Mapping[str, str], former: SavedState, last: tuple[Epoch, tuple[str, ...]] | None
) -> me.Member:
    """This rank's state machine. It knows how the launcher before it ended, and ``last``, that one's latest epoch."""
    settings, who = context.settings, context.identity
    killed = former.killed(who.rank)
    config = MemberConfig(
        group=who.group,
        rank=who.rank,
        size=who.size,
        name=who.name,
        incarnation=context.incarnation,
        terms=Terms(settings.lease),
        stop_grace=settings.stop_grace,
        join_timeout=join_timeout(settings, who),
        rejoin_timeout=rejoin_timeout(settings, who),
        may_restart=settings.max_restarts > 0,
        replaces=tuple(filter(state_file.is_incarnation, environ.get("LAUNCHER_REPLACES", "").split(",")))[-64:],
        died=_former_death(environ, who.rank) or killed,
        last=last or former.last,
    )
    member = me.Member(config, time.monotonic())
    now = time.time()
    ages = tuple(max(0.0, now - at) for at in former.charges if now - at <= settings.restart_window)
    member.news = m.News(
        "gathering",
        charges=ages if killed is None else (0.0, *ages),
        first_failure=former.first_failure or (killed and config.died),
        first_epoch=former.first_epoch,
    )
    member.first_at = former.first_at and monotonic_of(former.first_at)
    member.gave_up_at = former.gave_up_at and monotonic_of(former.gave_up_at)
    return member


def new_coordinator(
    context: AgentContext,
    last: tuple[Epoch, tuple[str, ...]] | None,
    mint: Callable[[Epoch], Any],
    waits: tuple[str, ...] = (),
) -> co.Coordinator:
    """The group's state machine, on rank 0."""
    settings = context.settings
    config = CoordinatorConfig(
        group=context.identity.group,
        size=context.identity.size,
        incarnation=context.incarnation,
        terms=Terms(settings.lease),
        max_restarts=settings.max_restarts,
        restart_window=settings.restart_window,
        restart_backoff=settings.restart_backoff,
        stop_grace=settings.stop_grace,
        join_timeout=join_timeout(settings, context.identity),
        linger=linger(settings, context.identity),
        startup_timeout=settings.startup_timeout,
        startup_stall_timeout=settings.startup_stall_timeout or None,
        mint=mint,
        highest_n=last[0].n if last else 0,
        autopsy=settings.autopsy == "on",
        waits=waits,
    )
    return co.Coordinator(config, time.monotonic(), random.Random())


def _former_death(environ: Mapping[str, str], rank: int) -> Cause | None:
    """How the agent before this one ended, as its guard saw it."""
    how = environ.get("LAUNCHER_PREVIOUS_AGENT", "")[:300]
    return Cause(CauseKind.AGENT, rank, f"the launcher's agent process was {how}", "launcher") if how else None


def forbid_core_dumps() -> None:
    """A core of this process would hold the group's secret. Engines are started by the guard, and keep their limit.

    A limit of 1 byte is too small for a file, and is the one that a core_pattern with a pipe heeds (core(5)).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with contextlib.suppress(OSError, ValueError):  # a hard limit of 0 is below
        resource.setrlimit(resource.RLIMIT_CORE, (1, hard))
