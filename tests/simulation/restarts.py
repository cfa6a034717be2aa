"""Whether the group tries again as it should: what an epoch's end costs, how long the next one waits, when it is over.

    charges     a failure of an epoch that had started something is charged, and nothing else is
    the budget  more charges within the window than are allowed: the group gives up, at that very moment
    one point   three failures in a row at the same point, never ready: the same
    once more   a group that has given up has one attempt a round of container restarts, until it is ready again
    back-off    between a failed epoch and the next lies a pause that doubles, up to its limit, and no longer one
    the end     a group that has given up is gone: every launcher exits, with the first failure and the code of the last

These books are kept apart from the leader's: what it said to its members (`start`, `running`, `drain`) tells what each
epoch came to.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from launcher.errors import ExitCode
from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group import messages as m
from launcher.group.budget import SAME_POINT, STEADY
from launcher.group.history import Ended
from launcher.model import NO_FAILURE, Cause, CauseKind, Epoch

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.pod import Agent

FIRST_PAUSE = 0.5
OF_THE_ENGINE = frozenset({CauseKind.EXITED, CauseKind.SIGNALLED, CauseKind.OOM})
OUTSIDE = frozenset({CauseKind.LOST, CauseKind.LEADER, CauseKind.AGENT, CauseKind.JOIN})


@dataclass
class Attempt:
    """What a leader has said of one epoch."""

    stage: int = -1  #: the last that it started
    ready_at: float | None = None
    draining: bool = False


@dataclass
class Books:
    """Of one leader, in its own time."""

    charges: list[float] = field(default_factory=list)
    in_a_row: int = 0
    point: tuple[object, ...] | None = None
    at_point: int = 0
    over_at: float = -1e9
    least: float = 0.0
    most: float = 0.0


class Restarts:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.charges: list[float] = []  #: of all leaders, in true time
        self.aborts: list[m.Abort] = []
        self.verdict_heard: set[int] = set()  #: ranks, since the group last gave up
        self._spent_heard: set[int] = set()  # ranks that heard that the engine failed too often, until it is ready
        self._told_by: dict[tuple[str, int], float] = {}  # leader, rank -> when that rank heard its verdict
        self._attempts: dict[Epoch, Attempt] = defaultdict(Attempt)
        self._books: dict[str, Books] = defaultdict(Books)

    # -------------------------------------------------------------------------------------------- what a leader says

    def said(self, agent: Agent, message: Any) -> None:
        kind = type(message)
        if kind is m.Start:
            self._attempts[message.epoch].stage = message.stage
        elif kind is m.Running:
            self._attempts[message.epoch].ready_at = agent.local
            self._spent_heard.clear()
        elif kind is m.Drain:
            self._attempts[message.epoch].draining = True

    def begins(self, agent: Agent, leader: c.Coordinator, epoch: Epoch) -> None:
        """An epoch is made."""
        books = self._books[leader.config.incarnation]
        waited = agent.local - books.over_at
        if waited < books.least - 1e-9:
            self.world.broken(
                "back-off",
                f"{epoch} begins {waited:.2f} s after failure {books.in_a_row} in a row; {books.least:.2f} s are due",
            )

    def waits(self, agent: Agent, leader: c.Coordinator) -> None:
        """A leader looked between epochs whether the next may begin."""
        if leader.wait is c.Wait.BACKOFF:
            books = self._books[leader.config.incarnation]
            waited = agent.local - books.over_at
            if waited > books.most + self.cluster.terms.beat:
                self.world.broken("back-off", f"{waited:.1f} s after an epoch's end; {books.most:.1f} s are the most")

    def by_hand(self, agent: Agent, leader: c.Coordinator) -> None:
        """A person wants the next epoch: the pause before it is over, if that is what was waited for."""
        if leader.phase is c.GroupPhase.WAITING and leader.wait is c.Wait.BACKOFF:
            self.world.broken("by hand", "a new epoch was asked for, and the back-off goes on")
        if leader._pause.until <= agent.local:
            self._books[leader.config.incarnation].least = 0.0

    # ------------------------------------------------------------------------------------------------ an epoch is over

    def over(self, agent: Agent, leader: c.Coordinator, ended: Ended) -> None:
        books, attempt, now = self._books[leader.config.incarnation], self._attempts[ended.epoch], agent.local
        drained = ended.cause.kind in NO_FAILURE
        due = attempt.stage >= 0 and not drained and not attempt.draining
        self._charged(leader, ended, due, now)
        books.over_at = now
        if drained:
            books.least = books.most = 0.0
            return
        served = None if attempt.ready_at is None else now - attempt.ready_at
        self._pause(books, served)
        if not due:
            return
        self.charges.append(self.world.now)
        books.charges = [at for at in books.charges if now - at <= self.cluster.plan.restart_window] + [now]
        self._count_point(books, ended.cause, attempt, served)
        if leader.phase is c.GroupPhase.ABORTED:
            return
        if len(books.charges) > self.cluster.plan.max_restarts:
            self.world.broken("budget", f"{len(books.charges)} restarts are charged, and the group does not give up")
        if books.at_point >= SAME_POINT:
            self.world.broken(
                "budget", f"{books.at_point} failures in a row at one point, and the group does not give up"
            )
        if self._once and served is None and ended.cause.kind not in OUTSIDE:
            self.world.broken("budget", "the group had given up; its one attempt failed, and it does not give up again")

    @property
    def _once(self) -> bool:
        """All ranks have heard that the group gave up, and it has not been ready since."""
        return self.cluster.plan.keeps_verdict and len(self._spent_heard) == self.cluster.plan.size

    def _charged(self, leader: c.Coordinator, ended: Ended, due: bool, now: float) -> None:
        charges = leader.budget._charges
        charged = bool(charges) and charges[-1] == now
        if charged is not due:
            self.world.broken(
                "budget", f"{ended.epoch} ({ended.cause}) {'was charged' if charged else 'was not charged'}"
            )
        known = self._lately + due
        if leader.budget.charged(now) > known:
            self.world.broken("budget", f"{leader.budget.charged(now)} restarts are charged; there were {known}")

    @property
    def _lately(self) -> int:
        """Charges that may still count, whoever made them: one that is inherited keeps its age."""
        window = self.cluster.plan.restart_window * 1.02 + 1
        return sum(1 for at in self.charges if self.world.now - at <= window)

    def _pause(self, books: Books, served: float | None) -> None:
        if served is not None and served >= STEADY:
            books.in_a_row = 0
        books.in_a_row += 1
        books.most = min(self.cluster.plan.restart_backoff, FIRST_PAUSE * 2.0 ** (books.in_a_row - 1))
        books.least = books.most / 2

    @staticmethod
    def _count_point(books: Books, cause: Cause, attempt: Attempt, served: float | None) -> None:
        if served is not None or cause.kind in OUTSIDE:
            books.point, books.at_point = None, 0
            return
        point = (cause.kind, cause.process, cause.code, attempt.stage)
        books.at_point = books.at_point + 1 if point == books.point else 1
        books.point = point

    def gathers(self, agent: Agent, leader: c.Coordinator) -> None:
        """A leader is without a whole group: not for longer than it may be, if it is the first time."""
        limit = self.cluster.plan.join_timeout
        if limit is None or leader.wait is not c.Wait.GATHERING or leader.highest_n or leader.history.ended:
            return
        if any(s.contact.proven is None and s.hello.last_epoch is not None for s in leader.seats.values()):
            return  # it tells of an epoch, and will be believed when it has answered
        if agent.local - agent.member._born > limit + self.cluster.terms.beat:
            self.world.broken("alone", f"{agent.pod.name} gathers its first group for more than {limit:g} s")

    # ------------------------------------------------------------------------------------------------- giving up

    def gave_up(self, agent: Agent, leader: c.Coordinator) -> None:
        abort, books = leader.abort, self._books[leader.config.incarnation]
        assert abort is not None
        self.aborts.append(abort)
        if abort.spent is not (abort.cause.kind is not CauseKind.JOIN and not self._can_never_work(abort)):
            self.world.broken("recovers", f"the next launchers do not know what to do: {abort}")
        if abort.cause.kind is CauseKind.JOIN:
            self._first_gathering(agent, [s.hello.last_epoch for s in leader.seats.values()])
        elif not self._may_give_up(abort, books):
            self.world.broken("recovers", f"the group gave up for no reason: {abort.text}")
        self._says_why(leader, abort)
        told = [a for a in self.cluster.agents() if self._hears(a, agent, leader)]
        if self.cluster.plan.linger:
            told = [a for a in told if a is not agent]  # it stays for those that are away
        net = self.cluster.net
        if self.cluster.plan.linger:
            self.verdict_heard = set()
            self.world.at(min(self.cluster.plan.linger, 5.0), self._all_know, self.world.now)
        self.world.at(3 * (net.base + net.jitter) + 0.3, self._all_gone, told, self.world.now)

    def _all_know(self, since: float) -> None:
        """Where nobody brings a leader back, also who was away when the group gave up hears of it, if he comes soon."""
        away = set(range(self.cluster.plan.size)) - self.verdict_heard
        if away and self.cluster.truth.calm(since):
            self.world.broken("one fate", f"the group gave up, and nobody has told ranks {sorted(away)}")

    def _may_give_up(self, abort: m.Abort, books: Books) -> bool:
        if self._can_never_work(abort):
            return self.cluster.ever_unable
        once = self.cluster.plan.keeps_verdict and bool(self._spent_heard)
        return self._lately > self.cluster.plan.max_restarts or books.at_point >= SAME_POINT or once

    def hears(self, agent: Agent, abort: m.Abort) -> None:
        """A launcher hears that the group has given up."""
        rank, leader = agent.pod.rank, agent if agent.coordinator is not None else agent.link and agent.link.peer.agent
        self.verdict_heard.add(rank)
        if abort.spent:
            self._spent_heard.add(rank)
        if leader:
            self._told_by.setdefault((leader.member.incarnation, rank), self.world.now)

    def tells(self, agent: Agent, to: Agent) -> None:
        """A leader tells a launcher that the group has given up: not one whose container was started since it knows."""
        told = self._told_by.get((agent.member.incarnation, to.pod.rank))
        words = agent.coordinator and agent.coordinator._last_words
        if told is not None and to.born > told and words and to.pod.rank not in words._untold:
            self.world.broken("recovers", f"{to.pod.name} started anew, and hears a verdict that its rank had heard")

    @staticmethod
    def _can_never_work(abort: m.Abort) -> bool:
        return abort.code == ExitCode.CONFIG and abort.cause.kind is CauseKind.UNABLE and not abort.spent

    def _says_why(self, leader: c.Coordinator, abort: m.Abort) -> None:
        if not leader.history.ended or abort.cause.kind is CauseKind.JOIN:
            return
        last = leader.history.ended[-1].cause
        if abort.cause not in (leader.history.first, last) and abort.cause.kind is not CauseKind.UNABLE:
            self.world.broken("explains", f"the group gave up; told is {abort.cause}, first was {leader.history.first}")
        if abort.code == 0 or (last.kind in OF_THE_ENGINE and last.code and abort.code != last.code):
            self.world.broken("explains", f"the group gave up with code {abort.code}; the last failure: {last}")

    def _hears(self, agent: Agent, of: Agent, leader: c.Coordinator) -> bool:
        """A launcher that is seated, on the connection that it believes in."""
        seat = leader.seats.get(agent.pod.rank)
        if seat is None or seat.hello.incarnation != agent.member.incarnation:
            return False
        return agent is of or (agent.link is not None and agent.link.peer is of.ends.get(seat.conn))

    def _all_gone(self, told: list[Agent], since: float) -> None:
        left = [a.pod.name for a in told if a.alive and not a.stalled]
        if left and self.cluster.truth.calm(since):
            self.world.broken("one fate", f"the group gave up, and {', '.join(left)} did not exit")

    def exits(self, agent: Agent, action: mb.Exit) -> None:
        """A launcher ends with a code that is not 0: somebody gave up, and it says why."""
        if self.cluster.plan.max_restarts == 0 and action.code == ExitCode.PEERS_LOST and action.cause is not None:
            return  # nobody is left to give up, and no restart is allowed
        if agent.pod.rank and action.cause is not None and action.cause.kind is CauseKind.JOIN and action.cause.rank:
            if agent.member.epoch is None:
                self._first_gathering(agent, [])
            else:
                self._leader_gone(agent)
            return
        if not any((a.code, a.cause) == (action.code, action.cause) for a in self.aborts):
            self.world.broken(
                "alone", f"{agent.pod.name} exits {action.code} ({action.cause}: {action.text}); no leader has said so"
            )

    def _leader_gone(self, agent: Agent) -> None:
        """After an epoch, where nobody brings a leader back: it has been away for so long."""
        limit, link = self.cluster.plan.rejoin_timeout, agent.link
        if link is not None and link.peer.agent.alive and not link.dark and not link.peer.dark:
            self.world.broken("explains", f"{agent.pod.name} gives its leader up, and is connected to it")
        if limit is None or agent.local - agent.member._led_at < limit:
            self.world.broken("alone", f"{agent.pod.name} does not wait for its leader any more")

    def _first_gathering(self, agent: Agent, known: list[Epoch | None]) -> None:
        """--join-timeout has passed: only where nobody who is here knows of an epoch, and not a moment early."""
        limit = self.cluster.plan.join_timeout
        if limit is None or agent.local - agent.member._born < limit:
            self.world.broken(
                "alone", f"{agent.pod.name} does not wait any more, after {self.world.now - agent.born:.1f} s"
            )
        if any(epoch is not None for epoch in known):
            self.world.broken("alone", f"{agent.pod.name} gives up a gathering that is not the first: {known}")
