"""The leader's half of the group protocol: one state machine, one table, no I/O.

Events and the time go in, actions come out; nothing here opens a socket, reads a clock or starts a process. Rank 0 is a
member like any other: its link is connection 0, inside the process.

The coordinator stays between epochs (WAITING) until every rank has said hello, all are alike, nobody is leaving, the
back-off is over, and nothing of an earlier epoch can still be running anywhere. Then it makes an epoch:

    PREPARING   every member gets the list of members and answers `prepared` (no process has been started)
    STARTING    stage by stage: `start` to all, `stage_done` from all, the next stage
    RUNNING     the group serves
    DRAINING    a pod received SIGTERM: no new requests; when none is in flight rank 0 is stopped, then the others
    STOPPING    the epoch is ending: `stop` to all; the next one waits for `stopped` from all
    ABORTED     the group has given up; a member that connects is told why

Processes of two epochs never run at the same time. A member says hello only when nothing of its engine is left, so a
new *seat* is clean. It is unclean from `prepare` to `stopped`. A member that is lost while its seat is unclean leaves a
*fence*: no epoch starts before its lease has certainly run out, or before the same launcher (or the next in the same
pod, `replaces`) has said hello and answered on that connection. The leader cannot see the members of a former leader's
epoch; it counts their fence from when our members last spoke to that leader (`lease.py` says why that is enough). When
an epoch is over, the leader tells its members which of them may still run something. They can then tell the next
leader, and an epoch that ended in good order leaves no fence.

What a hello remembers (`_take_in`) and what it says is clean (`_clear`) counts only once its connection has answered: a
peer that is refused, or that never answers, changes nothing but its own seat.

The table below is complete: every phase has an answer to every event. LEADS says where each phase may lead, and each
step is checked against it (docs/protocol.md draws both). `_stale` ignores a message of an epoch that is over or of a
phase that has passed. The first failure that is heard ends the epoch; which failure explains it is decided when all
members have stopped (`ends.py`).

Related files: `epoch.py` (the state of one epoch), `roster.py` (who is there, who differs), `fences.py` (what may still
run unseen), `lease.py` (how long), `budget.py` (whether to try again), `history.py` (what came first), `news.py` (when
to tell the members), `last_words.py` (who has heard why the group gave up), `metrics.py` (what is counted).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from launcher.errors import ExitCode
from launcher.group import drain, ledger
from launcher.group import messages as m
from launcher.group.autopsy import EXAMINED, examine
from launcher.group.budget import STEADY, Budget
from launcher.group.config import CoordinatorConfig, StageLimit
from launcher.group.dispatch import by_state
from launcher.group.drain import LEADER_SHARE, LEAST_STOP_GRACE, STOP_RESERVE, stop_share
from launcher.group.ends import RankEnd
from launcher.group.epoch import EpochState
from launcher.group.events import Closed, Hang, Note, Restart, Send, SendAll, Tick
from launcher.group.fences import Fences
from launcher.group.history import History
from launcher.group.last_words import LastWords
from launcher.group.lease import Contact
from launcher.group.metrics import DrainEnd, Measures
from launcher.group.news import NewsDesk
from launcher.group.own_gap import OwnGap
from launcher.group.roster import CHALLENGE_SECONDS, LOCAL, MANY, Rival, Roster, Seat, alike, differences, named
from launcher.model import NO_FAILURE, Cause, CauseKind, Epoch

PREPARE_SECONDS = 120.0  #: members bound their own preparation; this catches a broken member
LOOK_PER_SEAT = 20e-6  #: seconds per seat between two passes over more than MANY seats, which may cost 5 % of the time


class GroupPhase(str, Enum):
    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    ABORTED = "aborted"


class Wait(str, Enum):
    """What WAITING waits for. Between epochs, people see this as the phase."""

    GATHERING = "gathering"  #: ranks are missing
    FENCED = "fenced"  #: a lost member's lease has not run out
    MISMATCHED = "mismatched"  #: members are not alike
    LEAVING = "leaving"  #: a present member received SIGTERM
    BACKOFF = "backoff"  #: the next attempt comes soon


Action = Send | SendAll | Hang | Note


@dataclass(frozen=True)
class Pause:
    """The pause before the next epoch. ``words``: why there is one."""

    until: float
    words: str = ""


Answer = Callable[[int, Any, float], None]

#: Where each phase may lead. Every step is checked against this.
LEADS: Mapping[GroupPhase, frozenset[GroupPhase]] = {
    GroupPhase.WAITING: frozenset({GroupPhase.PREPARING, GroupPhase.ABORTED}),
    GroupPhase.PREPARING: frozenset({GroupPhase.STARTING, GroupPhase.STOPPING}),
    GroupPhase.STARTING: frozenset({GroupPhase.RUNNING, GroupPhase.STOPPING}),
    GroupPhase.RUNNING: frozenset({GroupPhase.DRAINING, GroupPhase.STOPPING}),
    GroupPhase.DRAINING: frozenset({GroupPhase.STOPPING}),
    GroupPhase.STOPPING: frozenset({GroupPhase.WAITING, GroupPhase.ABORTED}),
    GroupPhase.ABORTED: frozenset(),
}


# -------------------------------------------------------------------------------------------------- the coordinator


class Coordinator:
    """The state of the group as the leader knows it. Call :meth:`handle` with each event and a Tick every half beat."""

    # fmt: off
    def _table(self) -> Mapping[type[Any], tuple[Answer, ...]]:
        """The method that answers each event in each phase."""
        return {
            # event      waiting         preparing              starting               running                draining             stopping              aborted
            m.Hello:     (self._admit,    self._admit,           self._admit,           self._admit,           self._admit,         self._admit,          self._refuse),
            m.Ping:      (self._ack,      self._ack,             self._ack,             self._ack,             self._ack,           self._ack,            self._ack),
            m.Answer:    (self._stand,    self._stand,           self._stand,           self._stand,           self._stand,         self._stand,          self._stale),
            m.Prepared:  (self._stale,    self._prepared,        self._stale,           self._stale,           self._stale,         self._stale,          self._stale),
            m.Unable:    (self._stale,    self._unable,          self._unable,          self._unable,          self._unable,        self._also_failed,    self._stale),
            m.StageDone: (self._stale,    self._stale,           self._stage_done,      self._stale,           self._stale,         self._stale,          self._stale),
            m.Failed:    (self._stale,    self._failed,          self._failed,          self._failed,          self._drain_failed,  self._also_failed,    self._stale),
            m.Stopped:   (self._stale,    self._stopped_unasked, self._stopped_unasked, self._stopped_unasked, self._drain_stopped, self._stopped,        self._stale),
            m.Drained:   (self._stale,    self._stale,           self._stale,           self._stale,           self._drained,       self._stale,          self._stale),
            m.Leaving:   (self._farewell, self._leave_unserved,  self._leave_unserved,  self._drain,           self._drain,         self._leave_stopping, self._farewell),
            m.Report:    (self._stale,    self._stale,           self._report,          self._report,          self._report,        self._report,         self._stale),
            m.Evidence:  (self._stale,    self._stale,           self._stale,           self._stale,           self._stale,         self._evidence,       self._stale),
            m.Unread:    (self._unread,   self._unread,          self._unread,          self._unread,          self._unread,        self._unread,         self._stale),
            Restart:     (self._resume,   self._restart,         self._restart,         self._restart,         self._stale,         self._stale,          self._stale),
            Closed:      (self._forget,   self._lose,            self._lose,            self._lose,            self._lose,          self._lose,           self._told),
            Tick:        (self._consider, self._watch_prepare,   self._watch_start,     self._watch_run,       self._watch_drain,   self._watch_stop,     self._idle),
        }
    # fmt: on

    def __init__(self, config: CoordinatorConfig, now: float, rng: random.Random) -> None:
        self.config = config
        self.phase = GroupPhase.WAITING
        self.phase_since = now
        self.wait = Wait.GATHERING
        self.roster = Roster(config.group, config.size)
        self.fences = Fences(config.terms)
        self.latest: EpochState | None = None  #: the current epoch or, between epochs, the one before
        self.highest_n = config.highest_n  #: of all epochs that anybody has reported
        self.stages: tuple[StageLimit, ...] = ()  #: set before rank 0 says hello
        self.history = History()
        self.measures = Measures()
        self.budget = Budget(config.max_restarts, config.restart_window, rng, longest=config.restart_backoff)
        self.put_off = 0.0  #: total seconds by which start deadlines were put off because this machine was starved
        self.abort: m.Abort | None = None  #: the group gives up when this epoch is over, or has given up
        self._last_words: LastWords | None = None  # set once the group has given up
        self.answers = by_state(GroupPhase, self._table())
        self._rng = rng
        self._gap = OwnGap(config.terms, now)
        self._born = now
        self._pause = Pause(now)
        self._look_at = now  # when `_look` may look again
        self._look_due = False  # a look is due that has not happened yet
        self._news = NewsDesk(now)
        self._beat_only = False  # the current ping changed nothing but its member's lease
        self._out: list[Action] = []

    # ------------------------------------------------------------------------------------------------ the one door

    def handle(self, event: Any, conn: int, now: float) -> list[Action]:
        """Answer one event of connection ``conn`` (LOCAL for Tick). Returns the actions to carry out, in order."""
        self._out = []
        self._beat_only = False
        self._gap.event(now)
        self.answers[self.phase][type(event)](conn, event, now)
        if not self._nothing_new(event, now):
            self._publish(now)
        return self._out

    def _go(self, phase: GroupPhase, now: float) -> None:
        if phase not in LEADS[self.phase]:
            raise AssertionError(f"{self.phase.value} may not lead to {phase.value}")
        self.phase, self.phase_since = phase, now

    @property
    def seats(self) -> dict[int, Seat]:
        """Who is there, by rank."""
        return self.roster.seats

    @property
    def epoch(self) -> Epoch | None:
        """The current epoch or, between epochs, the one before."""
        return None if self.latest is None else self.latest.name

    @property
    def stage(self) -> int:
        return 0 if self.latest is None else self.latest.stage

    @property
    def cause(self) -> Cause | None:
        """Why the current epoch is ending, as far as we know."""
        return None if self.latest is None else self.latest.cause

    @property
    def _this(self) -> EpochState:
        """The current epoch, in a phase that has one."""
        assert self.latest is not None
        return self.latest

    @property
    def shown_phase(self) -> str:
        """The phase as people see it."""
        return self.wait.value if self.phase is GroupPhase.WAITING else self.phase.value

    @property
    def missing(self) -> tuple[int, ...]:
        return self.roster.missing

    # ------------------------------------------------------------------------------------------------ who is there

    def rank_of(self, conn: int) -> int | None:
        """The rank whose seat a connection holds, or None."""
        return self.roster.by_conn.get(conn)

    def relocate(self, address: str) -> None:
        """Correct rank 0's own address. Only between epochs: an epoch's addresses are fixed."""
        seat = self.seats.get(0)
        if seat is not None and self.phase is GroupPhase.WAITING:
            seat.hello = replace(seat.hello, address=address)

    def _admit(self, conn: int, hello: m.Hello, now: float) -> None:
        refusal = self.roster.refusal(conn, hello)
        if refusal is not None:
            self._turn_away(conn, refusal)
            return
        self.roster.drop_rival(conn)  # its earlier claim
        seat = self.seats.get(hello.rank)
        if seat is not None and seat.hello.incarnation == hello.incarnation and hello.attempt < seat.hello.attempt:
            self._out.append(Hang(conn))  # an old hello, from a connection that it has since given up
            return
        if seat is None:
            self._seat(conn, hello, now)
        elif seat.hello.incarnation == hello.incarnation:
            self._return(seat, conn, hello, now)
        else:
            self._challenge(seat, conn, hello, now)

    def _take_in(self, hello: m.Hello, now: float) -> None:
        """Take in what a hello that was heard at ``now`` remembers. Its connection has answered since."""
        if hello.died is not None:
            self._explain_death(hello, replace(hello.died, rank=hello.rank))
        if self.latest is None:  # once we have made an epoch, we know better
            at = None if hello.first_age is None else now - hello.first_age
            self.history.inherit(hello.first_failure, hello.first_epoch, at)
            self.budget.inherit(hello.charges, now, hello.gave_up)
        epoch = hello.last_epoch
        if epoch is None:
            return
        self.highest_n = max(self.highest_n, epoch.n)
        if epoch.leader != self.config.incarnation:
            self.fences.put_foreign(hello, self._known_clean, now)

    def _came_back(self, hello: m.Hello) -> None:
        """A member is back alive, so it did not die of what ended the epoch that it was lost from."""
        if self.latest is not None:
            self.latest.came_back(hello.rank, hello.incarnation)
        self.history.came_back(hello.incarnation)

    def _known_clean(self, since: float) -> frozenset[str]:
        """Launchers of which nothing runs: members that have answered after ``since``, and those that they replace."""
        answered = [s for s in self.seats.values() if s.contact.proven is not None and s.contact.proven >= since]
        return frozenset().union(*(s.clears for s in answered))

    def _explain_death(self, hello: m.Hello, died: Cause) -> None:
        """A killed launcher's successor says how it died. It explains only an epoch that the dead one was lost from."""
        rank, replaces = hello.rank, hello.dead
        stopping = self.phase is GroupPhase.STOPPING
        if stopping and self._this.was_lost_for(rank, replaces):
            self._this.ends.explain(rank, died)
        elif (replaces or not stopping) and self.history.refine(rank, died, replaces):
            self._note("first failure explained", cause=str(self.history.first))
        elif rank == 0 and self.latest is None:
            self.history.inherit_death(died)

    def _clear(self, seat: Seat) -> None:
        """A member has answered on its connection, so its hello is no delayed old one and can be believed.

        Nothing of its launcher, or of those that it replaces, is running: remove their fences.
        """
        self.fences.clear(seat.clears, seat.contact.at)

    def _seat(self, conn: int, hello: m.Hello, now: float, heard: float | None = None) -> None:
        contact = Contact(now, 0.0) if conn == LOCAL else Contact(now)
        self.roster.add(Seat(conn, hello, contact, now if heard is None else heard))
        self._say(conn, m.Accepted(self.config.incarnation, contact.mark(now)))
        self._note("member joined", member=hello.rank, address=hello.address, incarnation=hello.incarnation)
        if self.phase is GroupPhase.WAITING:
            self._look(conn, hello, now)

    def _return(self, seat: Seat, conn: int, hello: m.Hello, now: float) -> None:
        """The same launcher has a new connection. It says hello only when clean, so whatever it ran is gone."""
        if seat.conn != conn:
            self._out.append(Hang(seat.conn))
        self._give_up_seat(seat)
        self._seat(conn, hello, now)
        if seat.joined:
            text = f"its launcher at {hello.address} lost the connection and stopped its engine"
            self._gone_from_epoch(Cause(CauseKind.LOST, hello.rank, text), now)

    def _challenge(self, seat: Seat, conn: int, hello: m.Hello, now: float) -> None:
        if seat.rival is not None and seat.rival.conn != conn:
            self._turn_away(conn, m.Rejected("duplicate", f"rank {hello.rank} is being decided between two pods", 2))
            return
        nonce = f"{self._rng.getrandbits(64):016x}"
        self.roster.claim(Rival(conn, hello, nonce, now, now + CHALLENGE_SECONDS))
        self._say(seat.conn, m.Challenge(nonce, f"{hello.name} at {hello.address}"))

    def _stand(self, conn: int, answer: m.Answer, now: float) -> None:
        seat = self._seat_of(conn)
        if seat is None or seat.rival is None or seat.rival.nonce != answer.nonce:
            return
        rival, seat.rival = seat.rival, None
        rank, holder = seat.hello.rank, seat.hello
        text = (
            f"two pods are rank {rank}: {holder.name} at {holder.address} holds it, "
            f"{rival.hello.name} at {rival.hello.address} also claims it"
        )
        self._note("duplicate rank", level="warning", text=text)
        self._turn_away(rival.conn, m.Rejected("duplicate", text, 5))

    def _challenges(self, now: float) -> None:
        for seat, rival in self.roster.unanswered(now):
            rank = seat.hello.rank
            self.roster.supersede(seat)
            text = f"its launcher at {seat.hello.address} did not answer and was replaced by {rival.hello.address}"
            self._out.append(Hang(seat.conn))
            silent = seat.contact.silent_for(now)
            self._remove(rank, Cause(CauseKind.LOST, rank, text, tail=seat.tail), now, silent)
            if rank not in self.seats:
                self._seat(rival.conn, rival.hello, now, rival.heard)

    def _forget(self, conn: int, closed: Closed, now: float) -> None:
        """A connection ended while no epoch runs."""
        rank = self.roster.by_conn.get(conn)
        self.roster.drop_rival(conn)
        if rank is None:
            return
        seat = self.seats[rank]
        left = seat.leaving is not None
        self._note("member left" if left else "member gone", member=rank, why=closed.why)
        self._remove(rank, Cause(CauseKind.LOST, rank, closed.why), now)
        if self.phase is GroupPhase.WAITING:
            self._look(conn, closed, now)

    def _lose(self, conn: int, closed: Closed, now: float) -> None:
        """A connection ended while an epoch runs or stops."""
        rank = self.roster.by_conn.get(conn)
        self.roster.drop_rival(conn)
        if rank is None:
            return
        seat = self.seats[rank]
        text = (
            f"its launcher at {seat.hello.address} is gone: the connection closed"
            f"{' (' + closed.why + ')' if closed.why else ''}"
        )
        self._remove(rank, self._or_own_gap(Cause(CauseKind.LOST, rank, text, tail=seat.tail), now), now)

    def _or_own_gap(self, cause: Cause, now: float) -> Cause:
        """If a peer gave us up right after this process had not run for long, the cause is our own gap."""
        theirs = cause.kind in (CauseKind.LOST, CauseKind.LEADER)
        return Cause(CauseKind.LOST, 0, self._gap.words) if theirs and self._gap.recent(now) else cause

    def _remove(self, rank: int, cause: Cause, now: float, noticed: float = 0.0) -> None:
        """Take a seat away. If its engine may be running, this ends the epoch."""
        seat = self.seats[rank]
        self._give_up_seat(seat)
        if seat.joined:
            self._gone_from_epoch(cause, now, noticed)

    def _give_up_seat(self, seat: Seat) -> None:
        """Vacate a seat. If its engine may be running, leave a fence; its contact, and so F, moves no further."""
        rank = seat.hello.rank
        self.roster.remove(seat)
        if seat.rival is not None:  # the holder is gone, which decides the challenge
            rival, seat.rival = seat.rival, None
            self._turn_away(rival.conn, m.Rejected("retry", f"rank {rank} has just become free", 0.1))
        if seat.joined:
            self.fences.put(seat.hello.incarnation, rank, seat.contact.granted)
        if seat.part.member:
            self._this.freeze(seat.contact.at)

    def _gone_from_epoch(self, cause: Cause, now: float, noticed: float = 0.0) -> None:
        if self.phase in (GroupPhase.PREPARING, GroupPhase.STARTING, GroupPhase.RUNNING, GroupPhase.DRAINING):
            self._end(cause, now, noticed)
        elif self.phase is GroupPhase.STOPPING:
            self._this.ends.add(RankEnd(cause, now, now), now)
            self._over_if_all_stopped(now)

    # --------------------------------------------------------------------------------------------------- leases

    def _ack(self, conn: int, ping: m.Ping, now: float) -> None:
        seat = self._seat_of(conn)
        if seat is None:
            return  # nothing is acked to a launcher that was declared lost
        contact = seat.contact
        first = contact.proven is None
        contact.heard(ping.seq, ping.echo, now, ping.at, ping.heard)
        limit = now if not self._in_epoch() else self._freshness(now)
        good = contact.good(limit)
        self._say(conn, m.Ack(good, contact.mark(now)))
        if first and contact.proven is not None:
            self._take_in(seat.hello, seat.heard)
            self._came_back(seat.hello)
            self._clear(seat)
            self._look_due = True
        elif self.fences.foreign and contact.proven is not None:
            self.fences.clear_foreign(seat.clears, contact.at)
        elif not self._look_due:
            self._beat_only = True
        if self._look_due and self.phase is GroupPhase.WAITING:
            self._look(conn, ping, now)

    def _in_epoch(self) -> bool:
        return self.phase not in (GroupPhase.WAITING, GroupPhase.ABORTED)

    def _freshness(self, now: float) -> float:
        """F: the oldest contact of all members of the epoch."""
        return self._this.freshness(self.seats.values(), now)

    def _silent(self, now: float) -> None:
        """Members without contact for too long are lost."""
        limit = now - self.config.terms.lost_after
        late = [(rank, seat) for rank, seat in self.seats.items() if seat.contact.at < limit]
        for rank, seat in sorted(late, key=lambda one: one[0]):  # if we were frozen, all look silent: rank 0 first
            if self.seats.get(rank) is not seat:
                continue
            silent = seat.contact.silent_for(now)
            text = f"no sign of life from its launcher at {seat.hello.address} for {silent:.1f} s"
            self._note("member silent", level="warning", member=rank, seconds=round(silent, 1))
            self._out.append(Hang(seat.conn))
            cause = Cause(CauseKind.LOST, rank, text, tail=seat.tail)
            if self._gap.seconds and (rank == 0 or self._gap.explains(silent, now)):
                cause = Cause(CauseKind.LOST, 0, self._gap.words)
            self._remove(rank, cause, now, silent)

    # -------------------------------------------------------------------------------------------- between epochs

    def _look(self, conn: int, event: object, now: float) -> None:
        """In WAITING, a member came, left or proved that it hears us. Of a burst, the next ping sees the last one."""
        if now < self._look_at:
            self._look_due = True
        else:
            self._consider(conn, event, now)

    def _consider(self, conn: int, event: object, now: float) -> None:
        """In WAITING, begin an epoch if everything is there; otherwise set what we wait for."""
        self._look_due = False
        self._look_at = now + (LOOK_PER_SEAT * len(self.seats) if len(self.seats) > MANY else 0.0)
        self._watch(conn, Tick(), now)
        if self.phase is not GroupPhase.WAITING:
            return  # a newcomer took a silent member's rank and completed the group
        fenced = self.fences.stand(now)
        seats, terms = self.seats.values(), self.config.terms
        if any(s.leaving is not None for s in seats):
            self.wait = Wait.LEAVING
        elif not self._alike():
            self.wait = Wait.MISMATCHED
        elif len(self.seats) < self.config.size or any(not s.contact.fresh(now, terms) for s in seats):
            self.wait = Wait.GATHERING
            self._give_up_waiting(now)
        elif fenced:
            self.wait = Wait.FENCED
        elif now < self._pause.until:
            self.wait = Wait.BACKOFF
        else:
            self._prepare(now)

    def _alike(self) -> bool:
        return alike(self.seats.values(), self.config.size)

    def _give_up_waiting(self, now: float) -> None:
        limit = self.config.join_timeout
        if not limit or self.highest_n or now - self._born < limit:
            return  # if anybody knows of an epoch, this is not the group's first gathering, though it may be ours
        tells = any(s.contact.proven is None and s.hello.last_epoch is not None for s in self.seats.values())
        if tells and now - self._born < limit + self.config.terms.lost_after:
            return  # a member that reports an epoch has not answered yet
        names = ", ".join(f"rank {r}" for r in self.missing[:16])
        text = f"{names} did not come within {limit:g} s (--join-timeout)"
        self._give_up(Cause(CauseKind.JOIN, 0, text), int(ExitCode.UNAVAILABLE), text, now)

    def _resume(self, conn: int, event: Restart, now: float) -> None:
        """A person wants the next epoch now: that ends a back-off, and nothing else that is waited for."""
        if self.wait is Wait.BACKOFF:
            self._note("back-off ended by hand", who=event.who)
            self._pause = Pause(now)
            self._consider(conn, event, now)

    # ------------------------------------------------------------------------------------------------- an epoch

    def _prepare(self, now: float) -> None:
        self.highest_n = (
            self.highest_n % m.MOST_EPOCHS + 1
        )  # epochs are compared whole, so reusing a number is harmless
        seats = [seat for _, seat in sorted(self.seats.items())]
        name = Epoch(self.highest_n, self.config.incarnation)
        waited = max(0.0, now - self.phase_since)
        self.latest = epoch = EpochState(name, seats, self.config.terms, self._counted(now), waited, now)
        token, values = self.config.mint(name)
        self._go(GroupPhase.PREPARING, now)
        self._note("epoch begins", of_epoch=str(name), members=len(seats))
        for seat in self.seats.values():
            if seat.contact.owed:
                self._say(seat.conn, m.Ack(seat.contact.good(now), seat.contact.mark(now)))
        self._say_all(m.Prepare(name, epoch.members, epoch.addresses, token, dict(values)))

    def _prepared(self, conn: int, message: m.Prepared, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is None:
            return
        seat.part.done = max(seat.part.done, -1)
        if all(s.part.done >= -1 for s in self.seats.values()):
            if not self.stages:
                raise AssertionError("an epoch without stages")
            self._go(GroupPhase.STARTING, now)
            self._start(0, now)

    def _start(self, stage: int, now: float) -> None:
        epoch = self._this
        epoch.begin_stage(stage, self._counted(now))
        self._note("stage started", of_epoch=str(epoch.name), stage=self.stages[stage].name)
        self._say_all(m.Start(epoch.name, stage))

    def _counted(self, now: float) -> float:
        """The clock for a start's deadlines: it stands still while this machine is starved."""
        return now - self.put_off

    def _stage_done(self, conn: int, message: m.StageDone, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is None or message.stage != self.stage:
            return
        seat.part.done = max(seat.part.done, message.stage)
        if any(s.part.done < self.stage for s in self.seats.values()):
            return
        if self.stage + 1 < len(self.stages):
            self._start(self.stage + 1, now)
            return
        self._go(GroupPhase.RUNNING, now)
        epoch = self._this
        epoch.ready_at = now
        self._note("group runs", of_epoch=str(self.epoch), size=self.config.size)
        start = ledger.start_of(epoch.name.n, epoch.waited, epoch.began, self.seats.values(), now)
        self.measures.started(start)
        self._note(start.words, of_epoch=str(self.epoch))
        self._say_all(m.Running(self._this.name))

    def _report(self, conn: int, report: m.Report, now: float) -> None:
        seat = self._current(conn, report.epoch)
        if seat is None:
            return
        if seat.report is None or seat.report.activity != report.activity:
            seat.part.moved = self._counted(now)
        seat.part.report = report

    # ------------------------------------------------------------------------------------------------ its failures

    def _failed(self, conn: int, message: m.Failed, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is not None and not message.told:  # `told`: not by us, so by its guard at the deadline
            cause = self._or_own_gap(replace(message.cause, rank=seat.hello.rank), now)
            self._end(self._beside_silence(cause, now), now, message.noticed, self._when(seat, message, now))

    def _beside_silence(self, cause: Cause, now: float) -> Cause:
        """Name a silent rank beside an exit: its guard may have killed its engine at the deadline and so caused it."""
        silence = {r: s.contact.silent_for(now) for r, s in self.seats.items() if r != cause.rank}
        rank = max(silence, key=silence.__getitem__, default=cause.rank)
        if cause.kind is not CauseKind.EXITED or silence.get(rank, 0.0) <= self.config.terms.notable_silence:
            return cause
        return replace(cause, text=f"{cause.text}; rank {rank} had been silent for {silence[rank]:.1f} s")

    def _when(self, seat: Seat, message: m.Failed, now: float) -> tuple[float, float]:
        """The interval in which it happened, on our clock."""
        offset = seat.contact.offset
        found = None if message.at is None else offset.interval(message.at, message.doubt, now)
        return found or (now - message.noticed - message.doubt, now - message.noticed)

    def _unable(self, conn: int, message: m.Unable, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is None:
            return
        cause = replace(message.cause, rank=seat.hello.rank)
        if message.retry:
            self._end(cause, now)
        else:
            self.abort = m.Abort(cause, int(ExitCode.CONFIG), cause.text)
            self._end(cause, now)

    def _unread(self, conn: int, message: m.Unread, now: float) -> None:
        """A member cannot read our messages, and could not the next time either: retrying would never end."""
        seat = self._seat_of(conn)
        if seat is None or seat.contact.proven is None:
            return
        rank = seat.hello.rank
        text = f"rank {rank} cannot read what this leader says ({message.text}): run one release of the launcher on all"
        cause = Cause(CauseKind.UNABLE, rank, text[: m.MOST_WORDS])
        if self.phase is GroupPhase.WAITING:
            self._give_up(cause, int(ExitCode.CONFIG), cause.text, now)
            return
        self.abort = m.Abort(cause, int(ExitCode.CONFIG), cause.text)
        if self.phase is not GroupPhase.STOPPING:
            self._end(cause, now)

    def _also_failed(self, conn: int, message: m.Failed | m.Unable, now: float) -> None:
        seat = self._seat_of(conn)
        if seat is None or message.epoch != self.epoch:
            return
        cause = replace(message.cause, rank=seat.hello.rank)
        if isinstance(message, m.Failed):
            self._this.ends.add(RankEnd(cause, *self._when(seat, message, now), message.told), now)
        else:
            self._this.ends.add(RankEnd(cause, now, now), now)

    def _stopped_unasked(self, conn: int, message: m.Stopped, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is not None:
            seat.part.joined = False
            self._end(Cause(CauseKind.LOST, seat.hello.rank, "it stopped its engine unasked"), now)

    def _restart(self, conn: int, event: Restart, now: float) -> None:
        """A person wants a new epoch: all ranks stop and begin anew. It is no failure, so it costs nothing."""
        self._note("restart by hand", who=event.who, of_epoch=str(self.epoch))
        self._end(Cause(CauseKind.RESTART, 0, "restarted by hand (launcher restart)"), now)

    def restart_refusal(self) -> str:
        """Why `Restart` would change nothing now, in words; empty: it would."""
        if self.phase is GroupPhase.ABORTED:
            return "the group has given up, and its launchers exit"
        if self.phase in (GroupPhase.DRAINING, GroupPhase.STOPPING):
            return f"epoch {self._this.name.n} is ending already, and the next one begins by itself"
        if self.phase is GroupPhase.WAITING and self.wait is not Wait.BACKOFF:
            return f"no epoch runs: {self.waiting_for() or 'the group is about to begin one'}"
        return ""

    def _watch(self, conn: int, tick: Tick, now: float) -> None:
        self._challenges(now)
        self._silent(now)

    def _watch_prepare(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        if self.phase is GroupPhase.PREPARING and self._counted(now) - self._this.stage_since > PREPARE_SECONDS:
            late = [r for r, s in sorted(self.seats.items()) if s.part.done < -1]
            text = f"{named(late)} did not answer prepare within {PREPARE_SECONDS:g} s"
            self._end(Cause(CauseKind.TIMEOUT, late[0], text), now)

    def _watch_run(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        if self.phase is GroupPhase.RUNNING and (self._this.served(now) or 0.0) >= STEADY:
            self.history.first = None  # earlier trouble is over

    def _watch_start(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        if self.phase is not GroupPhase.STARTING:
            return
        c, stage = self.config, self.stages[self.stage]
        waited = self._counted(now) - self._this.stage_since
        whole = self._counted(now) - self._this.starting_since
        late = [r for r, s in sorted(self.seats.items()) if s.part.done < self.stage]
        rank = late[0] if late else 0
        if stage.timeout is not None and waited > stage.timeout:
            text = f"stage {stage.name} was not done within {stage.timeout:g} s on {named(late)}"
            self._end(Cause(CauseKind.TIMEOUT, rank, f"{text}. {stage.on_timeout}".strip(". ")), now)
        elif c.startup_timeout and whole > c.startup_timeout:
            text = (
                f"the engine was not ready within {c.startup_timeout:g} s (--startup-timeout), {named(late)} not done"
            )
            self._end(Cause(CauseKind.TIMEOUT, rank, text), now)
        elif c.startup_stall_timeout and self._still_for(now) > c.startup_stall_timeout:
            text = (
                f"start-up stalled: no output, CPU time, disk or network bytes on any rank "
                f"for {c.startup_stall_timeout:g} s (--startup-stall-timeout)"
            )
            self._end(Cause(CauseKind.STALL, rank, text), now, c.startup_stall_timeout)

    def _still_for(self, now: float) -> float:
        """Seconds without activity of the engine on any rank, not counting those in which this machine was starved."""
        return self._counted(now) - max(s.part.moved for s in self.seats.values())

    # --------------------------------------------------------------------------------------------------- draining

    def _farewell(self, conn: int, message: m.Leaving, now: float) -> None:
        seat = self._seat_of(conn)
        if seat is None:
            return
        seat.leaving = now + message.grace  # nothing runs there, so it exits at once
        if self.phase is GroupPhase.WAITING:
            self._consider(conn, message, now)

    def _leaves(self, conn: int, message: m.Leaving, now: float) -> Seat | None:
        seat = self._seat_of(conn)
        if seat is not None:
            seat.leaving = now + message.grace  # after a second SIGTERM the grace is 0
        return seat

    def _leave_unserved(self, conn: int, message: m.Leaving, now: float) -> None:
        """A pod received SIGTERM before the group served: there is nothing to drain."""
        seat = self._leaves(conn, message, now)
        if seat is not None:
            self._end(drain.cause_of(seat.hello.rank), now)

    def _leave_stopping(self, conn: int, message: m.Leaving, now: float) -> None:
        self._leaves(conn, message, now)
        self._over_if_all_stopped(now)

    def _drain(self, conn: int, message: m.Leaving, now: float) -> None:
        seat = self._leaves(conn, message, now)
        if seat is None:
            return
        epoch = self._this
        left = self._grace_left(now)
        by = now + left - stop_share(left) - self.config.terms.tick  # a tick may be that late
        first = epoch.drain_by is None
        epoch.drain_by = by if epoch.drain_by is None else min(epoch.drain_by, by)
        if first:
            epoch.cause = cause = drain.cause_of(seat.hello.rank)
            self._go(GroupPhase.DRAINING, now)
            self._note("draining", member=seat.hello.rank, at_most_s=round(max(0.0, by - now), 1))
            self._say_all(m.Drain(epoch.name, cause, max(0.0, by - now)))
        if message.grace <= 0:
            self._this.drain_end = DrainEnd.HURRIED
            self._end(drain.cause_of(seat.hello.rank), now)
        else:
            self._watch_drain(conn, Tick(), now)

    def _drained(self, conn: int, message: m.Drained, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is not None and seat.hello.rank == 0:
            self._note("drained", of_epoch=str(self.epoch), seconds=round(now - self.phase_since, 1))
            self._stop_leader_first(now)

    def _watch_drain(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        by = self._this.drain_by
        if self.phase is not GroupPhase.DRAINING or by is None or now < by:
            return
        leader = self.seats[0]
        if not leader.part.told_stop:
            self._note("drain cut short by the grace", level="warning", of_epoch=str(self.epoch))
            self._this.drain_end = DrainEnd.GRACE
            self._stop_leader_first(now)
        elif now >= by + self._grace_left(by) * LEADER_SHARE:
            self._end(self._cause, now)  # rank 0 takes too long: the others need their share of the grace

    def _stop_leader_first(self, now: float) -> None:
        leader = self.seats[0]
        if not leader.part.told_stop:
            leader.part.told_stop = True
            self._say(leader.conn, m.Stop(self._this.name, self._cause, self._grace_left(now) * LEADER_SHARE))

    def _drain_stopped(self, conn: int, message: m.Stopped, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is None:
            return
        if seat.hello.rank == 0 and seat.part.told_stop:
            seat.part.joined = False
            self._end(self._cause, now)
        else:
            self._stopped_unasked(conn, message, now)

    def _drain_failed(self, conn: int, message: m.Failed, now: float) -> None:
        """A worker may well end while rank 0 is being stopped: that is no failure, and rank 0 keeps its time."""
        seat = self._current(conn, message.epoch)
        if seat is not None and self.seats[0].part.told_stop and seat.hello.rank != 0:
            self._note("ended with rank 0", level="debug", member=seat.hello.rank, cause=message.cause.text)
        else:
            self._failed(conn, message, now)

    def _grace_left(self, now: float) -> float:
        leaving = [s.leaving for s in self.seats.values() if s.leaving is not None]
        return max(0.0, min(leaving) - now) if leaving else 0.0

    # ---------------------------------------------------------------------------------------------- the end of one

    def _end(self, cause: Cause, now: float, noticed: float = 0.0, when: tuple[float, float] | None = None) -> None:
        """End the epoch on all ranks: `stop` to every member that takes part in it.

        ``noticed``: seconds from the failure to its detection, as far as known; ``when``: the interval of the failure.
        """
        epoch = self._this
        failed = cause.kind not in NO_FAILURE
        was_draining = self.phase is GroupPhase.DRAINING
        epoch.examined = self._examines(cause, now)
        if was_draining:
            self._measure_drain(cause, now)
        if failed:
            self.measures.detected.add(noticed)
            epoch.ends.add(RankEnd(cause, *(when or (now, now))), now)
        epoch.cause = cause
        self._go(GroupPhase.STOPPING, now)
        if failed:
            self._note("epoch failed", level="error", of_epoch=str(epoch.name), cause=str(cause))
        if was_draining and failed:
            epoch.charged = False  # a failure in an epoch that was ending anyway is not charged
        grace = self.config.stop_grace
        if any(s.leaving is not None for s in self.seats.values()):
            grace = min(grace, max(LEAST_STOP_GRACE, self._grace_left(now) - STOP_RESERVE))
        conns = []
        for seat in self.seats.values():
            if seat.joined:
                seat.part.told_stop = True
                conns.append(seat.conn)
        if conns:
            # To a member a restart is what a drain is: an end without a failure. Launchers of 0.1 know no other word.
            told = cause if failed else replace(cause, kind=CauseKind.DRAIN)
            self._out.append(SendAll(tuple(conns), m.Stop(epoch.name, told, grace, epoch.examined)))
        self._over_if_all_stopped(now)

    def _examines(self, cause: Cause, now: float) -> float:
        """Seconds in which the members gather evidence before they kill; 0: they stop as always.

        Only after a verdict on processes that still run, and only if it is over before any guard's deadline. In a drain
        a pod's grace leaves no time for it.
        """
        has_time = self.phase in (GroupPhase.STARTING, GroupPhase.RUNNING)
        if not self.config.autopsy or not has_time or cause.kind not in EXAMINED:
            return 0.0
        return self.config.terms.autopsy_left(now - self._freshness(now))

    def _evidence(self, conn: int, message: m.Evidence, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is not None and self._this.examined:
            self._this.evidence.setdefault(seat.hello.rank, message.processes)

    def _measure_drain(self, cause: Cause, now: float) -> None:
        end = self._this.drain_end if cause.kind is CauseKind.DRAIN else DrainEnd.FAILED
        self.measures.drains[end.value] += 1
        self.measures.drained.add(now - self.phase_since)

    def _stopped(self, conn: int, message: m.Stopped, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is None:
            return
        seat.part.joined = False
        self._over_if_all_stopped(now)

    def _watch_stop(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        if self.phase is GroupPhase.STOPPING:
            self._over_if_all_stopped(now)

    def _over_if_all_stopped(self, now: float) -> None:
        """The epoch is over once every present member has stopped. They reported what they know before; the lost are
        behind fences."""
        if any(s.joined for s in self.seats.values()) or self.phase is not GroupPhase.STOPPING:
            return
        epoch = self._this
        self._settle_cause()
        self._examine(now)
        cause, served = self._cause, epoch.served(now)
        failed = cause.kind not in NO_FAILURE
        self.measures.stopped.add(now - self.phase_since)
        if failed:
            self.measures.failures[cause.kind.value] += 1
        stage = self.stages[epoch.stage].name if self.stages else ""
        self.history.record(epoch.name, cause, now, served, epoch.lost_member(cause.rank), epoch.ends.of_each_rank)
        verdict = self.budget.judge(cause, stage, served, epoch.charged and failed, now)
        if self.abort is not None:
            self._give_up(self.abort.cause, self.abort.code, self.abort.text, now)
            return
        if verdict.give_up and failed:
            # Report the first failure, but exit with the code of the last one: that is what the engine does now.
            self._give_up(self.history.first or cause, exit_code(cause), verdict.reason, now, spent=True)
            return
        words = f"the engine is started again after a pause, {self.budget.used(now)} used"
        self._pause = Pause(now + verdict.delay if failed else now, words)
        self._note("epoch over", of_epoch=str(epoch.name), next_in=round(verdict.delay, 2))
        self._go(GroupPhase.WAITING, now)
        for seat in list(self.seats.values()):
            if seat.leaving is not None:
                self._say(seat.conn, m.Goodbye())
        self._consider(LOCAL, None, now)

    @property
    def _cause(self) -> Cause:
        """Why the current epoch is ending."""
        assert self._this.cause is not None
        return self._this.cause

    def _settle_cause(self) -> None:
        """All ends that we can hear of are in: decide which came first."""
        first = self._cause
        if first.kind not in NO_FAILURE:
            self._this.cause = cause = self._this.ends.judge()
            if str(first) != str(cause):
                self._note("failure explained", level="warning", cause=str(cause), first_heard=str(first))

    def _examine(self, now: float) -> None:
        """All evidence that can come is here: say which rank differs."""
        epoch, cause = self._this, self._cause
        if not epoch.examined:
            return
        found = examine(epoch.name, now, str(cause), self.config.size, epoch.evidence, self.config.waits)
        self.history.autopsy = found
        epoch.cause = replace(cause, autopsy=found.verdict)
        self._note("autopsy", level="error", of_epoch=str(epoch.name), verdict=found.verdict)

    def _give_up(self, cause: Cause, code: int, reason: str, now: float, spent: bool = False) -> None:
        self.abort = m.Abort(cause, code, reason[: m.MOST_WORDS], spent)
        self._go(GroupPhase.ABORTED, now)
        self._note("giving up", level="error", reason=reason, code=code)
        self._last_words = LastWords(self.abort, self.config.size, now)
        self._say_all(self.abort)

    def _refuse(self, conn: int, hello: m.Hello, now: float) -> None:
        """The group has given up: tell a newcomer why. It hangs up when it has heard.

        If its rank has heard it, this is a container that was started since: it is to wait for the next leader.
        """
        refusal = self.roster.refusal(conn, hello)
        assert self._last_words is not None
        seat = self.seats.get(hello.rank)
        if refusal is None and seat is None and self._last_words.has_heard(hello.rank):
            refusal = m.Rejected("ending", "this leader's group has given up; the next leader is waited for", 1.0)
        if refusal is not None:
            self._turn_away(conn, refusal)
            return
        if seat is not None and seat.conn != conn and seat.hello.incarnation == hello.incarnation:
            self.roster.remove(seat)  # it lost that connection, and with it what we said there
        self._last_words.came(conn, hello.rank)
        self._say(conn, self._last_words.abort)

    def _told(self, conn: int, closed: Closed, now: float) -> None:
        """The group has given up, and a connection has ended."""
        assert self._last_words is not None
        seat = self._seat_of(conn)
        self._last_words.closed(conn, None if seat is None else seat.hello.rank, closed.why)
        if seat is not None:
            self.roster.remove(seat)

    def lingers(self, now: float) -> bool:
        """Whether this launcher must stay after the group gave up, because a rank may not have heard why."""
        return self._last_words is not None and self._last_words.awaited(self.seats, self.config.linger, now)

    # --------------------------------------------------------------------------------------------------- small ones

    def _stale(self, conn: int, message: object, now: float) -> None:
        """Ignore a message of an epoch that is over, or of a phase that has passed."""

    def _idle(self, conn: int, tick: Tick, now: float) -> None:
        """Nothing is left to do."""

    def _seat_of(self, conn: int) -> Seat | None:
        return self.roster.seat_of(conn)

    def _current(self, conn: int, epoch: Epoch) -> Seat | None:
        """The seat of a connection, if it takes part in the current epoch and speaks of it."""
        seat = self._seat_of(conn)
        return seat if seat is not None and seat.joined and epoch == self.epoch else None

    def _say(self, conn: int, message: Any) -> None:
        self._out.append(Send(conn, message))

    def _turn_away(self, conn: int, why: m.Rejected | m.Abort) -> None:
        """Answer a hello that is not accepted. The answer is sent first; then the connection is closed, unless it holds
        a seat."""
        self._say(conn, why)
        if conn not in self.roster.by_conn:
            self.roster.drop_rival(conn)
            self._out.append(Hang(conn))

    def _say_all(self, message: Any) -> None:
        conns = tuple(s.conn for _, s in sorted(self.seats.items()))
        if conns:
            self._out.append(SendAll(conns, message))

    def _note(self, event: str, level: str = "info", **fields: object) -> None:
        self._out.append(Note(event, fields, level))

    def waiting_for(self) -> str:
        """What the next epoch waits for, in words; empty while one runs."""
        if self.phase is GroupPhase.STOPPING:
            return f"waiting for {named([r for r, s in sorted(self.seats.items()) if s.joined])} to stop"
        if self.phase is not GroupPhase.WAITING:
            return ""
        if self.wait is Wait.MISMATCHED:
            absent = f"; waiting for {named(self.missing)}" if self.missing else ""
            return "; ".join(differences(self.seats, self.config.size)[:8]) + absent
        if self.wait is Wait.FENCED:
            whose = named(self.fences.ranks) if self.fences.lost else "an earlier leader's members"
            return f"waiting for the lease of {whose} to run out: something may still run there"
        if self.wait is Wait.LEAVING:
            return "waiting for the members that received SIGTERM to leave"
        if self.wait is Wait.BACKOFF:
            return self._pause.words
        return f"waiting for {named(self.missing)}" if self.missing else ""

    def wait_left(self, now: float) -> float | None:
        """The longest that the wait of `waiting_for` can last, in seconds; None if unknown."""
        if self.phase is not GroupPhase.WAITING or self.wait not in (Wait.FENCED, Wait.BACKOFF):
            return None
        return max(0.0, (self._pause.until if self.wait is Wait.BACKOFF else self.fences.until) - now)

    def _nothing_new(self, event: object, now: float) -> bool:
        """A quick check, true for most events: a beat or a tick in an epoch changed nothing, and no news is due."""
        idle = self._beat_only or (type(event) is Tick and self._in_epoch() and not self._out)
        return idle and self._news.nothing_new(self.history.first, lambda: self.budget.charged(now))

    def _publish(self, now: float) -> None:
        """Send news to all members when what people can see has changed."""
        known = (self.shown_phase, self.history.first, self.budget.total)
        if not self._news.due(known, len(self.seats), now):
            return
        text = self.waiting_for()
        over, lost = self._over_now
        state = (*known, self.wait is Wait.MISMATCHED and text, lost)
        answered = [rank for rank, s in self.seats.items() if s.contact.proven is not None]
        counts = (len(self.seats), len(answered), text, self.budget.charged(now))
        if not self._news.changed(state, counts, now):
            return
        # Our news replaces what a member remembers, so it must not go to one whose hello we have not taken in yet.
        news = m.News(
            self.shown_phase,
            text[:2000],
            len(self.seats),
            self.budget.total,
            self.budget.ages(now)[: m.MAX_CHARGES],
            self.history.first,
            self.history.first_n,
            None if self.history.first_at is None else max(0.0, now - self.history.first_at),
            self.wait_left(now),
            over,
            lost,
        )
        if answered:
            self._out.append(SendAll(tuple(self.seats[rank].conn for rank in sorted(answered)), news))

    @property
    def _over_now(self) -> tuple[Epoch | None, tuple[str, ...]]:
        """Our latest epoch if it is over, and its members that may still run something; all others have stopped.

        A lost member leaves a fence unless it had said `stopped`, and no epoch begins while a fence stands. So every
        fenced member is of this epoch, and no other member of it can be running anything.
        """
        if self._in_epoch() or self.epoch is None:
            return None, ()
        return self.epoch, tuple(self.fences.lost)


# ------------------------------------------------------------------------------------------------------- helpers


def exit_code(cause: Cause) -> int:
    """The launcher's exit code when a group gives up because of ``cause``."""
    if cause.kind in (CauseKind.EXITED, CauseKind.DIED, CauseKind.SIGNALLED, CauseKind.OOM) and cause.code:
        return cause.code
    if cause.kind is CauseKind.EXITED or (cause.kind is CauseKind.DIED and cause.code == 0):
        return int(ExitCode.ENGINE_ENDED)
    if cause.kind in (CauseKind.SPAWN, CauseKind.UNABLE, CauseKind.MISMATCH):
        return int(ExitCode.CONFIG)
    if cause.kind is CauseKind.JOIN:
        return int(ExitCode.UNAVAILABLE)
    return int(ExitCode.PEERS_LOST)
