"""A member's half of the group protocol: events and the time in, actions out. Rank 0 is a member too.

    CLEANING   something of an earlier engine may be left here: do not contact the leader
    SEEKING    clean, looking for the leader; `hello` as soon as there is a connection
    SEATED     accepted, no epoch
    PREPARING  got `prepare`; checking whether this node can run the epoch. No process yet
    STARTING   said `prepared`: each stage starts when the leader says so
    RUNNING    the group serves
    STOPPING   the epoch's processes are being stopped
    LEAVING    received SIGTERM, nothing runs any more: waiting for the leader's `goodbye`
    GONE       the launcher exits

What makes the promises hold on this side:

- Hello is said in SEEKING only, and SEEKING is entered only when the guard has reported that nothing is left.
- From `prepared` until nothing is left, the guard holds a deadline, which moves only with the lease (`lease.py`). When
  it passes, the guard kills, whether or not this code still runs. The lease is checked again before every stage.
- A closed connection to the leader stops the engine at once. A member never exits because it is alone, except when no
  restart is allowed at all: the process, its caches and its address stay, and it looks up the leader again.
- SIGTERM without an engine: exit 0 at once. With an engine, the leader decides the order of stopping; a second SIGTERM
  stops it now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from launcher.errors import ExitCode
from launcher.group import drain
from launcher.group import messages as m
from launcher.group.config import MemberConfig
from launcher.group.dispatch import by_state
from launcher.group.drain import LAST_MOMENT, LEAST_STOP_GRACE, STOP_RESERVE
from launcher.group.epoch import MemberEpoch
from launcher.group.events import Closed, Hang, Note, Send, Tick
from launcher.group.lease import LeaderContact, Pings
from launcher.group.own_gap import OwnGap
from launcher.model import Cause, CauseKind, Epoch, ProcessEvidence, Shared

LINK = 0  #: a member has one connection


class State(str, Enum):
    CLEANING = "cleaning"
    SEEKING = "seeking"
    SEATED = "seated"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    LEAVING = "leaving"
    GONE = "gone"


# ------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Connected:
    """A connection to what should be the leader is open."""


@dataclass(frozen=True)
class Unreadable:
    """The leader sent a message that this member cannot read; ``why`` says what is wrong."""

    why: str


@dataclass(frozen=True)
class Able:
    """This node can run the epoch."""

    epoch: Epoch


@dataclass(frozen=True)
class NotAble:
    """This node can't run the epoch. ``retry``: a later attempt may work."""

    epoch: Epoch
    cause: Cause
    retry: bool = True


@dataclass(frozen=True)
class Done:
    """The gates of all of this rank's processes in a stage have opened."""

    epoch: Epoch
    stage: int


@dataclass(frozen=True)
class Broke:
    """Part of the engine failed on this rank."""

    epoch: Epoch
    cause: Cause
    noticed: float = 0.0  #: seconds that it took to notice
    doubt: float = 0.0  #: seconds by which it may have been earlier still
    told: bool = False  #: our stop had reached it before it ended


@dataclass(frozen=True)
class Gone:
    """Nothing of the engine is left (``clean``), or something can't be removed (``text`` says what)."""

    clean: bool = True
    text: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Expired:
    """The guard's deadline passed: it has killed everything, or is about to."""


@dataclass(frozen=True)
class Examined:
    """What the epoch's processes were doing when they were stopped. It comes before Gone."""

    epoch: Epoch
    processes: tuple[ProcessEvidence, ...]


@dataclass(frozen=True)
class Idle:
    """Rank 0, draining: no request is in flight."""

    epoch: Epoch


@dataclass(frozen=True)
class Activity:
    """News of the engine's processes for the leader."""

    report: m.Report


@dataclass(frozen=True)
class Terminate:
    """SIGTERM or SIGINT. ``grace``: seconds until the platform kills this pod."""

    grace: float


# ------------------------------------------------------------------------------------------------------ actions


@dataclass(frozen=True)
class Dial:
    """After ``delay`` seconds look up the leader and connect; keep trying until connected."""

    delay: float = 0.0


@dataclass(frozen=True)
class DoPrepare:
    shared: Shared


