"""The agent's connections: the group's link, on rank 0 to all members and elsewhere to rank 0, and the agent port's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from launcher.agent.addresses import Addresses
from launcher.agent.context import AgentContext
from launcher.agent.loop_errors import LoopErrors
from launcher.common.addresses import is_loopback
from launcher.group import coordinator as co
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.events import Closed
from launcher.group.roster import LOCAL
from launcher.node import descriptors
from launcher.planning import own_ports

if TYPE_CHECKING:
    from launcher.api.visitors import Visitors
    from launcher.group.link import LeaderLink, MemberLink


class Links:
    """All of one pod. ``to_coordinator(event, conn)`` hands on what a member said."""

    def __init__(
        self,
        context: AgentContext,
        member: me.Member,
        coordinator: co.Coordinator | None,
        addresses: Addresses,
        loop_errors: LoopErrors,
        to_coordinator: Callable[[Any, int], None],
    ) -> None:
        self._context = context
        self._member = member
        self._coordinator = coordinator
        self._to_coordinator = to_coordinator
        self._loop_errors = loop_errors
        self.addresses = addresses
        self.shares = descriptors.shares(
            descriptors.raise_limit(), context.identity.size, context.identity.is_leader
        )  #: of the open files that this process may have
        self.visitors: Visitors | None = None  #: connections to the agent port
        self._to_members: LeaderLink | None = None
        self._to_leader: MemberLink | None = None
        self._arrived: set[int] = set()  # members' connections whose address on our side has been noted

    # ------------------------------------------------------------------------------------------------- rank 0

    def listen(self, host: str | None) -> None:
        """Open the group port. Raises LauncherError if it is taken."""
        from launcher.group.link import LeaderLink
        from launcher.network.listening import bind

        settings, who, log = self._context.settings, self._context.identity, self._context.log
        if not self.shares.enough:
            log(
                "too few open files for this size of group: raise the container's nofile limit",
                {"limit": descriptors.engine_limit()[1], "size": who.size},
                "warning",
            )
        link = self._to_members = LeaderLink(
            who.group,
            self._context.secrets,
            most=self.shares.guests,
            size=who.size,
            heard=self._hear_member,
            closed=self._member_closed,
            stranger=lambda where, what: log("rejected unknown peer", {"address": where, "what": what}, "warning"),
        )
        try:
            link.listen(bind(host, settings.group_port))
        except OSError as error:
            raise own_ports.port_error("group_port", settings, error) from None
        if self._context.secrets is None and not is_loopback(host or ""):
            log("the group port accepts any peer: set --token-file, or use a NetworkPolicy", level="warning")

    def _hear_member(self, conn: int, message: Any) -> None:
        if isinstance(message, m.Ping) and conn not in self._arrived:
            # It has a seat and has answered on this connection: before that, nothing that it says counts.
            rank = self._coordinator.rank_of(conn) if self._coordinator is not None else None
            if rank is not None and self._to_members is not None:
                self._arrived.add(conn)
                self.addresses.member_arrived(self._to_members.own_address(conn), rank)
        self._to_coordinator(message, conn)

    def _member_closed(self, conn: int, why: str) -> None:
        self._arrived.discard(conn)
        self._to_coordinator(Closed(why), conn)

    def say_to_members(self, conns: Sequence[int], message: Any) -> None:
        """Send to all connections but the one that is this pod's own member."""
        if self._to_members is not None:
            self._to_members.say([conn for conn in conns if conn != LOCAL], message)

    def hang_up(self, conn: int) -> None:
        self._arrived.discard(conn)
        if conn != LOCAL and self._to_members is not None:
            self._to_members.hang(conn)

    def tell_coordinator(self, event: Any) -> None:
        """An event of this pod's own for the coordinator."""
        self._to_coordinator(event, LOCAL)

    def flush(self) -> None:
        if self._to_members is not None:
            self._to_members.flush()

    async def close(self) -> None:
        if self._to_members is not None:
            await self._to_members.close()

    # ------------------------------------------------------------------------------------------- all other ranks

    def connect(self) -> None:
        """Make the link to rank 0. It connects when the member orders it."""
        from launcher.group.link import LinkEvents, MemberLink

        tell, who, log = self._context.tell, self._context.identity, self._context.log

        def failed(why: str) -> None:
            self._member.refusal = f"waiting for the leader {who.leader}: {why}"
            log.waiting(self._member.refusal)

        self._to_leader = MemberLink(
            who.group,
            self._context.secrets,
            self._context.settings.group_port,
            self.addresses.resolve_leader,
            LinkEvents(
                connected=lambda _: tell(me.Connected()),
                heard=tell,
                closed=lambda why: tell(Closed(why)),
                failed=failed,
                unread=lambda why: tell(me.Unreadable(why)),
            ),
            self._context.task,
        )

    @property
    def has_leader(self) -> bool:
        """Whether there is a link to rank 0, connected or not."""
        return self._to_leader is not None

    @property
    def reached(self) -> str:
        """The address at which the link reaches rank 0; empty: there is no link."""
        return self._to_leader.reached if self._to_leader is not None else ""

    def dial(self, delay: float) -> None:
        if self._to_leader is not None:
            self._to_leader.dial(delay)

    def say_to_leader(self, message: Any) -> None:
        if self._to_leader is not None:
            self._to_leader.say(message)

    def hang_up_leader(self) -> None:
        if self._to_leader is not None:
            self._to_leader.hang()

    # --------------------------------------------------------------------------------------------- for the metrics

    @property
    def turned_away(self) -> dict[str, float]:
        """Connections that were closed before they had asked or joined, by port."""
        return {
            "agent": float(self.visitors.turned_away) if self.visitors is not None else 0.0,
            "group": float(self._to_members.turned_away) if self._to_members is not None else 0.0,
        }

    @property
    def errors(self) -> dict[str, float]:
        """Connections that were closed because of what came on them, by kind."""
        errors = [link.errors for link in (self._to_members, self._to_leader) if link is not None]
        unexpected = sum(one.unexpected for one in errors) + self._loop_errors.contained
        return {"protocol": sum(one.protocol for one in errors), "unexpected": unexpected}
