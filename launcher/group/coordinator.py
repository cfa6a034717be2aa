"""The leader's half of the group protocol: one page, one table, no I/O.

Events and the time go in, actions come out; nothing here opens a socket, reads a clock or starts a process. Rank 0 is a
member like any other: its link is connection 0, inside the process.

The coordinator is between epochs (WAITING) until every rank has said hello, all are alike, nobody is leaving, the
back-off is over, and nothing of an earlier epoch can still be running anywhere. Then it makes an epoch:

    PREPARING   every member is told the members and answers `prepared` (no process has been started)
    STARTING    stage by stage: `start` to all, `stage_done` from all, the next stage
    RUNNING     the group serves
    DRAINING    a pod was told to go: no new work; when none is in flight rank 0 is stopped, then the others
    STOPPING    the epoch is over: `stop` to all; the next one waits for `stopped` from all
    ABORTED     the group has given up; whoever comes is told why

Why an old epoch's process can't meet a new one's: a member says hello only when nothing of its engine is left, so a
*seat* is clean when it is taken. A seat becomes unclean with `prepare` and clean with `stopped`. A member that is lost
while unclean leaves a *fence*: no epoch starts before the lease that it may hold has run out, or before the same
launcher (or the next one in the very same pod, `replaces`) has said hello and answered on that connection. For epochs
of a leader before us, whose members we can't see, the fence is counted from when our members last spoke to it
(`lease.py` says why that is enough). When an epoch is over, its members are told who of it may still run something: so
they can tell the next leader, and one that leaves in good order leaves no fence.

What a hello remembers (`_take_in`) and what it says is clean (`_clear`) counts when its connection has answered: a peer
that is refused, or that never answers, changes nothing but its own seat.

The table below is complete: every event in every phase has an answer; LEADS says where each phase may lead, and every
single step is held to it (docs/protocol.md draws both). "stale" says that the message belongs to an epoch that is over,
or to a phase that has passed, and changes nothing. The first failure decides the end of an epoch; failures that arrive
within a second of it may explain it better (`history.py`), none is lost.

Beside it: `roster.py` (who is there, who differs), `fences.py` (what may still run unseen), `lease.py` (how long),
`budget.py` (whether to try again), `history.py` (what came first), `metrics.py` (what is counted).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from launcher.errors import ExitCode
from launcher.group import messages as m
from launcher.group.budget import STEADY, Budget
from launcher.group.ends import End, Ends
from launcher.group.events import Closed, Hang, Note, OwnGap, Say, SayAll, Tick
from launcher.group.fences import Fences
from launcher.group.history import History
from launcher.group.lease import Contact, Terms
from launcher.group.metrics import DrainEnd, Measures
from launcher.group.roster import Rival, Seat, alike, differences, named
from launcher.model import Cause, CauseKind, Epoch

LOCAL = 0  #: the connection of rank 0, inside the leader's process
CHALLENGE_SECONDS = 2.0
PREPARE_SECONDS = 120.0  #: members bound their own preparation; this is for one that broke
HEARING_SECONDS = 2.0  #: for members to hear that the group has given up, and to hang up
NEWS_EVERY = 1.0
MANY = 64  #: seats; with more, what takes a pass over all of them is not done at every word that one of them says
LOOK_PER_SEAT = 20e-6  #: seconds between two such passes, for each seat: they may cost a twentieth of the time


class Phase(str, Enum):
    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    ABORTED = "aborted"


class Wait(str, Enum):
    """What WAITING waits for: the phase that people see between epochs."""

    GATHERING = "gathering"  #: ranks are missing
    FENCED = "fenced"  #: a lost member's lease has not run out
    MISMATCHED = "mismatched"  #: members are not alike
    LEAVING = "leaving"  #: a present member was told to go
    BACKOFF = "backoff"  #: the next attempt comes soon


Action = Say | SayAll | Hang | Note


@dataclass(frozen=True)
class Stage:
    """What the coordinator must know of a stage."""

    name: str
    timeout: float | None = None
    on_timeout: str = ""


@dataclass(frozen=True)
class Config:
    """What the coordinator is told at its making. Durations in seconds."""

    group: str
    size: int
    incarnation: str
    terms: Terms = Terms()
    max_restarts: int = 10
    restart_window: float = 3600.0
    restart_backoff: float = 60.0
    stop_grace: float = 3.0
    join_timeout: float | None = None
    startup_timeout: float | None = None
    startup_stall_timeout: float | None = 1800.0
    linger: float = 0.0  #: after giving up: how long a rank that has not heard why may come to hear it
    highest_n: int = 0  #: from the state file
    mint: Callable[[Epoch], tuple[str, Mapping[str, Any]]] = lambda epoch: ("", {})  #: Ray token and values of an epoch


# ----------------------------------------------------------------------------------------------------- the table

# fmt: off
_GRID: Mapping[type[Any], tuple[str, ...]] = {
    # event       waiting     preparing         starting           running            draining         stopping          aborted
    m.Hello:     ("admit",    "admit",          "admit",           "admit",           "admit",         "admit",          "refuse"),
    m.Ping:      ("ack",      "ack",            "ack",             "ack",             "ack",           "ack",            "ack"),
    m.Answer:    ("stand",    "stand",          "stand",           "stand",           "stand",         "stand",          "stale"),
    m.Prepared:  ("stale",    "prepared",       "stale",           "stale",           "stale",         "stale",          "stale"),
    m.Unable:    ("stale",    "unable",         "unable",          "unable",          "unable",        "also_failed",    "stale"),
    m.StageDone: ("stale",    "stale",          "stage_done",      "stale",           "stale",         "stale",          "stale"),
    m.Failed:    ("stale",    "failed",         "failed",          "failed",          "drain_failed",  "also_failed",    "stale"),
    m.Stopped:   ("stale",    "stopped_unasked", "stopped_unasked", "stopped_unasked", "drain_stopped", "stopped",        "stale"),
    m.Drained:   ("stale",    "stale",          "stale",           "stale",           "drained",       "stale",          "stale"),
    m.Leaving:   ("farewell", "leave_unserved", "leave_unserved",  "drain",           "drain",         "leave_stopping", "farewell"),
    m.Report:    ("stale",    "stale",          "report",          "report",          "report",        "report",         "stale"),
    m.Unread:    ("unread",   "unread",         "unread",          "unread",          "unread",        "unread",         "stale"),
    Closed:      ("forget",   "lose",           "lose",            "lose",            "lose",          "lose",           "told"),
    Tick:        ("consider", "watch_prepare",  "watch_start",     "watch_run",       "watch_drain",   "watch_stop",     "idle"),
}
# fmt: on

TABLE: Mapping[Phase, Mapping[type[Any], str]] = {
    phase: {event: row[column] for event, row in _GRID.items()} for column, phase in enumerate(Phase)
}

#: Where each phase may lead. Every single step is held to this.
LEADS: Mapping[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.PREPARING, Phase.ABORTED}),
    Phase.PREPARING: frozenset({Phase.STARTING, Phase.STOPPING}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.STOPPING}),
    Phase.RUNNING: frozenset({Phase.DRAINING, Phase.STOPPING}),
    Phase.DRAINING: frozenset({Phase.STOPPING}),
    Phase.STOPPING: frozenset({Phase.WAITING, Phase.ABORTED}),
    Phase.ABORTED: frozenset(),
}


# -------------------------------------------------------------------------------------------------- the coordinator


class Coordinator:
    """State of the group as the leader knows it. Call :meth:`handle` with every event, and with a Tick every beat."""

    def __init__(self, config: Config, now: float, rng: random.Random) -> None:
        self.config = config
        self.phase = Phase.WAITING
        self.wait = Wait.GATHERING
        self.seats: dict[int, Seat] = {}
        self.epoch: Epoch | None = None
        self.stages: tuple[Stage, ...] = ()  #: set before rank 0 says hello
        self.stage = 0
        self.history = History()
        self.measures = Measures()
        self.budget = Budget(config.max_restarts, config.restart_window, rng, longest=config.restart_backoff)
        self.cause: Cause | None = None  #: why the current epoch is ending, as far as is known
        self.verdict = ""  #: why the group gave up
        self.phase_since = now
        self.put_off = 0.0  #: seconds so far for which deadlines of a start did not count: this machine was starved
        self._rng = rng
        self._gap = OwnGap(config.terms, now)
        self._born = now
        self._n = config.highest_n
        self._fences = Fences(config.terms)
        self._pause = ""  # why the next epoch does not begin at once, in words
        self._superseded: dict[str, None] = {}
        self._by_conn: dict[int, int] = {}
        self._claims: dict[int, int] = {}  # connections of rivals, and the rank that each has claimed
        self._members: tuple[str, ...] = ()  # incarnations of the current epoch, by rank
        self._back: set[int] = set()  # ranks whose member of it was lost and is seated again: it lives
        self._frozen: float | None = None  # contact of a member that was lost in this epoch: F moves no further
        self._fresh = now  # F (lease.py), as last computed
        self._fresh_at = now
        self._fresh_for = config.terms.beat / 4
        self._ready_at: float | None = None
        self._started = False  # a stage of this epoch was started: its end is charged
        self._ends = Ends({})  # of the current epoch: what its cause is judged by
        self._drain_by: float | None = None
        self._drain_end = DrainEnd.IDLE
        self._not_before = now
        self._stage_since = now
        self._stage_put_off = self._phase_put_off = 0.0  # what `put_off` was then
        self._look_at = now  # when `_look` may look again
        self._look_due = False  # it was asked to and has not yet
        self._text_at = now  # when what is missing may be put in words again
        self._news: tuple[object, ...] = ()
        self._news_at = now
        self._count_news: tuple[object, ...] = ()
        self._all_told = False  # as of the last look, the members know all that people can see
        self._beat_only = False  # the ping at hand has changed nothing but its member's lease
        self._abort: m.Abort | None = None
        self._untold: set[int] = set()  # ranks that may not have heard that the group has given up
        self._late: dict[int, int] = {}  # connections of those that came to hear it, and their ranks
        self._out: list[Action] = []

    # ------------------------------------------------------------------------------------------------ the one door

    def handle(self, event: Any, conn: int, now: float) -> list[Action]:
        """Answer one event of connection ``conn`` (LOCAL for Tick). Returns what is to be done, in order."""
        self._out = []
        self._beat_only = False
        self._gap.event(now)
        getattr(self, "_" + TABLE[self.phase][type(event)])(conn, event, now)
        if not self._nothing_new(event, now):
            self._publish(now)
        return self._out

    def _go(self, phase: Phase, now: float) -> None:
        if phase not in LEADS[self.phase]:
            raise AssertionError(f"{self.phase.value} may not lead to {phase.value}")
        self.phase, self.phase_since, self._phase_put_off = phase, now, self.put_off

    @property
    def shown_phase(self) -> str:
        """The phase in the word that people see."""
        return self.wait.value if self.phase is Phase.WAITING else self.phase.value

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(r for r in range(self.config.size) if r not in self.seats)

    # ------------------------------------------------------------------------------------------------ who is there

    def rank_of(self, conn: int) -> int | None:
        """Whose seat a connection has; None: nobody's."""
        return self._by_conn.get(conn)

    def relocate(self, address: str) -> None:
        """Rank 0's own address turned out to be another one. Only between epochs: an epoch's addresses are fixed."""
        seat = self.seats.get(0)
        if seat is not None and self.phase is Phase.WAITING:
            seat.hello = replace(seat.hello, address=address)

    def _admit(self, conn: int, hello: m.Hello, now: float) -> None:
        refusal = self._refusal(conn, hello)
        if refusal is not None:
            self._turn_away(conn, refusal)
            return
        self._drop_rival(conn)  # what it claimed before
        seat = self.seats.get(hello.rank)
        if seat is not None and seat.hello.incarnation == hello.incarnation and hello.attempt < seat.hello.attempt:
            self._out.append(Hang(conn))  # said on a connection that it has since given up
            return
        if seat is None:
            self._seat(conn, hello, now)
        elif seat.hello.incarnation == hello.incarnation:
            self._return(seat, conn, hello, now)
        else:
            self._challenge(seat, conn, hello, now)

    def _refusal(self, conn: int, hello: m.Hello) -> m.Rejected | None:
        c = self.config
        if hello.protocol != m.PROTOCOL:
            return m.Rejected(
                "protocol", f"this leader speaks protocol {m.PROTOCOL}, rank {hello.rank} speaks {hello.protocol}", 5
            )
        if hello.group != c.group:
            return m.Rejected("wrong_group", f"this is the leader of group {c.group}, not of {hello.group}", 1)
        if hello.rank >= c.size:
            text = f"rank {hello.rank} of size {hello.size} came, but the leader's size is {c.size}: check --size"
            return m.Rejected("rank_range", text, 5)
        if hello.rank == 0 and conn != LOCAL:
            return m.Rejected("duplicate", f"rank 0 is this leader; {hello.address} also says it is rank 0", 5)
        if self._by_conn.get(conn, hello.rank) != hello.rank:
            text = f"this connection is rank {self._by_conn[conn]}; it cannot be rank {hello.rank} too"
            return m.Rejected("protocol", text, 5)
        if hello.incarnation in self._superseded:
            return m.Rejected("superseded", f"rank {hello.rank} was taken over by another pod", 1)
        return None

    def _take_in(self, hello: m.Hello, now: float) -> None:
        """What a hello that was heard at ``now`` remembers; its connection has answered since."""
        if hello.died is not None:
            self._explain_death(hello, replace(hello.died, rank=hello.rank))
        if not self._members:  # from our first epoch on we know better
            at = None if hello.first_age is None else now - hello.first_age
            self.history.inherit(hello.first_failure, hello.first_epoch, at)
            self.budget.inherit(hello.charges, now)
        epoch = hello.last_epoch
        if epoch is None:
            return
        self._n = max(self._n, epoch.n)
        if epoch.leader != self.config.incarnation:
            self._fences.put_foreign(hello, self._known_clean, now)

    def _came_back(self, hello: m.Hello) -> None:
        """It lives: it did not die of what ended an epoch that it was lost from."""
        if self._members and self._members[hello.rank] == hello.incarnation:
            self._back.add(hello.rank)
        self.history.came_back(hello.incarnation)

    def _known_clean(self, since: float) -> frozenset[str]:
        """Launchers of which nothing runs: members here that have answered after ``since``, and those before them."""
        answered = [s for s in self.seats.values() if s.contact.proven is not None and s.contact.proven >= since]
        return frozenset().union(*(s.clears for s in answered))

    def _explain_death(self, hello: m.Hello, died: Cause) -> None:
        """A launcher that was killed is back and says how: the end of an epoch that it was in, and of no other."""
        rank, replaces = hello.rank, hello.dead
        stopping = self.phase is Phase.STOPPING and self.cause is not None
        if stopping and self._was_lost_for(rank, replaces):
            self._ends.explain(rank, died)
        elif (replaces or not stopping) and self.history.refine(rank, died, replaces):
            self._note("first failure explained", cause=str(self.history.first))
        elif rank == 0 and not self._members:
            self.history.inherit_death(died)

    def _was_lost_for(self, rank: int, replaces: tuple[str, ...]) -> bool:
        """Whether the epoch that stops has lost one of ``replaces`` (empty: any launcher of the rank)."""
        return self._ends.lost(rank) and (not replaces or self._lost_member(rank) in replaces)

    def _lost_member(self, rank: int) -> str:
        """Who of this epoch is lost for all that is known; empty: it came back, so it had not died."""
        return "" if rank in self._back else self._members[rank]

    def _clear(self, seat: Seat) -> None:
        """A member has answered on its connection: its hello is not an old one that was held up, and so it is true.

        Nothing runs of its launcher nor of those that it replaces: no fence is needed for them any more.
        """
        self._fences.clear(seat.clears, seat.contact.at)

    def _seat(self, conn: int, hello: m.Hello, now: float, heard: float | None = None) -> None:
        contact = Contact(now, 0.0) if conn == LOCAL else Contact(now)
        spoke, moved = now if heard is None else heard, now - self.put_off
        self.seats[hello.rank] = Seat(conn, hello, contact, spoke, moved=moved)
        self._by_conn[conn] = hello.rank
        self._say(conn, m.Accepted(self.config.incarnation, self.seats[hello.rank].contact.mark(now)))
        self._note("member joined", member=hello.rank, address=hello.address, incarnation=hello.incarnation)
        if self.phase is Phase.WAITING:
            self._look(conn, hello, now)

    def _return(self, seat: Seat, conn: int, hello: m.Hello, now: float) -> None:
        """The same launcher on a new connection. It says hello only when clean, so whatever it ran is gone."""
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
        seat.rival = Rival(conn, hello, nonce, now, now + CHALLENGE_SECONDS)
        self._claims[conn] = hello.rank
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
        if not self._claims:
            return
        for rank, seat in list(self.seats.items()):
            rival = seat.rival
            if rival is None or now < rival.until:
                continue
            self._superseded[seat.hello.incarnation] = None
            while len(self._superseded) > 4096:
                self._superseded.pop(next(iter(self._superseded)))
            seat.rival = None
            text = f"its launcher at {seat.hello.address} did not answer and was replaced by {rival.hello.address}"
            self._out.append(Hang(seat.conn))
            silent = seat.contact.silent_for(now)
            self._remove(rank, Cause(CauseKind.LOST, rank, text, tail=seat.tail), now, silent)
            if rank not in self.seats:
                self._seat(rival.conn, rival.hello, now, rival.heard)

    def _forget(self, conn: int, closed: Closed, now: float) -> None:
        """A connection ended while no epoch runs."""
        rank = self._by_conn.get(conn)
        self._drop_rival(conn)
        if rank is None:
            return
        seat = self.seats[rank]
        left = seat.leaving is not None
        self._note("member left" if left else "member gone", member=rank, why=closed.why)
        self._remove(rank, Cause(CauseKind.LOST, rank, closed.why), now)
        if self.phase is Phase.WAITING:
            self._look(conn, closed, now)

    def _lose(self, conn: int, closed: Closed, now: float) -> None:
        """A connection ended while an epoch runs or stops."""
        rank = self._by_conn.get(conn)
        self._drop_rival(conn)
        if rank is None:
            return
        seat = self.seats[rank]
        text = (
            f"its launcher at {seat.hello.address} is gone: the connection closed"
            f"{' (' + closed.why + ')' if closed.why else ''}"
        )
        self._remove(rank, self._or_own_gap(Cause(CauseKind.LOST, rank, text, tail=seat.tail), now), now)

    def _or_own_gap(self, cause: Cause, now: float) -> Cause:
        """Who gives us up right after we did not run for so long is right to."""
        theirs = cause.kind in (CauseKind.LOST, CauseKind.LEADER)
        return Cause(CauseKind.LOST, 0, self._gap.words) if theirs and self._gap.recent(now) else cause

    def _remove(self, rank: int, cause: Cause, now: float, noticed: float = 0.0) -> None:
        """Take a seat away, and with it the epoch that it is part of."""
        seat = self.seats[rank]
        self._give_up_seat(seat)
        if seat.joined:
            self._gone_from_epoch(cause, now, noticed)

    def _give_up_seat(self, seat: Seat) -> None:
        """Nobody sits there any more: if its engine may be running, leave a fence; F moves no further."""
        rank = seat.hello.rank
        del self.seats[rank]
        self._by_conn.pop(seat.conn, None)
        if seat.rival is not None:  # decided by the incumbent's end
            rival, seat.rival = seat.rival, None
            self._turn_away(rival.conn, m.Rejected("retry", f"rank {rank} has just become free", 0.1))
        if not seat.clean:
            self._fences.put(seat.hello.incarnation, rank, seat.contact.granted)
        if seat.member:
            self._frozen = seat.contact.at if self._frozen is None else min(self._frozen, seat.contact.at)

    def _gone_from_epoch(self, cause: Cause, now: float, noticed: float = 0.0) -> None:
        if self.phase in (Phase.PREPARING, Phase.STARTING, Phase.RUNNING, Phase.DRAINING):
            self._end(cause, now, noticed)
        elif self.phase is Phase.STOPPING:
            self._ends.add(End(cause, now, now), now)
            self._over_if_all_stopped(now)

    def _drop_rival(self, conn: int) -> None:
        seat = self.seats.get(self._claims.pop(conn, -1))
        if seat is not None and seat.rival is not None and seat.rival.conn == conn:
            seat.rival = None

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
        elif self._fences.foreign and contact.proven is not None:
            self._fences.clear_foreign(seat.clears, contact.at)
        elif not self._look_due:
            self._beat_only = True
        if self._look_due and self.phase is Phase.WAITING:
            self._look(conn, ping, now)

    def _in_epoch(self) -> bool:
        return self.phase not in (Phase.WAITING, Phase.ABORTED)

    def _freshness(self, now: float) -> float:
        """F: the oldest contact of all members of the epoch, lost ones included. Costs one pass a quarter beat."""
        if now - self._fresh_at >= self._fresh_for or now < self._fresh_at:
            contacts = [s.contact.at for s in self.seats.values() if s.member]
            if self._frozen is not None:
                contacts.append(self._frozen)
            self._fresh = min(contacts, default=now)
            self._fresh_at = now
        return self._fresh

    def _silent(self, now: float) -> None:
        """Members without contact for too long are lost."""
        limit = now - self.config.terms.lost_after
        late = [(rank, seat) for rank, seat in self.seats.items() if seat.contact.at < limit]
        for rank, seat in sorted(late, key=lambda one: one[0]):  # if we were frozen, all are, and rank 0 is the reason
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
        """WAITING, and somebody came, went or proved that he hears us. The last of many is seen at the next ping."""
        if now < self._look_at:
            self._look_due = True
        else:
            self._consider(conn, event, now)

    def _consider(self, conn: int, event: object, now: float) -> None:
        """WAITING: is everything there for an epoch? Sets what we wait for, or begins one."""
        self._look_due = False
        self._look_at = now + (LOOK_PER_SEAT * len(self.seats) if len(self.seats) > MANY else 0.0)
        self._watch(conn, Tick(), now)
        if self.phase is not Phase.WAITING:
            return  # a newcomer that took a silent member's rank completed the group
        fenced = self._fences.stand(now)
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
        elif now < self._not_before:
            self.wait = Wait.BACKOFF
        else:
            self._prepare(now)

    def _alike(self) -> bool:
        return alike(self.seats.values(), self.config.size)

    def _give_up_waiting(self, now: float) -> None:
        limit = self.config.join_timeout
        if not limit or self._n or now - self._born < limit:
            return  # an epoch that anybody here knows of: it is not the group's first gathering, though it may be ours
        tells = any(s.contact.proven is None and s.hello.last_epoch is not None for s in self.seats.values())
        if tells and now - self._born < limit + self.config.terms.lost_after:
            return  # it has not answered yet
        names = ", ".join(f"rank {r}" for r in self.missing[:16])
        text = f"{names} did not come within {limit:g} s (--join-timeout)"
        self._give_up(Cause(CauseKind.JOIN, 0, text), int(ExitCode.UNAVAILABLE), text, now)

    # ------------------------------------------------------------------------------------------------- an epoch

    def _prepare(self, now: float) -> None:
        self._n = self._n % m.MOST_EPOCHS + 1  # epochs are compared whole: a number that comes again harms nobody
        self.epoch = Epoch(self._n, self.config.incarnation)
        ranks = sorted(self.seats)
        self._members = tuple(self.seats[r].hello.incarnation for r in ranks)
        self._back.clear()
        self.cause = None
        self._frozen = self._ready_at = self._drain_by = None
        self._started = False
        self._fresh_at = now - self.config.terms.lease
        for seat in self.seats.values():
            seat.clean, seat.joined, seat.told_stop, seat.done, seat.report = False, True, False, -2, None
            seat.member = True
            seat.moved = now - self.put_off
        token, values = self.config.mint(self.epoch)
        addresses = tuple(self.seats[r].hello.address for r in ranks)
        self._ends = Ends(dict(zip(addresses, ranks, strict=True)) if len(set(addresses)) == len(ranks) else {})
        self._go(Phase.PREPARING, now)
        self._stage_since, self._stage_put_off = now, self.put_off
        self._note("epoch begins", of_epoch=str(self.epoch), members=len(ranks))
        for seat in self.seats.values():
            if seat.contact.owed:
                self._say(seat.conn, m.Ack(seat.contact.good(now), seat.contact.mark(now)))
        self._say_all(m.Prepare(self.epoch, self._members, addresses, token, dict(values)))

    def _prepared(self, conn: int, message: m.Prepared, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is None:
            return
        seat.done = max(seat.done, -1)
        if all(s.done >= -1 for s in self.seats.values()):
            if not self.stages:
                raise AssertionError("an epoch without stages")
            self._go(Phase.STARTING, now)
            self._start(0, now)

    def _start(self, stage: int, now: float) -> None:
        assert self.epoch is not None
        self.stage = stage
        self._stage_since, self._stage_put_off = now, self.put_off
        self._started = True
        self._note("stage started", of_epoch=str(self.epoch), stage=self.stages[stage].name)
        self._say_all(m.Start(self.epoch, stage))

    def _stage_done(self, conn: int, message: m.StageDone, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is None or message.stage != self.stage:
            return
        seat.done = max(seat.done, message.stage)
        if any(s.done < self.stage for s in self.seats.values()):
            return
        if self.stage + 1 < len(self.stages):
            self._start(self.stage + 1, now)
            return
        assert self.epoch is not None
        self._go(Phase.RUNNING, now)
        self._ready_at = now
        self._note("group runs", of_epoch=str(self.epoch), size=self.config.size)
        self._say_all(m.Running(self.epoch))

    def _report(self, conn: int, report: m.Report, now: float) -> None:
        seat = self._current(conn, report.epoch)
        if seat is None:
            return
        if seat.report is None or seat.report.activity != report.activity:
            seat.moved = now - self.put_off
        seat.report = report

    # ------------------------------------------------------------------------------------------------ its failures

    def _failed(self, conn: int, message: m.Failed, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is not None and not message.told:  # else we have told nobody to stop: its guard killed at the deadline
            cause = self._or_own_gap(replace(message.cause, rank=seat.hello.rank), now)
            self._end(self._beside_silence(cause, now), now, message.noticed, self._when(seat, message, now))

    def _beside_silence(self, cause: Cause, now: float) -> Cause:
        """An engine may end because its neighbour behind a bad link was killed by its lease: then both are told."""
        silence = {r: s.contact.silent_for(now) for r, s in self.seats.items() if r != cause.rank}
        rank = max(silence, key=silence.__getitem__, default=cause.rank)
        if cause.kind is not CauseKind.EXITED or silence.get(rank, 0.0) <= self.config.terms.lease / 4:
            return cause
        return replace(cause, text=f"{cause.text}; rank {rank} had been silent for {silence[rank]:.1f} s")

    def _when(self, seat: Seat, message: m.Failed, now: float) -> tuple[float, float]:
        """Between which times it was, on our clock."""
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
            self._abort = m.Abort(cause, int(ExitCode.CONFIG), cause.text)
            self._end(cause, now)

    def _unread(self, conn: int, message: m.Unread, now: float) -> None:
        """A member cannot read what we say, and will not the next time: trying again would never end."""
        seat = self._seat_of(conn)
        if seat is None or seat.contact.proven is None:
            return
        rank = seat.hello.rank
        text = f"rank {rank} cannot read what this leader says ({message.text}): run one release of the launcher on all"
        cause = Cause(CauseKind.UNABLE, rank, text[: m.MOST_WORDS])
        if self.phase is Phase.WAITING:
            self._give_up(cause, int(ExitCode.CONFIG), cause.text, now)
            return
        self._abort = m.Abort(cause, int(ExitCode.CONFIG), cause.text)
        if self.phase is not Phase.STOPPING:
            self._end(cause, now)

    def _also_failed(self, conn: int, message: m.Failed | m.Unable, now: float) -> None:
        seat = self._seat_of(conn)
        if seat is None or message.epoch != self.epoch:
            return
        cause = replace(message.cause, rank=seat.hello.rank)
        if isinstance(message, m.Failed):
            self._ends.add(End(cause, *self._when(seat, message, now), message.told), now)
        else:
            self._ends.add(End(cause, now, now), now)

    def _stopped_unasked(self, conn: int, message: m.Stopped, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is not None:
            seat.joined, seat.clean = False, True
            self._end(Cause(CauseKind.LOST, seat.hello.rank, "it stopped its engine unasked"), now)

    def _watch(self, conn: int, tick: Tick, now: float) -> None:
        self._challenges(now)
        self._silent(now)

    def _watch_prepare(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        waited = now - self._stage_since - (self.put_off - self._stage_put_off)
        if self.phase is Phase.PREPARING and waited > PREPARE_SECONDS:
            late = [r for r, s in sorted(self.seats.items()) if s.done < -1]
            text = f"{named(late)} did not answer prepare within {PREPARE_SECONDS:g} s"
            self._end(Cause(CauseKind.TIMEOUT, late[0], text), now)

    def _watch_run(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        if self._ready_at is not None and now - self._ready_at >= STEADY:
            self.history.first = None  # the trouble before is over

    def _watch_start(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        if self.phase is not Phase.STARTING:
            return
        c, stage = self.config, self.stages[self.stage]
        waited = now - self._stage_since - (self.put_off - self._stage_put_off)
        whole = now - self.phase_since - (self.put_off - self._phase_put_off)
        late = [r for r, s in sorted(self.seats.items()) if s.done < self.stage]
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
        """Seconds since anything of the engine moved on any rank, but for those that this machine was starved."""
        return now - self.put_off - max(s.moved for s in self.seats.values())

    # --------------------------------------------------------------------------------------------------- draining

    def _farewell(self, conn: int, message: m.Leaving, now: float) -> None:
        seat = self._seat_of(conn)
        if seat is None:
            return
        seat.leaving = now + message.grace  # it exits at once: nothing runs there
        if self.phase is Phase.WAITING:
            self._consider(conn, message, now)

    def _leaves(self, conn: int, message: m.Leaving, now: float) -> Seat | None:
        seat = self._seat_of(conn)
        if seat is not None:
            seat.leaving = now + message.grace  # a second time it has no grace
        return seat

    def _leave_unserved(self, conn: int, message: m.Leaving, now: float) -> None:
        """Told to go before the group ever served: nothing to wait for."""
        seat = self._leaves(conn, message, now)
        if seat is not None:
            self._end(_drain_cause(seat.hello.rank), now)

    def _leave_stopping(self, conn: int, message: m.Leaving, now: float) -> None:
        self._leaves(conn, message, now)
        self._over_if_all_stopped(now)

    def _drain(self, conn: int, message: m.Leaving, now: float) -> None:
        seat = self._leaves(conn, message, now)
        if seat is None:
            return
        assert self.epoch is not None
        left = self._grace_left(now)
        by = now + left - _margin(left)
        first = self._drain_by is None
        self._drain_by = by if self._drain_by is None else min(self._drain_by, by)
        if first:
            self.cause = _drain_cause(seat.hello.rank)
            self._drain_end = DrainEnd.IDLE
            self._go(Phase.DRAINING, now)
            self._note("draining", member=seat.hello.rank, at_most_s=round(max(0.0, by - now), 1))
            self._say_all(m.Drain(self.epoch, self.cause, max(0.0, by - now)))
        if message.grace <= 0:
            self._drain_end = DrainEnd.HURRIED
            self._end(_drain_cause(seat.hello.rank), now)
        else:
            self._watch_drain(conn, Tick(), now)

    def _drained(self, conn: int, message: m.Drained, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is not None and seat.hello.rank == 0:
            self._note("drained", of_epoch=str(self.epoch), seconds=round(now - self.phase_since, 1))
            self._stop_leader_first(now)

    def _watch_drain(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        if self.phase is not Phase.DRAINING or self._drain_by is None or now < self._drain_by:
            return
        leader = self.seats[0]
        if not leader.told_stop:
            self._note("drain cut short by the grace", level="warning", of_epoch=str(self.epoch))
            self._drain_end = DrainEnd.GRACE
            self._stop_leader_first(now)
        elif now >= self._drain_by + self._grace_left(self._drain_by) * 0.6:
            assert self.cause is not None
            self._end(self.cause, now)  # rank 0 takes too long: the others need their share of the grace

    def _stop_leader_first(self, now: float) -> None:
        leader = self.seats[0]
        if not leader.told_stop:
            assert self.epoch is not None and self.cause is not None
            leader.told_stop = True
            self._say(leader.conn, m.Stop(self.epoch, self.cause, max(0.0, self._grace_left(now) * 0.8)))

    def _drain_stopped(self, conn: int, message: m.Stopped, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is None:
            return
        if seat.hello.rank == 0 and seat.told_stop:
            seat.joined, seat.clean = False, True
            assert self.cause is not None
            self._end(self.cause, now)
        else:
            self._stopped_unasked(conn, message, now)

    def _drain_failed(self, conn: int, message: m.Failed, now: float) -> None:
        """A worker whose rank 0 is being stopped may well end: that is no failure, and rank 0 keeps its time."""
        seat = self._current(conn, message.epoch)
        if seat is not None and self.seats[0].told_stop and seat.hello.rank != 0:
            self._note("ended with rank 0", level="debug", member=seat.hello.rank, cause=message.cause.text)
        else:
            self._failed(conn, message, now)

    def _grace_left(self, now: float) -> float:
        leaving = [s.leaving for s in self.seats.values() if s.leaving is not None]
        return max(0.0, min(leaving) - now) if leaving else 0.0

    # ---------------------------------------------------------------------------------------------- the end of one

    def _end(self, cause: Cause, now: float, noticed: float = 0.0, when: tuple[float, float] | None = None) -> None:
        """End the epoch on all ranks: `stop` to everybody who takes part in it.

        ``noticed``: seconds from the failure to now, as far as anybody knows; ``when``: between which times it was.
        """
        assert self.epoch is not None
        drained = cause.kind is CauseKind.DRAIN
        was_draining = self.phase is Phase.DRAINING
        if was_draining:
            self._measure_drain(cause, now)
        if not drained:
            self.measures.detected.add(noticed)
            self._ends.add(End(cause, *(when or (now, now))), now)
        self.cause = cause
        self._go(Phase.STOPPING, now)
        if not drained:
            self._note("epoch failed", level="error", of_epoch=str(self.epoch), cause=str(cause))
        if was_draining and not drained:
            self._started = False  # nobody pays for a failure in an epoch that was ending anyway
        grace = self.config.stop_grace
        if any(s.leaving is not None for s in self.seats.values()):
            grace = min(grace, max(0.2, self._grace_left(now) - 0.5))
        conns = []
        for seat in self.seats.values():
            if seat.joined:
                seat.told_stop = True
                conns.append(seat.conn)
        if conns:
            self._out.append(SayAll(tuple(conns), m.Stop(self.epoch, cause, grace)))
        self._over_if_all_stopped(now)

    def _measure_drain(self, cause: Cause, now: float) -> None:
        end = self._drain_end if cause.kind is CauseKind.DRAIN else DrainEnd.FAILED
        self.measures.drains[end.value] += 1
        self.measures.drained.add(now - self.phase_since)

    def _stopped(self, conn: int, message: m.Stopped, now: float) -> None:
        seat = self._current(conn, message.epoch)
        if seat is None:
            return
        seat.joined, seat.clean = False, True
        self._over_if_all_stopped(now)

    def _watch_stop(self, conn: int, tick: Tick, now: float) -> None:
        self._watch(conn, tick, now)
        if self.phase is Phase.STOPPING:
            self._over_if_all_stopped(now)

    def _over_if_all_stopped(self, now: float) -> None:
        """All that can be heard have stopped, and had said before what they know; the lost are behind fences."""
        if any(s.joined for s in self.seats.values()) or self.phase is not Phase.STOPPING:
            return
        assert self.epoch is not None and self.cause is not None
        self._settle_cause()
        served = None if self._ready_at is None else now - self._ready_at
        self.measures.stopped.add(now - self.phase_since)
        if self.cause.kind is not CauseKind.DRAIN:
            self.measures.failures[self.cause.kind.value] += 1
        stage = self.stages[self.stage].name if self.stages else ""
        lost = self._lost_member(self.cause.rank)
        self.history.record(self.epoch, self.cause, now, served, lost, self._ends.of_each_rank)
        drained = self.cause.kind is CauseKind.DRAIN
        verdict = self.budget.judge(self.cause, stage, served, self._started and not drained, now)
        if self._abort is not None:
            self._give_up(self._abort.cause, self._abort.code, self._abort.text, now)
            return
        if verdict.give_up and not drained:
            # what is told is the first failure, but the code is that of the last: it is what the engine does now
            self._give_up(self.history.first or self.cause, exit_code(self.cause), verdict.reason, now)
            return
        self._not_before = now if drained else now + verdict.delay
        self._pause = f"the engine is started again after a pause, {self.budget.used(now)} used"
        self._frozen = None
        self._note("epoch over", of_epoch=str(self.epoch), next_in=round(verdict.delay, 2))
        self._go(Phase.WAITING, now)
        for seat in list(self.seats.values()):
            if seat.leaving is not None:
                self._say(seat.conn, m.Goodbye())
        self._consider(LOCAL, None, now)

    def _settle_cause(self) -> None:
        """All ends that can be heard of are heard: which was the first?"""
        assert self.cause is not None
        if self.cause.kind is not CauseKind.DRAIN:
            first, self.cause = self.cause, self._ends.judge()
            if str(first) != str(self.cause):
                self._note("failure explained", level="warning", cause=str(self.cause), first_heard=str(first))

    def _give_up(self, cause: Cause, code: int, reason: str, now: float) -> None:
        self._abort = m.Abort(cause, code, reason[: m.MOST_WORDS])
        self.verdict = reason
        self._go(Phase.ABORTED, now)
        self._note("giving up", level="error", reason=reason, code=code)
        self._untold = set(range(1, self.config.size))
        self._say_all(self._abort)

    def _refuse(self, conn: int, hello: m.Hello, now: float) -> None:
        """The group has given up: who comes is told why, and hangs up when he has heard it."""
        refusal = self._refusal(conn, hello)
        assert self._abort is not None
        if refusal is not None:
            self._turn_away(conn, refusal)
            return
        seat = self.seats.get(hello.rank)
        if seat is not None and seat.conn != conn and seat.hello.incarnation == hello.incarnation:
            self._leave_seat(seat)  # it has lost that connection, and what was said on it
        self._late[conn] = hello.rank
        self._say(conn, self._abort)

    def _told(self, conn: int, closed: Closed, now: float) -> None:
        """The group has given up, and a connection ended: in good order by one that has heard so."""
        seat = self._seat_of(conn)
        rank = self._late.pop(conn, None if seat is None else seat.hello.rank)
        if seat is not None:
            self._leave_seat(seat)
        if rank is not None and not closed.why:
            self._untold.discard(rank)

    def _leave_seat(self, seat: Seat) -> None:
        del self.seats[seat.hello.rank]
        self._by_conn.pop(seat.conn, None)

    def lingers(self, now: float) -> bool:
        """The group has given up: whether this launcher must stay, for somebody may not have heard why.

        Those that were here are waited for until they have hung up, which they do when they exit; the others, and those
        whose connection broke, for as long as ``linger`` says: nobody but we can tell them.
        """
        if self.phase is not Phase.ABORTED:
            return False
        here = {*self.seats, *self._late.values()} & self._untold
        waited = now - self.phase_since
        return bool(here and waited < HEARING_SECONDS) or bool(self._untold and waited < self.config.linger)

    # --------------------------------------------------------------------------------------------------- small ones

    def _stale(self, conn: int, message: object, now: float) -> None:
        """A word of an epoch that is over, or of a phase that has passed."""

    def _idle(self, conn: int, tick: Tick, now: float) -> None:
        """Nothing is left to do."""

    def _seat_of(self, conn: int) -> Seat | None:
        rank = self._by_conn.get(conn)
        return None if rank is None else self.seats[rank]

    def _current(self, conn: int, epoch: Epoch) -> Seat | None:
        """The seat of a connection, if it takes part in the current epoch and speaks of it."""
        seat = self._seat_of(conn)
        return seat if seat is not None and seat.joined and epoch == self.epoch else None

    def _say(self, conn: int, message: Any) -> None:
        self._out.append(Say(conn, message))

    def _turn_away(self, conn: int, why: m.Rejected | m.Abort) -> None:
        """The answer to a hello that is not taken. It is read first; then the connection takes nobody's place."""
        self._say(conn, why)
        if conn not in self._by_conn:
            self._drop_rival(conn)
            self._out.append(Hang(conn))

    def _say_all(self, message: Any) -> None:
        conns = tuple(s.conn for _, s in sorted(self.seats.items()))
        if conns:
            self._out.append(SayAll(conns, message))

    def _note(self, event: str, level: str = "info", **fields: object) -> None:
        self._out.append(Note(event, fields, level))

    def waiting_for(self) -> str:
        """What is missing for the next epoch, in words; empty while one runs."""
        if self.phase is Phase.STOPPING:
            return f"waiting for {named([r for r, s in sorted(self.seats.items()) if s.joined])} to stop"
        if self.phase is not Phase.WAITING:
            return ""
        if self.wait is Wait.MISMATCHED:
            absent = f"; waiting for {named(self.missing)}" if self.missing else ""
            return "; ".join(differences(self.seats, self.config.size)[:8]) + absent
        if self.wait is Wait.FENCED:
            whose = named(self._fences.ranks) if self._fences.lost else "an earlier leader's members"
            return f"waiting for the lease of {whose} to run out: something may still run there"
        if self.wait is Wait.LEAVING:
            return "waiting for the members that were told to go"
        if self.wait is Wait.BACKOFF:
            return self._pause
        return f"waiting for {named(self.missing)}" if self.missing else ""

    def wait_left(self, now: float) -> float | None:
        """How long what `waiting_for` says lasts at most, in seconds; None: nobody knows."""
        if self.phase is not Phase.WAITING or self.wait not in (Wait.FENCED, Wait.BACKOFF):
            return None
        return max(0.0, (self._not_before if self.wait is Wait.BACKOFF else self._fences.until) - now)

    def _nothing_new(self, event: object, now: float) -> bool:
        """Quick, for most events are such: everybody knows all, and a beat or a tick of an epoch has changed nothing."""
        if not self._all_told or not (self._beat_only or (type(event) is Tick and self._in_epoch() and not self._out)):
            return False
        return self.history.first is self._news[1] and self.budget.charged(now) == self._count_news[-1]

    def _publish(self, now: float) -> None:
        """Tell everybody when what they can see has changed; mere counts at most once a second."""
        self._all_told = False
        known = (self.shown_phase, self.history.first, self.budget.total)
        if now < self._text_at and known == self._news[:3]:
            return
        text = self.waiting_for()
        self._text_at = now + (NEWS_EVERY if len(self.seats) > MANY else 0.0)
        over, lost = self._over_now
        state = (*known, self.wait is Wait.MISMATCHED and text, lost)
        answered = [rank for rank, s in self.seats.items() if s.contact.proven is not None]
        counts = (len(self.seats), len(answered), text, self.budget.charged(now))
        if state == self._news and (counts == self._count_news or now - self._news_at < NEWS_EVERY):
            self._all_told = counts == self._count_news
            return
        self._news, self._count_news, self._news_at, self._all_told = state, counts, now, True
        # (what is not taken in yet, a member shall not forget over our news)
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
            self._out.append(SayAll(tuple(self.seats[rank].conn for rank in sorted(answered)), news))

    @property
    def _over_now(self) -> tuple[Epoch | None, tuple[str, ...]]:
        """Our latest epoch, when it is over, and its members of which something may still run: all others have stopped.

        A member that is lost leaves a fence unless it had said `stopped`, and no epoch begins while one stands: so
        whoever is fenced is of this epoch, and of this epoch nobody else is left.
        """
        if self._in_epoch() or self.epoch is None:
            return None, ()
        return self.epoch, tuple(self._fences.lost)


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


def _drain_cause(rank: int) -> Cause:
    return Cause(CauseKind.DRAIN, rank, "it was told to go")


def _margin(left: float) -> float:
    """How much of the grace is kept for stopping: a quarter, from 1 to 10 s, never more than half of it."""
    return min(left / 2, max(1.0, min(10.0, left / 4)))