@dataclass(frozen=True)
class DoStage:
    epoch: Epoch
    stage: int


@dataclass(frozen=True)
class DoServe:
    """The group serves: start to watch health and progress."""

    epoch: Epoch


@dataclass(frozen=True)
class DoDrain:
    """Report not ready; rank 0 reports Idle when no request is in flight."""

    epoch: Epoch
    seconds: float


@dataclass(frozen=True)
class DoStop:
    """Stop every process: TERM, ``grace`` seconds, KILL. Answered with Gone.

    ``autopsy``: take so many seconds to gather evidence, then KILL without TERM. Then Examined comes before Gone.
    """

    grace: float
    cause: Cause
    autopsy: float = 0.0


@dataclass(frozen=True)
class SetDeadline:
    """When the guard kills by itself (monotonic seconds); None: nothing can be running."""

    at: float | None


@dataclass(frozen=True)
class Exit:
    code: int
    cause: Cause | None = None
    text: str = ""


Answer = Callable[[Any, float], None]

#: Where each state may lead. Every step is checked against this.
LEADS: Mapping[State, frozenset[State]] = {
    State.CLEANING: frozenset({State.SEEKING, State.GONE}),
    State.SEEKING: frozenset({State.SEATED, State.GONE}),
    State.SEATED: frozenset({State.SEEKING, State.PREPARING, State.GONE}),
    State.PREPARING: frozenset({State.STARTING, State.STOPPING, State.GONE}),
    State.STARTING: frozenset({State.RUNNING, State.STOPPING}),
    State.RUNNING: frozenset({State.STOPPING}),
    State.STOPPING: frozenset({State.SEATED, State.SEEKING, State.LEAVING, State.GONE}),
    State.LEAVING: frozenset({State.GONE}),
    State.GONE: frozenset(),
}


