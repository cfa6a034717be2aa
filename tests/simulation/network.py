"""Connections as TCP makes them: ordered and reliable until they are cut, and not always honest about their end.

- A *cut* between two nodes (one way or both) delays what is sent: it comes through at the first repeat after the cut is
  healed. Repeats back off (0.2, 0.6, 1.4, 3.0, 6.2 s ...); some stacks give up and reset.
- A node that vanishes says nothing: the other side's end stays open, half of a connection.
- A *black hole* swallows one connection for good, one way or both, while new ones work (a lost conntrack entry).
- What arrives at an end that is closed is answered with a reset.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.pod import Agent

FIN = object()
EVERYBODY = -1


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.base = world.rng.choice((0.0002, 0.0005, 0.002, 0.02, 0.1))
        self.jitter = world.rng.choice((0.0001, 0.001, 0.01, 0.1))
        self.longest_pause = world.rng.choice((2.0, 8.0, 30.0))  # TCP_RTO_MAX, so to say
        self.gives_up = world.rng.choice((12.0, 25.0, 60.0, 1e9))  # TCP_USER_TIMEOUT
        self.prompt = world.chance(0.4)  # what was held up by a cut comes through as soon as it is healed
        self.on_the_wire = world.chance(0.06)  # every message goes through encode and decode: slower
        self.cuts: dict[tuple[int, int], int] = {}
        self._held: list[End] = []

    def cut(self, a: int, b: int) -> None:
        """Nothing that node ``a`` sends reaches node ``b`` (or EVERYBODY) until healed."""
        self.cuts[a, b] = self.cuts.get((a, b), 0) + 1

    def heal(self, a: int, b: int) -> None:
        left = self.cuts.get((a, b), 0) - 1
        if left > 0:
            self.cuts[a, b] = left
        else:
            self.cuts.pop((a, b), None)
            if self.prompt:
                held, self._held = self._held, []
                for end in held:
                    end.flush()

    def holds(self, end: End) -> None:
        """Something waits at this end for a cut to heal."""
        if self.prompt:
            self._held.append(end)

    def heal_all(self) -> None:
        self.cuts.clear()

    def blocked(self, a: int, b: int) -> bool:
        cuts = self.cuts
        if not cuts or a == b:
            return False
        return (a, b) in cuts or (a, EVERYBODY) in cuts or (EVERYBODY, b) in cuts

    def delay(self) -> float:
        return self.base + self.jitter * self.world.rng.random()

    def connect(self, client: Agent, server: Agent) -> End:
        """An open connection; gives the client's end, the server's is its peer."""
        ours, theirs = End(self, client), End(self, server)
        ours.peer, theirs.peer = theirs, ours
        return ours


class End:
    """One side of a connection."""

    __slots__ = (
        *("agent", "conn", "dark", "deaf", "lingers", "net", "node", "open", "peer", "there"),
        *("_last", "_pause", "_pending", "_waited", "_life"),
    )

    def __init__(self, net: Network, agent: Agent) -> None:
        self.net = net
        self.agent = agent
        self.node = agent.pod.node
        self.conn = 0
        self.open = True
        self.there = True  #: False: the node vanished, nobody answers
        self.dark = False  #: what this end sends is swallowed
        self.deaf = False  #: closed by its own side: what still arrives is not for anybody
        self.lingers = False  #: closed by its own side, which reads on until the other has closed: no reset
        self.peer: End
        self._last = 0.0
        self._pending: deque[Any] = deque()
        self._pause = 0.0
        self._waited = 0.0
        self._life = 0

    def send(self, item: Any) -> None:
        """Put a message, or FIN, on the way."""
        if not self.there or (not self.open and item is not FIN):
            return
        net = self.net
        world = net.world
        arrival = world.now + net.delay()
        arrival = max(arrival, self._last)
        self._last = arrival
        world.at(arrival - world.now, self._arrive, item)

    def close(self) -> None:
        """This side closes: what was sent still arrives, and then the end of it."""
        self.deaf = True
        if self.open:
            self.send(FIN)
            self.open = False

    def leave(self, lasts: float) -> None:
        """This side closes and stays for the other side's close, ``lasts`` seconds at most."""
        self.close()
        self.lingers = True
        self.net.world.at(lasts, setattr, self, "lingers", False)

    def abort(self) -> None:
        """This side's process was killed with data unsent: a reset, and what was on the way may be lost."""
        self.deaf = True
        if self.open:
            self.open = False
            self._pending.clear()
            self.send(FIN)

    def breaks(self) -> None:
        """The connection is reset under this side's hands."""
        self._pending.clear()
        self._lost("reset")

    @property
    def waits(self) -> bool:
        """Something that was sent has not come through."""
        return bool(self._pending)

    def vanish(self) -> None:
        """The node is gone without a word."""
        self.open = self.there = False

    def _arrive(self, item: Any) -> None:
        if self._pending:
            self._pending.append(item)
        elif self.dark or (self.net.cuts and self.net.blocked(self.node, self.peer.node)):
            self._pending.append(item)
            self._pause, self._waited = 0.2, 0.0
            self.net.holds(self)
            self.net.world.at(self._pause, self._repeat, self._life)
        else:
            self._hand_over(item)

    def flush(self) -> None:
        """What waits is sent again now."""
        if not self.there:
            self._pending.clear()
        elif self.dark or self.net.blocked(self.node, self.peer.node):
            self.net.holds(self)
        else:
            self._life += 1
            while self._pending:
                self._hand_over(self._pending.popleft())

    def _repeat(self, life: int) -> None:
        if life != self._life:
            return
        self._waited += self._pause
        if not self.there or (not self.dark and not self.net.blocked(self.node, self.peer.node)):
            self.flush()
            return
        if self._waited > self.net.gives_up:
            self._pending.clear()
            self._lost("timed out")
            return
        self._pause = min(self._pause * 2, self.net.longest_pause)
        self.net.world.at(self._pause, self._repeat, life)

    def _hand_over(self, item: Any) -> None:
        peer = self.peer
        if not peer.there:
            return  # into the void
        if item is FIN:
            peer._lost("")
        elif peer.open:
            agent = peer.agent
            agent.post(peer, agent.heard, peer, item)
        elif self.open and not peer.lingers and not self.net.blocked(peer.node, self.node):
            self.net.world.at(self.net.delay(), self._lost, "reset")

    def _lost(self, why: str) -> None:
        if self.open:
            self.open = False
            self.agent.post(self, self.agent.hung_up, self, why)
