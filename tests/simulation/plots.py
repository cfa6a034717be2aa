"""Schedules that are written, not drawn: each leads straight to where one rule matters, whatever the seed.

What is rare under random faults is certain here. The real rules must hold in every plot; the mutation that breaks the
plot's rule must be caught in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.group.coordinator import GroupPhase
from launcher.group.member import State
from launcher.group.messages import Leaving
from launcher.model import CauseKind
from tests.simulation.cluster import Cluster, Trouble
from tests.simulation.faults import restarted_by_hand
from tests.simulation.network import EVERYBODY
from tests.simulation.pod import Pod

LEASE = 10.0

#: A group of three with a quick, well-behaved engine.
PLAIN: Mapping[str, Any] = {
    "size": 3,
    "lease": LEASE,
    "stages": ((1, 1, 1),),
    "start_time": (0.05, 0.1),
    "term_time": (0.0, 0.01),
    "kill_time": (0.001, 0.01),
    "prepare_time": (0.0, 0.001),
    "stubborn": 0.0,
    "unclean": 0.0,
    "stop_grace": 1.0,
    "grace": 15.0,
    "fragile": False,
    "max_restarts": 1000,
    "restart_window": 3600.0,
    "restart_backoff": 60.0,
    "kernel_accepts": False,
    "join_timeout": None,
}


@dataclass(frozen=True)
class Plot:
    """``act`` happens a moment after the group has first come to ``phase``."""

    act: Callable[[Cluster], None]
    phase: GroupPhase = GroupPhase.RUNNING
    more: Mapping[str, Any] = field(default_factory=dict)  #: of the plan, over PLAIN
    lasts: float = 3 * LEASE
    after: float = 0.01  #: the moment
    runs: tuple[float, float] = (0.5, 3.0)  #: before a group that runs is touched, so many seconds pass

    @property
    def plan(self) -> dict[str, Any]:
        return {**PLAIN, **self.more}

    def begin(self, cluster: Cluster) -> float:
        """Set the scene; when faults end."""
        net, world = cluster.net, cluster.world
        net.base, net.jitter, net.prompt, net.gives_up = 0.0005, 0.0005, True, 1e9
        after = world.between(*self.runs) if self.phase is GroupPhase.RUNNING else self.after
        cluster.ambushes.append((self.phase, after, lambda: self.act(cluster)))
        return 8 + self.lasts


def _pod(cluster: Cluster, rank: int) -> Pod:
    pod = cluster.pod(rank)
    assert pod is not None
    return pod


def _isolate(cluster: Cluster, pod: Pod) -> None:
    cluster.truth.touch("isolated", pod.rank, lasts=1e9)
    cluster.truth.silent("the isolation", pod, 1e9)
    cluster.net.cut(pod.node, EVERYBODY)
    cluster.net.cut(EVERYBODY, pod.node)


def _new_leader(cluster: Cluster) -> None:
    cluster.truth.touch("a new leader pod", 0, lasts=1e9)
    cluster.point_dns(cluster.make_pod(0))


def acks_held(cluster: Cluster) -> None:
    """Acks are held up, come all at once, and then nothing comes any more; a second pod waits for the rank."""
    world, leader, pod = cluster.world, _pod(cluster, 0), _pod(cluster, 1)
    held = world.between(0.35, 0.5) * LEASE
    cluster.truth.touch("acks held", 1, lasts=1e9)
    cluster.net.cut(leader.node, pod.node)
    world.at(held, cluster.net.heal, leader.node, pod.node)
    world.at(held + 0.0001, _isolate, cluster, pod)
    world.at(held, _second, cluster)


def _second(cluster: Cluster) -> None:
    cluster.make_pod(1)


def half_open(cluster: Cluster) -> None:
    """A member's connection swallows everything, both ways, while it prepares; and again when it is back."""
    agent = _pod(cluster, 1).agent
    assert agent is not None and agent.link is not None
    cluster.truth.touch("connection dark", 1, lasts=1e9)
    agent.link.dark = agent.link.peer.dark = True


def hello_unanswered(cluster: Cluster) -> None:
    """A member's connection is reset; the next one swallows everything from the moment of its hello."""
    _reset(cluster)
    cluster.world.at(0.0, _swallow, cluster)


def _swallow(cluster: Cluster) -> None:
    agent = _pod(cluster, 1).agent
    if agent is not None and agent.member.state is State.SEEKING and agent.link is not None:
        cluster.truth.touch("connection dark", 1, lasts=1e9)
        agent.link.dark = agent.link.peer.dark = True
    elif cluster.calm_at is None:
        cluster.world.at(0.0003, _swallow, cluster)


