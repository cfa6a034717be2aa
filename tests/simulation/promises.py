"""The five promises, held against the truth: every true process, in true time, whatever the state machines believe.

    whole       a process starts only if every rank of its epoch has said `prepared`, all are alike, each was there
                within a lease, and the guard that starts it holds a deadline that has not passed
    one epoch   no process starts while one of another epoch lives anywhere in the group
    one fate    when a rank fails, every process of the epoch is dead: in seconds if somebody can tell, else in a lease
    recovers    (schedule.py) once faults stop, the group runs
    explains    an epoch's end has the cause that truly was, and the first failure stays until it is over; a launcher
                that was killed is told as such when the next one in its pod is back

    unmoved     a peer that is refused, or has not answered on its connection, changes nothing that the leader knows

and beside them: nobody exits for being alone; a drain cuts no request, charges nothing, and stops rank 0 first; whether
to try again, when, and when no more (restarts.py).

Two exceptions, both documented in docs/protocol.md: processes of a frozen machine (and for a moment after it thaws),
and two groups of pods that have no launcher in common (nobody is left who could tell the new about the old).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launcher.errors import ExitCode
from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group import messages as m
from launcher.group.autopsy import EXAMINED
from launcher.group.events import Hang, Restart, Send, SendAll, Tick
from launcher.group.history import Ended
from launcher.group.roster import LOCAL
from launcher.model import Cause, CauseKind, Epoch
from tests.simulation.restarts import Restarts

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.pod import Agent, Guard, Pod, Proc

#: What a cause may be called when this is what truly happened.
LOST = frozenset({CauseKind.LOST, CauseKind.AGENT, CauseKind.LEADER})
_VERDICTS = (m.Accepted, m.Rejected, m.Abort)  #: on whether a connection is taken


class Touch:
    """Something that was done to a rank: the possible reason of a failure."""

    __slots__ = ("kinds", "rank", "sharp", "since", "until", "victim", "what")

    def __init__(
        self, what: str, rank: int, since: float, until: float, kinds: frozenset[CauseKind], sharp: bool
    ) -> None:
        self.what = what
        self.rank = rank
        self.since = since
        self.until = until
        self.kinds = kinds
        self.sharp = sharp  #: it ends an epoch at once and by itself
        self.victim: str | None = None  #: incarnation of the launcher that was killed; empty: none ran


class EpochTruth:
    """What is true of one epoch."""

    def __init__(self, epoch: Epoch, leader: Agent, members: tuple[str, ...], now: float) -> None:
        self.epoch = epoch
        self.leader = leader
        self.members = members
        self.made_at = now
        self.agents: dict[int, Agent] = {}  #: by rank, those that said `prepared`
        self.prints: dict[int, dict[str, str]] = {}
        self.started = False
        self.procs = 0
        self.first_death = False
        self.failed_at: float | None = None
        self.drain_by: float | None = None
        self.hurried = False
        self.calm = True  #: nothing was done to any of its pods, and nobody was told to stop
        self.guards: set[Guard] = set()
        self.ended_at: float | None = None  #: when its leader first told somebody to stop
        self.hung: dict[Proc, float] = {}  #: processes that do no more work, and since when
        self.drained = False  #: and then it was because a pod was told to go, or by hand
        self.by_hand = False  #: a person asked its leader for a new epoch


class Truth:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.epochs: dict[Epoch, EpochTruth] = {}
        self.live: list[Proc] = []
        self.touches: list[Touch] = []
        self.terms_told: dict[int, float] = {}  #: rank -> when one of its pods was last told to go
        self.restarts = Restarts(cluster)
        #: incarnations of launchers that were killed and followed in their pod, and when they were
        self.agents_killed: dict[str, float] = {}
        self.thawed, self.strangers = 0, 0  #: starts under the two exceptions
        self.ran = 0
        self.drains = 0
        self._first: dict[str, Cause] = {}
        self._phase: dict[str, c.GroupPhase] = {}
        self._ended: dict[str, Ended] = {}  #: by leader: its latest epoch's end, as it tells now
        #: by leader: members of an epoch that were seated again; False: by a hello held up until they were dead
        self._lived_on: dict[tuple[str, Epoch, int], bool] = {}
        self._leaving: set[str] = set()  #: launchers that have said that they leave, and whose leader has heard it
        #: by leader: connections that were told whether they are taken
        self.answered: dict[str, set[int]] = defaultdict(set)
        self._deaths_told: dict[str, set[str]] = {}  #: by leader: launchers whose successors have told it of their end
        self._answered: set[tuple[str, str, int]] = set()  #: leader, member, and its hello that was proven
        #: launchers that exited 0 when nothing of an epoch of theirs ran any more, and who was there to be told so
        self._left_in_order: dict[str, set[str]] = {}

    # ------------------------------------------------------------------------------------------------ what happens

    def touch(
        self,
        what: str,
        rank: int,
        *,
        lasts: float = 0.0,
        kinds: frozenset[CauseKind] = frozenset(CauseKind),
        sharp: bool = False,
    ) -> Touch:
        """A fault is made. ``lasts``: with its aftermath."""
        lasts = max(lasts, 0.5)  # news of it may be on the way when the next epoch is made
        touch = Touch(what, rank, self.world.now, self.world.now + lasts, kinds, sharp)
        self.touches.append(touch)
        for truth in self.epochs.values():
            truth.calm = False
        self.world.note("FAULT", what, f"rank {rank}")
        return touch

    def failed(self, epoch: Epoch, rank: int, kind: CauseKind, pod: Pod) -> None:
        """A process failed by itself, or a member could not prepare: the epoch must end."""
        self.touch(f"{kind.value} in {epoch}", rank, kinds=frozenset({kind}), sharp=True)
        truth = self.epochs.get(epoch)
        if truth is None:
            return
        if truth.failed_at is None:
            truth.failed_at = self.world.now
        self._must_die(truth, pod)
        answers = 2 * (self.cluster.net.base + self.cluster.net.jitter) + 0.5
        if kind is CauseKind.UNABLE:
            answers += self.cluster.plan.prepare_time[1]
            self.world.at(answers, self._check_ended, truth, rank, self.world.now)
        elif truth.drain_by is not None:  # the others have the time of the grace, but only to end
            self.world.at(answers, self._check_ended, truth, rank, self.world.now)

    def hung(self, proc: Proc, kind: CauseKind) -> None:
        """A process hangs, and the launcher of its rank notices it now."""
        truth, agent = self.epochs[proc.epoch], proc.guard.agent
        assert agent is not None
        truth.hung.setdefault(proc, self.world.now)
        self.failed(proc.epoch, proc.rank, kind, proc.guard.pod)
        agent.post("guard", agent.hang_noticed, proc.epoch, kind)

    def hangs(self, proc: Proc) -> bool:
        return proc in self.epochs[proc.epoch].hung

    def _check_ended(self, truth: EpochTruth, rank: int, since: float) -> None:
        if truth.ended_at is None and truth.leader.alive and self.calm(since):
            self.world.broken("one fate", f"rank {rank} failed in {truth.epoch}, and nobody has ended it")

    def killed(self, what: str, pod: Pod) -> None:
        """An agent or a whole pod is killed, and the kernel closes its connections."""
        touch, agent = self.touch(what, pod.rank, kinds=LOST, sharp=True), pod.agent
        touch.victim = "" if agent is None else agent.member.incarnation
        self.launcher_killed(pod)

    def launcher_killed(self, pod: Pod) -> None:
        """The epochs of a launcher that is killed must end."""
        for truth in self.epochs.values():
            if truth.procs and pod.guard in truth.guards:
                if truth.failed_at is None:
                    truth.failed_at = self.world.now
                self._must_die(truth, pod)

    def _must_die(self, truth: EpochTruth, pod: Pod) -> None:
        plan, now = self.cluster.plan, self.world.now
        noticed = plan.stop_grace + plan.kill_time[1] + 1.5
        silent = 1.02 * plan.lease + plan.stop_grace + plan.kill_time[1] + 1.0
        self.world.at(noticed, self._check_fate, truth, now, True)
        self.world.at(max(noticed, silent), self._check_fate, truth, now, False)

    def silent(self, what: str, pod: Pod, lasts: float, leader: Pod | None = None) -> None:
        """From now on ``pod`` and the leader (or everybody) cannot speak. Nobody can tell, so the lease must.

        A guard acts 0.8 lease after a ping by a clock that is 1 % slow at most, and has 0.2 lease for the kill.
        """
        after = (0.8 / 0.99 + 0.2) * self.cluster.plan.lease + 0.001
        if lasts <= after:
            return
        for truth in self.epochs.values():
            if truth.procs and pod.guard in truth.guards and (leader is None or leader.guard in truth.guards):
                self.world.at(after, self._check_silence, truth, what, pod.rank, self.world.now)

    def _check_fate(self, truth: EpochTruth, since: float, noticed: bool) -> None:
        if (noticed and not self.calm(since)) or truth.drain_by is not None:
            return  # in a drain rank 0 has the time of the grace, whoever else has ended
        longer = self.cluster.terms.autopsy - self.cluster.plan.stop_grace
        if noticed and truth.hung and longer > 0:  # evidence is gathered in place of a grace
            self.world.at(longer, self._all_dead, truth, f"{self.world.now - since + longer:.1f} s after a hang")
            return
        self._all_dead(truth, f"{self.world.now - since:.1f} s after a failure")

    def _check_silence(self, truth: EpochTruth, what: str, rank: int, since: float) -> None:
        if self.cluster.calm_at is None or self.cluster.calm_at >= self.world.now:
            self._all_dead(truth, f"{self.world.now - since:.1f} s after {what} of rank {rank}")

    def _all_dead(self, truth: EpochTruth, when: str) -> None:
        alive = [p for p in self.live if p.epoch == truth.epoch and not self._frozen(p)]
        if alive:
            names = ", ".join(f"{p.name} of rank {p.rank}" for p in alive[:4])
            self.world.broken("one fate", f"{when}, {len(alive)} processes of epoch {truth.epoch} live: {names}")

    def calm(self, since: float) -> bool:
        """Nothing silent is going on, or has been going on lately: every report arrives at once."""
        return not any(t.until > since - 1 and not t.sharp and t.since <= self.world.now for t in self.touches)

    def _frozen(self, proc: Proc) -> bool:
        guard = proc.guard
        return guard.frozen or self.world.now - guard.thawed_at <= self.cluster.plan.kill_time[1] + 0.01

    # ---------------------------------------------------------------------------------------------------- processes

    def process_started(self, proc: Proc) -> None:
        truth = self.epochs.get(proc.epoch)
        if truth is None:
            self.world.broken("whole", f"a process of {proc.epoch}, which no leader has made")
            return
        self._is_whole(truth, proc)
        self._in_order(truth, proc)
        for other in self.live:
            if other.epoch != proc.epoch and not self._excepted(other, proc):
                self.world.broken(
                    "one epoch",
                    f"{proc.name} of rank {proc.rank} starts in {proc.epoch} ({proc.guard.pod.name}) while "
                    f"{other.name} of rank {other.rank} lives in {other.epoch} ({other.guard.pod.name})",
                )
        self.live.append(proc)
        truth.procs += 1
        truth.started = True

    def _is_whole(self, truth: EpochTruth, proc: Proc) -> None:
        size = self.cluster.plan.size
        if len(truth.agents) < size:
            absent = sorted(set(range(size)) - set(truth.agents))
            self.world.broken("whole", f"{proc.name} of rank {proc.rank} starts; ranks {absent} have not prepared")
        if len({tuple(sorted(p.items())) for p in truth.prints.values()}) > 1:
            self.world.broken("whole", f"an engine starts although the ranks differ: {truth.prints}")
        if not proc.guard.holds_deadline:
            self.world.broken("whole", f"{proc.name} of rank {proc.rank} starts and its guard holds no deadline")
        lease = 1.02 * self.cluster.plan.lease
        for rank, agent in truth.agents.items():
            gone = agent.dead_at if agent.dead_at is not None else agent.left.get(truth.epoch)
            if gone is not None and self.world.now - gone > lease:
                self.world.broken("whole", f"a process starts {self.world.now - gone:.1f} s after rank {rank} was gone")

    def _in_order(self, truth: EpochTruth, proc: Proc) -> None:
        """Every process of the stages before is ready, on every rank."""
        before = [p for p in self.live if p.epoch == proc.epoch and p.stage < proc.stage]
        expected = sum(sum(stage) for stage in self.cluster.plan.stages[: proc.stage])
        if truth.failed_at is None and truth.calm and (len(before) < expected or not all(p.ready for p in before)):
            self.world.broken("whole", f"{proc.name} of rank {proc.rank} starts before the stages before it are done")

    def serves(self, agent: Agent, epoch: Epoch) -> None:
        """Rank 0 is told that the group serves."""
        truth = self.epochs[epoch]
        ready = sum(1 for p in self.live if p.epoch == epoch and p.ready)
        expected = sum(sum(stage) for stage in self.cluster.plan.stages)
        if ready < expected and truth.failed_at is None and truth.calm:
            self.world.broken("whole", f"{epoch} serves with {ready} of {expected} processes")

    def _excepted(self, other: Proc, proc: Proc) -> bool:
        if self._frozen(other):
            self.thawed += 1
            return True
        if self.epochs[other.epoch].guards & self.epochs[proc.epoch].guards:
            return False
        self.strangers += 1
        return True

    def process_ended(self, proc: Proc) -> None:
        if proc in self.live:
            self.live.remove(proc)
            self.epochs[proc.epoch].procs -= 1

    def first_death(self, epoch: Epoch) -> bool:
        truth = self.epochs[epoch]
        first, truth.first_death = not truth.first_death, True
        return first

    def process_told(self, proc: Proc) -> None:
        """TERM or KILL goes to a process. In a drain rank 0 goes first, and the others when it is gone."""
        truth = self.epochs[proc.epoch]
        if proc.rank == 0 or truth.drain_by is None or truth.hurried or truth.failed_at is not None:
            return
        early = self.world.now < truth.drain_by and self.calm(truth.made_at)
        if early and any(p.rank == 0 and p.epoch == proc.epoch for p in self.live):
            self.world.broken("drain", f"rank {proc.rank} is stopped before rank 0 in the drain of {proc.epoch}")

    # ------------------------------------------------------------------------------------------------------- drains

    def told_to_go(self, pod: Pod) -> None:
        self.terms_told[pod.rank] = self.world.now

    def drain_ordered(self, agent: Agent, action: mb.DoDrain) -> None:
        truth = self.epochs.get(action.epoch)
        if truth is not None:
            self.drains += agent.pod.rank == 0
            by = self.world.now + action.seconds
            truth.drain_by = by if truth.drain_by is None else min(by, truth.drain_by)

    def hurry(self) -> None:
        """A pod was told a second time, or to go within no time, or is killed at the end of its grace."""
        for truth in self.epochs.values():
            if truth.procs:
                truth.hurried = True

    def grace_over(self, pod: Pod) -> None:
        self.hurry()
        self.touch("the grace is over", pod.rank, kinds=LOST, sharp=True)
        self.launcher_killed(pod)

    def stop_ordered(self, agent: Agent, action: mb.DoStop) -> None:
        epoch = agent.member.epoch
        truth = self.epochs.get(epoch) if epoch is not None else None
        if truth is not None:
            truth.calm = False  # the word to start may still be on its way to another rank
        if action.autopsy:
            self._examines(agent, truth, action)
        hasty = action.grace < self.cluster.plan.stop_grace and action.cause.kind is not CauseKind.LEADER
        if truth is not None and hasty and not any(at >= truth.made_at - 0.5 for at in self.terms_told.values()):
            self.world.broken("one fate", f"{agent.pod.name} stops {epoch} within {action.grace:g} s: {action.cause}")
        if truth is None or agent.pod.rank != 0 or action.cause.kind is not CauseKind.DRAIN or not agent.in_flight:
            return
        if truth.failed_at is not None or truth.hurried or truth.by_hand or not self.calm(truth.made_at):
            return
        if truth.drain_by is None or self.world.now < truth.drain_by - 0.02 * self.cluster.plan.grace:
            self.world.broken("drain", f"{agent.in_flight} requests are cut in the drain of {epoch}")

    def _examines(self, agent: Agent, truth: EpochTruth | None, action: mb.DoStop) -> None:
        """Evidence is gathered after a verdict only, in the time that there is, and never past a guard's deadline."""
        who, deadline = agent.pod.name, agent.guard.deadline
        if action.cause.kind not in EXAMINED:
            self.world.broken("one fate", f"{who} gathers evidence, and the epoch ended by {action.cause}")
        if action.autopsy > agent.member.config.terms.autopsy:
            self.world.broken("one fate", f"{who} gathers evidence for {action.autopsy:g} s")
        if deadline is not None and agent.local + action.autopsy > deadline + 1e-6:
            self.world.broken("one fate", f"{who} gathers evidence past its guard's deadline")
        if agent.terminated or (truth is not None and truth.drain_by is not None):
            self.world.broken("drain", f"{who} gathers evidence in a drain")

    def _examined(self, leader: c.Coordinator, truth: EpochTruth, cause: Cause) -> None:
        """An epoch ended by a hang and by nothing else: every rank has told what it was doing, and the right one is
        named."""
        plan, net = self.cluster.plan, self.cluster.net
        others = [t for t in self.touches if t.until > truth.made_at - 1 and not t.kinds <= EXAMINED]
        told_to_go = any(at >= truth.made_at - 0.5 for at in self.terms_told.values())
        slow = net.base + net.jitter > leader.config.terms.autopsy / 8 or plan.stubborn
        if others or told_to_go or slow or len(truth.hung) != 1 or cause.kind not in EXAMINED:
            return
        found, (proc,) = leader.history.autopsy, truth.hung
        if found is None or found.epoch != truth.epoch or not cause.autopsy:
            self.world.broken("explains", f"{truth.epoch} ended by {cause}, and nobody was asked for evidence")
            return
        if set(found.evidence) != set(range(plan.size)):
            self.world.broken("explains", f"evidence of {truth.epoch} came from {sorted(found.evidence)} only")
        beside = [p for rank, all_ in found.evidence.items() for p in all_ if rank != proc.rank]
        if any(p.name == proc.name for p in beside) and found.rank != proc.rank:
            self.world.broken("explains", f"rank {proc.rank} hung in {truth.epoch}; the autopsy says: {found.verdict}")

    def outlives_grace(self, pod: Pod, since: float) -> None:
        """The kubelet kills a pod that was told to go: where nothing was in the way, its launcher had left by then."""
        if pod.agent is not None and self._free_to_leave(pod.agent, since):
            what = f"{len(pod.agent.guard.procs)} processes" if pod.agent.guard.procs else "nothing runs there"
            self.world.broken("drain", f"{pod.name} was told to go and is killed at the end of its grace: {what}")

    def left_without_goodbye(self, agent: Agent, epoch: Epoch) -> None:
        """A pod that was told to go waited until its grace was nearly over: then the epoch had not been over before."""
        told, leads = self.terms_told.get(agent.pod.rank), self.epochs[epoch].leader
        leader = leads.coordinator
        if told is None or leader is None or not leads.alive or not self._free_to_leave(agent, told):
            return
        if leader.epoch == epoch and leader.phase is c.GroupPhase.WAITING and leads.local - leader.phase_since > 1:
            self.world.broken("drain", f"{agent.pod.name} got no goodbye, and {epoch} has long been over")

    def _free_to_leave(self, agent: Agent, since: float) -> bool:
        plan, net = self.cluster.plan, self.cluster.net
        slow = plan.kill_time[1] > 0.1 or plan.unclean or net.base + net.jitter > 0.03
        if agent.stalled or slow or self.cluster.calm_at is not None:
            return False
        return not any(t.kinds & LOST and t.until > since - 1 for t in self.touches)

    def lease_acts(self, guard: Guard) -> None:
        """A guard's deadline has passed: only where somebody was lost. An epoch that stops with all there keeps it."""
        for epoch in {p.epoch for p in guard.procs}:
            made_at = self.epochs[epoch].made_at
            lost = any(t.kinds & LOST and t.until >= made_at for t in self.touches)
            if not lost and not any(at >= made_at - 0.5 for at in self.terms_told.values()):
                self.world.broken("one fate", f"{guard.pod.name} is killed by its lease in {epoch}; nobody was lost")

    def followed(self, agent: Agent) -> None:
        """A member without a connection took a step: it does not believe in one that is gone."""
        state = agent.member.state
        if agent.pod.rank and state in (mb.State.SEATED, mb.State.LEAVING):
            self.world.broken("recovers", f"{agent.pod.name} is {state.value} and has no connection to the leader")

    def exits(self, agent: Agent, action: mb.Exit) -> None:
        if action.code == 0:
            if not agent.terminated:
                self.world.broken("alone", f"{agent.pod.name} exits 0 and nobody told it to go")
            self._leaves_in_order(agent)
        elif agent.pod in self.cluster.pods:  # and not another group's
            if action.code == ExitCode.UNAVAILABLE:  # by --join-timeout, perhaps just as an epoch begins
                touch = self.touch("gave up", agent.pod.rank, kinds=LOST, sharp=True)
                touch.victim = agent.member.incarnation  # a second pod of a rank ends no epoch
            self.restarts.exits(agent, action)

    # ----------------------------------------------------------------------------------------------- state machines

    def prepared(self, agent: Agent, epoch: Epoch) -> None:
        truth = self.epochs.get(epoch)
        if truth is None:
            return
        if agent.able_for != epoch:
            self.world.broken("whole", f"{agent.pod.name} says that it has prepared {epoch}, and it has not")
        truth.agents[agent.pod.rank] = agent
        truth.prints[agent.pod.rank] = agent.member.fingerprint
        truth.guards.add(agent.guard)

    def before(self, agent: Agent, event: Any, conn: int) -> tuple[Any, ...] | None:
        """What a leader knows before it hears a hello, or a word of somebody who has no seat."""
        leader = agent.coordinator
        assert leader is not None
        if type(event) is m.Hello or (conn not in leader.roster.by_conn and conn != LOCAL):
            return _remembered(leader, agent.local), _seated(leader)
        return None

    def _unmoved(self, agent: Agent, event: Any, conn: int, actions: list[Any], before: tuple[Any, ...]) -> None:
        leader = agent.coordinator
        assert leader is not None
        knew, (seats, *state) = before
        knows, has = _remembered(leader, agent.local), _seated(leader)
        rank = leader.roster.by_conn.get(conn)
        accepted = any(type(a) is Send and a.conn == conn and type(a.message) is m.Accepted for a in actions)
        if conn == LOCAL and accepted and seats.get(0, ("",))[0] == event.incarnation:
            return  # rank 0 is back: it has the one connection inside this process, whatever became of its seat
        if rank is None or (rank in seats and seats[rank][1] == conn):  # refused, asked about, or of no use
            if leader.phase is not c.GroupPhase.ABORTED and (knew, (seats, *state)) != (knows, has):
                changed = _difference((*knew, seats, *state), (*knows, *has))
                self.world.broken("unmoved", f"{changed} by {event}, which is refused")
        elif seats.get(rank, ("",))[0] != event.incarnation and knew != knows:  # a new seat
            self.world.broken(
                "unmoved", f"{_difference(knew, knows)} by {event}, whose connection has not answered yet"
            )

    def led(self, agent: Agent, event: Any, conn: int, actions: list[Any], before: tuple[Any, ...] | None) -> None:
        """A coordinator took a step."""
        leader = agent.coordinator
        assert leader is not None
        if before is not None:
            self._unmoved(agent, event, conn, actions, before)
        name, kind = leader.config.incarnation, type(event)
        made, accepts, hangs = None, False, False
        if kind is Restart:
            self._asked_by_hand(agent, leader, self._phase.get(name, c.GroupPhase.WAITING))
        for action in actions:
            does = type(action)
            if does is Send or does is SendAll:
                message = action.message
                word = type(message)
                if does is SendAll:
                    self.restarts.said(agent, message)
                    if word is m.Prepare:
                        made = message.epoch
                        self._epoch_made(agent, leader, message)
                elif word in _VERDICTS:
                    self.answered[name].add(action.conn)
                    accepts |= word is m.Accepted
                if word is m.Stop:
                    self._stop_said(message)
            elif does is Hang:
                hangs = True
        ended = leader.history.ended[-1] if leader.history.ended else None
        tells_else = ended is not None and ended is not self._ended.get(name)
        if ended is not None and tells_else:
            before_it, self._ended[name] = self._ended.get(name), ended
            if before_it is None or before_it.epoch != ended.epoch:
                self._epoch_over(agent, leader)
        if made is not None:
            self.restarts.begins(agent, leader, made)
        if kind is m.Leaving and conn in leader.roster.by_conn:
            self._leaving.add(leader.seats[leader.roster.by_conn[conn]].hello.incarnation)
        if kind is m.Hello and event.group != leader.config.group and accepts:
            self.world.broken("whole", f"rank {event.rank} of {event.group} is let into {leader.config.group}")
        if hangs:
            self._told_why(leader, event, actions)
        answered = kind is m.Ping and self._proven(leader, conn)
        if ended is not None and (tells_else or answered):
            self._deaths_explained(leader, ended)
        if leader.phase is c.GroupPhase.WAITING and kind is Tick:
            self._waits_for_the_absent(leader)
            self.restarts.waits(agent, leader)
            self.restarts.gathers(agent, leader)
            self._not_fenced_for_nothing(leader)
        phase = self._phase.get(name, c.GroupPhase.WAITING)
        if leader.phase is not phase:
            self._phase[name] = leader.phase
            self.world.note(f"leader {agent.pod.name}", f"is {leader.phase.value}", str(leader.epoch))
            self.cluster.on_phase(leader.phase)
            if leader.phase is c.GroupPhase.ABORTED:
                self.restarts.gave_up(agent, leader)
            if leader.phase is c.GroupPhase.RUNNING:
                self.ran += 1
        first = leader.history.first
        if first is not self._first.get(name):
            if made is None:  # else it has heard of an earlier one in this very step, before its first epoch
                self._first_stays(leader)
            elif first is not None:
                self._first[name] = first

    def _stop_said(self, stop: m.Stop) -> None:
        truth = self.epochs[stop.epoch]
        if truth.ended_at is None:
            truth.ended_at, truth.drained = self.world.now, stop.cause.kind is CauseKind.DRAIN

    def _told_why(self, leader: c.Coordinator, event: Any, actions: list[Any]) -> None:
        """Who is turned away hears why, unless what he said was said before what he says now."""
        known = self.answered[leader.config.incarnation]
        for action in actions:
            if type(action) is Hang and action.conn not in known and action.conn != LOCAL:
                seat = leader.seats.get(event.rank) if type(event) is m.Hello else None
                if seat is None or seat.hello.incarnation != event.incarnation or seat.hello.attempt <= event.attempt:
                    self.world.broken("explains", f"connection {action.conn} is turned away without a word")

    def _waits_for_the_absent(self, leader: c.Coordinator) -> None:
        """A fence is for launchers that are not here: what a pod ran is gone when its launcher has answered."""
        if leader.wait is not c.Wait.FENCED:
            return
        fences = leader.fences

        def clean(since: float) -> set[str]:
            """Who has answered after that, and those before them in their pods."""
            contacts = {s.hello.incarnation: s.contact.proven for s in leader.seats.values()}
            here = {who for who, at in contacts.items() if at is not None and at >= since}
            return {name for a in self.cluster.agents() if a.member.incarnation in here for name in a.guard.replaces}

        foreign = any(absent <= clean(safe_at - fences.terms.fence) for absent, safe_at in fences.foreign.values())
        if foreign or clean(float("-inf")) & fences.lost.keys():
            self.world.broken("recovers", f"a lease is waited for, and its launcher is here: {leader.waiting_for()}")

    def _epoch_made(self, agent: Agent, leader: c.Coordinator, prepare: m.Prepare) -> None:
        if prepare.epoch in self.epochs:
            self.world.broken("one epoch", f"{prepare.epoch} was made twice")
        if len(prepare.incarnations) != self.cluster.plan.size:
            self.world.broken("whole", f"{prepare.epoch} has {len(prepare.incarnations)} members")
        if self._leaving & set(prepare.incarnations):
            self.world.broken("drain", f"{prepare.epoch} begins while a present member is leaving")
        told = [s.hello.first_failure for s in leader.seats.values() if s.hello.first_failure is not None]
        if leader.history.ended:
            told = []  # it knows better than its members: what they saw may have been the end of a drain
        if told and leader.history.first is None:
            self.world.broken("explains", f"the first failure ({told[0]}) was forgotten")
        knows = [a for a in self.cluster.agents() if a.knows_failure and a.member.incarnation in prepare.incarnations]
        if knows and leader.history.first is None and not leader.history.ended:
            self.world.broken("explains", f"{knows[0].pod.name} has seen an epoch fail; its leader shows no failure")
        known = [s.hello.last_epoch.n for s in leader.seats.values() if s.hello.last_epoch is not None]
        if prepare.epoch.n <= max(known, default=0):
            self.world.broken("one epoch", f"{prepare.epoch} is numbered no higher than an epoch that a member knows")
        if self.cluster.plan.max_restarts == 0:
            self._no_second(prepare)
        self.epochs[prepare.epoch] = truth = EpochTruth(prepare.epoch, agent, prepare.incarnations, self.world.now)
        truth.calm = not any(t.until > self.world.now for t in self.touches)
        self.cluster.leader_n = max(self.cluster.leader_n, prepare.epoch.n)

    def _no_second(self, prepare: m.Prepare) -> None:
        """No restart is allowed: no launcher whose epoch has failed takes part in another.

        Nobody pays for what fails in an epoch that ends anyway: it serves, and drains, or it was stopped before it ever
        served, for a pod was told to go (`_epoch_over` checks that one was).
        """
        for truth in self.epochs.values():
            drained = truth.drained or truth.drain_by is not None
            failed = truth.started and truth.failed_at is not None and not drained
            if failed and set(truth.members) & set(prepare.incarnations):
                self.world.broken("budget", f"{truth.epoch} failed and {prepare.epoch} follows; no restart is allowed")

    def _asked_by_hand(self, agent: Agent, leader: c.Coordinator, phase: c.GroupPhase) -> None:
        """A person wants a new epoch: one that is under way ends, and a back-off."""
        self.restarts.by_hand(agent, leader)
        if phase in (c.GroupPhase.PREPARING, c.GroupPhase.STARTING, c.GroupPhase.RUNNING):
            assert leader.epoch is not None
            truth = self.epochs.get(leader.epoch)
            if truth is not None:  # where a rule is broken, an epoch may begin that nobody was told of
                truth.by_hand = True
            if leader.phase is phase:
                self.world.broken("by hand", f"a new epoch was asked for, and {leader.epoch} is {phase.value}")

    def _epoch_over(self, agent: Agent, leader: c.Coordinator) -> None:
        ended = leader.history.ended[-1]
        truth, cause = self.epochs[ended.epoch], ended.cause
        self.restarts.over(agent, leader, ended)
        if truth.by_hand is not (cause.kind is CauseKind.RESTART):
            self.world.broken("explains", f"{ended.epoch} ended by {cause}; by hand: {truth.by_hand}")
        if cause.kind is CauseKind.RESTART:
            return
        if cause.kind is CauseKind.DRAIN:
            if cause.rank not in self.terms_told:
                self.world.broken(
                    "explains", f"{ended.epoch} ended by a drain of rank {cause.rank}, which was not told"
                )
            return
        self._explained(truth, cause)
        self._examined(leader, truth, cause)

    def _explained(self, truth: EpochTruth, cause: Cause) -> None:
        """The cause of an epoch's end, against what was truly done."""
        relevant = [t for t in self.touches if t.until >= truth.made_at]
        told_to_go = any(at >= truth.made_at - 0.5 for at in self.terms_told.values())
        if not relevant and not (told_to_go and cause.kind in LOST):
            self.world.broken("explains", f"{truth.epoch} failed ({cause.kind.value}, {cause}) and nothing had")
        silent = [t for t in relevant if not t.sharp]
        if cause.kind is CauseKind.UNABLE and not silent and not any(t.kinds == {CauseKind.UNABLE} for t in relevant):
            self.world.broken("explains", f"{truth.epoch} ended by {cause}; and it was able")
        if told_to_go:
            return
        if silent:
            self._silence_explained(truth, cause, silent, len(relevant))
            return
        relevant = [t for t in relevant if t.victim is None or t.victim in truth.members]
        if not relevant:
            return
        first = min(relevant, key=lambda t: t.since)
        if first.since < truth.made_at or any(t is not first and t.since - first.since < 2 for t in relevant):
            return
        if first.rank != cause.rank or cause.kind not in first.kinds:
            if first.rank in cause.rivals and not self.cluster.talkative:
                return  # two that ended by themselves, and nobody can tell which was first: that is said
            self.world.broken(
                "explains",
                f"{truth.epoch} ended by {first.what} of rank {first.rank}; told is {cause.kind.value}: {cause}",
            )

    def _silence_explained(self, truth: EpochTruth, cause: Cause, silent: list[Touch], touches: int) -> None:
        """One rank alone went silent: its silence is told, not only the guards' that acted on it."""
        net, beat = self.cluster.net, self.cluster.terms.beat
        touch = silent[0]
        if truth.ended_at is not None and touch.until - self.aftermath < truth.ended_at:
            return  # it can be heard again (TCP was late to repeat what was lost): whose guard acts first is chance
        if touches > 1 or touch.rank == 0 or touch.since < truth.made_at or net.base + net.jitter > beat / 4:
            return
        if cause.rank != touch.rank and f"; rank {touch.rank} had been silent" not in cause.text:
            self.world.broken("explains", f"{truth.epoch} ended by {touch.what} of rank {touch.rank}; told is: {cause}")

    @property
    def aftermath(self) -> float:
        """How long after its end a silent fault may be the reason of something: leases, and what TCP holds back."""
        return 3 * self.cluster.plan.lease + self.cluster.net.longest_pause * 2 + 1

    def stops_by_word(self, agent: Agent, epoch: Epoch | None) -> None:
        """A member begins to stop because it heard `stop`."""
        truth = self.epochs.get(epoch) if epoch is not None else None
        if truth is None or truth.ended_at is None:
            self.world.broken("one fate", f"{agent.pod.name} is made to stop in {epoch}, which nobody has ended")

    def _proven(self, leader: c.Coordinator, conn: int) -> bool:
        """Whether a launcher has answered, just now, on the connection of its hello: from now on the leader knows what
        it told. For the first time that is how the one before it ended, if it was killed."""
        rank = leader.roster.by_conn.get(conn)
        if rank is None or leader.seats[rank].contact.proven is None:
            return False
        hello = leader.seats[rank].hello
        key = (leader.config.incarnation, hello.incarnation, hello.attempt)
        if key in self._answered:
            return False
        self._answered.add(key)
        lately = [leader.epoch] if leader.epoch is not None else []
        for epoch in (*lately, *(ended.epoch for ended in list(leader.history.ended)[-1:])):
            truth = self.epochs[epoch]
            if truth.members[hello.rank] == hello.incarnation and truth.made_at < self.world.now:
                back = (leader.config.incarnation, epoch, hello.rank)
                self._lived_on[back] = self._lived_on.get(back, False) or hello.incarnation not in self.agents_killed
        for agent in self.cluster.agents():
            if agent.member.incarnation == hello.incarnation and not agent.joined:
                agent.joined = True
                told = self._deaths_told.setdefault(leader.config.incarnation, set())
                told |= self.agents_killed.keys() & set(hello.replaces)
        return True

    def _leaves_in_order(self, agent: Agent) -> None:
        """A leader exits: its epoch is over, and whoever is seated has been told so (if nothing keeps words back)."""
        leader = agent.coordinator
        if leader is None or leader.epoch is None or leader.phase is not c.GroupPhase.WAITING:
            return
        if self.calm(self.epochs[leader.epoch].made_at):
            told = {s.hello.incarnation for s in leader.seats.values() if leader.epoch is not None}
            self._left_in_order[agent.member.incarnation] = told

    def _not_fenced_for_nothing(self, leader: c.Coordinator) -> None:
        """A leader that left in good order is not waited for by the next one, if anybody is here whom it has told."""
        if leader.wait is not c.Wait.FENCED or leader.fences.lost:
            return
        here = {seat.hello.incarnation for seat in leader.seats.values()}
        for epoch, (absent, _) in leader.fences.foreign.items():
            if absent and all(self._left_in_order.get(who, set()) & here for who in absent):
                self.world.broken("recovers", f"{epoch} is waited out, and {sorted(absent)} left in good order")

    def _deaths_explained(self, leader: c.Coordinator, ended: Ended) -> None:
        """The latest epoch's end was the death of a launcher: that is told, when it is known, and of no other."""
        name = leader.config.incarnation
        members, rank = self.epochs[ended.epoch].members, ended.cause.rank
        lived_on = self._lived_on.get((name, ended.epoch, rank))
        over = self.epochs[ended.epoch].ended_at
        died_of_it = over is not None and self.agents_killed.get(members[rank], over) <= over
        told = members[rank] in self._deaths_told.get(name, ()) and died_of_it
        if ended.cause.kind is CauseKind.LOST and told and lived_on is None:
            self.world.broken(
                "explains", f"{ended.epoch}: the launcher of rank {rank} was killed, and told is {ended.cause}"
            )
        if ended.cause.kind is CauseKind.AGENT and members[rank] not in self.agents_killed:
            self.world.broken("explains", f"{ended.epoch} ended by {ended.cause}; and that launcher was not killed")
        if ended.cause.kind is CauseKind.AGENT and lived_on:
            self.world.broken("explains", f"{ended.epoch} ended by {ended.cause}; and that launcher had come back")

    def _first_stays(self, leader: c.Coordinator) -> None:
        name, first = leader.config.incarnation, leader.history.first
        before = self._first.get(name)
        if before is not None and leader.latest is not None and (first is None or first.rank != before.rank):
            self.world.broken("explains", f"the first failure ({before}) was covered by {first}")
        if first is not None:
            self._first[name] = first


