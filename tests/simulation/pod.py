"""A pod as the launcher makes it: a guard, an agent and the engine's processes, on one machine with one clock.

The guard does what `launcher/guard/guard.py` promises: it starts and ends processes, holds the deadline, kills
everything when that passes or when its agent dies, and starts a new agent that knows whom it replaces. The agent drives
the real state machines just as `launcher/agent/agent.py` does. Only processes are invented: how long they take to
start, how they die, and whether they listen to TERM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group import messages as m
from launcher.group.config import CoordinatorConfig, MemberConfig, StageLimit
from launcher.group.events import Closed, Hang, Note, Send, SendAll, Tick
from launcher.group.roster import LOCAL
from launcher.model import Cause, CauseKind, Epoch, ProcessEvidence
from tests.simulation.network import End

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster


CLOSE_SECONDS = 1.0  #: as in link.py: twice that of a wire
TICK = Tick()


class Clock:
    """CLOCK_MONOTONIC of one machine: it started some time ago and is up to 1 % too fast or too slow."""

    def __init__(self, offset: float, rate: float) -> None:
        self.offset = offset
        self.rate = rate

    def local(self, true: float) -> float:
        return self.offset + true * self.rate

    def true(self, local: float) -> float:
        return (local - self.offset) / self.rate


class Proc:
    """A process of the engine, as it truly is."""

    __slots__ = ("agent", "alive", "asked", "epoch", "guard", "name", "rank", "ready", "stage")

    def __init__(self, guard: Guard, agent: Agent, epoch: Epoch, stage: int, name: str) -> None:
        self.guard = guard
        self.agent = agent
        self.epoch = epoch
        self.stage = stage
        self.name = name
        self.rank = guard.pod.rank
        self.alive = True
        self.asked = False  #: somebody of ours ends it
        self.ready = False


@dataclass(frozen=True)
class Memory:
    """What a former agent left for the next one of the same guard."""

    last: tuple[Epoch, tuple[str, ...]] | None = None


class Guard:
    """PID 1 of a container. It lives as long as the container."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.cluster = pod.cluster
        self.world = pod.cluster.world
        self.procs: list[Proc] = []
        self.agent: Agent | None = None
        self.replaces: list[str] = []
        self.memory = Memory()
        self.asked_grace: float | None = None
        self.dead = False
        self.frozen = False
        self.thawed_at = -1e9
        self._late: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._deadline: float | None = None
        self._watched = False
        self._expired = False
        self._lease_kill = False
        self._stopping = False  #: an order of the agent to stop everything is in progress
        self._evidence: list[ProcessEvidence] | None = None  #: of a stop that examines first
        self._kill_at = 0.0
        self._then: Callable[[], None] | None = None  #: the agent is gone: what to do when the tree is dead
        self._last_report = 0.0

    # ------------------------------------------------------------------------------------------------- its own time

    def later(self, delay: float, fn: Callable[..., None], *args: Any) -> None:
        """Do something on this machine after a while; not while the machine is frozen or gone."""
        self.world.at(delay, self._act, fn, args)

    def _act(self, fn: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.dead:
            return
        if self.frozen:
            self._late.append((fn, args))
        else:
            fn(*args)

    def freeze(self) -> None:
        self.frozen = True
        if self.agent is not None:
            self.agent.stalled = True

    def thaw(self) -> None:
        """All that was due happens now; the guard and the agent race."""
        if self.dead or not self.frozen:
            return
        self.frozen, self.thawed_at = False, self.world.now
        agent_first = self.world.chance(0.3)
        if agent_first and self.agent is not None:
            self.agent.thaw()
        late, self._late = self._late, []
        self.world.rng.shuffle(late)
        for fn, args in late:
            self._act(fn, args)
        if not agent_first and self.agent is not None:
            self.agent.thaw()

    def _report(self, name: str, *args: Any) -> None:
        """Tell the agent something, in order."""
        agent, world = self.agent, self.world
        if agent is None:
            return
        arrival = max(world.now + world.rng.choice((0.0005, 0.002, 0.02)), self._last_report)
        self._last_report = arrival
        world.at(arrival - world.now, agent.post, "guard", getattr(agent, name), *args)

    # --------------------------------------------------------------------------------------------------- the agent

    def start_agent(self, died: Cause | None = None) -> None:
        if self.agent is not None:
            return
        self._deadline, self._expired, self._lease_kill, self._stopping = None, False, False, False
        self._evidence = None
        self._last_report = self.world.now
        incarnation = self.cluster.new_incarnation(self.pod)
        self.agent = self.cluster.rules.agent(self, incarnation, tuple(self.replaces), died)
        self.remember(incarnation)
        self.agent.begin()
        if self.asked_grace is not None:
            self._report("told_to_go", self.asked_grace)

    def remember(self, incarnation: str) -> None:
        """The agent's name: a later agent of this guard will say that it replaces it."""
        if incarnation not in self.replaces:
            self.replaces.append(incarnation)

    def kill_agent(self, how: str = "killed by signal 9 (SIGKILL)") -> None:
        """kill -9 of the agent alone: the tree is killed, then a new agent is started."""
        agent = self.agent
        if agent is None or self.dead:
            return
        agent.die()
        self.agent = None
        self.cluster.truth.agents_killed[agent.member.incarnation] = self.cluster.world.now
        if self.cluster.plan.max_restarts == 0:  # Policy in guard/channel.py
            self._end_tree(lambda: self.pod.container_ends(137))
            return
        died = Cause(CauseKind.AGENT, self.pod.rank, f"the launcher of rank {self.pod.rank} was {how}")
        self._end_tree(lambda: self.later(self.world.between(0.05, 0.6), self.start_agent, died))

    def agent_exits(self, agent: Agent, code: int) -> None:
        if self.agent is agent:
            agent.die(exits=True)
            self.agent = None
            self._end_tree(lambda: self.pod.container_ends(code))

    def _end_tree(self, then: Callable[[], None]) -> None:
        self._then = then
        self._deadline = None
        for proc in self.procs:
            self._kill(proc)
        self._settle()

    def sigterm(self, grace: float) -> None:
        self.asked_grace = grace
        self._report("told_to_go", grace)

    # ------------------------------------------------------------------------------------------------- its processes

    def spawn(self, agent: Agent, epoch: Epoch, stage: int, index: int) -> str | None:
        """Start a process; or say why not."""
        if agent is not self.agent or self.dead:
            return "gone"
        if not self._may_start():
            return "expired"
        if self._stopping or self._lease_kill:
            return "stopping"
        proc = Proc(self, agent, epoch, stage, f"p{stage}.{index}")
        self.procs.append(proc)
        self.cluster.truth.process_started(proc)
        self._live(proc)
        return None

    def _may_start(self) -> bool:
        """The deadline is looked at before every start, whether or not its timer has run."""
        self._check_lease()
        return not self._expired

    def _live(self, proc: Proc) -> None:
        """What will become of a process if nobody ends it."""
        cluster, world = self.cluster, self.world
        fails = cluster.trouble_of(self.pod)
        if fails is not None and world.chance(fails.chance):
            self.later(fails.after * world.rng.random(), self._trouble, proc, fails.kind, fails.code)
        self.later(world.between(*cluster.plan.start_time), self._ready, proc)

    def _trouble(self, proc: Proc, kind: CauseKind, code: int) -> None:
        if self.cluster.calm_at is None:
            self.breaks(proc, kind, code)

    def _ready(self, proc: Proc) -> None:
        if proc.alive and not proc.asked:
            proc.ready = True
            if proc.agent is self.agent:
                self._report("gate_open", proc)

    def breaks(self, proc: Proc, kind: CauseKind, code: int, root: bool = True) -> None:
        """A process ends by itself."""
        if not proc.alive or proc.asked:
            return
        if root:
            self.cluster.truth.failed(proc.epoch, proc.rank, kind, self.pod)
            self.cluster.neighbours_break(proc)
        self._gone(proc)
        if proc.agent is self.agent:
            self._report("process_ended", proc, kind, code, self.world.now, not root)
        self._settle()

    def _gone(self, proc: Proc) -> None:
        proc.alive = False
        if proc in self.procs:
            self.procs.remove(proc)
        self.cluster.truth.process_ended(proc)

    def _term(self, proc: Proc) -> None:
        if proc.asked:
            return
        proc.asked = True
        self.cluster.truth.process_told(proc)
        stubborn = self.cluster.plan.stubborn
        if self.world.rng.random() >= stubborn:
            self.later(self.world.between(*self.cluster.plan.term_time), self._dies, proc)

    def _kill(self, proc: Proc) -> None:
        if proc.alive:
            if not proc.asked:
                proc.asked = True
                self.cluster.truth.process_told(proc)
            self.later(self.world.between(*self.cluster.plan.kill_time), self._dies, proc)

    def _dies(self, proc: Proc) -> None:
        if proc.alive:
            self._gone(proc)
            self.cluster.neighbours_break(proc)
            self._settle()

    def stop(self, agent: Agent, grace: float, examine: float = 0.0) -> None:
        """TERM, ``grace`` seconds, KILL, for everything. A later order can only shorten it.

        ``examine``: instead of TERM every process is stopped, tells after a quarter of that time what it was doing, and
        ends; what has not by then is killed.
        """
        if agent is not self.agent or self.dead:
            return
        kill_at = self.world.now + (examine or grace)
        if self._stopping:
            if kill_at >= self._kill_at:
                return
        elif examine:
            self._examine(examine)
        else:
            for proc in list(self.procs):
                self._term(proc)
        self._stopping = True
        self._kill_at = kill_at
        self.later(kill_at - self.world.now, self._kill_what_is_left, kill_at)
        self._settle()

    def _examine(self, seconds: float) -> None:
        self._evidence = []
        for proc in self.procs:
            proc.asked = True
            self.cluster.truth.process_told(proc)
            self.later(seconds * self.world.between(0.25, 0.9), self._aborted, proc)

    def _aborted(self, proc: Proc) -> None:
        """It tells what it was doing, and ends. One that is stubborn tells nothing, and is killed."""
        if proc.alive and self._evidence is not None and self.world.rng.random() >= self.cluster.plan.stubborn:
            at = "forward" if self.cluster.truth.hangs(proc) else "all_reduce"
            self._evidence.append(ProcessEvidence(1 + len(self._evidence), proc.name, "S", frames=(f"{at} (m.py:1)",)))
            self._dies(proc)

    def _kill_what_is_left(self, kill_at: float) -> None:
        if self._stopping and self._kill_at == kill_at:
            for proc in self.procs:
                self._kill(proc)

    def _settle(self) -> None:
        """The tree is dead: whoever waits for that hears of it."""
        if self.procs or self.dead:
            return
        if self._then is not None:
            then, self._then = self._then, None
            then()
            return
        if self._lease_kill:
            self._lease_kill = False
            self._report("lease_expired")
        if self._stopping:
            self._stopping = False
            if self._evidence is not None:
                self._report("examined", tuple(self._evidence))
                self._evidence = None
            self._report("tree_is_dead")

    # ---------------------------------------------------------------------------------------------------- the lease

    def set_deadline(self, agent: Agent, at: float | None) -> None:
        if agent is not self.agent or self.dead:
            return
        self._deadline, self._expired = at, False
        if at is not None and not self._watched:
            self._arm()

    @property
    def deadline(self) -> float | None:
        """By this machine's clock."""
        return self._deadline

    @property
    def holds_deadline(self) -> bool:
        return self._deadline is not None and self.pod.clock.local(self.world.now) < self._deadline

    def _arm(self) -> None:
        assert self._deadline is not None
        wait = self.pod.clock.true(self._deadline) - self.world.now
        self._watched = True
        self.world.at(max(0.0, wait) + 1e-6, self._wakes)

    def _wakes(self) -> None:
        self._watched = False
        if self._deadline is not None and not self.dead and not self._expired:
            if self.pod.clock.local(self.world.now) < self._deadline:
                self._arm()
            else:
                self._act(self._check_lease, ())

    def _check_lease(self) -> None:
        if self._deadline is None or self._expired or self.pod.clock.local(self.world.now) < self._deadline:
            return
        self._expired = True
        self.world.note(self.pod.name, "guard: the deadline passed", f"{len(self.procs)} processes")
        if not self._lease_kill:
            self._lease_kill = True
            self.cluster.truth.lease_acts(self)
            for proc in self.procs:
                self._kill(proc)
            self._settle()

    # ------------------------------------------------------------------------------------------------------ the end

    def vanish(self) -> None:
        """The container is killed whole: everything in it ends at once."""
        self.dead = True
        for proc in self.procs:
            proc.alive = False
            self.cluster.truth.process_ended(proc)
        self.procs.clear()


class Agent:
    """The agent's life: the real state machines, and what their actions do."""

    def __init__(self, guard: Guard, incarnation: str, replaces: tuple[str, ...], died: Cause | None) -> None:
        pod, cluster = guard.pod, guard.cluster
        self.guard = guard
        self.pod = pod
        self.cluster = cluster
        self.world = cluster.world
        self.truth = cluster.truth
        self._clock = pod.clock
        self._half_beat = cluster.terms.beat / 2 / pod.clock.rate
        self._leads = f"leader {pod.name}"
        self.born = self.world.now
        self.dead_at: float | None = None
        self.stalled = False
        self.terminated = False
        self.knows_failure = False  #: it has taken part in an epoch that failed
        self.joined = False  #: some leader has heard its hello and given it a seat
        self.given_up = False  #: it has heard that the group has given up
        self.left: dict[Epoch, float] = {}  #: when this member last took part in an epoch, in true time
        self._queues: dict[Any, deque[tuple[Callable[..., None], tuple[Any, ...]]]] = {}
        now = self.local
        config = MemberConfig(
            group=pod.group,
            rank=pod.rank,
            size=pod.size,
            name=pod.name,
            incarnation=incarnation,
            terms=cluster.terms,
            stop_grace=cluster.plan.stop_grace,
            join_timeout=cluster.plan.join_timeout,
            rejoin_timeout=cluster.plan.rejoin_timeout,
            may_restart=cluster.plan.max_restarts > 0,
            replaces=replaces,
            died=died,
            last=guard.memory.last,
        )
        self.member: mb.Member = cluster.rules.member(config, now)
        self.member.address = pod.address
        self.member.fingerprint = dict(pod.fingerprint)
        self.member.gave_up_at = pod.gave_up_at if cluster.plan.keeps_verdict else None
        self.coordinator: c.Coordinator | None = None
        if pod.rank == 0:
            leads = CoordinatorConfig(
                group=pod.group,
                size=pod.size,
                incarnation=incarnation,
                terms=cluster.terms,
                max_restarts=cluster.plan.max_restarts,
                restart_window=cluster.plan.restart_window,
                restart_backoff=cluster.plan.restart_backoff,
                join_timeout=cluster.plan.join_timeout,
                linger=cluster.plan.linger,
                stop_grace=cluster.plan.stop_grace,
                highest_n=pod.highest_n,
            )
            self.coordinator = cluster.rules.coordinator(leads, now, self.world.rng)
            self.coordinator.stages = tuple(StageLimit(f"stage{i}") for i in range(len(cluster.plan.stages)))
        self.ends: dict[int, End] = {}  # the leader's connections
        self.hung: set[int] = set()
        self._next_conn = 0
        self._link: End | None = None  # a member's
        self._dialing = 0
        self._gates: set[Proc] = set()
        self._stage: tuple[Epoch, int] | None = None
        self._stop_since: float | None = None
        self._stops = 0
        self._examined_epoch: Epoch | None = None
        self._served: Epoch | None = None
        self.in_flight = 0
        self.able_for: Epoch | None = None
        self._arrivals = False
        self._drain_quiet: Epoch | None = None
        self._member_ticks_first = self.world.chance(0.5)
        self._tick_queued = False

    @property
    def local(self) -> float:
        return self._clock.offset + self.world.now * self._clock.rate  # asked at every step

    @property
    def alive(self) -> bool:
        return self.dead_at is None

    # ------------------------------------------------------------------------------------------------ the event loop

    def begin(self) -> None:
        self.world.at(self.world.between(0.001, 0.05), self.post, "guard", self.looked_around)
        self._tick_later()

    def looked_around(self) -> None:
        self.follow(mb.Gone())

    def post(self, source: Any, fn: Callable[..., None], *args: Any) -> None:
        """Something arrives. A stalled agent finds it later, in the order of its source."""
        if self.dead_at is not None:
            return
        if self.stalled:
            self._queues.setdefault(source, deque()).append((fn, args))
        else:
            fn(*args)

    def thaw(self) -> None:
        """The loop turns again: all that has come is dealt with, the sources in any order."""
        if self.dead_at is not None:
            return
        self.stalled = False
        while self._queues and self.dead_at is None and not self.stalled:
            source = self.world.rng.choice(list(self._queues))
            queue = self._queues[source]
            fn, args = queue.popleft()
            if not queue:
                del self._queues[source]
            fn(*args)

    def _tick_later(self) -> None:
        self.world.at(self._half_beat * (1 + 0.02 * self.world.rng.random()), self._ticked)

    def _ticked(self) -> None:
        if self.dead_at is not None:
            return
        if not self.stalled:
            self._tick()
        elif not self._tick_queued:
            self._tick_queued = True
            self.post("tick", self._tick)
        self.world.at(self._half_beat * (1 + 0.02 * self.world.rng.random()), self._ticked)

    def _tick(self) -> None:
        self._tick_queued = False
        if self._member_ticks_first:
            self.follow(TICK)
        if self.coordinator is not None and self.dead_at is None:
            self.lead(TICK, LOCAL)
        if not self._member_ticks_first and self.dead_at is None:
            self.follow(TICK)

    # ------------------------------------------------------------------------------------------- the state machines

    def lead(self, event: Any, conn: int) -> None:
        assert self.coordinator is not None
        before = self.truth.before(self, event, conn)
        actions: list[Any] = self.coordinator.handle(event, conn, self.local)
        self.truth.led(self, event, conn, actions, before)
        for action in actions:
            kind = type(action)
            if kind is Send:
                self._tell(action.conn, action.message)
            elif kind is SendAll:
                for to in action.conns:
                    self._tell(to, action.message)
            elif kind is Hang:
                self._hang_up(action.conn)
            elif kind is Note:
                self.world.note(self._leads, action.event, dict(action.fields))

    def _tell(self, conn: int, message: Any) -> None:
        if conn == LOCAL:
            self.world.at(0.0, self.post, "local", self.follow, message)
            return
        end = self.ends.get(conn)
        if type(message) is m.Abort and end is not None:
            self.truth.restarts.tells(self, end.peer.agent)
        if type(message) is m.Ack and conn in self.hung:
            self.world.broken("acks", f"an ack to connection {conn}, which was given up")
        if end is not None:
            end.send(self.cluster.wire(message, m.LEADER_SAYS) if self.cluster.net.on_the_wire else message)

    def _hang_up(self, conn: int) -> None:
        if conn == LOCAL:
            return  # there is nothing to hang up: the agent has one queue for both, and the member finds out by itself
        self.hung.add(conn)
        end = self.ends.pop(conn, None)
        if end is not None:
            end.close()

    def follow(self, event: Any) -> None:
        member, kind = self.member, type(event)
        before, epoch = member.state, member.epoch
        if kind is m.News and event.first_failure is None and event.phase != "stopping":
            self.knows_failure = False  # the leader knows: it was no failure, or it is long over
        if kind is m.Abort:
            self.given_up = True
            self.truth.restarts.hears(self, event)
        actions = member.handle(event, self.local)
        self.pod.gave_up_at = member.gave_up_at
        if kind is m.News and self.guard.memory.last is not None and epoch == self.guard.memory.last[0]:
            self.guard.memory = Memory((epoch, member.epoch_members))
        if member.state is not before:
            self.world.note(self.pod.name, member.state.value, kind.__name__)
            if (before, kind) == (mb.State.LEAVING, Tick) and epoch is not None:
                self.truth.left_without_goodbye(self, epoch)
            if member.state is mb.State.STOPPING and kind is m.Stop:
                self.truth.stops_by_word(self, epoch)
            if before in _IN_EPOCH and member.state not in _IN_EPOCH and epoch is not None:
                self.left[epoch] = self.world.now
            if member.state is mb.State.STOPPING and member.cause is not None:
                self.knows_failure |= member.cause.kind is not CauseKind.DRAIN
        for action in actions:
            does = type(action)
            if does is Send:
                self._say(action.message)
            elif does is Note:
                self.world.note(self.pod.name, action.event, dict(action.fields))
            else:
                _DOES[does](self, action)
        if member.incarnation not in self.guard.replaces and self.guard.agent is self:
            self.guard.remember(member.incarnation)
        if self._link is None:
            self.truth.followed(self)

    def _say(self, message: Any) -> None:
        if type(message) is m.Prepared:
            self.truth.prepared(self, message.epoch)
        if self.pod.rank == 0:
            self.world.at(0.0, self.post, "local", self.lead, message, LOCAL)
        elif self._link is not None:
            self._link.send(self.cluster.wire(message, m.MEMBER_SAYS) if self.cluster.net.on_the_wire else message)

    # ----------------------------------------------------------------------------------------------------- the links

    def accept(self, end: End) -> None:
        """The leader's listener: a new connection."""
        self._next_conn += 1
        end.conn = self._next_conn
        self.ends[end.conn] = end

    def heard(self, end: End, message: Any) -> None:
        if end.deaf:
            return
        if end.conn:
            if end.conn in self.ends:
                self.lead(message, end.conn)
        elif end is self._link:
            self.follow(message)

    def hung_up(self, end: End, why: str) -> None:
        """The other side closed, or the connection broke."""
        if end.deaf:
            return
        if end.conn:
            if self.ends.pop(end.conn, None) is not None:
                self.lead(Closed(why), end.conn)
        elif end is self._link:
            self._link = None
            self.follow(Closed(why))

    def _dial(self, action: mb.Dial) -> None:
        self._drop_link()
        self._dialing += 1
        self.world.at(action.delay + 0.001, self.post, "dial", self._try, self._dialing)

    def _try(self, attempt: int) -> None:
        if attempt != self._dialing:
            return
        if self.pod.rank == 0:
            self.follow(mb.Connected())
            return
        self.cluster.connect(self, attempt)

    def dial_failed(self, attempt: int) -> None:
        if attempt == self._dialing and self.alive:
            self.world.at(self.world.between(0.1, 1.0), self.post, "dial", self._try, attempt)

    def connected(self, attempt: int, end: End) -> None:
        if attempt != self._dialing or not self.alive:
            end.close()
            return
        self._link = end
        self.follow(mb.Connected())

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _hang(self, action: Hang) -> None:
        self._drop_link()

    @property
    def link(self) -> End | None:
        return self._link

    # ------------------------------------------------------------------------------------------------------ the work

    def _prepare(self, action: mb.DoPrepare) -> None:
        epoch = action.shared.epoch
        self.guard.memory = Memory((epoch, self.member.epoch_members))
        answer: Any = mb.Able(epoch)
        unable = self.cluster.unable_of(self.pod)
        if unable is not None:
            cause = Cause(CauseKind.UNABLE, self.pod.rank, f"rank {self.pod.rank} cannot prepare")
            answer = mb.NotAble(epoch, cause, unable)
        self.world.at(self.cluster.prepare_time(), self.post, "work", self._looked, answer)

    def _looked(self, answer: mb.Able | mb.NotAble) -> None:
        """Whether this node can run the epoch is known; perhaps the epoch is long over."""
        self.able_for = answer.epoch
        if isinstance(answer, mb.NotAble):
            self.truth.failed(answer.epoch, self.pod.rank, CauseKind.UNABLE, self.pod)
        self.follow(answer)

    def _start_stage(self, action: mb.DoStage) -> None:
        self._stage = (action.epoch, action.stage)
        self._gates = set()
        for index in range(self.cluster.plan.stages[action.stage][self.pod.rank]):
            refused = self.guard.spawn(self, action.epoch, action.stage, index)
            if refused == "expired":
                self.world.at(0.0, self.post, "guard", self.follow, mb.Expired())
                return
            if refused is None:
                self._gates.add(self.guard.procs[-1])
        if not self._gates:
            self.world.at(0.0, self.post, "work", self._stage_done, action.epoch, action.stage)

    def gate_open(self, proc: Proc) -> None:
        if (proc.epoch, proc.stage) != self._stage:
            return
        self._gates.discard(proc)
        if not self._gates:
            self._stage_done(proc.epoch, proc.stage)

    def _stage_done(self, epoch: Epoch, stage: int) -> None:
        if self._stage == (epoch, stage):
            self.follow(mb.Done(epoch, stage))

    def process_ended(self, proc: Proc, kind: CauseKind, code: int, ended: float, followed: bool) -> None:
        """``ended``: the true time. The guard noticed it some time later, and knows how late it may have been."""
        text = f"{proc.name} of rank {proc.rank} ended: {kind.value} {code}"
        late = self.cluster.evidence.choice((0.0, 0.001, 0.02, 0.2)) * self.cluster.evidence.random()
        noticed = self.pod.clock.local(min(ended + late, self.world.now))
        doubt = noticed - self.pod.clock.local(ended)
        cause = Cause(kind, proc.rank, text, proc.name, code, self.cluster.last_words(followed))
        self.follow(mb.Broke(proc.epoch, cause, self.local - noticed, doubt * self.cluster.evidence.uniform(1, 2)))

    def _stop(self, action: mb.DoStop) -> None:
        self._stops += 1
        self._gates, self._stage = set(), None
        if self._stop_since is None:
            self._stop_since = self.world.now
        self.truth.stop_ordered(self, action)
        self._served, self.in_flight = None, 0
        self._examined_epoch = self.member.epoch if action.autopsy else None
        self.guard.stop(self, action.grace, action.autopsy)

    def examined(self, processes: tuple[ProcessEvidence, ...]) -> None:
        if self._examined_epoch is not None:
            self.follow(mb.Examined(self._examined_epoch, processes))

    def hang_noticed(self, epoch: Epoch, kind: CauseKind) -> None:
        """The health watch, or a look at the process table, has reached its verdict."""
        text = f"rank {self.pod.rank} is told to hang: {kind.value}"
        self.follow(mb.Broke(epoch, Cause(kind, self.pod.rank, text, "p0.0"), 0.2))

    def tree_is_dead(self) -> None:
        """Ports free, memory back, files gone? Sometimes it takes a moment."""
        seconds = self.world.now - (self._stop_since or self.world.now)
        self._stop_since = None
        if self.world.chance(self.cluster.plan.unclean):
            self.follow(mb.Gone(False, "something is still there", seconds))
            self.world.at(self.world.between(0.1, 3.0), self.post, "guard", self._now_clean, self._stops, seconds)
        else:
            self.follow(mb.Gone(True, "", seconds))

    def _now_clean(self, stop: int, seconds: float) -> None:
        """Of an earlier stop this says nothing any more: another engine may run."""
        if stop == self._stops:
            self.follow(mb.Gone(True, "", seconds))

    def lease_expired(self) -> None:
        self.follow(mb.Expired())

    def _deadline(self, action: mb.SetDeadline) -> None:
        self.guard.set_deadline(self, action.at)

    def told_to_go(self, grace: float) -> None:
        self.terminated = True
        self.follow(mb.Terminate(grace))

    def _exit(self, action: mb.Exit) -> None:
        if self.coordinator is not None and self.coordinator.lingers(self.local):
            self.world.at(0.05, self.post, "exit", self._exit, action)
            return
        self.world.note(self.pod.name, "exits", action.code, action.text)
        self.truth.exits(self, action)
        self.guard.agent_exits(self, action.code)

    def die(self, *, exits: bool = False) -> None:
        """The process ends; the kernel closes its connections. A leader that exits waits for the others' close."""
        self.dead_at = self.world.now
        abort = self.world.chance(0.3)
        for end in [*self.ends.values(), *([self._link] if self._link is not None else [])]:
            if exits and end.conn:
                end.leave(CLOSE_SECONDS)
            elif abort:
                end.abort()
            else:
                end.close()
        self._queues.clear()

    def vanish(self) -> None:
        """The node is gone: nobody is told."""
        self.dead_at = self.world.now
        for end in [*self.ends.values(), *([self._link] if self._link is not None else [])]:
            end.vanish()

    # -------------------------------------------------------------------------------------------- requests of users

    def _serve(self, action: mb.DoServe) -> None:
        if self.pod.rank == 0:
            self.truth.serves(self, action.epoch)
            self._served = action.epoch
            self.in_flight = 0
            self._arrivals = True
            self.world.at(self.world.between(0.0, 2.0), self._request, action.epoch)

    def _request(self, epoch: Epoch) -> None:
        if self._served != epoch or not self._arrivals or not self.alive or not self.guard.procs:
            return
        self.in_flight += 1
        self.world.at(self.world.between(0.05, self.cluster.plan.longest_request), self._answered, epoch)
        self.world.at(self.world.between(0.1, 3.0), self._request, epoch)

    def _answered(self, epoch: Epoch) -> None:
        if self._served == epoch and self.in_flight:
            self.in_flight -= 1
            self._quiet()

    def _drain(self, action: mb.DoDrain) -> None:
        self.truth.drain_ordered(self, action)
        if self.pod.rank == 0:
            settle = min(5.0, action.seconds / 4) * self.world.rng.random()
            self.world.at(settle, self.post, "work", self._no_more, action.epoch)

    def _no_more(self, epoch: Epoch) -> None:
        self._arrivals = False
        self._drain_quiet = epoch
        self._quiet()

    def _quiet(self) -> None:
        if self._drain_quiet is not None and self.in_flight == 0:
            epoch, self._drain_quiet = self._drain_quiet, None
            self.world.at(0.0, self.post, "work", self.follow, mb.Idle(epoch))


_IN_EPOCH = {mb.State.STARTING, mb.State.RUNNING}

_DOES: dict[type[Any], Callable[[Agent, Any], None]] = {
    mb.Dial: Agent._dial,
    Hang: Agent._hang,
    mb.DoPrepare: Agent._prepare,
    mb.DoStage: Agent._start_stage,
    mb.DoServe: Agent._serve,
    mb.DoDrain: Agent._drain,
    mb.DoStop: Agent._stop,
    mb.SetDeadline: Agent._deadline,
    mb.Exit: Agent._exit,
}


class Pod:
    """One pod: its name, its address, its clock, and the container that runs in it now."""

    def __init__(
        self, cluster: Cluster, rank: int, name: str, address: str, clock: Clock, group: str, size: int
    ) -> None:
        self.cluster = cluster
        self.rank = rank
        self.name = name
        self.address = address
        self.clock = clock
        self.group = group
        self.size = size
        self.node = cluster.new_node()
        self.fingerprint: dict[str, str] = {}
        self.highest_n = 0
        self.gave_up_at: float | None = None  #: in the state folder: when the group gave up, by this pod's clock
        self.deleting = False
        self.alive = True
        self.guard: Guard | None = None

    @property
    def agent(self) -> Agent | None:
        return self.guard.agent if self.guard is not None and self.alive else None

    def start(self) -> None:
        """The container runtime starts the launcher."""
        if self.alive and not self.deleting and (self.guard is None or self.guard.dead):
            self.guard = self.cluster.rules.guard(self)
            self.guard.start_agent()

    def container_ends(self, code: int) -> None:
        """The guard exits: the container is over. The kubelet starts another, unless the pod is being deleted."""
        assert self.guard is not None
        self.guard.vanish()
        if self.deleting or self.cluster.plan.stays_down:
            self.cluster.pod_is_gone(self)
        elif self.alive:
            self.cluster.world.at(self.cluster.world.between(0.2, 3.0), self.start)

    def kill_container(self) -> None:
        """kill -9 of the guard: all of the container ends, and the kubelet starts it anew. Nobody in it remembers."""
        assert self.guard is not None
        agent = self.guard.agent
        self.guard.vanish()
        self.guard.agent = None
        if agent is not None:
            agent.die()
        if self.deleting:
            self.cluster.pod_is_gone(self)
        else:
            self.cluster.world.at(self.cluster.world.between(0.2, 3.0), self.start)

    def kill(self, silent: bool) -> None:
        """All of it vanishes at once. ``silent``: with its node, so that no connection is closed."""
        if not self.alive:
            return
        self.alive = False
        if self.guard is not None and not self.guard.dead:
            agent = self.guard.agent
            self.guard.vanish()
            self.guard.agent = None
            if agent is not None and silent:
                agent.vanish()
            elif agent is not None:
                agent.die()