def back_too_soon(cluster: Cluster) -> None:
    """A launcher is killed and is back while the others still stop."""
    _kill_agent(cluster, _pod(cluster, 1))
    cluster.world.at(8.0, _again, cluster)


def _again(cluster: Cluster) -> None:
    if cluster.calm_at is None:
        back_too_soon(cluster)


def old_charges(cluster: Cluster) -> None:
    """A restart is charged; a member comes back that remembers it, and again when it is as good as forgotten."""
    cluster.world.at(0.0, _one_dies, cluster)
    for after in (4.0, 7.5):
        cluster.world.at(after, _reset, cluster)


def _one_dies(cluster: Cluster) -> None:
    proc = cluster.truth.live[-1]
    proc.guard.breaks(proc, CauseKind.EXITED, 1)


def _reset(cluster: Cluster) -> None:
    agent = _pod(cluster, 1).agent
    link = agent.link if agent is not None else None
    if link is not None:
        cluster.truth.touch("connection reset", 1, lasts=LEASE)
        link.breaks()
        link.peer.breaks()


def cut_and_replaced(cluster: Cluster) -> None:
    """A worker's node is cut off while its engine runs; a second pod is made at once."""
    _isolate(cluster, _pod(cluster, 1))
    cluster.make_pod(1)


def cut_off_as_another_fails(cluster: Cluster) -> None:
    """A worker's node is cut off; a moment later another's engine ends, so the first is lost while all are stopping."""
    cut_and_replaced(cluster)
    cluster.world.at(0.01, _rank_fails, cluster, 2)


def _rank_fails(cluster: Cluster, rank: int) -> None:
    proc = next(p for p in cluster.truth.live if p.rank == rank)
    proc.guard.breaks(proc, CauseKind.EXITED, 1)


def cut_off_when_it_has_stopped(cluster: Cluster) -> None:
    """A worker's engine ends, the others take long to stop; it is cut off, reset, and finds a new leader."""
    _rank_fails(cluster, 2)
    cluster.world.at(1.0, _cut_off_and_reset, cluster)
    cluster.world.at(8.0, _new_pods, cluster)


def _cut_off_and_reset(cluster: Cluster) -> None:
    leader, pod = _pod(cluster, 0), _pod(cluster, 2)
    cluster.truth.touch("cut from the old leader", 2, lasts=1e9)
    cluster.net.cut(leader.node, pod.node)
    cluster.net.cut(pod.node, leader.node)
    if pod.agent is not None and pod.agent.link is not None:
        pod.agent.link.breaks()


def _new_pods(cluster: Cluster) -> None:
    """The leader's node and a worker's are unreachable for whoever makes pods: both are made anew."""
    for rank in (0, 1):
        cluster.truth.touch("a second pod", rank, lasts=1e9)
    _new_leader(cluster)
    _second(cluster)


def stops_slowly(cluster: Cluster) -> None:
    """A worker's engine ends; the others do not listen to TERM, and have more time than a lease."""
    _rank_fails(cluster, 2)


def old_pings_come_late(cluster: Cluster) -> None:
    """A member's words are held up, and its agent stalls; then what it had said comes through and tells of the past."""
    leader, pod = _pod(cluster, 0), _pod(cluster, 1)
    cluster.truth.touch("words held", 1, lasts=1e9)
    cluster.net.cut(pod.node, leader.node)
    cluster.world.at(1.0, _stall, cluster, 1, 2.5 * LEASE)
    cluster.world.at(0.6 * LEASE, cluster.net.heal, pod.node, leader.node)


def reset_while_stopping(cluster: Cluster) -> None:
    """An engine ends; while the others still stop, one of them loses its connection."""
    _rank_fails(cluster, 2)
    cluster.world.at(0.3, _reset, cluster)


def leader_killed_while_stopping(cluster: Cluster) -> None:
    """An engine ends; while the others still stop, the leader's pod is killed."""
    _rank_fails(cluster, 2)
    cluster.world.at(0.3, _kill_rank, cluster, 0)


def long_request(cluster: Cluster) -> None:
    """A worker is told to go while a request is in flight that takes longer than its grace."""
    leader = _pod(cluster, 0).agent
    assert leader is not None
    leader.in_flight += 1
    one_leaves_slowly(cluster)


