"""The protocol with one rule broken at a time: what each rule is for, shown by what happens without it.

A mutation is a state machine (or what stands for the guard, or for the agent around it) with one method changed. The
simulation must catch every one (`test_mutations.py`): a rule whose loss nobody notices is either not needed or not
checked. A few rules are *covered*: another one stands behind them. Then the claim is what must be shown: in a plot that
leads to where both matter either may be broken alone, and both together may not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, TypeVar

from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group import messages as m
from launcher.group.budget import Budget, Verdict
from launcher.group.config import CoordinatorConfig, MemberConfig
from launcher.group.events import Closed, Hang, Restart
from launcher.group.history import History
from launcher.group.lease import Contact, Terms
from launcher.group.roster import LOCAL, Seat
from launcher.model import Cause, CauseKind, Epoch
from tests.simulation.cluster import Rules
from tests.simulation.network import End
from tests.simulation.pod import Agent, Guard


@dataclass(frozen=True)
class Mutation:
    """One broken rule."""

    rule: str
    rules: Rules
    plot: str = ""  #: the plot that shows it; empty: random schedules do
    covered: str = ""  #: why nothing happens without it alone
    cover: str = ""  #: the mutation that takes this cover away: in the plot each alone does nothing, both are caught


ALL: dict[str, Mutation] = {}


def _adds(role: str) -> Callable[..., Callable[[_Kind], _Kind]]:
    def mutation(rule: str, plot: str = "", covered: str = "", cover: str = "") -> Callable[[_Kind], _Kind]:
        def add(kind: _Kind) -> _Kind:
            ALL[kind.__name__] = Mutation(rule, replace(Rules(), **{role: kind}), plot, covered, cover)
            return kind

        return add

    return mutation


_Kind = TypeVar("_Kind", bound=type)
leader, member, guard, agent = _adds("coordinator"), _adds("member"), _adds("guard"), _adds("agent")


def together(*mutations: Mutation) -> Rules:
    """Several rules broken at once."""
    roles = {}
    for role, whole in ((f.name, getattr(Rules(), f.name)) for f in fields(Rules)):
        broken = [kind for m in mutations if (kind := getattr(m.rules, role)) is not whole]
        roles[role] = type("And".join(kind.__name__ for kind in broken), tuple(broken), {}) if broken else whole
    return Rules(**roles)


# -------------------------------------------------------------------------------------------------- one epoch


@leader("the lease of a lost member is waited out", "cut_and_replaced")
class NoFence(c.Coordinator):
    def _give_up_seat(self, seat: Seat) -> None:
        super()._give_up_seat(seat)
        self.fences.lost.clear()


@leader("clocks differ: what stands for a lease here is 1.02 of it", "clocks_apart")
class NoRoomForDrift(c.Coordinator):
    def __init__(self, config: CoordinatorConfig, now: float, rng: Any) -> None:
        super().__init__(config, now, rng)
        self.fences.terms = _NoRoom(config.terms.lease)


class _NoRoom(Terms):
    @property
    def fence(self) -> float:
        return self.lease


@leader(
    "nothing is acked to a launcher that was declared lost",
    "replaced_and_healed",
    "its connection is hung up",
    "NeverHangsUp",
)
class AcksTheLost(c.Coordinator):
    def __init__(self, config: CoordinatorConfig, now: float, rng: Any) -> None:
        super().__init__(config, now, rng)
        self._once: dict[int, Seat] = {}

    def _ack(self, conn: int, ping: m.Ping, now: float) -> None:
        super()._ack(conn, ping, now)
        seat = self._seat_of(conn)
        if seat is not None:
            self._once[conn] = seat
        elif conn in self._once:
            self._say(conn, m.Ack(ping.seq, self._once[conn].contact.mark(now)))


@leader(
    "the connection of a launcher that was declared lost is hung up",
    "replaced_and_healed",
    "nothing is acked to it any more, so its lease ends",
    "AcksTheLost",
)
class NeverHangsUp(c.Coordinator):
    def handle(self, event: Any, conn: int, now: float) -> list[c.Action]:
        return [action for action in super().handle(event, conn, now) if not isinstance(action, Hang)]


@leader("a member that is lost while it stops leaves a fence, too", "cut_off_as_another_fails")
class NoFenceWhileStopping(c.Coordinator):
    def _give_up_seat(self, seat: Seat) -> None:
        joined, seat.part.joined = seat.joined, seat.joined and self.phase is not c.GroupPhase.STOPPING
        super()._give_up_seat(seat)
        seat.part.joined = joined


@leader("F counts members that have stopped until the epoch is over", "cut_off_when_it_has_stopped")
class StoppedNotInF(c.Coordinator):
    def _freshness(self, now: float) -> float:
        for seat in self.seats.values():
            seat.part.member = seat.part.joined
        return super()._freshness(now)

    def _give_up_seat(self, seat: Seat) -> None:
        seat.part.member = seat.part.joined
        super()._give_up_seat(seat)


@leader("a lease begins with the newest good ping, not with the seat", "cut_and_replaced_later")
class GrantedOnce(c.Coordinator):
    def _ack(self, conn: int, ping: m.Ping, now: float) -> None:
        seat = self._seat_of(conn)
        granted = None if seat is None else seat.contact.granted
        super()._ack(conn, ping, now)
        if seat is not None and granted is not None:
            seat.contact.granted = granted


@leader("a ping proves that its member lived when the mark that it echoes had come", "old_pings_come_late")
class AnyEcho(c.Coordinator):
    def _ack(self, conn: int, ping: m.Ping, now: float) -> None:
        super()._ack(conn, replace(ping, echo=1 << 50), now)


@leader("an epoch is over when all have said `stopped`")
class StoppedNotAwaited(c.Coordinator):
    def _over_if_all_stopped(self, now: float) -> None:
        for seat in self.seats.values():
            seat.part.joined = False
        super()._over_if_all_stopped(now)


@leader("epochs of another leader are waited out", "leader_cut_off")
class ForeignNotAwaited(c.Coordinator):
    def _take_in(self, hello: m.Hello, now: float) -> None:
        super()._take_in(hello, now)
        self.fences.foreign.clear()


@leader(
    "a fence falls when the member has answered on the connection of its hello, not when the hello comes",
    "late_hello_of_a_lost_one",
)
class HelloBelieved(c.Coordinator):
    def _admit(self, conn: int, hello: m.Hello, now: float) -> None:
        if self.roster.refusal(conn, hello) is None:
            self.fences.clear({hello.incarnation}, now)
        super()._admit(conn, hello, now)


@leader("what a hello remembers counts when its connection has answered", "leader_agent_killed")
class HelloTakenIn(c.Coordinator):
    def _admit(self, conn: int, hello: m.Hello, now: float) -> None:
        if conn != LOCAL:
            self._take_in(hello, now)
        super()._admit(conn, hello, now)


@leader("a leader tells who of its latest epoch may still run something", "leaves_and_one_is_lost")
class NobodyLost(c.Coordinator):
    @property
    def _over_now(self) -> tuple[Epoch | None, tuple[str, ...]]:
        return super()._over_now[0], ()


@leader("a leader that leaves in good order tells that its epoch is over", "leader_leaves")
class NeverOver(c.Coordinator):
    @property
    def _over_now(self) -> tuple[Epoch | None, tuple[str, ...]]:
        return None, ()


@member("a member tells the next leader of whom nothing runs any more", "leader_leaves")
class OverForgotten(mb.Member):
    def _news(self, news: m.News, now: float) -> None:
        super()._news(replace(news, over=None), now)


@leader("the leader of a group that has given up stays for those that have not heard so", "gives_up_while_one_is_away")
class LeavesAtOnce(c.Coordinator):
    def lingers(self, now: float) -> bool:
        return False


@member("where nobody brings a leader back, nobody looks for one without end", "leader_gone_for_good")
class SeeksForEver(mb.Member):
    def __init__(self, config: MemberConfig, now: float) -> None:
        super().__init__(replace(config, rejoin_timeout=None), now)


@leader("who comes when the group has given up is told so", "gives_up_as_one_is_reset")
class LatecomersIgnored(c.Coordinator):
    def _refuse(self, conn: int, hello: m.Hello, now: float) -> None:
        """Do nothing."""


@leader("a container that was started after its rank heard the verdict waits", "gives_up_while_one_is_stalled")
class VerdictForTheNext(c.Coordinator):
    def _give_up(self, *args: Any, **more: Any) -> None:
        super()._give_up(*args, **more)
        assert self._last_words is not None
        self._last_words.has_heard = lambda rank: False  # type: ignore[method-assign]


@leader("a group that has given up has one attempt, and not three", "never_ready_again")
class VerdictNotInherited(c.Coordinator):
    def _take_in(self, hello: m.Hello, now: float) -> None:
        super()._take_in(replace(hello, gave_up=None), now)


@member("who has heard that the group gave up tells the next leader", "never_ready_again")
class VerdictForgotten(mb.Member):
    def _heard_verdict(self, message: m.Abort, now: float) -> None:
        """Do nothing."""


@leader("the next launchers are told that they have one attempt", "never_ready_again")
class NotSaidToBeSpent(c.Coordinator):
    def _give_up(self, *args: Any, **more: Any) -> None:
        super()._give_up(*args, **{**more, "spent": False})


@leader("a hello that was said before the one that counts is not heard", "late_hello")
class OldHelloHeard(c.Coordinator):
    def _admit(self, conn: int, hello: m.Hello, now: float) -> None:
        super()._admit(conn, replace(hello, attempt=0), now)


@leader("F stands still when a member of the epoch is lost")
class FrozenNot(c.Coordinator):
    def _give_up_seat(self, seat: Seat) -> None:
        super()._give_up_seat(seat)
        if self.latest is not None:
            self.latest.frozen = None


@leader("a ping is good only if it arrived before the oldest contact of all")
class EveryPingGood(c.Coordinator):
    def _freshness(self, now: float) -> float:
        return now


@leader("the number of an epoch is higher than any that a member knows")
class NumbersRepeat(c.Coordinator):
    def _take_in(self, hello: m.Hello, now: float) -> None:
        n = self.highest_n
        super()._take_in(hello, now)
        self.highest_n = n


@member("hello and `stopped` are said when nothing is left")
class CleanAtOnce(mb.Member):
    def _begin_stop(self, cause: Cause, grace: float, now: float) -> None:
        super()._begin_stop(cause, grace, now)
        self._this.stop_told = self._leader.connected
        self._gone(mb.Gone(), now)


@member("hello tells of the last epoch", "leader_cut_off")
class ForgetsEpoch(mb.Member):
    def _say(self, message: Any, now: float) -> None:
        super()._say(replace(message, last_epoch=None) if isinstance(message, m.Hello) else message, now)


@member("a new launcher in a pod knows the last epoch of the one before", "leader_cut_off_and_agents_killed")
class NoMemory(mb.Member):
    def __init__(self, config: MemberConfig, now: float) -> None:
        super().__init__(replace(config, last=None), now)


@member("how long the former leader has not been spoken to is told as it is", "leader_cut_off")
class QuietTooLong(mb.Member):
    def _say(self, message: Any, now: float) -> None:
        super()._say(replace(message, quiet=1e6) if isinstance(message, m.Hello) else message, now)


@member("whatever is said to a leader counts as spoken to it, not `prepared` alone", "leader_cut_off_later")
class SpokeOnce(mb.Member):
    def _say(self, message: Any, now: float) -> None:
        spoke = None if self.latest is None else self.latest.spoke
        super()._say(message, now)
        if self.latest is not None and spoke is not None:
            self.latest.spoke = spoke


@member("hellos are numbered", "late_hello")
class HellosNotNumbered(mb.Member):
    def _greet(self, event: mb.Connected, now: float) -> None:
        self._attempts = 0
        super()._greet(event, now)


# ------------------------------------------------------------------------------------------------------ whole


@leader("an epoch starts when all are prepared")
class StartsEarly(c.Coordinator):
    def _prepared(self, conn: int, message: m.Prepared, now: float) -> None:
        if self._current(conn, message.epoch) is not None:
            for seat in self.seats.values():
                seat.part.done = -1
        super()._prepared(conn, message, now)


@leader("only members that are alike make an epoch", "one_is_newer")
class AlwaysAlike(c.Coordinator):
    def _alike(self) -> bool:
        return True


@leader("a stage begins when the one before is done on all ranks")
class StagesOverlap(c.Coordinator):
    def _stage_done(self, conn: int, message: m.StageDone, now: float) -> None:
        if self._current(conn, message.epoch) is not None:
            for seat in self.seats.values():
                seat.part.done = max(seat.part.done, message.stage)
        super()._stage_done(conn, message, now)


@leader(
    "a word of a member counts for its own epoch only",
    "ended_while_preparing",
    "a member says nothing of an epoch that is over for it, and a connection keeps the order",
    "TellsOfOldEpochs",
)
class AnyEpoch(c.Coordinator):
    def _current(self, conn: int, epoch: Epoch) -> Seat | None:
        seat = self._seat_of(conn)
        return seat if seat is not None and seat.joined else None


@member(
    "a member says nothing of an epoch that is over for it",
    "ended_while_preparing",
    "the leader counts a word for its own epoch only",
    "AnyEpoch",
)
class TellsOfOldEpochs(mb.Member):
    def _able(self, event: mb.Able, now: float) -> None:
        if event.epoch != self.epoch:
            self._say(m.Prepared(event.epoch), now)
        else:
            super()._able(event, now)


@member("the guard holds a deadline before `prepared` is said")
class NoDeadline(mb.Member):
    def handle(self, event: Any, now: float) -> list[Any]:
        return [a for a in super().handle(event, now) if not isinstance(a, mb.SetDeadline)]


@member(
    "the lease is looked at before every stage",
    "stalled_before_start",
    "the guard looks at its deadline before every start",
    "GuardStartsBlindly",
)
class StartsWithoutLease(mb.Member):
    def _start(self, message: m.Start, now: float) -> None:
        if message.epoch == self.epoch and message.stage > self.stage:
            self._this.stage = message.stage
            self._out.append(mb.DoStage(message.epoch, message.stage))


@guard(
    "the guard looks at its deadline before every start",
    "stalled_before_start",
    "the agent looks at its lease before every stage",
    "StartsWithoutLease",
)
class GuardStartsBlindly(Guard):
    def _may_start(self) -> bool:
        return True


@member(
    "without a valid lease nobody is able",
    "stalled_while_preparing",
    "the lease is looked at again before every stage",
    "StartsWithoutLease",
)
class AbleWithoutLease(mb.Member):
    def _able(self, event: mb.Able, now: float) -> None:
        if event.epoch == self.epoch:
            self._go(mb.State.STARTING)
            self._out.append(mb.SetDeadline(now + self.config.terms.kill_after))
            self._say(m.Prepared(event.epoch), now)


@member("what the agent says of an epoch that is over is not taken for the next one", "ended_while_preparing")
class OldEvents(mb.Member):
    def handle(self, event: Any, now: float) -> list[Any]:
        if isinstance(event, (mb.Able, mb.Done, mb.Broke)) and self.epoch is not None:
            event = replace(event, epoch=self.epoch)
        return super().handle(event, now)


@member(
    "epochs are compared whole, not by their number",
    "two_leaders_one_number",
    "a member hears one leader at a time: what comes on a connection that was given up is for nobody",
    "HearsOldConnections",
)
class NumberOnly(mb.Member):
    def handle(self, event: Any, now: float) -> list[Any]:
        epoch = getattr(event, "epoch", None)
        if self.epoch is not None and epoch is not None and epoch.n == self.epoch.n:
            event = replace(event, epoch=self.epoch)
        return super().handle(event, now)


@agent(
    "what comes on a connection that was given up is for nobody",
    "two_leaders_one_number",
    "epochs are compared whole, not by their number",
    "NumberOnly",
)
class HearsOldConnections(Agent):
    def _drop_link(self) -> None:
        self._link = None

    def heard(self, end: End, message: Any) -> None:
        if end.conn or end is self._link or not hasattr(message, "epoch"):
            super().heard(end, message)
        else:
            self.follow(message)  # what tells of no epoch (an ack, news) has no second guard


@leader("a leader lets nobody of another group in")
class AnyGroup(c.Coordinator):
    def _admit(self, conn: int, hello: m.Hello, now: float) -> None:
        super()._admit(conn, replace(hello, group=self.config.group), now)


# --------------------------------------------------------------------------------------------------- one fate


@member("the deadline counts from the sending of the ping, not from the coming of the ack", "acks_held")
class LeaseFromAck(mb.Member):
    def _acked(self, ack: m.Ack, now: float) -> None:
        before = self._leader.pings.since
        super()._acked(ack, now)
        if self._leader.pings.since != before:
            self._leader.pings.since = now
            self._out = [
                mb.SetDeadline(self._leader.pings.deadline) if isinstance(a, mb.SetDeadline) else a for a in self._out
            ]


@member("a closed connection to the leader ends the engine", "leader_agent_killed")
class LeaderNotMissed(mb.Member):
    def _leader_lost(self, closed: Closed, now: float) -> None:
        self._leader.connected = False


@member("what breaks is told")
class FailureKept(mb.Member):
    def _broke(self, event: mb.Broke, now: float) -> None:
        """Say nothing."""


@member("an expired lease ends the epoch on this member", "half_open")
class ExpiredIgnored(mb.Member):
    def _expired(self, event: mb.Expired, now: float) -> None:
        """Do nothing."""


@leader("a member without a sign of life is lost")
class SilenceIgnored(c.Coordinator):
    def _silent(self, now: float) -> None:
        """Do nothing."""


@leader("a failure of one ends all")
class FailureIgnored(c.Coordinator):
    def _failed(self, conn: int, message: m.Failed | m.Unable, now: float) -> None:
        """Do nothing."""


@leader("who cannot prepare ends the attempt", "cannot_prepare")
class UnableIgnored(c.Coordinator):
    def _unable(self, conn: int, message: m.Unable, now: float) -> None:
        """Do nothing."""


@member("a group that has given up is gone on every rank", "budget_spent")
class AbortIgnored(mb.Member):
    def _abort(self, message: m.Abort, now: float) -> None:
        """Do nothing."""


@member("who exits because the group has given up exits with its code", "budget_spent")
class AbortForgiven(mb.Member):
    def _abort(self, message: m.Abort, now: float) -> None:
        super()._abort(replace(message, code=0), now)


@member("a stop that takes its time keeps its lease while the leader answers", "stops_slowly")
class StopsWithoutLease(mb.Member):
    def _acked(self, ack: m.Ack, now: float) -> None:
        super()._acked(ack, now)
        if self.state is mb.State.STOPPING:
            self._out = [a for a in self._out if not isinstance(a, mb.SetDeadline)]


@member("without a restart, who loses the leader while stopping exits", "leader_killed_while_stopping")
class SeeksAfterTheEnd(mb.Member):
    def _cut(self, closed: Closed, now: float) -> None:
        exits = self._exit
        super()._cut(closed, now)
        self._exit = exits


# --------------------------------------------------------------------------------------------------- the autopsy


@leader("only after a verdict on what still runs is evidence gathered before the kill", "stops_slowly")
class ExaminesAlways(c.Coordinator):
    def _examines(self, cause: Cause, now: float) -> float:
        return self.config.terms.autopsy


@leader("a pod that was told to go has no time for evidence", "hangs_and_one_is_told_to_go")
class ExaminesInADrain(c.Coordinator):
    def _examines(self, cause: Cause, now: float) -> float:
        phase = self.phase
        if phase is c.GroupPhase.DRAINING:
            self.phase = c.GroupPhase.RUNNING
        try:
            return super()._examines(cause, now)
        finally:
            self.phase = phase


@leader("after a verdict on what still runs evidence is gathered", "hangs")
class NeverExamines(c.Coordinator):
    def _examines(self, cause: Cause, now: float) -> float:
        return 0.0


@leader(
    "an autopsy is over before any guard acts, as far as the leader knows",
    "hangs_as_one_is_cut_off",
    "a member's autopsy is over before its own guard acts",
    "ExaminesPastItsDeadline",
)
class ExaminesInSilence(c.Coordinator):
    def _examines(self, cause: Cause, now: float) -> float:
        return self.config.terms.autopsy if super()._examines(cause, now) or cause.kind is CauseKind.HANG else 0.0


@member(
    "a member's autopsy is over before its own guard acts",
    "hangs_as_one_is_cut_off",
    "the leader orders none that would not be",
    "ExaminesInSilence",
)
class ExaminesPastItsDeadline(mb.Member):
    def _within_lease(self, autopsy: float, now: float) -> float:
        return autopsy


@member("evidence is told", "hangs")
class EvidenceKept(mb.Member):
    def _examined(self, event: mb.Examined, now: float) -> None:
        """Say nothing."""


@member("evidence is told before `stopped`", "hangs")
class EvidenceTooLate(mb.Member):
    def __init__(self, config: MemberConfig, now: float) -> None:
        super().__init__(config, now)
        self._held: mb.Examined | None = None

    def _examined(self, event: mb.Examined, now: float) -> None:
        self._held = event

    def _gone(self, gone: mb.Gone, now: float) -> None:
        super()._gone(gone, now)
        if gone.clean and self._held is not None:
            self._say(m.Evidence(self._held.epoch, self._held.processes), now)
            self._held = None


# --------------------------------------------------------------------------------------------------- recovers


@leader("a rank whose pod is silent is given to the newcomer", "lost_while_gathering")
class NeverReplaced(c.Coordinator):
    def _challenges(self, now: float) -> None:
        """Do nothing."""

    def _silent(self, now: float) -> None:
        if self._in_epoch():
            super()._silent(now)


@leader("the holder of a rank is asked before a newcomer gets it", "second_pod")
class ChallengeSkipped(c.Coordinator):
    def _challenge(self, seat: Seat, conn: int, hello: m.Hello, now: float) -> None:
        super()._challenge(seat, conn, hello, now)
        if seat.rival is not None:
            seat.rival.until = now
            self._challenges(now)


@leader(
    "a launcher that was superseded is not accepted again under its name",
    "late_hello_of_a_superseded_one",
    "what a hello says counts when its connection has answered",
    "HelloBelieved",
)
class SupersededAccepted(c.Coordinator):
    def _challenges(self, now: float) -> None:
        super()._challenges(now)
        self.roster.superseded.clear()


@member("a leader that is silent while we prepare is given up", "half_open")
class PreparesForEver(mb.Member):
    def _beat(self, tick: Any, now: float) -> None:
        if self.state is mb.State.PREPARING:
            if now - self._leader.beat_at >= self.config.terms.beat:
                self._ping(now)
        else:
            super()._beat(tick, now)


@member("a launcher that was superseded comes back under another name", "taken_over_and_back")
class KeepsItsName(mb.Member):
    def _rejected(self, message: m.Rejected, now: float) -> None:
        super()._rejected(replace(message, why="duplicate") if message.why == "superseded" else message, now)


@leader("who is turned away hears why", "taken_over_and_back")
class RefusesInSilence(c.Coordinator):
    def _turn_away(self, conn: int, why: m.Rejected | m.Abort) -> None:
        super()._turn_away(conn, why)
        self._out = [a for a in self._out if getattr(a, "message", None) is not why]


@member("a connection that closes while stopping is not believed in any more", "reset_while_stopping")
class CutForgetsNothing(mb.Member):
    def _cut(self, closed: Closed, now: float) -> None:
        """Do nothing."""


@leader("a fence falls when its launcher is back", "back_too_soon")
class FencesStand(c.Coordinator):
    def _clear(self, seat: Seat) -> None:
        """Do nothing."""


@leader("a fence falls when the next launcher in the very pod is back", "replaced_in_its_pod")
class ReplacesIgnored(c.Coordinator):
    def _admit(self, conn: int, hello: m.Hello, now: float) -> None:
        super()._admit(conn, replace(hello, replaces=()), now)


@leader("a fence of another leader's epoch falls when all its members are back", "leader_agent_killed")
class ForeignNeverCleared(c.Coordinator):
    def _clear(self, seat: Seat) -> None:
        foreign = dict(self.fences.foreign)
        super()._clear(seat)
        self.fences.foreign = foreign


class _OtherBudget(c.Coordinator):
    """Its budget is of another ``kind``."""

    kind: type[Budget]

    def __init__(self, config: CoordinatorConfig, now: float, rng: Any) -> None:
        super().__init__(config, now, rng)
        self.budget.__class__ = self.kind


class _NeverSpent(Budget):
    def charged(self, now: float) -> int:
        return 0


@leader("a budget that is spent ends the group", "budget_spent")
class BudgetNeverSpent(_OtherBudget):
    kind = _NeverSpent


class _AnyPoint(Budget):
    def _same_point(self, cause: Cause, stage: str, served: float | None) -> bool:
        return False


@leader("an engine that fails thrice at one point before it was ever ready ends the group", "never_ready")
class SamePointIgnored(_OtherBudget):
    kind = _AnyPoint


class _Hasty(Budget):
    def judge(self, cause: Cause, stage: str, served: float | None, charge: bool, now: float) -> Verdict:
        return replace(super().judge(cause, stage, served, charge, now), delay=0.0)


@leader("a back-off lies between a failed epoch and the next")
class NoBackoff(_OtherBudget):
    kind = _Hasty


@leader("the back-off has a limit", "fails_and_fails")
class BackoffUnbounded(c.Coordinator):
    def __init__(self, config: CoordinatorConfig, now: float, rng: Any) -> None:
        super().__init__(replace(config, restart_backoff=1e9), now, rng)


@leader("a new leader of a group that has run waits for whoever is away", "leader_replaced_and_one_away")
class GathersAnew(c.Coordinator):
    def _give_up_waiting(self, now: float) -> None:
        n, self.highest_n = self.highest_n, 0
        super()._give_up_waiting(now)
        self.highest_n = n


@member("a new launcher in a pod that was in an epoch waits for its leader", "agents_killed_and_one_away")
class JoinsAnew(mb.Member):
    def __init__(self, config: MemberConfig, now: float) -> None:
        super().__init__(config, now)
        self._served_once = False


@leader("who can gather no group in time gives up", "never_whole")
class GathersForEver(c.Coordinator):
    def _give_up_waiting(self, now: float) -> None:
        """Do nothing."""


@member("a leader that never answers a hello is given up", "hello_unanswered")
class WaitsForAccepted(mb.Member):
    def _seek(self, tick: Any, now: float) -> None:
        """Do nothing."""


# ------------------------------------------------------------------------------------------------------ drain


@leader("no epoch begins while a present member is leaving", "one_leaves_slowly")
class DrainingForgotten(c.Coordinator):
    def _consider(self, conn: int, event: object, now: float) -> None:
        for seat in self.seats.values():
            seat.leaving = None
        super()._consider(conn, event, now)

    def _over_if_all_stopped(self, now: float) -> None:
        for seat in self.seats.values():
            seat.leaving = None
        super()._over_if_all_stopped(now)


@leader("in a drain rank 0 is stopped first")
class AllAtOnce(c.Coordinator):
    def _stop_leader_first(self, now: float) -> None:
        assert self.cause is not None
        self._end(self.cause, now)


@leader("a drain waits until no request is in flight")
class DrainsAtOnce(c.Coordinator):
    def _drain(self, conn: int, message: m.Leaving, now: float) -> None:
        super()._drain(conn, message, now)
        if self.phase is c.GroupPhase.DRAINING:
            self._stop_leader_first(now)


@leader("a drain is over before the grace is", "long_request")
class DrainsForEver(c.Coordinator):
    def _watch_drain(self, conn: int, tick: Any, now: float) -> None:
        self._watch(conn, tick, now)


@leader("rank 0 leaves the others part of the grace", "long_request_and_short_grace")
class RankZeroTakesItAll(c.Coordinator):
    def _watch_drain(self, conn: int, tick: Any, now: float) -> None:
        if not self.seats[0].part.told_stop:
            super()._watch_drain(conn, tick, now)

    def _say(self, conn: int, message: Any) -> None:
        super()._say(conn, replace(message, grace=message.grace / 0.6) if isinstance(message, m.Stop) else message)


@member("a stop is over before a pod's grace is", "told_while_stopping")
class StopsAtLeisure(mb.Member):
    def _within_grace(self, grace: float, now: float) -> float:
        return grace


@leader("a failure in a drain ends it", "fails_in_a_drain")
class DrainGoesOn(c.Coordinator):
    def _drain_failed(self, conn: int, message: m.Failed, now: float) -> None:
        """Do nothing."""


@leader("who leaves before an epoch begins takes part in none", "leaves_with_its_node")
class LeavingUnheard(c.Coordinator):
    def _farewell(self, conn: int, message: m.Leaving, now: float) -> None:
        """Do nothing."""


@leader("an epoch that fails has the whole grace to stop, if nobody leaves")
class StopsInHaste(c.Coordinator):
    def _grace_left(self, now: float) -> float:
        return 0.0

    def _end(self, cause: Cause, now: float, *more: Any) -> None:
        config, self.config = self.config, replace(self.config, stop_grace=0.1)
        super()._end(cause, now, *more)
        self.config = config


@leader("the connection that a launcher has left is hung up")
class OldConnectionsKept(c.Coordinator):
    def _return(self, seat: Seat, conn: int, hello: m.Hello, now: float) -> None:
        super()._return(seat, conn, hello, now)
        self._out = [a for a in self._out if not isinstance(a, Hang)]


@leader("who was told to go may leave when the epoch is over", "one_leaves_slowly")
class NoGoodbye(c.Coordinator):
    def handle(self, event: Any, conn: int, now: float) -> list[c.Action]:
        actions = super().handle(event, conn, now)
        return [a for a in actions if not isinstance(getattr(a, "message", None), m.Goodbye)]


class _ChargesDrains(Budget):
    def judge(self, cause: Cause, stage: str, served: float | None, charge: bool, now: float) -> Verdict:
        if cause.kind is CauseKind.DRAIN:
            self.total += 1
            self._charges.append(now)
        return super().judge(cause, stage, served, charge, now)


@leader("a drain charges no restart")
class ChargesDrains(_OtherBudget):
    kind = _ChargesDrains


@leader("a restart by hand is no failure, and charges nothing", "by_hand")
class ByHandIsAFailure(c.Coordinator):
    def _restart(self, conn: int, event: Restart, now: float) -> None:
        self._end(Cause(CauseKind.TIMEOUT, 0, "restarted by hand"), now)


@leader("a restart by hand ends the epoch on all ranks", "by_hand")
class ByHandWithoutAStop(c.Coordinator):
    def _restart(self, conn: int, event: Restart, now: float) -> None:
        """Do nothing."""


@leader("what members remember of charges is as old as it is", "old_charges")
class InheritsAnew(c.Coordinator):
    def _take_in(self, hello: m.Hello, now: float) -> None:
        super()._take_in(hello, now)
        self.budget.inherit([0.0 for _ in hello.charges], now)


@member("what is remembered of charges grows old", "charge_grows_old")
class ChargesStayYoung(mb.Member):
    def charges(self, now: float) -> tuple[float, ...]:
        return self.news.charges


@member("only a pod that was told to go exits with 0")
class ExitsWithOthers(mb.Member):
    def _gone(self, gone: mb.Gone, now: float) -> None:
        if gone.clean and self.cause is not None and self.cause.kind is CauseKind.DRAIN:
            self._leave_by = now
        super()._gone(gone, now)


# ---------------------------------------------------------------------------------------------------- explains


class _Overwrites(History):
    def record(self, epoch: Epoch, cause: Cause, *more: Any) -> None:
        super().record(epoch, cause, *more)
        if cause.kind is not CauseKind.DRAIN:
            self.first = cause


@leader("a launcher that was killed is told as such when the next one is back")
class DeathUnexplained(c.Coordinator):
    def _explain_death(self, hello: m.Hello, died: Cause) -> None:
        """Do nothing."""


@leader("the death of a launcher that was in no epoch explains none", "replaced_and_killed")
class AnyDeathExplains(c.Coordinator):
    def _explain_death(self, hello: m.Hello, died: Cause) -> None:
        super()._explain_death(replace(hello, replaces=()), died)


@leader("the death of a launcher that was taken over and lived on does not explain that", "taken_over_and_killed")
class OldNamesDied(c.Coordinator):
    def _explain_death(self, hello: m.Hello, died: Cause) -> None:
        everybody: Any = SimpleNamespace(rank=hello.rank, dead=hello.replaces)
        super()._explain_death(everybody, died)


@leader("a launcher that came back and was killed later did not end the epoch before", "back_and_killed")
class DeathAfterReturn(c.Coordinator):
    def _came_back(self, hello: m.Hello) -> None:
        """Do nothing."""


@leader("the first failure stays")
class FirstOverwritten(c.Coordinator):
    def __init__(self, config: CoordinatorConfig, now: float, rng: Any) -> None:
        super().__init__(config, now, rng)
        self.history.__class__ = _Overwrites


@leader("of several failures the one that explains the others is told", "out_of_memory")
class LastFailureTold(c.Coordinator):
    def _settle_cause(self) -> None:
        if self.cause is not None and self.cause.kind is not CauseKind.DRAIN:
            self._this.cause = self._this.ends.all[-1].cause


@leader("the first failure is not the one that is heard first", "told_late")
class FirstHeardTold(c.Coordinator):
    def _settle_cause(self) -> None:
        """Do nothing."""


@leader("what may have been the first failure, too, is told with it", "ends_with_0")
class AlwaysCertain(c.Coordinator):
    def _settle_cause(self) -> None:
        super()._settle_cause()
        if self.cause is not None:
            self._this.cause = replace(self.cause, rivals=())


@leader("each member's clock is mapped to the leader's", "told_late")
class ClocksTakenForOne(c.Coordinator):
    def _when(self, seat: Any, message: m.Failed, now: float) -> tuple[float, float]:
        return now - message.doubt, now


@leader("pings that came under a frozen F are granted with `prepare`", "back_too_soon")
class OwedNothing(c.Coordinator):
    def _seat(self, conn: int, hello: m.Hello, now: float, heard: float | None = None) -> None:
        super()._seat(conn, hello, now, heard)
        self.seats[hello.rank].contact.__class__ = _OwesNothing


class _OwesNothing(Contact):
    @property
    def owed(self) -> bool:
        return False


@member("members remember how the last leader ended")
class LeaderForgotten(mb.Member):
    def _begin_stop(self, cause: Cause, grace: float, now: float) -> None:
        news = self.news
        super()._begin_stop(cause, grace, now)
        self.news = news
