"""What can go wrong: each fault is a function of the cluster, drawn by weight, made at a moment or in a phase.

A fault tells the truth (`promises.py`) what it does, so that nobody fails without a reason that is known there.
"""

from __future__ import annotations

from collections.abc import Callable

from launcher.group.coordinator import GroupPhase
from launcher.group.events import Restart
from launcher.group.roster import LOCAL
from launcher.model import CauseKind
from tests.simulation.cluster import OTHER, Cluster, Trouble
from tests.simulation.network import EVERYBODY
from tests.simulation.pod import Guard, Pod


def aftermath(cluster: Cluster) -> float:
    return cluster.truth.aftermath


def some_pod(cluster: Cluster) -> Pod | None:
    pods = [p for p in cluster.pods if p.alive]
    return cluster.world.rng.choice(pods) if pods else None


def some_guard(cluster: Cluster) -> Guard | None:
    guards = cluster.guards()
    return cluster.world.rng.choice(guards) if guards else None


def duration(cluster: Cluster) -> float:
    """Shorter than half a lease, about a lease, or much longer."""
    lease, world = cluster.plan.lease, cluster.world
    return world.rng.choice(
        (world.between(0.01, 0.5) * lease, world.between(0.5, 1.2) * lease, world.between(1.2, 3.0) * lease)
    )


# -------------------------------------------------------------------------------------------------------- sharp ones


def process_dies(cluster: Cluster) -> None:
    """One process of the engine ends: by a code (0 too), a signal, or the OOM killer."""
    live = [p for p in cluster.truth.live if not p.asked and not p.guard.frozen]
    if live:
        proc = cluster.world.rng.choice(live)
        kind, code = cluster.world.rng.choice(
            (
                (CauseKind.EXITED, 0),
                (CauseKind.EXITED, 1),
                (CauseKind.SIGNALLED, 137),
                (CauseKind.SIGNALLED, 139),
                (CauseKind.OOM, 137),
            )
        )
        proc.guard.breaks(proc, kind, code)


def hangs(cluster: Cluster) -> None:
    """A process of the engine does no more work, and a launcher reaches a verdict; nothing ends by itself."""
    live = [p for p in cluster.truth.live if p.ready and not p.asked and not p.guard.frozen and p.guard.agent]
    if live:
        proc = cluster.world.rng.choice(live)
        kind = cluster.world.rng.choice((CauseKind.HANG, CauseKind.HEALTH, CauseKind.STOPPED))
        cluster.truth.hung(proc, kind)


def agent_killed(cluster: Cluster) -> None:
    """kill -9 of a launcher's agent; its guard lives."""
    guard = some_guard(cluster)
    if guard is not None and guard.agent is not None and not guard.frozen:
        cluster.truth.killed("agent killed", guard.pod)
        guard.kill_agent()


def pod_killed(cluster: Cluster) -> None:
    """A whole pod vanishes; the node's kernel closes its connections."""
    pod = some_pod(cluster)
    if pod is not None:
        cluster.truth.killed("pod killed", pod)
        cluster.kill_pod(pod)


def container_killed(cluster: Cluster) -> None:
    """kill -9 of a guard, which is PID 1: the container is started anew, under the same name and address."""
    guard = some_guard(cluster)
    if guard is not None and not guard.frozen:
        procs = list(guard.procs)
        cluster.truth.killed("container killed", guard.pod)
        guard.pod.kill_container()
        for proc in procs[:1]:
            cluster.neighbours_break(proc)


# ------------------------------------------------------------------------------------------------------- silent ones


def node_lost(cluster: Cluster) -> None:
    """A pod vanishes with its node: nobody is told."""
    pod = some_pod(cluster)
    if pod is not None:
        cluster.truth.touch("node lost", pod.rank, lasts=aftermath(cluster))
        cluster.truth.silent("the loss of the node", pod, 1e9)
        cluster.kill_pod(pod, silent=True)


def stalled(cluster: Cluster) -> None:
    """An agent is frozen (SIGSTOP, a swap storm); its guard lives."""
    guard, lasts = some_guard(cluster), duration(cluster)
    if guard is None or guard.agent is None or guard.agent.stalled:
        return
    agent = guard.agent
    agent.stalled = True
    cluster.truth.touch(f"agent stalled for {lasts:.1f} s", guard.pod.rank, lasts=lasts + aftermath(cluster))
    cluster.truth.silent("the stall", guard.pod, lasts)

    def thaw() -> None:
        if agent.stalled and not guard.frozen:
            agent.thaw()

    cluster.world.at(lasts, thaw)