def told_while_stopping(cluster: Cluster) -> None:
    """An engine ends; while the others still stop, which takes longer than a pod's grace, one of them is told to go."""
    _rank_fails(cluster, 2)
    cluster.world.at(0.3, _told_to_go, cluster, _pod(cluster, 1))


def fails_in_a_drain(cluster: Cluster) -> None:
    """A worker is told to go while a long request is in flight; a second later another worker's engine ends."""
    long_request(cluster)
    cluster.world.at(1.0, _rank_fails, cluster, 2)


def fails_as_it_ends_unserved(cluster: Cluster) -> None:
    """A worker is told to go before the group ever served; while all stop, the agent of another one is killed."""
    _told_to_go(cluster, _pod(cluster, 1))
    cluster.world.at(0.3, _agent_of, cluster, 2)


def stalled_and_alone(cluster: Cluster) -> None:
    """The others' nodes are lost, then the leader's agent is stalled: rank 0 ends by its lease, and says hello anew."""
    for rank in (1, 2):
        _kill(cluster, _pod(cluster, rank), silent=True)
    cluster.world.at(0.35 * LEASE, _stall, cluster, 0, 0.55 * LEASE)


def ends_with_0(cluster: Cluster) -> None:
    """On a slow network an engine ends with 0, and its neighbours with 1 because of it, before anybody is stopped: so
    soon that nobody can tell which was first."""
    cluster.net.base = 0.3
    proc, *_ = (p for p in cluster.truth.live if p.rank == 2)
    neighbours = [p for p in cluster.truth.live if p.rank != 2]
    proc.guard.breaks(proc, CauseKind.EXITED, 0)
    for other in neighbours:
        soon = cluster.world.between(0.001, 0.01)
        other.guard.later(soon, other.guard.breaks, other, CauseKind.EXITED, 1, False)


def leaves_with_its_node(cluster: Cluster) -> None:
    """While the group is not whole a worker says that it leaves, and its node is lost before more is heard of it."""
    cluster.wanted.discard(2)
    _kill_rank(cluster, 2)
    cluster.world.at(1.2 * LEASE, _leaves_and_is_lost, cluster)


def _leaves_and_is_lost(cluster: Cluster) -> None:
    pod = _pod(cluster, 1)
    assert pod.agent is not None and pod.agent.link is not None
    cluster.truth.told_to_go(pod)
    pod.agent.link.send(Leaving(cluster.plan.grace))
    cluster.wanted.discard(1)
    _kill(cluster, pod, silent=True)
    cluster.make_pod(2)


def taken_over_and_back(cluster: Cluster) -> None:
    """A pod takes a rank over and is lost for good with its node; the first one is there again, and is taken back."""
    first = _pod(cluster, 1)
    cluster.wanted.discard(1)
    replaced_and_healed(cluster)
    cluster.world.at(LEASE, _others_are_lost, cluster, first)


def _others_are_lost(cluster: Cluster, first: Pod) -> None:
    for pod in [p for p in cluster.of_rank(1) if p is not first]:
        _kill(cluster, pod, silent=True)


def replaced_in_its_pod(cluster: Cluster) -> None:
    """A launcher's connection goes dark and it is killed: it is back in seconds, and known for who it was."""
    agent = _pod(cluster, 1).agent
    assert agent is not None and agent.link is not None
    agent.link.dark = agent.link.peer.dark = True
    cluster.truth.touch("connection dark", 1, lasts=1e9)
    _kill_agent(cluster, _pod(cluster, 1))


def charge_grows_old(cluster: Cluster) -> None:
    """A restart is charged; the leader is made anew when it is nearly forgotten, and hears of it when it should be."""
    _rank_fails(cluster, 1)
    cluster.world.at(13.0, _leader_is_lost, cluster)


def _leader_is_lost(cluster: Cluster) -> None:
    cluster.wanted.discard(1)
    _kill_rank(cluster, 1)
    _kill_rank(cluster, 0)
    cluster.world.at(9.0, _worker_again, cluster)


def _worker_again(cluster: Cluster) -> None:
    if cluster.calm_at is None:
        cluster.ambushes.append((GroupPhase.RUNNING, 0.3, lambda: _rank_fails(cluster, 2)))
        cluster.wanted.add(1)
        cluster.make_pod(1)


def replaced_and_healed(cluster: Cluster) -> None:
    """A worker is cut off from its leader and a second pod takes its rank; the cut heals before any lease ends."""
    leader, pod = _pod(cluster, 0), _pod(cluster, 1)
    cluster.truth.touch("cut off and replaced", 1, lasts=1e9)
    for a, b in ((leader.node, pod.node), (pod.node, leader.node)):
        cluster.net.cut(a, b)
        cluster.world.at(0.5 * LEASE, cluster.net.heal, a, b)
    cluster.make_pod(1)


