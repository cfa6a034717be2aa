"""The state of one epoch as the leader knows it: created with the epoch, dropped when the next one is created."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.group.ends import Ends
from launcher.group.lease import Terms
from launcher.group.metrics import DrainEnd
from launcher.group.roster import Part, Seat
from launcher.model import Cause, Epoch, ProcessEvidence, Shared


class EpochState:
    """``seats`` are its members, by rank. ``counted``: the time now, less the seconds put off so far.

    ``waited``: seconds that the leader waited for it, and ``began``: the time now, both for the ledger of its start.
    """

    def __init__(
        self,
        name: Epoch,
        seats: Sequence[Seat],
        terms: Terms,
        counted: float,
        waited: float,
        began: float,
    ) -> None:
        self.name = name
        self.waited = waited
        self.began = began
        self.members = tuple(seat.hello.incarnation for seat in seats)  #: by rank
        self.addresses = tuple(seat.hello.address for seat in seats)  #: by rank
        #: The evidence for its cause.
        self.ends = Ends({a: r for r, a in enumerate(self.addresses)} if len(set(self.addresses)) == len(seats) else {})
        self.cause: Cause | None = None  #: why it is ending, as far as we know
        self.stage = 0
        self.stage_since = counted  #: when this stage was started; before the first: when the epoch began
        self.starting_since = counted  #: when the first stage was started
        self.charged = False  #: a stage was started, so its end costs a restart
        self.ready_at: float | None = None
        self.drain_by: float | None = None  #: until when requests may finish
        self.drain_end = DrainEnd.IDLE
        self.examined = 0.0  #: seconds that its members were given to gather evidence
        self.evidence: dict[int, tuple[ProcessEvidence, ...]] = {}  #: by rank
        #: The oldest contact of all lost members, beyond which F (lease.py) cannot move.
        self.frozen: float | None = None
        self._back: set[int] = set()  # ranks whose member was lost and is seated again, so it is alive
        self._terms = terms
        self._f = self._f_at = float("-inf")  # F as last computed, and when
        for seat in seats:
            seat.part = Part(member=True, joined=True, moved=counted)

    def begin_stage(self, stage: int, counted: float) -> None:
        self.stage, self.stage_since = stage, counted
        if not self.charged:
            self.charged, self.starting_since = True, counted

    def served(self, now: float) -> float | None:
        """Seconds since it became ready; None if it never was."""
        return None if self.ready_at is None else now - self.ready_at

    def freshness(self, seats: Iterable[Seat], now: float) -> float:
        """F: the oldest contact of all its members, lost ones included."""
        if now - self._f_at >= self._terms.f_every or now < self._f_at:
            contacts = [seat.contact.at for seat in seats if seat.part.member]
            if self.frozen is not None:
                contacts.append(self.frozen)
            self._f, self._f_at = min(contacts, default=now), now
        return self._f

    def freeze(self, contact: float) -> None:
        """A member is lost whose last contact was at ``contact``."""
        self.frozen = contact if self.frozen is None else min(self.frozen, contact)

    def came_back(self, rank: int, incarnation: str) -> None:
        """A launcher is seated: if it is this epoch's member, it did not die of what ended the epoch."""
        if self.members[rank] == incarnation:
            self._back.add(rank)

    def lost_member(self, rank: int) -> str:
        """The launcher of a rank that, as far as we know, is lost; empty if it came back and so had not died."""
        return "" if rank in self._back else self.members[rank]

    def was_lost_for(self, rank: int, replaces: Sequence[str]) -> bool:
        """Whether it has lost one of ``replaces`` (empty: any launcher of the rank)."""
        return self.ends.lost(rank) and (not replaces or self.lost_member(rank) in replaces)


class MemberEpoch:
    """The state of one epoch as a member knows it: made at `prepare`, or with what the launcher before us knew."""

    def __init__(self, name: Epoch, members: tuple[str, ...], now: float, shared: Shared | None = None) -> None:
        self.name = name
        #: Its members that, as far as we were told, may still run something: all, by rank, until the epoch is over.
        self.members = members
        self.shared = shared  #: None for the former launcher's epoch
        self.stage = -1
        self.spoke = now  #: when we last spoke to its leader
        self.cause: Cause | None = None  #: why the engine is being stopped
        self.autopsy = 0.0  #: seconds that its leader gave us to gather evidence
        self.stop_told = False  #: its leader asked for the stop and waits for `stopped`
