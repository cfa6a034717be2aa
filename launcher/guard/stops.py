"""The stops that are under way: scans of the process table, the signals that ``stopping`` asks for, and their end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.guard.agent_process import AgentProcess
from launcher.guard.children import Child
from launcher.guard.stopping import Phase, Stopping
from launcher.node import tree

if TYPE_CHECKING:
    from launcher.guard.examining import Examining


class Stops:
    """Every ``Stopping`` of one guard. ``reap`` collects what has ended and returns how many processes ever were."""

    def __init__(
        self,
        guard: int,
        agent: AgentProcess,
        children: Mapping[int, Child],
        reap: Callable[[], int],
        drain: Callable[[], None],
    ) -> None:
        self._guard = guard
        self._agent = agent
        self._children = children
        self._reap = reap
        self._drain = drain
        self._stops: list[tuple[float, Stopping]] = []  #: when its next tick is due
        self._examining: dict[Stopping, Examining] = {}

    def add(
        self,
        roots: Sequence[tree.Key],
        *,
        everything: bool,
        grace: float | None,
        then: Callable[[Stopping, float], None],
    ) -> Stopping:
        """Stop ``roots`` with what they made, or ``everything`` but the agent. ``then`` is called at the end."""
        now = time.monotonic()
        spared = {self._agent.pid} if self._agent.pid else set()
        stop = Stopping(roots, everything=everything, guard=self._guard, spared=spared, now=now, grace=grace, then=then)
        self._stops.append((now, stop))
        return stop

    def examine(self, stop: Stopping, order: str, seconds: float) -> None:
        """Gather evidence before ``stop`` kills, for ``seconds`` at most."""
        from launcher.guard.examining import Examining

        now = time.monotonic()
        stop.examine(now, seconds)
        self._examining[stop] = Examining(order, seconds, now, self._agent.report, self._drain)

    def kill_all(self, then: Callable[[Stopping, float], None]) -> None:
        """Kill everything but the agent."""
        self.add([], everything=True, grace=None, then=then)

    def find(self, roots: Collection[tree.Key], everything: bool) -> Stopping | None:
        """The stop that an order for the same processes joins."""
        return next((stop for _, stop in self._stops if stop.same_scope(roots, everything)), None)

    @property
    def stopping_everything(self) -> bool:
        return any(stop.everything for _, stop in self._stops)

    @property
    def due(self) -> list[float]:
        return [at for at, _ in self._stops]

    def hasten(self) -> None:
        """Something has changed: look at once."""
        self._stops = [(0.0, stop) for _, stop in self._stops]

    def clear(self) -> None:
        self._stops.clear()
        self._examining.clear()

    def advance(self, now: float) -> None:
        """Take the next step of each that is due."""
        due = [stop for at, stop in self._stops if at <= now]
        if due and not self._prove_empty(due):
            self._tick(due, now)
        now = time.monotonic()
        if any(stop.everything and stop.clean for stop in due):
            for _, stop in self._stops:  # nothing is started while one lasts, so the others are over with it: a lease
                if stop.everything:  # kill that goes on after the agent heard `Stopped` would refuse the next start
                    stop.prove_empty()
        done = [stop for _, stop in self._stops if stop.phase is Phase.DONE]
        self._stops = [(now + stop.pause if stop in due else at, stop) for at, stop in self._stops if stop not in done]
        for stop in done:
            self._examining.pop(stop, None)
            stop.then(stop, now)

    def _tick(self, due: list[Stopping], now: float) -> None:
        table = tree.scan(tries=1)
        reaped = self._reap()  # what has ended is reported, with its last output, before the end of it all is
        for stop in due:
            for pid, number in stop.tick(now, table, reaped):
                self._mark_told(pid)
                tree.send(pid, number)
            if stop.phase is Phase.EXAMINE:
                self._examine(stop, now)
            if stop.phase is Phase.KILL:
                for victim in stop.left:
                    self._mark_told(victim.pid)
                tree.kill(stop.left, table, stop.groups)
                if stop.everything:
                    tree.chase(self._is_ours)

    def _examine(self, stop: Stopping, now: float) -> None:
        examining = self._examining[stop]
        signals = examining.step(now, stop.left)
        stop.pause = examining.pause
        for pid, number in signals or ():
            self._mark_told(pid)
            tree.send(pid, number)
        if signals is None:
            stop.examined(now)

    def _mark_told(self, pid: int) -> None:
        """A signal is about to be sent. What ended or began to end before did so by itself: only here is that known."""
        if pid in self._children and not self._children[pid].told and not tree.ending(pid):
            self._children[pid].told = True

    def _is_ours(self, proc: tree.Proc) -> bool:
        return proc.pid != self._agent.pid and tree.descends(proc, self._guard)

    def _prove_empty(self, stops: list[Stopping]) -> bool:
        """Spare the scans where the kernel itself says that there is nothing left."""
        if not self._childless:
            return False
        for stop in stops:
            stop.prove_empty()
        return True

    @property
    def _childless(self) -> bool:
        """No agent, no child: then no descendant either, for all that lose their parent become our children."""
        if self._agent.pid is not None:
            return False
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False


def kill_everything(guard: int, seconds: float = 10.0) -> None:
    """After a bug of ours: no state is trusted, only the process table."""
    until = time.monotonic() + seconds
    groups: set[int] = set()
    while time.monotonic() < until:
        table = tree.scan()
        victims = [p for p in table.below([guard]) if not p.gone]
        if not victims:
            return
        tree.kill(victims, table, groups)
        time.sleep(0.01)