def leader_cut_off(cluster: Cluster) -> None:
    """The leader's node is cut off while its engine runs; its members are reset and find a new leader."""
    _isolate(cluster, _pod(cluster, 0))
    for rank in (1, 2):
        agent = _pod(cluster, rank).agent
        if agent is not None and agent.link is not None:
            agent.link.breaks()
    _new_leader(cluster)


def leader_cut_off_and_agents_killed(cluster: Cluster) -> None:
    """The same, and every member's agent is killed: only its guard lived through it."""
    leader = _pod(cluster, 0)
    _isolate(cluster, leader)
    for rank in (1, 2):
        _kill_agent(cluster, _pod(cluster, rank))
    _new_leader(cluster)


def late_hello(cluster: Cluster) -> None:
    """A hello is held up for longer than its member waits; that joins on another connection, and then it comes."""
    cluster.held_hellos = 1
    cluster.hold_for = 1.5 * LEASE
    _reset(cluster)


def late_hello_of_a_superseded_one(cluster: Cluster) -> None:
    """A hello is held up; its member joins anew, starts its engine and is cut off, and another pod takes the rank."""
    cluster.held_hellos = 1
    cluster.hold_for = 2.0 * LEASE
    _reset(cluster)
    cluster.world.at(1.7 * LEASE, _isolate_but_for_hello, cluster, 0.0)


def late_hello_of_a_lost_one(cluster: Cluster) -> None:
    """The same, but the member is lost by its silence before another pod has its rank: nobody has superseded it."""
    cluster.held_hellos = 1
    cluster.hold_for = 2.4 * LEASE
    _reset(cluster)
    cluster.world.at(1.7 * LEASE, _isolate_but_for_hello, cluster, 5.5)


def _isolate_but_for_hello(cluster: Cluster, after: float) -> None:
    """What was said before is repeated by a middlebox; nothing new comes through."""
    pod = _pod(cluster, 1)
    agent = pod.agent
    if agent is not None and agent.link is not None:
        cluster.truth.touch("connection dark", 1, lasts=1e9)
        agent.link.dark = agent.link.peer.dark = True
        cluster.make_pod(1, after=after)


def lost_while_gathering(cluster: Cluster) -> None:
    """One pod goes and does not come back for a while; meanwhile the node of another is lost without a word."""
    cluster.wanted.discard(2)
    _kill(cluster, _pod(cluster, 2), silent=False)
    cluster.world.at(0.3 * LEASE, _lose, cluster)


def _lose(cluster: Cluster) -> None:
    _kill(cluster, _pod(cluster, 1), silent=True)


def _kill(cluster: Cluster, pod: Pod, *, silent: bool) -> None:
    if silent:
        cluster.truth.touch("node lost", pod.rank, lasts=3 * LEASE)
        cluster.truth.launcher_killed(pod)
    else:
        cluster.truth.killed("pod killed", pod)
    cluster.kill_pod(pod, silent=silent)


def ended_while_preparing(cluster: Cluster) -> None:
    """An epoch ends while members still look whether they can run it; the next one comes before they have done."""
    _kill(cluster, _pod(cluster, 1), silent=False)


def one_is_newer(cluster: Cluster) -> None:
    """A pod comes back with another version of the engine."""
    cluster.version[1] = "2"
    _kill(cluster, _pod(cluster, 1), silent=False)


def leader_agent_killed(cluster: Cluster) -> None:
    """kill -9 of the leader's agent."""
    _kill_agent(cluster, _pod(cluster, 0))


def second_pod(cluster: Cluster) -> None:
    """A second pod of a rank comes and goes; the first one is well."""
    _second(cluster)
    cluster.world.at(LEASE, _second_goes, cluster)


def _second_goes(cluster: Cluster) -> None:
    if len(cluster.of_rank(1)) > 1:
        cluster.kill_pod(_pod(cluster, 1))


def out_of_memory(cluster: Cluster) -> None:
    """A process is killed for its memory; those of the other ranks end too, with codes, before `stop` reaches them."""
    cluster.net.base = 0.1
    proc = next(p for p in cluster.truth.live if p.rank == 1)
    proc.guard.breaks(proc, CauseKind.OOM, 137)


