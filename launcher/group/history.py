"""What went wrong and what came first: kept across epochs, so that a later failure never covers the first one.

The *first failure* is that of the latest unbroken run of failed epochs; ten minutes of serving end a run. Of the
failures of one epoch, the one that explains the others wins: a process that a signal ended explains the neighbours'
broken connections and exit codes, even when their report arrived a moment earlier; of two that ended by themselves,
the one that did so first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from launcher.data import dataclass, replace
from launcher.group.budget import STEADY
from launcher.words import Cause, CauseKind, Epoch

#: The lower, the more it explains. Failures that arrive within WINDOW seconds of the first compete by this.
_WEIGHT = {
    CauseKind.OOM: 0,
    CauseKind.SIGNALLED: 1,
    CauseKind.SPAWN: 1,
    CauseKind.AGENT: 1,
    CauseKind.STOPPED: 2,
    CauseKind.LOST: 2,
    CauseKind.UNCLEAN: 3,
    CauseKind.LEADER: 3,  # its guard killed it at the deadline: the neighbours' connections broke of that
    CauseKind.EXITED: 4,
    CauseKind.DIED: 4,
}
_BY_ITSELF = (CauseKind.EXITED, CauseKind.DIED)  #: a process ended as it chose to, or nobody knows how
_LEAST = 6
WINDOW = 1.0
BESIDE = "at the same time"
BOTH_LINES = 100


def explains_better(new: Cause, old: Cause) -> bool:
    """True if ``new``, heard shortly after ``old``, is the more likely origin of both."""
    if new.kind is CauseKind.DIED and new.code is None and old.kind is CauseKind.EXITED and new.rank == old.rank:
        return False  # its root may have ended first and taken it along
    if new.kind is CauseKind.LOST and new.rank == old.rank and old.kind not in _BY_ITSELF:
        return False  # it has said why, and then it left to begin anew
    return _weight(new) < _weight(old)


def _weight(cause: Cause) -> int:
    if cause.kind in _BY_ITSELF and cause.code == 0:
        return _LEAST - 1  # a process that ended in good order followed another more often than it led
    if cause.kind is CauseKind.DIED and cause.code is None:
        return _WEIGHT[CauseKind.LOST]  # perhaps by a signal: only an older kernel does not know
    return _WEIGHT.get(cause.kind, _LEAST)


def came_before(new: Cause, old: Cause) -> bool:
    """Of two processes on two ranks that ended by themselves: is the one that ended first the origin?

    Yes, if neither ended with 0: one of them ended over the other's end. Their words arrive in any order (rank 0's own
    has the shorter way), so it takes the ages that came with them.
    """
    by_themselves = all(c.kind in _BY_ITSELF and c.code != 0 for c in (new, old))
    return by_themselves and new.rank != old.rank and _weight(new) == _weight(old)


def with_neighbour(first: Cause, other: Cause) -> Cause:
    """Two engines ended with a code of their own at about the same time. One of them over the other's end, but which?

    The ages of their words may tell (`came_before`), and may be too much alike. So the last lines of both are kept.
    """
    both = first.kind in _BY_ITSELF and other.kind in _BY_ITSELF and other.rank != first.rank
    if not both or not other.tail or any(line.startswith(BESIDE) for line in (*first.tail, *other.tail)):
        return first
    header = f"{BESIDE} {other}; its last lines:"
    return replace(first, tail=(*first.tail[-BOTH_LINES:], header, *other.tail[-BOTH_LINES:]))


@dataclass(frozen=True)
class Ended:
    """How one epoch ended. ``at``: monotonic seconds of the leader; ``member``: the launcher of the cause's rank."""

    epoch: Epoch
    cause: Cause
    at: float
    served: float | None
    member: str = ""


class History:
    """First failure and the last 20 endings."""

    def __init__(self) -> None:
        self.first: Cause | None = None
        self.first_epoch: Epoch | None = None
        self.first_n: int | None = None  #: the number of that epoch, also where a leader before us made it
        self.first_at: float | None = None  #: monotonic seconds; None: not known
        self._last_leader = False  # what is known as first is how the leader before us ended
        self.ended: deque[Ended] = deque(maxlen=20)

    def record(self, epoch: Epoch, cause: Cause, at: float, served: float | None, member: str = "") -> None:
        self.ended.append(Ended(epoch, cause, at, served, member))
        if cause.kind is CauseKind.DRAIN:
            return
        if self.first is None or (served is not None and served >= STEADY):
            self.first, self.first_epoch, self.first_n, self.first_at = cause, epoch, epoch.n, at

    def inherit(self, cause: Cause | None, n: int | None = None, at: float | None = None) -> None:
        """What a member remembers of a leader before us; the end of that leader is not as old as another failure."""
        if cause is not None and (self.first is None or (self._last_leader and cause.kind is not CauseKind.LEADER)):
            self.first, self._last_leader = cause, cause.kind is CauseKind.LEADER
            self.first_n, self.first_at = n, at

    def inherit_death(self, cause: Cause) -> None:
        """How the launcher of rank 0 before us was killed: better words than its members have."""
        if self.first is None or self.first.kind is CauseKind.LEADER:
            self.first, self._last_leader = cause, True

    def came_back(self, member: str) -> None:
        """A launcher is seated: it did not die of what ended the latest epoch, whatever becomes of it later."""
        if self.ended and self.ended[-1].member == member:
            self.ended[-1] = replace(self.ended[-1], member="")

    def refine(self, rank: int, cause: Cause, replaces: Collection[str] = ()) -> bool:
        """A member that was lost came back and says why: the better words take the place of "connection closed".

        ``replaces``: whose death is told. Another pod of the rank, a launcher that came later, one that was seated
        again before it died, or one that lived on under another name explains nothing.
        """
        changed = False
        if self.ended:
            last = self.ended[-1]
            same = last.cause.rank == rank and (not replaces or last.member in replaces)
            if same and last.cause.kind is CauseKind.LOST:
                told = replace(cause, tail=cause.tail or last.cause.tail)
                self.ended[-1] = replace(last, cause=told)
                if self.first == last.cause:
                    self.first, changed = told, True
        return changed
