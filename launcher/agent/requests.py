"""What a person asks of a pod through `launcher restart` and `launcher logs`. Rank 0 answers; a worker names it."""

from __future__ import annotations

from collections.abc import Callable

from launcher.api.answers import PlainAnswer, RankLines
from launcher.common.addresses import host_port
from launcher.group.coordinator import Coordinator, GroupPhase
from launcher.group.events import Restart
from launcher.model import Identity


class OperatorRequests:
    """One pod's. ``coordinator``: None on a worker."""

    def __init__(
        self, identity: Identity, agent_port: int, coordinator: Coordinator | None, tell: Callable[[Restart], None]
    ) -> None:
        self._identity = identity
        self._agent_port = agent_port
        self._coordinator = coordinator
        self._tell = tell

    def restart(self, who: str) -> PlainAnswer:
        """End the epoch that runs, and have the next one begin at once."""
        lead = self._coordinator
        if lead is None:
            return self._ask_leader("restart")
        refusal = lead.restart_refusal()
        if refusal:
            return PlainAnswer(409, refusal)
        ending = "the back-off is over" if lead.shown_phase == "backoff" else f"epoch {lead.highest_n} ends"
        self._tell(Restart(who))
        return PlainAnswer(202, f"{ending} on all {self._identity.size} ranks, and a new one begins")

    def last_lines(self, rank: int) -> RankLines | PlainAnswer:
        """What a rank's engine printed last, as far as the leader has been told."""
        lead = self._coordinator
        if lead is None:
            return self._ask_leader(f"logs --rank {rank}")
        if rank >= self._identity.size:
            return PlainAnswer(404, f"there is no rank {rank}: the ranks are 0 to {self._identity.size - 1}")
        seat = lead.seats.get(rank)
        told = RankLines(rank, lead.epoch.n, seat.tail) if seat is not None and seat.tail and lead.epoch else None
        if told is not None and lead.phase is not GroupPhase.WAITING:
            return told
        for ended in reversed(lead.history.ended):
            for end in ended.ends:
                if end.cause.rank == rank and end.cause.tail:
                    return RankLines(rank, ended.epoch.n, end.cause.tail, end.cause.text)
        return told or PlainAnswer(404, f"rank {rank} has printed nothing that rank 0 was told of")

    def _ask_leader(self, command: str) -> PlainAnswer:
        leader = host_port(self._identity.leader, self._agent_port)
        return PlainAnswer(
            421, f"this is rank {self._identity.rank}: ask rank 0: launcher {command} --url http://{leader}"
        )
