"""How long an engine may live on without proof that the group is whole: the arithmetic, for both ends of the link.

A lease belongs to the group. The leader keeps, for every member, the moment of *contact*: when it sent the newest
mark that a ping of that member has echoed, so the member was certainly alive and reachable, both ways, after it. Let F
be the oldest contact of all the epoch's members. A ping counts as *good* only if it arrived no later than F, and a
member's lease runs from the moment it *sent* its newest good ping. Hence no engine of an epoch outlives F + lease,
whichever member was lost first, on whichever side of a partition it sits, the leader's own engine included. That is
what lets a new leader bound the engines of an old one that it cannot see: each member knows when it last spoke to the
old leader, and F is not later than that.

    beat           lease / 20   a ping from each member; an ack to each ping
    stop budget    lease / 5    the guard kills at lease - budget after the good ping was sent, so all is dead by lease
    declared lost  lease - budget - 2.5 beats without contact: the newest good ping of another member may have been sent
                   a beat and a half before F, so this is a beat before the first guard would act, and the cause that
                   everybody hears is "rank 3 is silent" and not "my lease ran out"
    autopsy        lease / 5, 2 s at most   before an epoch that ended by a verdict is killed; over by 0.6 lease after F
    fence          1.02 lease   how long others wait before they rely on it: clocks may drift by 1 % each way

The arithmetic, in true time and in leases, for clocks that are wrong by 1 % at most:

    the old engine is dead  at the latest 0.8 / 0.99 + 0.2 = 1.0081 after the good ping was sent: the guard acts by a
                            slow clock; the kill takes its time, by no clock of ours
    the fence falls         at the earliest 1.02 / 1.01 = 1.0099 after that ping arrived, by a fast one
    of a former leader      a member's age `quiet`, d in truth, is at most 1.01 d, and the rest is waited by a clock of
                            speed x: d + (1.02 - 1.01 d) / x, at the least (x = 1.01, or d = 1.0099) again 1.0099
    the leader's verdict    at the latest (0.675 + half a beat) / 0.99 = 0.7071 after F, by a slow clock
    the first guard         at the earliest 0.8 / 1.01 - 1.5 beats / 0.99 = 0.7163 after F, by a fast one

That leaves 0.0018 lease between death and fence (18 ms of 10 s): 1.02 is enough, but only just. If the slow clock
measured the kill's budget too, the fence would need 1.0202.

Contact lags by at most two beats, so an outage shorter than lease / 2 does no harm if what was sent during it gets
through soon after it. TCP retransmits 0.2, 0.6, 1.4, 3.0 and 6.2 s after the first loss: at the default of 10 s an
outage of up to 3 s certainly does no harm, nor does one of up to 5 s if the pause between retransmissions is bounded
(TCP_RTO_MAX_MS).

Times are monotonic seconds of one process; they are never sent. Only ages ("quiet for 2.1 s") cross the wire.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from launcher.group.clock import DRIFT, Offset

MOST_AUTOPSY = 2.0  #: seconds


@dataclass(frozen=True)
class Terms:
    """Everything that follows from ``--lease`` (seconds)."""

    lease: float = 10.0

    @property
    def beat(self) -> float:
        """Between two pings of a member."""
        return self.lease / 20

    @property
    def tick(self) -> float:
        """Between two Ticks of a state machine."""
        return self.beat / 2

    @property
    def kill_after(self) -> float:
        """From the sending of the good ping to the guard's deadline."""
        return self.lease * 0.8

    @property
    def lost_after(self) -> float:
        """From the last contact to the leader's verdict."""
        return self.kill_after - 2.5 * self.beat

    @property
    def fence(self) -> float:
        """From the arrival of the last good ping to the certainty that nothing runs there any more."""
        return self.lease * 1.02

    @property
    def autopsy(self) -> float:
        """The longest that evidence is gathered before an epoch's processes are killed."""
        return min(MOST_AUTOPSY, self.lease / 5)

    def autopsy_left(self, silence: float) -> float:
        """How much of it is over before any guard acts, if the oldest contact of all is ``silence`` seconds old.

        The first guard acts 0.7163 lease after F at the earliest. Of that a tenth is kept for the way of `stop`. With
        contact at its usual age (two beats at most) that leaves half a lease, and the autopsy takes a fifth.
        """
        left = min(self.autopsy, 0.6 * self.lease - silence)
        return left if left >= self.autopsy / 4 else 0.0

    @property
    def fresh_within(self) -> float:
        """A member whose contact is no older is present: good enough to begin an epoch with."""
        return self.lease / 2

    @property
    def hello_timeout(self) -> float:
        """A hello not answered by then went into a half-open connection, or to something that is no leader."""
        return self.lease

    @property
    def linger(self) -> float:
        """Time for a rank that was lost when the group gave up: until its engine has ended, and half a lease more."""
        return 1.5 * self.lease

    @property
    def f_every(self) -> float:
        """Between two computations of F, each a pass over all members: an older F is lower, so it is safe."""
        return self.beat / 4

    @property
    def notable_silence(self) -> float:
        """A rank silent for longer than this may be why its neighbour's engine ended: the cause mentions it."""
        return self.lease / 4

    @property
    def gap(self) -> float:
        """A longer time between two events of one state machine means that this launcher did not run."""
        return self.lease / 4

    @property
    def gap_slack(self) -> float:
        """How much longer than our own gap a peer's silence may be and still be explained by it."""
        return 4 * self.beat


