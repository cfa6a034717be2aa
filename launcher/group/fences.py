"""Engines that the leader cannot see and that may still run, and until when they keep an epoch from starting.

There are two kinds of fence. One is for a member of our own that was lost while its engine may have been running: we
wait until its lease has run out. The other is for the members of a former leader's epoch. Nobody told us how long their
leases last, so we count the wait from when a member that is here last spoke to that leader (`lease.py` says why that is
enough).

A fence falls early when the same launcher, or the next one in the very same pod, is back and has answered: a member
says hello only when nothing of its engine is left. For another leader's epoch, a member counts as clean only if it
answered after that epoch had begun: it may have left us unnoticed and joined the other leader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from launcher.group import messages as m
from launcher.group.lease import Terms
from launcher.model import Epoch

SETTLED = 64  #: epochs of former leaders that are remembered as settled


@dataclass
class Fences:
    """Times are the leader's monotonic seconds."""

    terms: Terms
    lost: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Incarnation -> its rank, and when its lease has certainly run out."""
    foreign: dict[Epoch, tuple[frozenset[str], float]] = field(default_factory=dict)
    """Former leader's epoch -> its members that are not known to be clean, and when they certainly are."""
    settled: deque[Epoch] = field(default_factory=lambda: deque(maxlen=SETTLED))
    """Former leaders' epochs of which nothing can be running any more, even if a later hello names them again."""

    def put(self, incarnation: str, rank: int, granted: float) -> None:
        """Put up a fence for a lost member whose newest good ping arrived at ``granted``."""
        self.lost[incarnation] = (rank, granted + self.terms.fence)

    def put_foreign(self, hello: m.Hello, clean: Callable[[float], Set[str]], now: float) -> None:
        """A member took part in an epoch of another leader, to whom it last spoke ``hello.quiet`` seconds ago.

        It names the members of which, as far as it was told, something may still run. Each hello is true as far as its
        member was told, so a member that any hello leaves out is clean. ``clean(since)`` returns the launchers known to
        run nothing of an epoch that had begun by ``since``. It is called once, at the first hello that names the epoch,
        because every member of it will name it.
        """
        assert hello.last_epoch is not None
        if hello.last_epoch in self.settled:
            return
        safe_at = now - hello.quiet + self.terms.fence
        known = self.foreign.get(hello.last_epoch)
        if known is None:
            self.foreign[hello.last_epoch] = (frozenset(hello.last_members) - clean(self._begun(safe_at)), safe_at)
        else:
            absent, earlier = known
            self.foreign[hello.last_epoch] = (absent.intersection(hello.last_members), min(earlier, safe_at))

    def clear(self, clean: Set[str], at: float) -> None:
        """Nothing of these launchers runs: they are here, or a launcher in the same pod that replaces them is.

        ``at``: a time at which it was certainly here.
        """
        for incarnation in clean:
            self.lost.pop(incarnation, None)
        self.clear_foreign(clean, at)

    def clear_foreign(self, clean: Set[str], at: float) -> None:
        """The same, for epochs of other leaders only."""
        for epoch, (absent, safe_at) in list(self.foreign.items()):
            if at >= self._begun(safe_at):
                self.foreign[epoch] = (absent - clean, safe_at)

    def _begun(self, safe_at: float) -> float:
        """A time by which another leader's epoch had certainly begun: a member of it spoke to that leader then."""
        return safe_at - self.terms.fence

    @property
    def until(self) -> float:
        """The latest time at which the last fence falls."""
        return max((at for _, at in (*self.lost.values(), *self.foreign.values())), default=0.0)

    @property
    def ranks(self) -> list[int]:
        """Ranks of our own lost members whose leases we wait for."""
        return sorted({rank for rank, _ in self.lost.values()})

    def stand(self, now: float) -> bool:
        """Whether a fence still stands. Fallen ones are removed."""
        self.lost = {k: (rank, at) for k, (rank, at) in self.lost.items() if now < at}
        self.settled.extend(e for e, (absent, at) in self.foreign.items() if not absent or now >= at)
        self.foreign = {e: known for e, known in self.foreign.items() if e not in self.settled}
        return bool(self.lost or self.foreign)
