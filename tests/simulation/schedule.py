"""One schedule: pods start, faults happen, faults stop, and the group must run again. All of it from one seed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from launcher.group.coordinator import GroupPhase
from launcher.group.member import State
from tests.simulation.cluster import Cluster, Rules
from tests.simulation.faults import AMBUSHES, FAULTS, restarted_by_hand
from tests.simulation.plots import Plot
from tests.simulation.pod import Agent
from tests.simulation.world import PromiseBroken, World


@dataclass
class Outcome:
    """What one schedule came to."""

    seed: int
    broken: str = ""  #: which promise, and how; empty: all held
    promise: str = ""
    size: int = 0
    seconds: float = 0.0  #: simulated
    recovery: float = 0.0  #: from the end of faults until the group ran
    epochs: int = 0
    ran: int = 0
    drains: int = 0
    events: int = 0
    thawed: int = 0
    strangers: int = 0
    gave_up: bool = False
    faults: Counter[str] = field(default_factory=Counter)
    log: list[tuple[float, str, str, tuple[object, ...]]] = field(default_factory=list)


def run(seed: int, rules: Rules | None = None, plot: Plot | None = None) -> Outcome:
    """Run one schedule to its end, or to the first broken promise. A plot takes the place of the drawn faults."""
    world = World(seed)
    cluster = Cluster(world, rules or Rules(), **(plot.plan if plot else {}))
    outcome = Outcome(seed, size=cluster.plan.size)
    world.note("plan", str(cluster.plan))
    try:
        _play(world, cluster, outcome, plot)
    except PromiseBroken as error:
        outcome.broken, outcome.promise = str(error), error.promise
    except AssertionError as error:
        outcome.broken, outcome.promise = f"the table: {error}", "table"
    outcome.seconds = world.now
    outcome.epochs, outcome.ran = len(cluster.truth.epochs), cluster.truth.ran
    outcome.drains = cluster.truth.drains
    outcome.thawed, outcome.strangers = cluster.truth.thawed, cluster.truth.strangers
    outcome.events, outcome.gave_up = world.events, bool(cluster.truth.restarts.aborts)
    outcome.log = world.log
    return outcome


def _play(world: World, cluster: Cluster, outcome: Outcome, plot: Plot | None) -> None:
    for rank in range(cluster.plan.size):
        pod = cluster.make_pod(rank, after=world.between(0, 3))
        if rank == 0:
            world.at(world.between(0, 2), cluster.point_dns, pod)
    ends = plot.begin(cluster) if plot else _draw_faults(world, cluster, outcome)
    world.run(ends)
    if cluster.plan.stays_down:
        _is_over(world, cluster)
        return
    _calm(world, cluster)
    _recovers(world, cluster, outcome)
    _stays_whole(world, cluster)
    _last_look(world, cluster)


def _draw_faults(world: World, cluster: Cluster, outcome: Outcome) -> float:
    """Put the faults of this schedule into the queue; when they end."""
    rng = world.rng
    ends = rng.choice((15.0, 30.0, 60.0)) * min(1.0, 0.3 + cluster.plan.lease / 10)
    kinds, weights = list(FAULTS), list(FAULTS.values())
    moments = [world.between(0, ends) for _ in range(rng.choice((1, 2, 4)))]
    many = rng.choice((0, 1, 1, 2, 3, 5, 8, 16))
    for _ in range(many):
        fault = rng.choices(kinds, weights)[0]
        outcome.faults[fault.__name__] += 1
        if rng.random() < 0.3:
            phase, delay = rng.choice(AMBUSHES), rng.choice((0.0, 0.001, 0.1, 1.0)) * rng.random()
            world.at(
                world.between(0, ends / 2),
                cluster.ambushes.append,
                (phase, delay, lambda fault=fault: _make(cluster, fault)),
            )
        else:
            at = rng.choice(moments) + rng.choice((0.0, 0.1, 3.0)) * rng.random()
            world.at(min(at, ends), _make, cluster, fault)
    _draw_restarts(world, cluster, outcome, ends)
    return ends


def _draw_restarts(world: World, cluster: Cluster, outcome: Outcome, ends: float) -> None:
    """In one schedule of five somebody restarts the group by hand. The others are what they would be without this."""
    rng = random.Random(f"restarts of {world.seed}")
    for _ in range(rng.choice((1, 2, 5)) if rng.random() < 0.2 else 0):
        outcome.faults[restarted_by_hand.__name__] += 1
        if rng.random() < 0.5:
            ambush = (rng.choice(AMBUSHES), rng.choice((0.0, 0.1, 1.0)) * rng.random())
            make = (*ambush, lambda: _make(cluster, restarted_by_hand))
            world.at(rng.uniform(0, ends / 2), cluster.ambushes.append, make)
        else:
            world.at(rng.uniform(0, ends), _make, cluster, restarted_by_hand)


def _make(cluster: Cluster, fault: object) -> None:
    if cluster.calm_at is None:
        assert callable(fault)
        fault(cluster)


def _calm(world: World, cluster: Cluster) -> None:
    """Faults stop: the network is whole, nothing is frozen, and there is, or soon will be, one good pod a rank."""
    world.note("CALM", "faults stop")
    cluster.calm_at = world.now
    cluster.ambushes.clear()
    cluster.held_hellos = 0
    cluster.net.heal_all()
    cluster.trouble.clear()
    cluster.unable.clear()
    cluster.wanted = set(range(cluster.plan.size))
    for guard in cluster.guards():
        if guard.frozen:
            guard.thaw()
        elif guard.agent is not None and guard.agent.stalled:
            guard.agent.thaw()
    version = cluster.version.get(0, "1")
    cluster.version = dict.fromkeys(cluster.wanted, version)
    for rank in cluster.wanted:
        pods = cluster.of_rank(rank)
        stays = world.rng.choice(pods) if pods else None
        for pod in pods:
            if pod is not stays or pod.fingerprint["engine.version"] != version:
                cluster.truth.launcher_killed(pod)
                cluster.truth.touch("killed to end the faults", rank, sharp=True)
                cluster.kill_pod(pod)
        if stays is None:
            cluster._replace(rank)
    leader = cluster.pod(0)
    if leader is not None:
        world.at(world.between(0, 3), cluster.point_dns, leader)


def _is_over(world: World, cluster: Cluster) -> None:
    """Where nobody brings anything back a group that has ended is gone: no launcher seeks without end."""
    cluster.calm_at = world.now
    left = {a.pod.name: a.member.state.value for a in cluster.agents()}
    if left:
        world.broken("one fate", f"the group has ended, and nobody comes back; there still are {left}")


def _recovers(world: World, cluster: Cluster, outcome: Outcome) -> None:
    plan, began = cluster.plan, world.now
    bound = plan.grace + 60 + 6 * plan.lease + cluster.net.longest_pause + 30
    bound += 2 * (len(plan.stages) * (plan.start_time[1] + 0.5) + plan.prepare_time[1])
    while world.now < began + bound:
        world.run(world.now + 0.5)
        if _whole(cluster):
            outcome.recovery = world.now - began
            return
    leader = cluster.pod(0)
    agent = leader.agent if leader is not None else None
    what = f"{agent.coordinator.shown_phase}, {agent.coordinator.waiting_for()}" if agent and agent.coordinator else ""
    states = {p.name: p.agent.member.state.value if p.agent else "no agent" for p in cluster.pods}
    world.broken("recovers", f"{bound:.0f} s after the last fault the group does not run: {what}; {states}")


def _stays_whole(world: World, cluster: Cluster) -> None:
    """What faults did shows within a lease of their end, if at all; from then on an epoch stays."""
    assert cluster.calm_at is not None
    world.run(max(world.now, cluster.calm_at + cluster.plan.lease + 1))
    for _ in range(200):
        if _whole(cluster):
            break
        world.run(world.now + 0.5)
    epoch = _leader(cluster).member.epoch
    world.run(world.now + (1.6 * cluster.plan.lease if world.chance(0.25) else 1.5))
    if not _whole(cluster) or _leader(cluster).member.epoch != epoch:
        world.broken("recovers", f"{epoch} ended again although nothing was wrong")


def _leader(cluster: Cluster) -> Agent:
    pod = cluster.pod(0)
    assert pod is not None and pod.agent is not None
    return pod.agent


def _whole(cluster: Cluster) -> bool:
    """Every rank runs, all in one epoch."""
    agents = cluster.agents()
    if len(cluster.pods) != cluster.plan.size or len(agents) != cluster.plan.size or _some_go(cluster):
        return False
    leader = cluster.pod(0)
    if leader is None or leader.agent is None or leader.agent.coordinator is None:
        return False
    coordinator = leader.agent.coordinator
    return coordinator.phase is GroupPhase.RUNNING and all(
        a.member.state is State.RUNNING and a.member.epoch == coordinator.epoch for a in agents
    )


def _some_go(cluster: Cluster) -> bool:
    """A pod that was told to go is still there, or a connection is believed in that holds or swallows what is sent."""
    links = [a.link for a in cluster.agents() if a.link is not None]
    if any(e.dark or e.peer.dark or e.waits or e.peer.waits for e in links):
        return True
    return any(g.asked_grace is not None for g in cluster.guards())


def _last_look(world: World, cluster: Cluster) -> None:
    """At the end all know the same, and nothing has grown."""
    leader = _leader(cluster).coordinator
    assert leader is not None
    for agent in cluster.agents():
        news = agent.member.news
        if (news.phase, news.first_failure) != ("running", leader.history.first):
            world.broken(
                "explains",
                f"{agent.pod.name} shows {news.phase}, {news.first_failure}; the leader knows {leader.history.first}",
            )
    running = sum(n for stage in cluster.plan.stages for n in stage)
    if len(cluster.truth.live) != running:
        world.broken("recovers", f"{len(cluster.truth.live)} processes run, {running} should")
    _nothing_has_grown(world, cluster)


def _nothing_has_grown(world: World, cluster: Cluster) -> None:
    leader = _leader(cluster).coordinator
    assert leader is not None
    size = cluster.plan.size
    ends = _leader(cluster).ends.items()
    answered = cluster.truth.answered.get(leader.config.incarnation, set()) - leader.roster.by_conn.keys()
    nobodys = [c for c, end in ends if c in answered and not end.dark and not end.peer.dark]
    sizes = {
        "seats": (len(leader.seats), size),
        "connections": (len(leader.roster.by_conn), size),
        "connections of nobody": (len(nobodys), 0),
        "fences": (len(leader.fences.lost), 0),
        "foreign epochs": (len(leader.fences.foreign), 4),
        "superseded": (len(leader.roster.superseded), 64),
    }
    for seat in leader.seats.values():
        sizes[f"marks of rank {seat.hello.rank}"] = (len(seat.contact._marks), 8)
        sizes[f"pings of rank {seat.hello.rank}"] = (len(seat.contact._pings), 16)
    for agent in cluster.agents():
        sizes[f"pings sent by {agent.pod.name}"] = (len(agent.member._leader.pings._sent), 16)
    for what, (is_, may) in sizes.items():
        if is_ > may:
            world.broken("state", f"{is_} {what} are remembered")


def story(outcome: Outcome, last: int = 0) -> str:
    """The history of a schedule, for a reader."""
    lines = [f"{at:9.3f}  {who:<14} {what}  {' '.join(map(str, more))}" for at, who, what, more in outcome.log]
    return "\n".join(lines[-last:])


__all__ = ["Outcome", "run", "story"]
