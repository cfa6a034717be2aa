"""Engines that the leader cannot see and that may still run: until when no epoch may start because of them.

There are two kinds. A member of our own that was lost while its engine may have been running: its lease is waited out.
And the members of an epoch of a leader before us: nobody told us when they last had proof, so the wait is counted from
when a member that is here last spoke to that leader (`lease.py` says why that is enough).

A fence falls early when the same launcher, or the next one in the very same pod, is back and has answered: a member
says hello only when nothing of its engine is left. Of an epoch of another leader it is clean only if it answered after
that epoch had begun: one that left us unnoticed may have joined it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from launcher.group import messages as m
from launcher.group.lease import Terms
from launcher.model import Epoch

SETTLED = 64  #: so many of them are remembered


@dataclass
class Fences:
    """Times are the leader's monotonic seconds."""

    terms: Terms
    lost: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Incarnation -> its rank, and when its lease has surely run out."""
    foreign: dict[Epoch, tuple[frozenset[str], float]] = field(default_factory=dict)
    """Epoch of a leader before us -> its members that are not known to be clean, and when they surely are."""
    settled: deque[Epoch] = field(default_factory=lambda: deque(maxlen=SETTLED))
    """Epochs of leaders before us of which nothing can be running any more, whoever still comes and tells of them."""

    def put(self, incarnation: str, rank: int, granted: float) -> None:
        """A member is lost whose newest good ping arrived at ``granted``."""
        self.lost[incarnation] = (rank, granted + self.terms.fence)

    def put_foreign(self, hello: m.Hello, clean: Callable[[float], Set[str]], now: float) -> None:
        """A member took part in an epoch of another leader, whom it last heard ``hello.quiet`` seconds ago.

        It names the members of which, for all that it was told, something may still run. Each tells the truth as far as
        it goes, so whom one leaves out is clean. ``clean(since)``: launchers that are known to run nothing of an epoch
        that had begun by ``since``; asked when it is first heard of, for all its members will tell of it.
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
        """Nothing runs of these launchers: they are here, or replaced by one in the same pod that is.

        ``at``: when they were certainly here.
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
        """When an epoch of another leader had begun for certain: a member spoke of it then."""
        return safe_at - self.terms.fence

    @property
    def until(self) -> float:
        """When the last one falls at the latest."""
        return max((at for _, at in (*self.lost.values(), *self.foreign.values())), default=0.0)

    @property
    def ranks(self) -> list[int]:
        """Whose leases are waited for: ranks of members of our own."""
        return sorted({rank for rank, _ in self.lost.values()})

    def stand(self, now: float) -> bool:
        """Whether one still stands. Those that have fallen are forgotten."""
        self.lost = {k: (rank, at) for k, (rank, at) in self.lost.items() if now < at}
        self.settled.extend(e for e, (absent, at) in self.foreign.items() if not absent or now >= at)
        self.foreign = {e: known for e, known in self.foreign.items() if e not in self.settled}
        return bool(self.lost or self.foreign)
