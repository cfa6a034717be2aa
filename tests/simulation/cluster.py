"""The platform around the pods: who has which rank and address, what DNS says, and how the engine behaves today.

A StatefulSet as the launcher meets it: a pod that is deleted comes back under its name with a new address; a container
that exits is started again in its pod; DNS follows after a while. What the engine does (how long it takes to start, how
it dies) is drawn once a schedule; faults change it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group import messages as m
from launcher.group.lease import Terms
from launcher.model import CauseKind
from tests.simulation.network import End, Network
from tests.simulation.pod import Agent, Clock, Guard, Pod, Proc
from tests.simulation.promises import Truth
from tests.simulation.world import World

GROUP, OTHER = "ns/vllm-0", "ns/other-0"
OPEN_SECONDS = 3.0  # as in link.py
MOST_DRIFT = 0.01


@dataclass(frozen=True)
class Rules:
    """The two state machines under test, and the stand-ins of what carries them; mutations put others here."""

    coordinator: type[c.Coordinator] = c.Coordinator
    member: type[mb.Member] = mb.Member
    guard: type[Guard] = Guard
    agent: type[Agent] = Agent


@dataclass(frozen=True)
class Plan:
    """What one schedule holds from its beginning to its end."""

    size: int
    lease: float
    stages: tuple[tuple[int, ...], ...]  #: processes by stage and rank
    start_time: tuple[float, float]
    term_time: tuple[float, float]
    kill_time: tuple[float, float]
    prepare_time: tuple[float, float]
    stubborn: float  #: chance that a process ignores TERM
    unclean: float  #: chance that a dead tree leaves something behind for a while
    stop_grace: float
    grace: float  #: terminationGracePeriodSeconds
    longest_request: float
    fragile: bool  #: the processes of the other ranks end when one ends
    max_restarts: int
    restart_window: float
    kernel_accepts: bool  #: a frozen leader's connections open all the same (the kernel, or a proxy, takes them)
    state_file: bool  #: the leader's highest n outlives its pod
    restart_backoff: float  #: the longest pause between two epochs
    drift: float  #: clocks are off by so much at most
    join_timeout: float | None = None
    rejoin_timeout: float | None = None
    linger: float = 0.0
    stays_down: bool = False  #: as under a Job or Slurm: nobody brings a pod back that ended, or is lost
    keeps_verdict: bool = False  #: that the group gave up outlives a pod's container
    rates: tuple[float, ...] = ()  #: by rank: how fast the clocks of its pods are; empty: drawn for each pod


def draw_plan(rng: random.Random) -> Plan:
    size = rng.choices((1, 2, 3, 4, rng.randint(5, 8), rng.randint(9, 32)), (4, 26, 28, 14, 13, 15))[0]
    lease = rng.choice((10.0, 10.0, 5.0, 2.0))
    stages = []
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        stages.append(tuple(rng.choice((0, 1, 1, 2)) for _ in range(size)))
    if not any(map(sum, stages)):
        stages[0] = (1,) * size
    if rng.random() < 0.5:
        stages[0] = tuple(max(1, n) for n in stages[0])
    slow = rng.random()
    return Plan(
        size=size,
        lease=lease,
        stages=tuple(stages),
        start_time=(0.05, rng.choice((0.2, 1.0, 4.0))),
        term_time=(0.0, rng.choice((0.01, 0.5, 2.0))),
        kill_time=(0.001, 0.2 * lease if slow < 0.25 else 0.05),
        prepare_time=(0.0, rng.choice((0.0, 0.05, 0.5, 0.5 * lease))),
        stubborn=rng.choice((0.0, 0.0, 0.3)),
        unclean=rng.choice((0.0, 0.0, 0.2)),
        stop_grace=1.5 * lease if rng.random() < 0.1 else rng.choice((0.5, 1.0, 3.0)),
        grace=rng.choice((5.0, 15.0, 30.0)),
        longest_request=rng.choice((0.5, 4.0, 20.0)),
        fragile=rng.random() < 0.5,
        max_restarts=rng.choice((0, 1, 2, 3)) if rng.random() < 0.15 else 1000,
        restart_window=rng.choice((5.0, 3600.0)),
        kernel_accepts=rng.random() < 0.5,
        state_file=rng.random() < 0.5,
        restart_backoff=rng.choice((60.0, 60.0, 2.0)),
        drift=rng.choice((0.0, 0.001, MOST_DRIFT)),
        join_timeout=rng.choice((10.0, 30.0)) if rng.random() < 0.1 else None,
    )


@dataclass(frozen=True)
class Trouble:
    """Processes that fail by themselves: with ``chance``, within ``after`` seconds of their start."""

    kind: CauseKind
    code: int
    chance: float
    after: float


class Cluster:
    def __init__(self, world: World, rules: Rules, **plan: Any) -> None:
        self.world = world
        self.evidence = random.Random(f"evidence of {world.seed}")  #: what changes nothing but what is told of an end
        self.talkative = self.evidence.random() < 0.5  #: the engine's last words tell who ended because of a neighbour
        self.rules = rules
        self.plan = replace(draw_plan(world.rng), **plan)
        self.terms = Terms(self.plan.lease)
        self.net = Network(world)
        self.truth = Truth(self)
        self.pods: list[Pod] = []  #: of our group, alive
        self.by_address: dict[str, Pod] = {}
        self.dns = ""
        self.trouble: dict[int, Trouble] = {}
        self.unable: dict[int, bool] = {}
        self.version: dict[int, str] = {}  #: what a new pod of a rank runs
        self.wanted = set(range(self.plan.size))
        self.calm_at: float | None = None  #: when faults stop
        self.ever_unable = False
        self.hold_for = 0.0
        self.held_hellos = 0  #: so many new connections are held up, their hello in them
        self.ambushes: list[tuple[c.GroupPhase, float, Callable[[], None]]] = []  #: faults that wait for a phase
        self.leader_n = 0
        self._names = 0
        self._nodes = 0
        self._addresses = 0
        self._incarnations = 0

    # --------------------------------------------------------------------------------------------------- the pods

    def new_incarnation(self, pod: Pod) -> str:
        self._incarnations += 1
        return f"i{self._incarnations:03d}r{pod.rank}"

    def new_node(self) -> int:
        self._nodes += 1
        return self._nodes

    def make_pod(self, rank: int, *, after: float = 0.0, address: str | None = None, group: str = GROUP) -> Pod:
        """A new pod; its container starts ``after`` seconds from now."""
        if address is None:
            self._addresses += 1
            address = f"10.0.0.{self._addresses}"
        self._names += 1
        world, ours = self.world, group == GROUP
        drawn = 1 + self.plan.drift * world.rng.choice((-1.0, world.rng.uniform(-1, 1), 1.0))
        clock = Clock(world.between(0, 1e6), self.plan.rates[rank] if self.plan.rates else drawn)
        name = f"r{rank}#{self._names}" if ours else f"other#{self._names}"
        pod = Pod(self, rank, name, address, clock, group, self.plan.size if ours else 2)
        pod.fingerprint = {"engine": "reference", "engine.version": self.version.get(rank, "1")}
        if rank == 0 and ours and self.plan.state_file:
            pod.highest_n = self.leader_n
        self.by_address[address] = pod
        if ours:
            self.pods.append(pod)
        world.note(name, "pod is created", address)
        world.at(after, pod.start)
        return pod

    def of_rank(self, rank: int) -> list[Pod]:
        return [p for p in self.pods if p.rank == rank]

    def pod(self, rank: int) -> Pod | None:
        """The newest pod of a rank."""
        pods = self.of_rank(rank)
        return pods[-1] if pods else None

    def remove(self, pod: Pod) -> None:
        if pod in self.pods:
            self.pods.remove(pod)
        if self.by_address.get(pod.address) is pod:
            del self.by_address[pod.address]

    def kill_pod(self, pod: Pod, *, silent: bool = False) -> None:
        """The pod is gone at once, whole; with its node if ``silent``."""
        if not pod.alive:
            return
        procs = list(pod.guard.procs) if pod.guard is not None else []
        pod.kill(silent)
        self.remove(pod)
        self.world.note(pod.name, "pod is gone", "with its node" if silent else "")
        if not silent:
            for proc in procs[:1]:
                self.neighbours_break(proc)
        self._replace(pod.rank)

    def delete_pod(self, pod: Pod, grace: float) -> None:
        """kubectl delete: SIGTERM, ``grace`` seconds, SIGKILL; then a new pod, if one is wanted."""
        if not pod.alive or pod.deleting:
            return
        pod.deleting = True
        self.world.note(pod.name, "pod is deleted: SIGTERM", grace)
        if pod.guard is not None and not pod.guard.dead:
            pod.guard.sigterm(grace)
            self.world.at(grace, self._grace_over, pod, self.world.now)
        else:
            self.pod_is_gone(pod)

    def _grace_over(self, pod: Pod, since: float) -> None:
        if pod.alive:
            self.truth.outlives_grace(pod, since)
            if pod.guard is not None and pod.guard.procs:
                self.truth.grace_over(pod)
            self.kill_pod(pod)

    def pod_is_gone(self, pod: Pod) -> None:
        pod.alive = False
        self.remove(pod)
        self._replace(pod.rank)

    def _replace(self, rank: int) -> None:
        if rank in self.wanted and not self.plan.stays_down:
            self.world.at(self.world.between(0.2, 4.0), self._replaced, rank)

    def _replaced(self, rank: int) -> None:
        if rank in self.wanted and not self.of_rank(rank):
            pod = self.make_pod(rank)
            if rank == 0:
                self.world.at(self.world.between(0.0, 3.0), self.point_dns, pod)

    # --------------------------------------------------------------------------------------------- names and links

    def point_dns(self, pod: Pod) -> None:
        if pod.alive:
            self.dns = pod.address
            self.world.note("dns", "the leader's name now means", pod.name)

    def connect(self, agent: Agent, attempt: int) -> None:
        self.world.at(self.net.delay(), self._syn, agent, attempt, self.dns, self.world.now + OPEN_SECONDS)

    def _syn(self, agent: Agent, attempt: int, address: str, until: float) -> None:
        if not agent.alive:
            return
        pod = self.by_address.get(address)
        if pod is not None:
            here, there = agent.pod.node, pod.node
            server = pod.agent
            if not self.net.blocked(here, there) and not self.net.blocked(there, here):
                if server is None or server.coordinator is None:
                    agent.post("dial", agent.dial_failed, attempt)
                    return
                if not server.stalled or (self.plan.kernel_accepts and not server.guard.frozen):
                    end = self.net.connect(agent, server)
                    server.accept(end.peer)
                    if self.held_hellos:
                        self.held_hellos -= 1
                        self._hold(end)
                    self.world.at(self.net.delay(), agent.post, "dial", agent.connected, attempt, end)
                    return
        if self.world.now >= until:
            agent.post("dial", agent.dial_failed, attempt)
        else:
            self.world.at(0.5, self._syn, agent, attempt, address, until)

    def _hold(self, end: End) -> None:
        """A connection whose first words arrive late, perhaps when the member has long given it up."""
        lasts = self.hold_for or self.world.between(0.2, 2.5) * self.plan.lease
        self.world.note("FAULT", f"hello held for {lasts:.1f} s", f"rank {end.agent.pod.rank}")  # which ends nothing
        end.dark = True

        def released() -> None:
            end.dark = False
            if self.net.prompt:
                end.flush()

        self.world.at(lasts, released)

    def wire(self, message: Any, says: dict[str, type[Any]]) -> Any:
        """What the other side reads in the message's JSON: the same."""
        read = m.decode(m.encode(message), says)
        if read != message:
            self.world.broken("wire", f"{message} was read as {read}")
        return read

    # ---------------------------------------------------------------------------------------------------- the engine

    def trouble_of(self, pod: Pod) -> Trouble | None:
        return self.trouble.get(pod.rank)

    def unable_of(self, pod: Pod) -> bool | None:
        return self.unable.get(pod.rank)

    def on_phase(self, phase: c.GroupPhase) -> None:
        due = [a for a in self.ambushes if a[0] is phase]
        self.ambushes = [a for a in self.ambushes if a[0] is not phase]
        for _, delay, fault in due:
            self.world.at(delay, fault)

    def prepare_time(self) -> float:
        return self.world.between(*self.plan.prepare_time)

    def neighbours_break(self, proc: Proc) -> None:
        """A collective lost a rank: the others' processes end too, a little later."""
        if not self.plan.fragile or not self.truth.first_death(proc.epoch):
            return
        for other in list(self.truth.live):
            if other.epoch == proc.epoch and other.guard is not proc.guard and self.world.chance(0.7):
                other.guard.later(self.world.between(0.001, 0.9), other.guard.breaks, other, CauseKind.EXITED, 1, False)

    def last_words(self, followed: bool) -> tuple[str, ...]:
        """Of a process that ended by itself."""
        if not self.talkative:
            return ()
        return ("RuntimeError: Connection closed by peer",) if followed else ("ValueError: no such expert",)

    def agents(self) -> list[Agent]:
        return [p.agent for p in self.pods if p.agent is not None]

    def guards(self) -> list[Guard]:
        return [p.guard for p in self.pods if p.guard is not None and not p.guard.dead]