def told_late(cluster: Cluster) -> None:
    """A process ends with a code; another rank's, which ends because of it, is heard of first. Neither says a word of
    the other, and the machines' clocks are days apart: the times of the ends alone tell which was the first."""
    cluster.talkative, cluster.net.base = False, 0.001
    procs = {p.rank: p for p in cluster.truth.live}
    agent = procs[1].guard.agent
    assert agent is not None
    agent.stalled = True
    cluster.world.at(0.8, agent.thaw)
    procs[1].guard.breaks(procs[1], CauseKind.EXITED, 41)
    cluster.world.at(0.5, procs[2].guard.breaks, procs[2], CauseKind.EXITED, 1, False)


def stalled_before_start(cluster: Cluster) -> None:
    """An agent has said `prepared` and is stalled: `start` waits for it until its guard's deadline has passed."""
    _stall(cluster, 1, 1.5 * LEASE)


def stalled_while_preparing(cluster: Cluster) -> None:
    """An agent is stalled before it knows that it is able, and then its leader: both wake when the others are gone."""
    _stall(cluster, 1, 2.5 * LEASE)
    cluster.world.at(0.1, _stall, cluster, 0, 2.5 * LEASE)


def _stall(cluster: Cluster, rank: int, lasts: float) -> None:
    pod = _pod(cluster, rank)
    agent = pod.agent
    assert agent is not None
    agent.stalled = True
    cluster.truth.touch("agent stalled", rank, lasts=1e9)
    cluster.truth.silent("the stall", pod, lasts)
    cluster.world.at(lasts, agent.thaw)


def two_leaders_one_number(cluster: Cluster) -> None:
    """An epoch is made by a leader whose words are held up from that moment; its members find a new leader, which knows
    of no such epoch and gives the same number to another. Then what the old one had said comes through."""
    cluster.world.at(0.0, _one_dies, cluster)
    cluster.ambushes.append((GroupPhase.PREPARING, 0.0, lambda: _gagged(cluster)))


def _gagged(cluster: Cluster) -> None:
    old, members = _pod(cluster, 0), [_pod(cluster, rank) for rank in (1, 2)]
    for pod in members:
        cluster.truth.touch("cut from the old leader", pod.rank, lasts=1e9)
        cluster.net.cut(old.node, pod.node)
        cluster.world.at(2.5 * LEASE, cluster.net.heal, old.node, pod.node)
    _new_leader(cluster)


def budget_spent(cluster: Cluster) -> None:
    """Whenever the group runs, a process ends, and each end is charged."""
    if cluster.calm_at is None:
        _one_dies(cluster)
        cluster.ambushes.append((GroupPhase.RUNNING, 0.3, lambda: budget_spent(cluster)))


def cannot_prepare(cluster: Cluster) -> None:
    """For some seconds one rank cannot prepare an epoch."""
    cluster.unable[1], cluster.ever_unable = True, True
    cluster.world.at(3.0, cluster.unable.clear)


def never_ready(cluster: Cluster) -> None:
    """The engine of a rank fails before it is ready, always at the same point."""
    cluster.trouble[1] = Trouble(CauseKind.EXITED, 1, 1.0, 0.04)


def gives_up_while_one_is_away(cluster: Cluster) -> None:
    """A process ends, and when the group runs again a launcher is killed: that is once too often, and the next launcher
    of that pod, which does not know it, looks for its leader."""
    _one_dies(cluster)
    cluster.ambushes.append((GroupPhase.RUNNING, 0.3, lambda: _kill_agent(cluster, _pod(cluster, 1))))


def gives_up_as_one_is_reset(cluster: Cluster) -> None:
    """A process ends once too often; at that very moment a member's connection is reset."""
    cluster.ambushes.append((GroupPhase.ABORTED, 0.0, lambda: _reset(cluster)))
    cluster.ambushes.append((GroupPhase.RUNNING, 0.3, lambda: _one_dies(cluster)))
    _one_dies(cluster)


def gives_up_while_one_is_stalled(cluster: Cluster) -> None:
    """A process ends once too often, and one launcher hears that the group gives up late: the leader waits for it.
    Meanwhile containers of the others are started anew."""
    cluster.ambushes.append((GroupPhase.ABORTED, 0.0, lambda: _stall(cluster, 2, 3.0)))
    cluster.ambushes.append((GroupPhase.RUNNING, 0.3, lambda: _one_dies(cluster)))
    _one_dies(cluster)


def leader_gone_for_good(cluster: Cluster) -> None:
    """The leader's node is lost, and nobody makes another one."""
    _kill(cluster, _pod(cluster, 0), silent=True)