def _remembered(leader: c.Coordinator, now: float) -> tuple[Any, ...]:
    """What a leader knows beside who is there: numbers, fences, failures, restarts. What time has ended is left out."""
    history, budget, fences = leader.history, leader.budget, leader.fences
    return (
        *(leader.highest_n, leader.epoch, history.first, history.first_n, history.first_at, list(history.ended)[-1:]),
        tuple(at for at in budget._charges if now - at <= budget._window),
        {k: v for k, v in fences.lost.items() if now < v[1]},
        # One behind which nobody is left stands for nothing; it goes with the next look, whatever brings that about.
        {k: v for k, v in fences.foreign.items() if now < v[1] and v[0]},
    )


def _seated(leader: c.Coordinator) -> tuple[Any, ...]:
    """Who is there, by rank, and how their epoch goes."""
    by_rank = {
        rank: (s.hello.incarnation, s.conn, replace(s.part), s.leaving, s.contact.at)
        for rank, s in leader.seats.items()
    }
    return (
        by_rank,
        leader.phase,
        leader.cause,
        leader.latest and leader.latest.frozen,
        tuple(leader.roster.superseded),
        leader.abort,
    )


def _difference(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    return "; ".join(f"{was} became {is_}" for was, is_ in zip(before, after, strict=True) if was != is_)