class Member:
    """The state of one rank. Call :meth:`handle` with every event, and with a Tick every half beat."""

    # fmt: off
    def _table(self) -> Mapping[type[Any], tuple[Answer, ...]]:
        """The method that answers each event in each state."""
        return {
            # event       cleaning       seeking           seated            preparing             starting           running            stopping              leaving           gone
            Connected:   (self._idle,    self._greet,      self._idle,       self._idle,           self._idle,        self._idle,        self._idle,           self._idle,       self._idle),
            Closed:      (self._cut,     self._redial,     self._unseated,   self._leader_lost,    self._leader_lost, self._leader_lost, self._cut,            self._depart,     self._idle),
            Unreadable:  (self._idle,    self._unreadable, self._unreadable, self._unreadable,     self._unreadable,  self._unreadable,  self._unreadable,     self._unreadable, self._idle),
            m.Accepted:  (self._idle,    self._seat,       self._idle,       self._idle,           self._idle,        self._idle,        self._idle,           self._idle,       self._idle),
            m.Rejected:  (self._idle,    self._rejected,   self._rejected,   self._idle,           self._idle,        self._idle,        self._idle,           self._depart,     self._idle),
            m.Ack:       (self._idle,    self._idle,       self._acked,      self._acked,          self._acked,       self._acked,       self._acked,          self._acked,      self._idle),
            m.Challenge: (self._idle,    self._idle,       self._stand,      self._stand,          self._stand,       self._stand,       self._stand,          self._stand,      self._idle),
            m.Prepare:   (self._idle,    self._idle,       self._prepare,    self._idle,           self._idle,        self._idle,        self._idle,           self._idle,       self._idle),
            m.Start:     (self._idle,    self._idle,       self._idle,       self._idle,           self._start,       self._idle,        self._idle,           self._idle,       self._idle),
            m.Running:   (self._idle,    self._idle,       self._idle,       self._idle,           self._serve,       self._idle,        self._idle,           self._idle,       self._idle),
            m.Drain:     (self._idle,    self._idle,       self._idle,       self._idle,           self._idle,        self._drain,       self._idle,           self._idle,       self._idle),
            m.Stop:      (self._idle,    self._idle,       self._stopped,    self._stop,           self._stop,        self._stop,        self._stop_sooner,    self._stopped,    self._idle),
            m.Abort:     (self._idle,    self._abort,      self._abort,      self._abort_after,    self._abort_after, self._abort_after, self._abort_after,    self._abort,      self._idle),
            m.Goodbye:   (self._idle,    self._idle,       self._idle,       self._idle,           self._idle,        self._idle,        self._idle,           self._depart,     self._idle),
            m.News:      (self._idle,    self._news,       self._news,       self._news,           self._news,        self._news,        self._news,           self._news,       self._idle),
            Able:        (self._idle,    self._idle,       self._idle,       self._able,           self._idle,        self._idle,        self._idle,           self._idle,       self._idle),
            NotAble:     (self._idle,    self._idle,       self._idle,       self._not_able,       self._idle,        self._idle,        self._idle,           self._idle,       self._idle),
            Done:        (self._idle,    self._idle,       self._idle,       self._idle,           self._done,        self._idle,        self._idle,           self._idle,       self._idle),
            Broke:       (self._idle,    self._idle,       self._idle,       self._broke,          self._broke,       self._broke,       self._broke,          self._idle,       self._idle),
            Expired:     (self._idle,    self._idle,       self._idle,       self._expired,        self._expired,     self._expired,     self._idle,           self._idle,       self._idle),
            Gone:        (self._cleaned, self._idle,       self._idle,       self._idle,           self._idle,        self._idle,        self._gone,           self._idle,       self._idle),
            Examined:    (self._idle,    self._idle,       self._idle,       self._idle,           self._idle,        self._idle,        self._examined,       self._idle,       self._idle),
            Idle:        (self._idle,    self._idle,       self._idle,       self._idle,           self._idle,        self._drained,     self._idle,           self._idle,       self._idle),
            Activity:    (self._idle,    self._idle,       self._idle,       self._idle,           self._report,      self._report,      self._report,         self._idle,       self._idle),
            Terminate:   (self._quit,    self._quit,       self._quit,       self._quit_preparing, self._leave,       self._leave,       self._leave_stopping, self._depart,     self._idle),
            Tick:        (self._idle,    self._seek,       self._beat,       self._beat,           self._beat,        self._beat,        self._beat,           self._beat,       self._idle),
        }
    # fmt: on

    def __init__(self, config: MemberConfig, now: float) -> None:
        self.config = config
        self.state = State.CLEANING
        self.incarnation = config.incarnation
        self.address = ""  #: own IP, set before the first Connected
        self.fingerprint: dict[str, str] = {}  #: set before the first Connected
        self.facts: dict[str, str] = {}  #: what else the hello says about this pod
        #: The current or the latest epoch.
        self.latest: MemberEpoch | None = MemberEpoch(*config.last, now) if config.last else None
        self.news = m.News("gathering")
        self.news_at = now  #: when the news arrived
        self.first_at: float | None = None  #: when the first failure in the news happened; None: unknown
        self.gave_up_at: float | None = None  #: when the group gave up, if it has not been ready since
        self.refusal = ""  #: why the last hello was not accepted, in words
        self.answers = by_state(State, self._table())
        self._leader = LeaderContact(Pings(config.terms), now)
        self._gap = OwnGap(config.terms, now)
        self._born = now
        self._led_at = now  # when a leader that had accepted us last answered
        self._charged_by = now  # the ages of the news' charges count from here: the news was sent no earlier
        self._attempts = 0  # hellos sent
        self._replaces = config.replaces
        self._died = config.died
        self._served_once = config.last is not None  # an epoch began, here or before us: the first gathering is over
        self._leave_by: float | None = None
        self._exit: Exit | None = None  # how to exit when the stop is done
        self._out: list[Any] = []

    @property
    def epoch(self) -> Epoch | None:
        """The current or the latest epoch."""
        return None if self.latest is None else self.latest.name

    @property
    def epoch_members(self) -> tuple[str, ...]:
        """Members of that epoch that, as far as we know, may still run something: all, by rank, until it is over."""
        return () if self.latest is None else self.latest.members

    @property
    def shared(self) -> Shared | None:
        return None if self.latest is None else self.latest.shared

    @property
    def stage(self) -> int:
        return -1 if self.latest is None else self.latest.stage

    @property
    def cause(self) -> Cause | None:
        """Why the engine is being stopped."""
        return None if self.latest is None else self.latest.cause

    @property
    def leader(self) -> str:
        """The incarnation of the leader that accepted us."""
        return self._leader.incarnation

    @property
    def terminating(self) -> bool:
        """Whether this pod has received SIGTERM."""
        return self._leave_by is not None

    @property
    def acked_at(self) -> float | None:
        """When the leader last answered."""
        return self._leader.acked_at

    @property
    def _this(self) -> MemberEpoch:
        """The current epoch, in a state that has one."""
        assert self.latest is not None
        return self.latest

    # ------------------------------------------------------------------------------------------------ the one door

    def handle(self, event: Any, now: float) -> list[Any]:
        """Answer one event. Returns the actions to carry out, in order."""
        self._out = []
        self._gap.event(now)
        self.answers[self.state][type(event)](event, now)
        return self._out

    def _go(self, state: State) -> None:
        if state not in LEADS[self.state]:
            raise AssertionError(f"{self.state.value} may not lead to {state.value}")
        self.state = state

    def replace(self, former: str) -> None:
        """``former`` was the previous launcher in this very pod, and nothing of it is left. Call before Connected."""
        self._replaces = (*self._replaces, former)[-64:]

    def _idle(self, event: object, now: float) -> None:
        """Ignore an event that does not matter in this state."""

    def _say(self, message: Any, now: float) -> None:
        if self._leader.connected:
            if self.latest is not None and self.leader == self.latest.name.leader:
                self.latest.spoke = now
            self._out.append(Send(LINK, message))

    def _note(self, event: str, level: str = "info", **fields: object) -> None:
        self._out.append(Note(event, fields, level))

    # ------------------------------------------------------------------------------------------ finding the leader

    def _cleaned(self, gone: Gone, now: float) -> None:
        if not gone.clean:
            self._note("the cleanup is not complete", level="warning", what=gone.text)
            return
        self._go(State.SEEKING)
        self._out.append(Dial())

    def _greet(self, event: Connected, now: float) -> None:
        self._leader.connected = True
        self._leader.incarnation = ""
        self._leader.seated_at = now
        self._attempts += 1
        hello = m.Hello(
            group=self.config.group,
            rank=self.config.rank,
            size=self.config.size,
            incarnation=self.incarnation,
            address=self.address,
            name=self.config.name,
            fingerprint=self.fingerprint,
            facts=self.facts,
            last_epoch=self.epoch,
            last_members=self.epoch_members,
            quiet=0.0 if self.latest is None else max(0.0, now - self.latest.spoke),
            replaces=self._replaces,
            charges=self.charges(now),
            first_failure=self.news.first_failure,
            first_epoch=self.news.first_epoch,
            first_age=None if self.first_at is None else max(0.0, now - self.first_at),
            gave_up=None if self.gave_up_at is None else max(0.0, now - self.gave_up_at),
            died=self._died,
            attempt=self._attempts,
        )
        self._say(m.hello_that_fits(hello), now)

    def _seat(self, message: m.Accepted, now: float) -> None:
        self._leader.incarnation = message.leader
        self.refusal = ""
        self._leader.pings = Pings(self.config.terms, message.mark)
        self._leader.pings.heard_at = now
        self._leader.seated_at = self._leader.beat_at = now
        self._leader.acked_at = self._led_at = now
        self._go(State.SEATED)
        self._note("joined the group", leader=message.leader)
        self._ping(now)  # proves to the leader at once that its words arrive

    def _rejected(self, message: m.Rejected, now: float) -> None:
        if message.text != self.refusal:
            self.refusal = message.text
            self._note("not accepted", level="warning", why=message.why, text=message.text)
        if message.why == "superseded":
            self._replaces = (*self._replaces, self.incarnation)[-64:]
            self.incarnation = m.next_incarnation(self.incarnation)
        self._drop(min(message.retry, m.MAX_RETRY))

    def _unreadable(self, event: Unreadable, now: float) -> None:
        """Tell the leader, which cannot know otherwise; then continue as if the connection had closed."""
        self._say(m.Unread(event.why[:300]), now)
        self._drop_if_connected()
        self.refusal = why = f"the leader sent what is not the protocol: {event.why}"
        self.answers[self.state][Closed](Closed(why), now)

    def _redial(self, closed: Closed, now: float) -> None:
        self._leader.connected = False
        self._out.append(Dial(0.2))

    def _unseated(self, closed: Closed, now: float) -> None:
        self._note("connection to the leader closed", why=closed.why)
        self._leader.connected = False
        if self.terminating:
            self._finish(Exit(0))
            return
        if self._ended():
            self._finish(self._no_restart(self.cause))
            return
        self._go(State.SEEKING)
        self._out.append(Dial())

    def _ended(self) -> bool:
        """Whether the latest epoch failed and no restart is allowed: with the leader gone, nobody can say `abort`."""
        failed = self.cause is not None and self.cause.kind is not CauseKind.DRAIN
        return failed and not self.config.may_restart

    def _drop(self, delay: float) -> None:
        """Give up this connection and look up the leader again."""
        self._leader.connected = False
        self._out.append(Hang(LINK))
        if self.state is State.SEATED:
            self._go(State.SEEKING)
        self._out.append(Dial(delay))

    def _seek(self, tick: Tick, now: float) -> None:
        if self._leader.connected and now - self._leader.seated_at > self.config.terms.hello_timeout:
            self._drop(0.2)  # the connection is half-open, or the peer is no leader
        self._join_in_time(now)

    def _join_in_time(self, now: float) -> None:
        if self.config.rank == 0:
            return  # the coordinator applies the limit
        limit, since, missing = self.config.join_timeout, self._born, "no group"
        if self._served_once:
            limit, since, missing = self.config.rejoin_timeout, self._led_at, "the leader did not come back"
            if self.state is State.SEATED:
                return  # the leader is back
        if not limit or now - since < limit:
            return
        if self.state is State.SEATED and self.news.phase == "mismatched":
            return  # the leader is there; the group goes on once all are alike, and the leader waits for that too
        what = self.refusal or self.news.text or "the leader did not answer"
        text = f"{missing} within {limit:g} s (--join-timeout): {what}"
        self._finish(Exit(int(ExitCode.UNAVAILABLE), Cause(CauseKind.JOIN, self.config.rank, text), text))

    # ----------------------------------------------------------------------------------------------------- leases

    def _ping(self, now: float) -> None:
        self._leader.beat_at = now
        heard = None if self._leader.pings.heard_at is None else self._leader.pings.heard_at - self._born
        self._say(m.Ping(self._leader.pings.send(now), self._leader.pings.echo, now - self._born, heard), now)

    def _acked(self, ack: m.Ack, now: float) -> None:
        self._leader.acked_at = self._led_at = now
        self._died = None  # the ping that this acks proved our hello, so the leader has taken it in
        grew = self._leader.pings.acked(ack.good, ack.mark, now)
        if grew and self.state in (State.STARTING, State.RUNNING, State.STOPPING):
            self._out.append(SetDeadline(self._leader.pings.deadline))

    def _beat(self, tick: Tick, now: float) -> None:
        next_tick = now + self.config.terms.tick
        if self.state is State.LEAVING and self._leave_by is not None and next_tick >= self._leave_by - LAST_MOMENT:
            self._finish(Exit(0))
            return
        if now - self._leader.beat_at >= self.config.terms.beat:
            self._ping(now)
        if self.state is State.SEATED:
            self._join_in_time(now)
            if self.state is State.SEATED and self._leader.silent_for(now) > self.config.terms.lost_after:
                self._note("the leader is silent", level="warning", seconds=round(self._leader.silent_for(now), 1))
                if self._ended():
                    self._finish(self._no_restart(self.cause))
                else:
                    self._drop(0.0)
        elif self.state is State.PREPARING and self._leader.silent_for(now) > self.config.terms.lost_after:
            self._expired(Expired(), now)  # the guard holds no deadline in this state yet

    def _stand(self, challenge: m.Challenge, now: float) -> None:
        self._note("another pod claims this rank", level="warning", rival=challenge.rival)
        self._say(m.Answer(challenge.nonce), now)

    def _expired(self, event: Expired, now: float) -> None:
        silent = self._leader.silent_for(now)
        text = f"the leader was silent for {silent:.1f} s: the lease ran out and the engine was killed"
        cause = Cause(CauseKind.LEADER, self.config.rank, text)
        if self._gap.explains(silent, now):
            text = f"{self._gap.words}; the lease ran out and the engine was killed"
            cause = Cause(CauseKind.LEADER, self.config.rank, text)
        self._stop_alone(cause, 0.0, now)

    # --------------------------------------------------------------------------------------------------- an epoch

    def _prepare(self, message: m.Prepare, now: float) -> None:
        wrong = self._not_of_us(message)
        if wrong:
            self._note("the leader's epoch is not of this group", level="warning", what=wrong)
            self._say(m.Unable(message.epoch, Cause(CauseKind.UNABLE, self.config.rank, wrong), False), now)
            return
        shared = Shared(message.epoch, message.addresses, message.token, message.values)
        self.latest = MemberEpoch(message.epoch, message.incarnations, now, shared)
        self._served_once = True
        self._go(State.PREPARING)
        self._out.append(DoPrepare(shared))

    def _not_of_us(self, message: m.Prepare) -> str:
        """What is wrong if an epoch lacks exactly one address and launcher per rank, this one included; else empty."""
        counts, size = (len(message.addresses), len(message.incarnations)), self.config.size
        if counts != (size, size):
            return f"it names {counts[0]} addresses and {counts[1]} launchers; the size here is {size}"
        if message.incarnations[self.config.rank] != self.incarnation:
            return f"rank {self.config.rank} of it is launcher {message.incarnations[self.config.rank]}, not this one"
        return ""

    def _able(self, event: Able, now: float) -> None:
        if event.epoch != self.epoch:
            return
        if not self._leader.pings.valid(now):
            cause = Cause(CauseKind.UNABLE, self.config.rank, "no valid lease: the leader was silent while preparing")
            self._say(m.Unable(event.epoch, cause, True), now)
            return
        self._go(State.STARTING)
        self._out.append(SetDeadline(self._leader.pings.deadline))
        self._say(m.Prepared(event.epoch), now)

    def _not_able(self, event: NotAble, now: float) -> None:
        if event.epoch == self.epoch:
            self._say(m.Unable(event.epoch, event.cause, event.retry), now)

    def _start(self, message: m.Start, now: float) -> None:
        if message.epoch != self.epoch or message.stage <= self.stage:
            return
        if not self._leader.pings.valid(now):
            self._expired(Expired(), now)
            return
        self._this.stage = message.stage
        self._out.append(DoStage(message.epoch, message.stage))

    def _done(self, event: Done, now: float) -> None:
        if event.epoch == self.epoch:
            self._say(m.StageDone(event.epoch, event.stage), now)

    def _serve(self, message: m.Running, now: float) -> None:
        if message.epoch == self.epoch:
            self.gave_up_at = None
            self._go(State.RUNNING)
            self._out.append(DoServe(message.epoch))

    def _report(self, event: Activity, now: float) -> None:
        if event.report.epoch == self.epoch:
            self._say(event.report, now)

    def _broke(self, event: Broke, now: float) -> None:
        """Report the failure: the leader then stops everybody, us too. If the leader can't hear us, the lease ends the
        epoch. A failure that preceded the stop but is noticed only now may explain the end better."""
        if event.epoch == self.epoch:
            at = max(0.0, now - event.noticed - self._born)
            self._say(m.Failed(event.epoch, event.cause, event.noticed, at, event.doubt, event.told), now)

    # -------------------------------------------------------------------------------------------------- its end

    def _stop(self, message: m.Stop, now: float) -> None:
        if message.epoch != self.epoch:
            self._say(m.Stopped(message.epoch), now)  # of that epoch nothing runs here
            return
        self._this.stop_told = True
        self._this.autopsy = message.autopsy
        self._begin_stop(message.cause, message.grace, now)
        self._date(now)

    def _stop_sooner(self, message: m.Stop, now: float) -> None:
        if message.epoch == self.epoch:
            self._this.stop_told = True
            self._out.append(DoStop(self._within_grace(message.grace, now), message.cause))

    def _stopped(self, message: m.Stop, now: float) -> None:
        self._say(m.Stopped(message.epoch), now)

    def _begin_stop(self, cause: Cause, grace: float, now: float) -> None:
        self._this.cause = cause
        if self.news.first_failure is None and cause.kind is not CauseKind.DRAIN:
            self.news = replace(self.news, first_failure=cause)  # we can tell the next leader if this one can't
        has_processes = self.state in (State.STARTING, State.RUNNING)
        autopsy = self._within_lease(self._this.autopsy, now) if has_processes else 0.0
        self._go(State.STOPPING)
        self._out.append(DoStop(self._within_grace(grace, now), cause, autopsy))

    def _within_lease(self, autopsy: float, now: float) -> float:
        """``autopsy``, or less: it is over before this member's guard acts, and a pod that received SIGTERM has no time
        for it."""
        deadline = self._leader.pings.deadline
        if self._leave_by is not None or deadline is None:
            return 0.0
        return max(0.0, min(autopsy, self.config.terms.autopsy, deadline - now))

    def _examined(self, event: Examined, now: float) -> None:
        """Its leader asked for it, and hears it before `stopped`. If that leader is gone, nobody waits for it."""
        if event.epoch == self.epoch and self._this.stop_told:
            self._say(m.Evidence(event.epoch, m.evidence_that_fits(event.processes, self.config.size)), now)

    def _within_grace(self, grace: float, now: float) -> float:
        """``grace``, or less: a pod that received SIGTERM must be gone before the platform kills it."""
        if self._leave_by is None:
            return grace
        return min(grace, max(LEAST_STOP_GRACE, self._leave_by - now - STOP_RESERVE))

    def _date(self, now: float) -> None:
        """If the end of this epoch is the first failure, record that it happened now."""
        if self.news.first_failure is self.cause and self.epoch is not None:
            self.news = replace(self.news, first_epoch=self.epoch.n)
            self.first_at = now

    def _no_restart(self, cause: Cause | None) -> Exit:
        """How to exit when the leader is gone and --max-restarts is 0."""
        return Exit(int(ExitCode.PEERS_LOST), self.news.first_failure or cause, "no restart is allowed")

    def _stop_alone(self, cause: Cause, grace: float, now: float) -> None:
        """Stop without the leader: give up the connection, and look up the leader again when all is gone."""
        if self._leader.connected and self.epoch is not None:
            self._say(m.Failed(self.epoch, cause), now)
            self._out.append(Hang(LINK))
        self._leader.connected = False
        self._begin_stop(cause, grace, now)
        self._date(now)
        if not self.config.may_restart:
            self._exit = self._no_restart(cause)

    def _leader_lost(self, closed: Closed, now: float) -> None:
        self._leader.connected = False
        text = f"the leader is gone: the connection closed{' (' + closed.why + ')' if closed.why else ''}"
        cause = Cause(CauseKind.LEADER, 0, text)
        if self._gap.recent(now):
            text = f"{self._gap.words}; then the leader's connection was closed"
            cause = Cause(CauseKind.LEADER, self.config.rank, text)
        self._stop_alone(cause, self.config.stop_grace, now)  # the guard's deadline still stands

    def _cut(self, closed: Closed, now: float) -> None:
        """The connection closed while stopping: continue, and look for the leader when all is gone."""
        self._leader.connected = False
        if self.latest is not None:
            self.latest.stop_told = False
        failed = self.state is State.STOPPING and self.cause is not None and self.cause.kind is not CauseKind.DRAIN
        if failed and self._exit is None and not self.config.may_restart:  # nobody is left to say `abort`
            self._exit = self._no_restart(self.cause)

    def _gone(self, gone: Gone, now: float) -> None:
        if not gone.clean:
            self._note("the cleanup is not complete", level="error", what=gone.text)
            return
        self._out.append(SetDeadline(None))
        epoch = self._this
        told, epoch.stop_told = epoch.stop_told and self._leader.connected, False
        if told:
            self._say(m.Stopped(epoch.name, gone.seconds), now)
        if self._exit is not None:
            self._finish(self._exit)
        elif self.terminating:
            self._leave_or_exit(told)
        elif told:
            self._go(State.SEATED)
            self._leader.acked_at = now
        else:
            self._drop_if_connected()
            self._go(State.SEEKING)
            self._out.append(Dial())

    def _leave_or_exit(self, told: bool) -> None:
        if told:
            self._go(State.LEAVING)
        else:
            self._finish(Exit(0))

    def _drop_if_connected(self) -> None:
        if self._leader.connected:
            self._leader.connected = False
            self._out.append(Hang(LINK))

    # ------------------------------------------------------------------------------------------------ told to go

    def _quit(self, event: Terminate, now: float) -> None:
        """No engine process runs here: exit at once."""
        self._leave_by = now
        if self.state in (State.SEATED, State.PREPARING):
            self._say(m.Leaving(event.grace), now)
        if self.state is State.PREPARING and self.epoch is not None:
            self._say(m.Stopped(self.epoch), now)
        self._finish(Exit(0))

    def _quit_preparing(self, event: Terminate, now: float) -> None:
        """Like `_quit`, but a leader waits until all have stopped: else its members could not tell the next leader."""
        if self.config.rank == 0:
            self._leave(event, now)
        else:
            self._quit(event, now)

    def _leave(self, event: Terminate, now: float) -> None:
        again = self.terminating
        grace = 0.0 if again else event.grace
        self._leave_by = now + grace if self._leave_by is None else min(self._leave_by, now + event.grace)
        if again:
            self._note("second SIGTERM: stopping now")
        self._say(m.Leaving(grace), now)

    def _leave_stopping(self, event: Terminate, now: float) -> None:
        again = self.terminating
        self._leave(event, now)
        grace = 0.0 if again else self._within_grace(self.config.stop_grace, now)
        if grace < self.config.stop_grace:
            self._out.append(DoStop(grace, self.cause or drain.cause_of(self.config.rank)))

    def _drain(self, message: m.Drain, now: float) -> None:
        if message.epoch == self.epoch:
            self._out.append(DoDrain(message.epoch, message.seconds))

    def _drained(self, event: Idle, now: float) -> None:
        if event.epoch == self.epoch:
            self._say(m.Drained(event.epoch), now)

    def _depart(self, event: object, now: float) -> None:
        self._finish(Exit(0))

    # ---------------------------------------------------------------------------------------------------- giving up

    def _abort(self, message: m.Abort, now: float) -> None:
        self._heard_verdict(message, now)
        self._finish(Exit(message.code, message.cause, message.text))

    def _abort_after(self, message: m.Abort, now: float) -> None:
        self._heard_verdict(message, now)
        self._exit = Exit(message.code, message.cause, message.text)
        if self.state is not State.STOPPING:
            self._begin_stop(message.cause, self.config.stop_grace, now)

    def _heard_verdict(self, message: m.Abort, now: float) -> None:
        """Remember it for the next launcher in this pod."""
        if message.spent:
            self.gave_up_at = now

    def _finish(self, leaving: Exit) -> None:
        self._go(State.GONE)
        self._out.append(leaving)

    def _news(self, news: m.News, now: float) -> None:
        before = self.news
        if news.first_failure is None and news.phase == "stopping":  # the leader records it once all have stopped
            news = replace(news, first_failure=before.first_failure, first_epoch=before.first_epoch)
        elif (news.first_failure, news.first_epoch) != (before.first_failure, before.first_epoch):
            self.first_at = None if news.first_age is None else now - news.first_age
        if self.latest is not None and news.over == self.latest.name:
            self.latest.members = news.lost  # all others have stopped
        self.news, self.news_at = news, now
        # The news may have been delayed, but it was sent after our newest good ping: counting the ages from that ping
        # never makes a charge younger than it is.
        self._charged_by = self._leader.seated_at if self._leader.pings.since is None else self._leader.pings.since

    def charges(self, now: float) -> tuple[float, ...]:
        """Ages of the charged restarts, as far as we know: they age here as they do at the leader."""
        return tuple(age + (now - self._charged_by) for age in self.news.charges)