class Pings:
    """A member's side: which pings were sent when, and until when its engine may live."""

    def __init__(self, terms: Terms, echo: int = 0) -> None:
        self._terms = terms
        self._sent: deque[tuple[int, float]] = deque(maxlen=256)
        self._seq = 0
        self.echo = echo  #: the newest mark received
        self.heard_at: float | None = None  #: when that was
        self.since: float | None = None  #: when the newest good ping was sent

    def send(self, now: float) -> int:
        """Record that a ping is sent now. Returns its number."""
        self._seq += 1
        self._sent.append((self._seq, now))
        return self._seq

    def acked(self, good: int, mark: int, now: float | None = None) -> bool:
        """Take in an ack. True if the lease grew. An ack for a ping that was never sent changes nothing."""
        if mark > self.echo:
            self.echo, self.heard_at = mark, now
        grew = False
        while self._sent and self._sent[0][0] <= good:
            _, sent = self._sent.popleft()
            if self.since is None or sent > self.since:
                self.since, grew = sent, True
        return grew

    @property
    def deadline(self) -> float | None:
        """When the guard kills, unless a newer ack comes first."""
        return None if self.since is None else self.since + self._terms.kill_after

    def valid(self, now: float) -> bool:
        return self.deadline is not None and now < self.deadline


@dataclass
class LeaderContact:
    """A member's side of its connection to a leader; what it knows of a lease outlives the connection."""

    pings: Pings
    seated_at: float  #: when it said hello, or was accepted
    connected: bool = False
    incarnation: str = ""  #: of the leader that accepted us; empty: none yet
    beat_at: float = 0.0  #: when the latest ping was sent
    acked_at: float | None = None  #: when the leader last answered

    def silent_for(self, now: float) -> float:
        return 0.0 if self.acked_at is None else now - self.acked_at


class Contact:
    """The leader's side for one member."""

    def __init__(self, now: float, drift: float = DRIFT) -> None:
        self.offset = Offset(drift)  #: the member's clock, for the order of failures
        self._pings: deque[tuple[int, float]] = deque(maxlen=256)
        self._marks: deque[tuple[int, float]] = deque(maxlen=256)
        self._mark = 0
        self._good = 0
        #: The moment of contact: the member lived and heard us after it. Before the first echo: of the connection.
        self.at = now
        self.proven: float | None = None  #: the same; None before the first echo
        self.granted = now  #: when the newest good ping arrived: its lease began no later

    def mark(self, now: float) -> int:
        """A new mark, sent now."""
        self._mark += 1
        self._marks.append((self._mark, now))
        return self._mark

    def heard(self, seq: int, echo: int, now: float, at: float | None = None, heard: float | None = None) -> None:
        """A ping arrived. ``at``, ``heard``: when it was sent and its mark was heard, by the member's clock."""
        if not self._pings or seq > self._pings[-1][0]:
            self._pings.append((seq, now))
        if at is not None:
            self.offset.sent(at, now)
        while self._marks and self._marks[0][0] <= echo:
            mark, self.at = self._marks.popleft()
            self.proven = self.at
            if mark == echo and heard is not None:
                self.offset.heard(heard, self.at, now)

    def good(self, limit: float) -> int:
        """The newest ping that arrived no later than ``limit``; from now on it is granted."""
        while self._pings and self._pings[0][1] <= limit:
            self._good, self.granted = self._pings.popleft()
        return self._good

    @property
    def owed(self) -> bool:
        """Whether a ping arrived that was too late for F at the time: its member has not been told that it is good."""
        return bool(self._pings)

    def silent_for(self, now: float) -> float:
        return now - self.at

    def fresh(self, now: float, terms: Terms) -> bool:
        """Whether contact is proven both ways and recent: good enough to begin an epoch with."""
        return self.proven is not None and self.silent_for(now) < terms.fresh_within