def leader_replaced_and_one_away(cluster: Cluster) -> None:
    """A worker is away for longer than --join-timeout, and the leader is made anew: it has never seen a whole group."""
    cluster.wanted.discard(2)
    _kill_rank(cluster, 2)
    cluster.world.at(1.0, _kill_rank, cluster, 0)


def never_whole(cluster: Cluster) -> None:
    """All pods are made anew, but one that does not come back for a while: nobody knows that the group has ever run."""
    cluster.wanted.discard(2)
    for rank in (2, 1, 0):
        _kill_rank(cluster, rank)


def agents_killed_and_one_away(cluster: Cluster) -> None:
    """The leader is away for longer than --join-timeout, and a worker's agent is killed: only its guard remembers."""
    cluster.wanted.discard(0)
    _kill_rank(cluster, 0)
    cluster.world.at(1.0, _agent_of, cluster, 1)


def back_and_killed(cluster: Cluster) -> None:
    """A member is lost by a reset and comes back; while the group waits for another one its launcher is killed."""
    _reset(cluster)
    cluster.wanted.discard(2)
    cluster.world.at(0.01, _kill_rank, cluster, 2)
    cluster.world.at(4.0, _agent_of, cluster, 1)


def replaced_and_killed(cluster: Cluster) -> None:
    """A pod is killed and another one made; while the group waits, the launcher of the new one is killed."""
    _kill_rank(cluster, 1)
    cluster.wanted.discard(2)
    cluster.world.at(0.01, _kill_rank, cluster, 2)
    cluster.world.at(6.0, _agent_of, cluster, 1)


def taken_over_and_killed(cluster: Cluster) -> None:
    """A pod takes a rank over, and its node is lost; then the launcher of the first pod, which lived on, is killed."""
    first = _pod(cluster, 1)
    replaced_and_healed(cluster)
    cluster.world.at(LEASE, _first_is_killed, cluster, first)


def _first_is_killed(cluster: Cluster, first: Pod) -> None:
    for pod in [p for p in cluster.of_rank(1) if p is not first]:
        _kill(cluster, pod, silent=True)
    _kill_agent(cluster, first)


def _kill_rank(cluster: Cluster, rank: int) -> None:
    _kill(cluster, _pod(cluster, rank), silent=False)


def _agent_of(cluster: Cluster, rank: int) -> None:
    _kill_agent(cluster, _pod(cluster, rank))


def _kill_agent(cluster: Cluster, pod: Pod) -> None:
    assert pod.guard is not None
    cluster.truth.killed("agent killed", pod)
    pod.guard.kill_agent()


def one_leaves_slowly(cluster: Cluster) -> None:
    """A worker is told to go, and takes its time with the exit: its goodbye is held up."""
    pod = _pod(cluster, 1)
    cluster.truth.told_to_go(pod)
    cluster.delete_pod(pod, cluster.plan.grace)


def leader_leaves(cluster: Cluster) -> None:
    """The leader's pod is deleted and made anew: it drains, all stop, and it exits with 0."""
    _told_to_go(cluster, _pod(cluster, 0))


def _told_to_go(cluster: Cluster, pod: Pod) -> None:
    cluster.truth.told_to_go(pod)
    cluster.delete_pod(pod, cluster.plan.grace)


def leaves_and_one_is_lost(cluster: Cluster) -> None:
    """A member is cut off and declared lost, and the leader leaves; the next one finds a second pod of that rank, while
    the engine of the first has not died."""
    old = _pod(cluster, 0)
    _isolate(cluster, _pod(cluster, 1))
    cluster.world.at(0.5 * LEASE, _new_leader, cluster)
    cluster.world.at(0.5 * LEASE, _second, cluster)
    cluster.ambushes.append((GroupPhase.WAITING, 0.01, lambda: _told_to_go(cluster, old)))


def hangs(cluster: Cluster) -> None:
    """A worker's process does no more work, and its launcher says so."""
    proc = next(p for p in cluster.truth.live if p.rank == 2)
    cluster.truth.hung(proc, CauseKind.HANG)


def hangs_as_one_is_cut_off(cluster: Cluster) -> None:
    """A worker's node is cut off; shortly before it is declared lost, and its neighbours' guards act, another hangs."""
    _isolate(cluster, _pod(cluster, 1))
    cluster.world.at(0.57 * LEASE, hangs, cluster)


