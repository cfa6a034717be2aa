"""Who is there: the leader's seats, the connections that hold them, and the rivals that claim one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from launcher.group import messages as m
from launcher.group.lease import Contact

LOCAL = 0  #: the connection of rank 0, inside the leader's process
CHALLENGE_SECONDS = 2.0  #: for the holder of a rank to answer a challenge
MOST_SUPERSEDED = 4096  #: superseded incarnations that are remembered
MANY = 64  #: seats; above this, work that takes a pass over all seats is not done for every message


@dataclass
class Part:
    """A seat's part in one epoch; all defaults if the seat has not been in an epoch yet."""

    member: bool = False  #: it takes part, whether stopped or not
    joined: bool = False  #: it has not said `stopped`: processes of its engine may be running
    done: int = -2  #: -2: nothing; -1: prepared; k: stage k done
    told_stop: bool = False
    report: m.Report | None = None
    moved: float = 0.0  #: when its activity last changed, minus the seconds put off until then


@dataclass
class Seat:
    """The place of a rank that is present."""

    conn: int
    hello: m.Hello
    contact: Contact
    heard: float  #: when its hello came
    leaving: float | None = None  #: when the platform kills it
    part: Part = field(default_factory=Part)  #: in the current or the latest epoch
    rival: Rival | None = None

    def __post_init__(self) -> None:
        self.print = hash((self.hello.size, *sorted(self.hello.fingerprint.items())))

    @property
    def joined(self) -> bool:
        """It takes part in the current epoch and has not said `stopped`."""
        return self.part.joined

    @property
    def report(self) -> m.Report | None:
        return self.part.report

    @property
    def clears(self) -> frozenset[str]:
        """Launchers of which nothing runs, once this one has answered on the connection of its hello."""
        return frozenset({self.hello.incarnation, *self.hello.replaces})

    @property
    def tail(self) -> tuple[str, ...]:
        """Its last lines of output, as far as the leader has heard."""
        return self.part.report.tail if self.part.report is not None else ()


@dataclass
class Rival:
    """A newcomer that claims a taken rank, until the incumbent answers or the challenge times out."""

    conn: int
    hello: m.Hello
    nonce: str
    heard: float  #: when its hello came
    until: float


class Roster:
    """The seats by rank. A connection holds at most one of them, and a seat has at most one rival."""

    def __init__(self, group: str, size: int) -> None:
        self.seats: dict[int, Seat] = {}
        self.by_conn: dict[int, int] = {}
        self.superseded: dict[str, None] = {}  #: incarnations whose rank was given to another pod, newest last
        self._group = group
        self._size = size
        self._claims: dict[int, int] = {}  # connections of rivals, and the rank that each has claimed

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(rank for rank in range(self._size) if rank not in self.seats)

    def seat_of(self, conn: int) -> Seat | None:
        rank = self.by_conn.get(conn)
        return None if rank is None else self.seats[rank]

    def refusal(self, conn: int, hello: m.Hello) -> m.Rejected | None:
        """Why this hello can't be accepted; None if it can."""
        if hello.protocol != m.PROTOCOL:
            return m.Rejected(
                "protocol", f"this leader speaks protocol {m.PROTOCOL}, rank {hello.rank} speaks {hello.protocol}", 5
            )
        if hello.group != self._group:
            return m.Rejected("wrong_group", f"this is the leader of group {self._group}, not of {hello.group}", 1)
        if hello.rank >= self._size:
            text = f"rank {hello.rank} of size {hello.size} came, but the leader's size is {self._size}: check --size"
            return m.Rejected("rank_range", text, 5)
        if hello.rank == 0 and conn != LOCAL:
            return m.Rejected("duplicate", f"rank 0 is this leader; {hello.address} also says it is rank 0", 5)
        if self.by_conn.get(conn, hello.rank) != hello.rank:
            text = f"this connection is rank {self.by_conn[conn]}; it cannot be rank {hello.rank} too"
            return m.Rejected("protocol", text, 5)
        if hello.incarnation in self.superseded:
            return m.Rejected("superseded", f"rank {hello.rank} was taken over by another pod", 1)
        return None

    def add(self, seat: Seat) -> None:
        self.seats[seat.hello.rank] = seat
        self.by_conn[seat.conn] = seat.hello.rank

    def remove(self, seat: Seat) -> None:
        del self.seats[seat.hello.rank]
        self.by_conn.pop(seat.conn, None)

    def claim(self, rival: Rival) -> None:
        self.seats[rival.hello.rank].rival = rival
        self._claims[rival.conn] = rival.hello.rank

    def drop_rival(self, conn: int) -> None:
        """Withdraw this connection's claim, if it has one."""
        seat = self.seats.get(self._claims.pop(conn, -1))
        if seat is not None and seat.rival is not None and seat.rival.conn == conn:
            seat.rival = None

    def unanswered(self, now: float) -> Iterator[tuple[Seat, Rival]]:
        """Seats whose holder has not answered a challenge in time. The caller may change the seats while iterating."""
        if not self._claims:
            return
        for seat in list(self.seats.values()):
            rival = seat.rival
            if rival is not None and now >= rival.until:
                yield seat, rival

    def supersede(self, seat: Seat) -> None:
        """The rank goes to the rival: the holder is not accepted again under its present incarnation."""
        seat.rival = None
        self.superseded[seat.hello.incarnation] = None
        while len(self.superseded) > MOST_SUPERSEDED:
            self.superseded.pop(next(iter(self.superseded)))


def alike(seats: Iterable[Seat], size: int) -> bool:
    """Whether all members have one fingerprint and the leader's size. A quick check by hashes."""
    prints = {(s.print, s.hello.size) for s in seats}
    return not prints or (len(prints) == 1 and prints.pop()[1] == size)


def differences(seats: Mapping[int, Seat], size: int) -> tuple[str, ...]:
    """The differences: ``rank 3: engine.version 0.32.0, group has 0.33.0``. The majority is right; in a tie, rank 0."""
    prints = {r: {**s.hello.fingerprint, "size": str(s.hello.size)} for r, s in sorted(seats.items())}
    prints[0] = {**prints.get(0, {}), "size": str(size)}
    found = []
    for key in sorted({k for p in prints.values() for k in p}):
        values = [p.get(key, "absent") for p in prints.values()]
        if len(set(values)) == 1:
            continue
        leaders = prints[0].get(key, "absent")
        usual = max(dict.fromkeys([leaders, *values]), key=values.count)
        found += [
            f"rank {r}: {key} {p.get(key, 'absent')}, group has {usual}"
            for r, p in prints.items()
            if p.get(key, "absent") != usual
        ]
    return tuple(found)


def named(ranks: Iterable[int], most: int = 12) -> str:
    """``rank 3``, ``ranks 1, 2``, ``no rank``; of a long list the first ``most``."""
    ranks = list(ranks)
    if not ranks:
        return "no rank"
    shown = ", ".join(str(r) for r in ranks[:most]) + (f" and {len(ranks) - most} more" if len(ranks) > most else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