def frozen(cluster: Cluster) -> None:
    """A whole machine is frozen, guard and engine too: the documented exception."""
    guard, lasts = some_guard(cluster), duration(cluster)
    if guard is not None and not guard.frozen and (guard.agent is None or not guard.agent.stalled):
        guard.freeze()
        cluster.truth.touch(f"node frozen for {lasts:.1f} s", guard.pod.rank, lasts=lasts + aftermath(cluster))
        cluster.truth.silent("the freeze", guard.pod, lasts)
        cluster.world.at(lasts, guard.thaw)


def cut(cluster: Cluster) -> None:
    """The network between two pods, one of them mostly the leader's, is cut: one way or both."""
    leader, pod, world = cluster.pod(0), some_pod(cluster), cluster.world
    if leader is None or pod is None or pod is leader:
        return
    lasts, ways = duration(cluster), world.rng.choice(("in", "out", "both", "both"))
    pairs = []
    if ways != "out":
        pairs.append((leader.node, pod.node))
    if ways != "in":
        pairs.append((pod.node, leader.node))
    for a, b in pairs:
        cluster.net.cut(a, b)
        world.at(lasts, cluster.net.heal, a, b)
    cluster.truth.touch(f"cut {ways} from the leader for {lasts:.1f} s", pod.rank, lasts=lasts + aftermath(cluster))
    cluster.truth.silent("the cut", pod, lasts, leader)


def flapping(cluster: Cluster) -> None:
    """The way from the leader to a pod comes and goes, then it is gone; perhaps somebody makes another pod."""
    leader, pod, world = cluster.pod(0), some_pod(cluster), cluster.world
    if leader is None or pod is None or pod is leader:
        return
    lease, at = cluster.plan.lease, 0.0
    for _ in range(world.rng.randint(1, 4)):
        lasts = world.between(0.1, 0.6) * lease
        world.at(at, _cut_way, cluster, leader, pod, lasts)
        at += lasts + world.between(0.0, 0.1) * lease
    cluster.truth.touch("flapping", pod.rank, lasts=at + 3 * lease + aftermath(cluster))
    for a, b in ((leader, pod), (pod, leader)):
        world.at(at, _cut_way, cluster, a, b, 2 * lease)
    if world.chance(0.7):
        world.at(world.between(0.0, at + 0.5 * lease), _second, cluster, pod, False)


def _cut_way(cluster: Cluster, a: Pod, b: Pod, lasts: float) -> None:
    if cluster.calm_at is None:
        cluster.net.cut(a.node, b.node)
        cluster.world.at(lasts, cluster.net.heal, a.node, b.node)


def replaced_while_cut(cluster: Cluster) -> None:
    """A worker's node is cut off; somebody is quick to delete the pod by force, and a second one takes its rank."""
    world = cluster.world
    workers = [p for p in cluster.pods if p.rank]
    if workers:
        pod = world.rng.choice(workers)
        cluster.truth.touch("cut off and replaced", pod.rank, lasts=1e9)
        cluster.truth.silent("the cut", pod, 1e9)
        world.at(world.between(0.0, 0.3) * cluster.plan.lease, _second, cluster, pod)
        cluster.net.cut(pod.node, EVERYBODY)
        cluster.net.cut(EVERYBODY, pod.node)


def isolated(cluster: Cluster) -> None:
    """A node is cut from everybody."""
    pod, world = some_pod(cluster), cluster.world
    if pod is None:
        return
    lasts, ways = duration(cluster), world.rng.choice(("in", "out", "both"))
    pairs = []
    if ways != "out":
        pairs.append((EVERYBODY, pod.node))
    if ways != "in":
        pairs.append((pod.node, EVERYBODY))
    for a, b in pairs:
        cluster.net.cut(a, b)
        world.at(lasts, cluster.net.heal, a, b)
    cluster.truth.touch(f"isolated {ways} for {lasts:.1f} s", pod.rank, lasts=lasts + aftermath(cluster))
    if cluster.plan.size > 1:
        cluster.truth.silent("the isolation", pod, lasts)


