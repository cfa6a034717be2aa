"""What went wrong first, and how the latest epochs ended. Kept across epochs, so that a later failure never covers the
first one.

The *first failure* is the one that began the latest unbroken run of failed epochs; ten minutes of serving end a run.
`ends.py` decides which failure of a single epoch came first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace

from launcher.group.autopsy import Autopsy
from launcher.group.budget import STEADY
from launcher.group.ends import RankEnd
from launcher.model import NO_FAILURE, Cause, CauseKind, Epoch


@dataclass(frozen=True)
class Ended:
    """How one epoch ended. ``at``: monotonic seconds of the leader; ``member``: the launcher of the cause's rank.

    ``ends``: how each rank ended, with its last lines; kept only for the first failure's epoch and the latest.
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
        self.first_n: int | None = None  #: the number of that epoch, even if a former leader made it
        self.first_at: float | None = None  #: monotonic seconds; None: not known
        self._last_leader = False  # the first failure that we know is how the former leader ended
        self.ended: deque[Ended] = deque(maxlen=20)
        self.autopsy: Autopsy | None = None  #: of the latest epoch that was examined

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
        if cause.kind in NO_FAILURE:
            return
        if self.first is None or (served is not None and served >= STEADY):
            self.first, self.first_epoch, self.first_n, self.first_at = cause, epoch, epoch.n, at

    def inherit(self, cause: Cause | None, n: int | None = None, at: float | None = None) -> None:
        """Take in a first failure that a member remembers. Any other failure takes precedence over a leader's end."""
        if cause is not None and (self.first is None or (self._last_leader and cause.kind is not CauseKind.LEADER)):
            self.first, self._last_leader = cause, cause.kind is CauseKind.LEADER
            self.first_n, self.first_at = n, at

    def inherit_death(self, cause: Cause) -> None:
        """How the former launcher of rank 0 was killed: a better explanation than its members have."""
        if self.first is None or self.first.kind is CauseKind.LEADER:
            self.first, self._last_leader = cause, True

    def came_back(self, member: str) -> None:
        """A launcher has returned: it did not die of what ended the latest epoch, so a later death can't explain it."""
        if self.ended and self.ended[-1].member == member:
            self.ended[-1] = replace(self.ended[-1], member="")

    def refine(self, rank: int, cause: Cause, replaces: Collection[str] = ()) -> bool:
        """A lost member is back and says why it was lost: its explanation replaces "connection closed".

        ``replaces``: the launchers whose death it reports. It explains nothing if the dead launcher is another pod of
        the rank, came later, was seated again before it died, or lived on under another name.
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
