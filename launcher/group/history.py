"""What went wrong and what came first: kept across epochs, so that a later failure never covers the first one.

The *first failure* is that of the latest unbroken run of failed epochs; ten minutes of serving end a run. Of the
failures of one epoch, the one that explains the others wins: a process that a signal ended explains the neighbours'
broken connections, even when their report arrived a moment earlier.
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
    CauseKind.DIED: 2,
    CauseKind.STOPPED: 2,
    CauseKind.LOST: 2,
    CauseKind.UNCLEAN: 3,
    CauseKind.EXITED: 4,
}
_LEAST = 6
WINDOW = 1.0
BESIDE = "at the same time"
BOTH_LINES = 12


def explains_better(new: Cause, old: Cause) -> bool:
    """True if ``new``, heard shortly after ``old``, is the more likely origin of both."""
    if new.kind is CauseKind.DIED and old.kind is CauseKind.EXITED and new.rank == old.rank:
        return False  # on one rank the order is known: the root ended, then what it had made
    return _weight(new) < _weight(old)


def _weight(cause: Cause) -> int:
    if cause.kind in (CauseKind.EXITED, CauseKind.DIED) and cause.code == 0:
        return _LEAST - 1  # a process that ended in good order followed another more often than it led
    return _WEIGHT.get(cause.kind, _LEAST)


def with_neighbour(first: Cause, other: Cause) -> Cause:
    """Two engines ended with a code of their own at about the same time. One of them over the other's end, but which?

    Not the order of arrival tells: rank 0's own word has the shorter way. So the last lines of both are kept.
    """
    both = first.kind is CauseKind.EXITED and other.kind is CauseKind.EXITED and other.rank != first.rank
    if not both or not other.tail or any(line.startswith(BESIDE) for line in first.tail):
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
        self._last_leader = False  # what is known as first is how the leader before us ended
        self.ended: deque[Ended] = deque(maxlen=20)

    def record(self, epoch: Epoch, cause: Cause, at: float, served: float | None, member: str = "") -> None:
        self.ended.append(Ended(epoch, cause, at, served, member))
        if cause.kind is CauseKind.DRAIN:
            return
        if self.first is None or (served is not None and served >= STEADY):
            self.first, self.first_epoch = cause, epoch

    def inherit(self, cause: Cause | None) -> None:
        """What a member remembers of a leader before us; the end of that leader is not as old as another failure."""
        if cause is not None and (self.first is None or (self._last_leader and cause.kind is not CauseKind.LEADER)):
            self.first, self._last_leader = cause, cause.kind is CauseKind.LEADER

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

        ``replaces``: whose death is told. Another pod of the rank, a launcher that came later, or one that was seated
        again before it died explains nothing.
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