def dark(cluster: Cluster) -> None:
    """One connection becomes a black hole for good; new ones work."""
    agents = [a for a in cluster.agents() if a.link is not None]
    if not agents:
        return
    agent, rng = cluster.world.rng.choice(agents), cluster.world.rng
    link = agent.link
    assert link is not None
    ways = rng.choice(("in", "out", "both"))
    link.dark = link.dark or ways != "in"
    link.peer.dark = link.peer.dark or ways != "out"
    cluster.truth.touch(f"connection dark {ways}", agent.pod.rank, lasts=aftermath(cluster) * 2)
    cluster.truth.silent("the black hole", agent.pod, 1e9, link.peer.agent.pod)


def reset(cluster: Cluster) -> None:
    """A connection is reset: both sides learn of it, or only one."""
    agents = [a for a in cluster.agents() if a.link is not None]
    if not agents:
        return
    agent = cluster.world.rng.choice(agents)
    link = agent.link
    assert link is not None
    cluster.truth.touch("connection reset", agent.pod.rank, lasts=aftermath(cluster))
    side = cluster.world.rng.choice(("member", "leader", "both"))
    if side != "leader":
        link.breaks()
    if side != "member":
        link.peer.breaks()


# ------------------------------------------------------------------------------------------------------ told to go


def told(cluster: Cluster, pod: Pod) -> None:
    """SIGTERM: with the pod's deletion, or just the signal."""
    world, grace = cluster.world, cluster.plan.grace
    if pod.guard is None or pod.guard.dead or cluster.calm_at is not None:
        return
    cluster.truth.told_to_go(pod)
    if pod.guard.asked_grace is not None:
        cluster.truth.hurry()
    if world.chance(0.6):
        cluster.delete_pod(pod, grace)
    else:
        world.note(pod.name, "SIGTERM")
        pod.guard.sigterm(grace)
        if world.chance(0.2):
            world.at(world.between(0.0, grace), told_again, cluster, pod)


def told_again(cluster: Cluster, pod: Pod) -> None:
    if pod.alive and pod.guard is not None and not pod.guard.dead and cluster.calm_at is None:
        cluster.truth.hurry()
        cluster.truth.told_to_go(pod)  # its first one may have had an end: this one reaches a container's next launcher
        world = cluster.world
        world.note(pod.name, "second SIGTERM")
        pod.guard.sigterm(cluster.plan.grace)


def one_told(cluster: Cluster) -> None:
    pod = some_pod(cluster)
    if pod is not None:
        told(cluster, pod)


def leader_told(cluster: Cluster) -> None:
    pod = cluster.pod(0)
    if pod is not None:
        told(cluster, pod)


def all_told(cluster: Cluster) -> None:
    """The whole group is deleted, or scaled away for a while."""
    if cluster.world.chance(0.3):
        cluster.wanted.clear()
    for pod in list(cluster.pods):
        cluster.world.at(cluster.world.between(0.0, 0.5), told, cluster, pod)


def not_coming_back(cluster: Cluster) -> None:
    """A pod is deleted and not replaced until faults stop: the others wait, and nobody exits."""
    pod = some_pod(cluster)
    if pod is not None:
        cluster.wanted.discard(pod.rank)
        told(cluster, pod)


# --------------------------------------------------------------------------------------------------- two of a kind


def duplicate(cluster: Cluster) -> None:
    """A second pod has a rank, for a while or until one of them is deleted."""
    if cluster.plan.size < 2:
        return
    world = cluster.world
    rank = world.rng.randrange(1, cluster.plan.size)
    if not cluster.of_rank(rank):
        return
    old, lasts = cluster.of_rank(rank)[-1], duration(cluster)
    new = cluster.make_pod(rank)
    world.note("FAULT", f"a second pod for {lasts:.1f} s", f"rank {rank}")  # which ends nothing by itself
    goes = world.rng.choice((old, new))

    def ends() -> None:
        if len(cluster.of_rank(rank)) > 1 and goes.alive:
            silent = world.chance(0.3)
            if silent:
                cluster.truth.touch("node lost", rank, lasts=aftermath(cluster))
                cluster.truth.launcher_killed(goes)
            else:
                cluster.truth.killed("pod killed", goes)
            cluster.kill_pod(goes, silent=silent)

    world.at(lasts, ends)