def hangs_and_one_is_told_to_go(cluster: Cluster) -> None:
    """A worker is told to go while a request is in flight; a moment later another one hangs."""
    long_request(cluster)
    cluster.world.at(0.5, hangs, cluster)


def hangs_and_the_leader_is_killed(cluster: Cluster) -> None:
    """A worker's process hangs; while evidence is gathered the leader's pod is killed."""
    hangs(cluster)
    cluster.world.at(0.3, _kill_rank, cluster, 0)


def hangs_and_a_member_is_killed(cluster: Cluster) -> None:
    """A worker's process hangs; while evidence is gathered another member's agent is killed."""
    hangs(cluster)
    cluster.world.at(0.3, _agent_of, cluster, 1)


def by_hand(cluster: Cluster) -> None:
    """A person restarts a group that serves, again while it starts anew, and once more as an engine ends."""
    restarted_by_hand(cluster)
    cluster.ambushes.append((GroupPhase.STARTING, 0.01, lambda: restarted_by_hand(cluster)))
    cluster.world.at(LEASE, _fails_and_by_hand, cluster)


def _fails_and_by_hand(cluster: Cluster) -> None:
    restarted_by_hand(cluster)
    _one_dies(cluster)


def by_hand_in_a_pause(cluster: Cluster) -> None:
    """An engine ends again and again; a person does not wait for the back-off."""
    budget_spent(cluster)
    for after in (6.0, 8.0, 10.0, 12.0):
        cluster.world.at(after, restarted_by_hand, cluster)


