"""At which addresses this pod and rank 0 are reached: what is guessed at startup, and what connections prove later."""

from __future__ import annotations

import time
from dataclasses import replace

from launcher.agent.context import AgentContext
from launcher.agent.engine_runner import EngineRunner
from launcher.agent.timeouts import join_timeout, rejoin_timeout
from launcher.common.addresses import is_loopback
from launcher.group import coordinator as co
from launcher.group.member import Member
from launcher.model import Shared
from launcher.planning import pod_network
from launcher.planning.pod_network import Network

PATH_SECONDS = 3.0  #: for a connection to rank 0's own address


class Addresses:
    """One pod's view."""

    def __init__(
        self, context: AgentContext, member: Member, coordinator: co.Coordinator | None, engine: EngineRunner
    ) -> None:
        self._context = context
        self._identity = context.identity  # with the corrected address, once there is one
        self._log = context.log
        self._member = member
        self._coordinator = coordinator
        self._engine = engine
        self._elsewhere: set[tuple[int, str]] = set()  # members that arrived at another address, as logged
        self._early: list[tuple[str, int]] = []  # arrivals before this pod knew its own address

    def learn(self, leader: tuple[str, ...], why: str = "") -> Network | None:
        """This pod's own address and the variables for collectives; None: alone, and it needs none."""
        settings, who, environ = self._context.settings, self._identity, self._context.environ
        if who.alone:
            found = pod_network.find_alone(settings, who, environ)
            if found is None:
                return None
        else:
            found = pod_network.find(settings, who, environ, leader, pod_network.nccl_version(self._engine.facts))
        for warning in found.warnings:
            self._log(warning, level="warning")
        self._log("own address", {"address": found.address, "why": why or found.why})
        for note in found.notes:
            self._log(note)
        self._engine.network = found.ours
        return found

    async def resolve_leader(self) -> tuple[str, ...]:
        """Rank 0's addresses, as soon as its name resolves. Raises LauncherError after the join timeout."""
        from launcher.network.names import wait_for_address

        limit = (rejoin_timeout if self._member.epoch else join_timeout)(self._context.settings, self._identity)
        deadline = time.monotonic() + limit if limit else None
        return await wait_for_address(self._identity.leader, deadline, self._log.waiting)

    def member_arrived(self, address: str, rank: int) -> None:
        """On rank 0: a member reached us at ``address``, which is better evidence than a guess by the default route.

        Debian's /etc/hosts, for one, gives a machine's own name as 127.0.1.1.
        """
        from launcher.network.addresses import holder, interfaces

        own = self._member.address
        if not own:
            self._early.append((address, rank))
            return
        if not address or address == own or is_loopback(address) or is_loopback(own):
            return
        guessed = self._identity.address is None and self._context.settings.interface is None
        waiting = self._coordinator is not None and self._coordinator.phase is co.GroupPhase.WAITING
        if not (guessed and waiting and holder(address, interfaces())):
            if (rank, address) not in self._elsewhere:
                self._elsewhere.add((rank, address))
                where = {"own": own, "member": rank, "arrived_at": address}
                self._log("a member reaches rank 0 at another address than rank 0's own", where, "warning")
            return
        self._identity = replace(self._identity, address=address)
        if self.learn((address,), f"rank {rank} reaches this pod there") is not None:
            self._member.address = address
            assert self._coordinator is not None
            self._coordinator.relocate(address)

    def own_is_known(self) -> None:
        """The group port listens before that: now the members count that have arrived already."""
        early, self._early = self._early, []
        for address, rank in early:
            self.member_arrived(address, rank)

    async def path_trouble(self, shared: Shared, reached: str) -> str:
        """Why rank 0's address cannot be reached from here; empty: it can, or the group's link proves it.

        ``reached``: the address at which the group's link reaches rank 0; empty: there is no such link.
        """
        from launcher.network import probe
        from launcher.network.addresses import same_address

        leader = shared.addresses[0]
        if not reached or same_address(reached, leader):
            return ""
        where = {"rank 0": leader, "reached_at": reached}
        self._log("rank 0's own address differs from the one at which this pod reaches it", where, "warning")
        why = await probe.why_unreachable(leader, self._context.settings.group_port, PATH_SECONDS)
        if not why:
            return ""
        return (
            f"rank {self._identity.rank} cannot reach rank 0 at {leader}, its own address ({why}), while the group's "
            f"link goes to {reached}: give rank 0 --address {reached} or --interface"
        )