def second_leader(cluster: Cluster) -> None:
    """A new leader pod while the old one lives; DNS means the new one; some members still reach the old."""
    world, old = cluster.world, cluster.pod(0)
    if old is None:
        return
    lasts = duration(cluster) + world.between(0, 10)
    new = cluster.make_pod(0)
    everybody = lasts + aftermath(cluster)
    for rank in range(cluster.plan.size):
        cluster.truth.touch(f"a second leader pod for {lasts:.1f} s", rank, lasts=everybody)
    world.at(world.between(0.0, 2.0), cluster.point_dns, new)
    for pod in cluster.pods:
        if pod.rank and world.chance(0.4):
            cluster.net.cut(old.node, pod.node)
            cluster.net.cut(pod.node, old.node)
            cluster.truth.silent("the cut from the old leader", pod, 1e9, old)

    def ends() -> None:
        if len(cluster.of_rank(0)) > 1 and old.alive:
            cluster.truth.launcher_killed(old)
            cluster.kill_pod(old, silent=world.chance(0.5))

    world.at(lasts, ends)


def takeover(cluster: Cluster) -> None:
    """The leader's node is cut off and a new leader pod made; of the workers, some survive, some lose their memory."""
    world, old = cluster.world, cluster.pod(0)
    if old is None:
        return
    lasts = duration(cluster) + 0.5 * cluster.plan.lease
    for pod in cluster.pods:
        rank, after = pod.rank, world.rng.choice((0.0, 0.0, 0.3)) * cluster.plan.lease * world.rng.random()
        if pod is old:
            continue
        cluster.truth.touch("cut from the old leader", rank, lasts=after + lasts + aftermath(cluster))
        world.at(after, _cut_for_good, cluster, old, pod)
        fate = world.rng.choice(("stays", "reset", "reset", "agent", "agent", "pod", "second"))
        later = after + world.rng.choice((0.1, 0.5)) * cluster.plan.lease * world.rng.random()
        if fate == "agent":
            world.at(later, _agent_of, cluster, pod)
        elif fate == "reset":
            world.at(later, _reset_side, cluster, pod)
        elif fate == "pod":
            world.at(later, _kill, cluster, pod)
        elif fate == "second":
            world.at(later, _second, cluster, pod)
    cluster.truth.touch("cut off, and a new leader made", 0, lasts=lasts + aftermath(cluster))
    new = cluster.make_pod(0, after=world.rng.choice((0.1, 0.5)) * world.rng.random() * cluster.plan.lease)
    world.at(world.between(0.0, 0.1) * cluster.plan.lease, cluster.point_dns, new)
    world.at(lasts, _kill, cluster, old)


def _cut_for_good(cluster: Cluster, old: Pod, pod: Pod) -> None:
    if cluster.calm_at is None:
        cluster.net.cut(old.node, pod.node)
        cluster.net.cut(pod.node, old.node)
        cluster.truth.silent("the cut from the old leader", pod, 1e9, old)


def _reset_side(cluster: Cluster, pod: Pod) -> None:
    """A packet filter answers this member's words to the old leader with a reset; the leader hears nothing."""
    if pod.agent is not None and pod.agent.link is not None and cluster.calm_at is None:
        pod.agent.link.breaks()


def _agent_of(cluster: Cluster, pod: Pod) -> None:
    if pod.agent is not None and pod.guard is not None and not pod.guard.frozen and cluster.calm_at is None:
        cluster.truth.killed("agent killed", pod)
        pod.guard.kill_agent()


def _kill(cluster: Cluster, pod: Pod) -> None:
    if pod.alive and cluster.calm_at is None:
        cluster.truth.launcher_killed(pod)
        cluster.kill_pod(pod, silent=cluster.world.chance(0.5))


def _second(cluster: Cluster, pod: Pod, cut_off: bool = True) -> None:
    """A second pod of a rank; the first has nobody to talk to."""
    if pod.alive and cluster.calm_at is None:
        cluster.truth.touch("a second pod", pod.rank, lasts=1e9)
        cluster.make_pod(pod.rank)
        if cut_off:
            cluster.net.cut(pod.node, EVERYBODY)
            cluster.net.cut(EVERYBODY, pod.node)


def hello_held(cluster: Cluster) -> None:
    """The next connections come through late, hello and all."""
    cluster.held_hellos = cluster.world.rng.choice((1, 1, 3))
    reset(cluster)