PLOTS: dict[str, Plot] = {
    "hangs": Plot(hangs),
    "hangs_as_one_is_cut_off": Plot(hangs_as_one_is_cut_off),
    "hangs_and_one_is_told_to_go": Plot(hangs_and_one_is_told_to_go, lasts=2 * LEASE),
    "hangs_and_the_leader_is_killed": Plot(hangs_and_the_leader_is_killed),
    "hangs_and_a_member_is_killed": Plot(hangs_and_a_member_is_killed),
    "by_hand": Plot(by_hand, more={"max_restarts": 0}),
    "by_hand_in_a_pause": Plot(by_hand_in_a_pause),
    "leader_leaves": Plot(leader_leaves, more={"longest_request": 0.5}, lasts=2 * LEASE),
    "leaves_and_one_is_lost": Plot(leaves_and_one_is_lost, more={"kill_time": (0.19 * LEASE, 0.2 * LEASE)}),
    "gives_up_while_one_is_away": Plot(gives_up_while_one_is_away, more={"max_restarts": 1, "linger": 30.0}),
    "gives_up_for_good": Plot(
        gives_up_while_one_is_away,
        more={"max_restarts": 1, "linger": 30.0, "rejoin_timeout": 20.0, "stays_down": True},
        lasts=6 * LEASE,
    ),
    "gives_up_as_one_is_reset": Plot(
        gives_up_as_one_is_reset,
        more={"max_restarts": 1, "linger": 30.0, "rejoin_timeout": 20.0, "stays_down": True},
        lasts=6 * LEASE,
    ),
    "leader_gone_for_good": Plot(
        leader_gone_for_good, more={"rejoin_timeout": 20.0, "stays_down": True}, lasts=6 * LEASE
    ),
    "second_pod": Plot(second_pod),
    "out_of_memory": Plot(out_of_memory, more={"fragile": True}),
    "told_late": Plot(told_late),
    "one_leaves_slowly": Plot(one_leaves_slowly, more={"longest_request": 0.5}, lasts=2 * LEASE),
    "lost_while_gathering": Plot(lost_while_gathering),
    "ended_while_preparing": Plot(ended_while_preparing, GroupPhase.PREPARING, {"prepare_time": (0.0, 12.0)}),
    "one_is_newer": Plot(one_is_newer),
    "leader_agent_killed": Plot(leader_agent_killed),
    "acks_held": Plot(acks_held),
    "half_open": Plot(half_open, GroupPhase.PREPARING, {"prepare_time": (9.0, 10.0)}),
    "hello_unanswered": Plot(hello_unanswered),
    "back_too_soon": Plot(back_too_soon, more={"term_time": (0.7, 0.9), "lease": 20.0}),
    "old_charges": Plot(old_charges, more={"restart_window": 5.0}),
    "cut_and_replaced": Plot(cut_and_replaced),
    "cut_and_replaced_later": Plot(cut_and_replaced, runs=(15.0, 20.0), lasts=4 * LEASE),
    "cut_off_as_another_fails": Plot(cut_off_as_another_fails),
    "cut_off_when_it_has_stopped": Plot(
        cut_off_when_it_has_stopped, more={"stubborn": 1.0, "stop_grace": 14.0}, lasts=4 * LEASE
    ),
    "stops_slowly": Plot(stops_slowly, more={"stubborn": 1.0, "stop_grace": 14.0}),
    "old_pings_come_late": Plot(old_pings_come_late, lasts=4 * LEASE),
    "reset_while_stopping": Plot(reset_while_stopping, more={"term_time": (0.7, 0.9)}),
    "leader_killed_while_stopping": Plot(
        leader_killed_while_stopping, more={"term_time": (0.7, 0.9), "max_restarts": 0}
    ),
    "long_request": Plot(long_request, lasts=2 * LEASE),
    "long_request_and_short_grace": Plot(
        long_request, more={"stubborn": 1.0, "term_time": (1.9, 2.0), "stop_grace": 3.0, "grace": 5.0}
    ),
    "told_while_stopping": Plot(told_while_stopping, more={"stubborn": 1.0, "stop_grace": 14.0, "grace": 5.0}),
    "fails_in_a_drain": Plot(fails_in_a_drain, more={"longest_request": 0.5}, lasts=2 * LEASE),
    "fails_as_it_ends_unserved": Plot(
        fails_as_it_ends_unserved,
        GroupPhase.STARTING,
        {"start_time": (2.0, 3.0), "term_time": (0.7, 0.9), "max_restarts": 0},
    ),
    "stalled_and_alone": Plot(stalled_and_alone),
    "ends_with_0": Plot(ends_with_0),
    "leaves_with_its_node": Plot(leaves_with_its_node),
    "taken_over_and_back": Plot(taken_over_and_back, lasts=4 * LEASE),
    "replaced_in_its_pod": Plot(replaced_in_its_pod),
    "charge_grows_old": Plot(charge_grows_old, more={"restart_window": 20.0}, lasts=5 * LEASE),
    # the old engine's clock is as slow, and the leader's as fast, as they may be, and the kill takes all that it may
    "clocks_apart": Plot(cut_and_replaced, more={"rates": (1.01, 0.99, 1.0), "kill_time": (0.2 * LEASE, 0.2 * LEASE)}),
    "replaced_and_healed": Plot(replaced_and_healed),
    "leader_cut_off": Plot(leader_cut_off),
    "leader_cut_off_later": Plot(leader_cut_off, runs=(15.0, 20.0), lasts=4 * LEASE),
    "leader_cut_off_and_agents_killed": Plot(leader_cut_off_and_agents_killed),
    "late_hello": Plot(late_hello, lasts=4 * LEASE),
    "late_hello_of_a_superseded_one": Plot(late_hello_of_a_superseded_one, lasts=4 * LEASE),
    "late_hello_of_a_lost_one": Plot(late_hello_of_a_lost_one, more={"kill_time": (1.5, 1.9)}, lasts=4 * LEASE),
    "stalled_before_start": Plot(stalled_before_start, GroupPhase.STARTING, after=0.0),
    "stalled_while_preparing": Plot(stalled_while_preparing, GroupPhase.PREPARING, {"prepare_time": (0.02, 0.02)}),
    "two_leaders_one_number": Plot(two_leaders_one_number, lasts=4 * LEASE),
    "budget_spent": Plot(budget_spent, more={"max_restarts": 2}),
    "fails_and_fails": Plot(budget_spent, more={"restart_backoff": 2.0}),
    "gives_up_while_one_is_stalled": Plot(gives_up_while_one_is_stalled, more={"max_restarts": 1}),
    "never_ready_again": Plot(never_ready, GroupPhase.PREPARING, {"keeps_verdict": True}, after=0.0),
    "budget_spent_again": Plot(budget_spent, more={"max_restarts": 2, "keeps_verdict": True}),
    "never_ready": Plot(never_ready, GroupPhase.PREPARING, after=0.0),
    "cannot_prepare": Plot(cannot_prepare, GroupPhase.PREPARING, after=0.0),
    "leader_replaced_and_one_away": Plot(leader_replaced_and_one_away, more={"join_timeout": 10.0}),
    "never_whole": Plot(never_whole, more={"join_timeout": 10.0}),
    "agents_killed_and_one_away": Plot(agents_killed_and_one_away, more={"join_timeout": 10.0}),
    "back_and_killed": Plot(back_and_killed),
    "replaced_and_killed": Plot(replaced_and_killed),
    "taken_over_and_killed": Plot(taken_over_and_killed),
}
