"""What went wrong and what came first: kept across epochs, so that a later failure never covers the first one.

The *first failure* is that of the latest unbroken run of failed epochs; ten minutes of serving end a run. Which failure
of one epoch was the first is decided in `ends.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace

from launcher.group.budget import STEADY
from launcher.group.ends import RankEnd
from launcher.model import Cause, CauseKind, Epoch


@dataclass(frozen=True)
class Ended:
    """How one epoch ended. ``at``: monotonic seconds of the leader; ``member``: the launcher of the cause's rank.

    ``ends``: of every rank, with its last lines; kept of the first failure's epoch and of the latest.
    """

    epoch: Epoch
    cause: Cause
    at: float
    served: float | None
    member: str = ""
    ends: tuple[RankEnd, ...] = ()


class History:
    """First failure and the last 20 endings."""

    def __init__(self) -> None:
        self.first: Cause | None = None
        self.first_epoch: Epoch | None = None
        self.first_n: int | None = None  #: the number of that epoch, also where a leader before us made it
        self.first_at: float | None = None  #: monotonic seconds; None: not known
        self._last_leader = False  # what is known as first is how the leader before us ended
        self.ended: deque[Ended] = deque(maxlen=20)

    def record(
        self,
        epoch: Epoch,
        cause: Cause,
        at: float,
        served: float | None,
        member: str = "",
        ends: tuple[RankEnd, ...] = (),
    ) -> None:
        if self.ended and self.ended[-1].epoch != self.first_epoch:
            self.ended[-1] = replace(self.ended[-1], ends=())
        self.ended.append(Ended(epoch, cause, at, served, member, ends))
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
                old = last.cause
                told = replace(cause, tail=cause.tail or old.tail, rivals=old.rivals, because=old.because)
                self.ended[-1] = replace(last, cause=told)
                if self.first == last.cause:
                    self.first, changed = told, True
        return changed