def dns_lies(cluster: Cluster) -> None:
    """DNS means an address that is nobody's, a worker's, or another group's leader's."""
    world, leader = cluster.world, cluster.pod(0)
    lie = world.rng.choice(("nobody", "worker", "other"))
    cluster.dns = "10.0.9.9"
    if lie == "worker":
        workers = [p for p in cluster.pods if p.rank]
        if workers:
            cluster.dns = world.rng.choice(workers).address
    elif lie == "other":
        cluster.dns = cluster.make_pod(0, group=OTHER).address
    world.note("dns", f"means {lie}", cluster.dns)

    def mended() -> None:
        now = cluster.pod(0)
        if now is not None:
            cluster.point_dns(now)

    world.at(duration(cluster), mended)
    if leader is not None and world.chance(0.7):
        cluster.truth.killed("pod killed", leader)
        address = cluster.dns
        cluster.kill_pod(leader)
        cluster.dns = address


# ------------------------------------------------------------------------------------------------------- slow trouble


def rollout(cluster: Cluster) -> None:
    """New versions arrive pod by pod: for a while the ranks are not alike."""
    world, at = cluster.world, 0.0
    version = str(world.rng.randint(2, 9))
    for rank in sorted(cluster.wanted, reverse=True):
        cluster.version[rank] = version
    for rank in sorted(cluster.wanted, reverse=True):
        at += world.between(0.5, 6.0)
        world.at(at, _renew, cluster, rank)


def _renew(cluster: Cluster, rank: int) -> None:
    pod = cluster.pod(rank)
    if pod is not None:
        told(cluster, pod)


def crash_loop(cluster: Cluster) -> None:
    """The engine of a rank, or of all, fails soon after its start, for a while."""
    world = cluster.world
    kind, code = world.rng.choice(((CauseKind.EXITED, 1), (CauseKind.SIGNALLED, 139), (CauseKind.EXITED, 0)))
    trouble = Trouble(kind, code, world.rng.choice((0.4, 1.0)), world.rng.choice((0.1, 3.0, 20.0)))
    ranks = range(cluster.plan.size) if world.chance(0.3) else [world.rng.randrange(cluster.plan.size)]
    for rank in ranks:
        cluster.trouble[rank] = trouble
    world.note("FAULT", "crash loop", f"ranks {list(ranks)}", trouble)
    world.at(world.between(2, 30), cluster.trouble.clear)


def unable(cluster: Cluster) -> None:
    """A rank cannot prepare, for a while; seldom for good."""
    world = cluster.world
    rank = world.rng.randrange(cluster.plan.size)
    cluster.unable[rank] = not world.chance(0.1)
    cluster.ever_unable = True
    world.note("FAULT", "unable", f"rank {rank}, retry {cluster.unable[rank]}")
    world.at(world.between(1, 15), cluster.unable.clear)
    process_dies(cluster)


def restarted_by_hand(cluster: Cluster) -> None:
    """A person asks the leader for a new epoch, whatever the group does just now; some ask twice."""
    leader, world = cluster.pod(0), cluster.world
    agent = leader.agent if leader is not None else None
    if agent is None or agent.coordinator is None:
        return
    world.note("FAULT", "restarted by hand", agent.coordinator.shown_phase)
    for after in (0.0, 0.001)[: 1 + world.chance(0.2)]:
        world.at(after, agent.post, "by hand", agent.lead, Restart("a person"), LOCAL)


FAULTS: dict[Callable[[Cluster], None], float] = {
    process_dies: 10,
    hangs: 6,
    agent_killed: 10,
    pod_killed: 10,
    container_killed: 6,
    node_lost: 5,
    stalled: 8,
    frozen: 3,
    cut: 12,
    isolated: 6,
    dark: 6,
    reset: 5,
    one_told: 6,
    leader_told: 3,
    all_told: 2,
    not_coming_back: 2,
    duplicate: 5,
    second_leader: 5,
    takeover: 8,
    replaced_while_cut: 5,
    flapping: 6,
    hello_held: 5,
    dns_lies: 4,
    rollout: 3,
    crash_loop: 4,
    unable: 2,
}

AMBUSHES = (
    GroupPhase.PREPARING,
    GroupPhase.STARTING,
    GroupPhase.RUNNING,
    GroupPhase.DRAINING,
    GroupPhase.STOPPING,
    GroupPhase.WAITING,
)

__all__ = ["AMBUSHES", "FAULTS", "aftermath", "restarted_by_hand"]
