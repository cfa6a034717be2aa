"""How a process tree is ended: TERM to its roots one by one, TERM to what they left, KILL to the rest.

Pure: the time and a scan of the processes go in, signals to send come out. The guard owns the loop, sends them at
once (``tree.kill`` for the last phase) and comes back after ``pause`` seconds or when a root has exited.

    EXAMINE    only where the order asks for it, and then in place of ROOTS and LEFTOVERS: the guard gathers evidence
               (``examining.py``) and says when that is over
    ROOTS      TERM to the last started root; when it has exited, to the one before, until the grace is over
    LEFTOVERS  all roots have exited: TERM to each other process once, for a second at most, within the grace
    KILL       SIGKILL to everything in every scan, until two scans are empty or the bound is over

A process that sits stopped (T) cannot act on a TERM: it gets CONT as soon as the first TERM has been sent.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Sequence
from enum import Enum

from launcher.node.tree import Key, Proc, Table

#: What is left after the roots have this long to go by themselves.
LEFTOVER_GRACE = 1.0
#: After this long in KILL what is left is named: it sleeps in the kernel (state D), and KILL waits there with it.
KILL_BOUND = 10.0


class Phase(Enum):
    EXAMINE = 0
    ROOTS = 1
    LEFTOVERS = 2
    KILL = 3
    DONE = 4


class Stopping:
    """One ending of some roots, or of everything that descends from the guard.

    ``roots`` in the order in which they get TERM. ``everything`` makes the scope all that descends from
    ``guard``; else it is the roots, what descends from them, what is in a session that a root leads, and all that was
    ever seen as such. ``spared`` are pids that are never touched: the agent.
    """

    def __init__(
        self,
        roots: Sequence[Key],
        *,
        everything: bool,
        guard: int,
        spared: Collection[int],
        now: float,
        grace: float | None,
        then: Callable[[Stopping, float], None] = lambda *_: None,
    ) -> None:
        self.roots = tuple(roots)
        self.everything = everything
        self.orders: list[str] = []  #: ids of the orders that wait for this
        self.then = then  #: what the guard does when it is done
        self.began = now
        self.phase = Phase.ROOTS
        self.left: tuple[Proc, ...] = ()
        self.pause = 0.0  #: seconds until the next tick is due
        self._guard = guard
        self._spared = frozenset(spared)
        self._known: set[Key] = set(roots)
        self._termed: set[Key] = set()
        self._grace_ends = now + (grace or 0.0)
        self._leftovers_end = now
        self._kill_ends = now
        self._empty = 0
        self._reaped = -1
        self._proven = False
        self.groups: set[int] = set()  #: for ``tree.kill``
        self._examine_ends: float | None = None
        if grace is None:
            self._enter_kill(now)

    def examine(self, now: float, seconds: float) -> None:
        """Evidence is gathered first, for ``seconds`` at most."""
        self.phase, self._examine_ends = Phase.EXAMINE, now + seconds

    def examined(self, now: float) -> None:
        """Evidence is gathered, or the time for it is over."""
        if self.phase is Phase.EXAMINE:
            self._enter_kill(now)

    @property
    def clean(self) -> bool:
        """Nothing is left, and that is known."""
        return self.phase is Phase.DONE and self._proven

    def same_scope(self, roots: Collection[Key], everything: bool) -> bool:
        """Whether an order for ``roots`` is an order for what is being ended here."""
        return everything == self.everything and (everything or set(roots) <= set(self.roots))

    def shorten(self, now: float, grace: float | None) -> None:
        """A later order for the same processes: less grace counts, more does not. None: KILL now."""
        self._grace_ends = min(self._grace_ends, now + (grace or 0.0))
        if grace is None and self.phase in (Phase.EXAMINE, Phase.ROOTS, Phase.LEFTOVERS):
            self._enter_kill(now)
        if self._examine_ends is not None:
            self._examine_ends = min(self._examine_ends, now + (grace or 0.0))
        self.pause = 0.0

    def prove_empty(self) -> None:
        """The caller knows that nothing is left, better than any scan can."""
        self.phase, self.left, self._proven = Phase.DONE, (), True

    def tick(self, now: float, table: Table, reaped: int) -> list[tuple[int, int]]:
        """Signals (pid, number) to send now. In phase KILL ``left`` is to be killed instead; in DONE nothing.

        ``reaped`` counts the processes that the guard has reaped since its start, up to now, after the scan. A scan is
        not atomic: what forks and ends all the time may be missed by any number of them. But what it leaves behind
        falls to the guard; so only two empty scans with nothing reaped since the first began prove that none is left.
        (Of some roots only: what is reaped may be anybody's, and counts for nothing.)
        """
        scope = self._scope(table)
        self._known.update(p.key for p in scope)
        alive = tuple(p for p in scope if not p.gone)
        self.left = alive
        restless, self._reaped = self.everything and reaped != self._reaped, reaped
        self._empty = 0 if alive or restless else self._empty + 1
        if self._empty == 2:
            self.prove_empty()
            return []
        if not alive and not restless:
            self.pause = 0.0
            return []
        if self.phase is Phase.EXAMINE:
            if self._examine_ends is not None and now >= self._examine_ends:
                self._enter_kill(now)
            return []
        if self.phase is Phase.ROOTS:
            return self._end_roots(now, alive)
        if self.phase is Phase.LEFTOVERS:
            return self._end_leftovers(now, alive)
        self.pause = min(max(self.pause * 2, 0.001), 0.05)
        if now >= self._kill_ends:
            self.phase = Phase.DONE
        return []

    def _scope(self, table: Table) -> list[Proc]:
        if self.everything:
            return [p for p in table.below([self._guard]) if p.pid not in self._spared]
        procs = table.procs
        sessions = {pid for pid, _ in self.roots if pid not in procs or procs[pid].key in self._known}
        found = {p.pid: p for p in procs.values() if p.key in self._known or p.session in sessions}
        found.update((p.pid, p) for p in table.below(list(found)))
        return [p for p in found.values() if p.pid not in self._spared and p.pid != self._guard]

    def _end_roots(self, now: float, alive: tuple[Proc, ...]) -> list[tuple[int, int]]:
        if now >= self._grace_ends:
            return self._enter_kill(now)
        living = {p.key for p in alive}
        root = next((key for key in self.roots if key in living), None)
        if root is None:
            self.phase = Phase.LEFTOVERS
            self._leftovers_end = min(now + LEFTOVER_GRACE, self._grace_ends)
            return self._end_leftovers(now, alive)
        self.pause = min(0.25, self._grace_ends - now)
        return self._term([p for p in alive if p.key == root]) + _wake(alive)

    def _end_leftovers(self, now: float, alive: tuple[Proc, ...]) -> list[tuple[int, int]]:
        if now >= min(self._leftovers_end, self._grace_ends):
            return self._enter_kill(now)
        self.pause = 0.02
        return self._term(alive) + _wake(alive)

    def _enter_kill(self, now: float) -> list[tuple[int, int]]:
        self.phase = Phase.KILL
        self._kill_ends = now + KILL_BOUND
        self.pause = 0.0
        return []

    def _term(self, procs: Collection[Proc]) -> list[tuple[int, int]]:
        """TERM to each once: engines take a second one for impatience and drop their requests."""
        fresh = [p for p in procs if p.key not in self._termed]
        self._termed.update(p.key for p in fresh)
        return [(p.pid, signal.SIGTERM) for p in fresh]


def _wake(alive: Collection[Proc]) -> list[tuple[int, int]]:
    return [(p.pid, signal.SIGCONT) for p in alive if p.stopped]
