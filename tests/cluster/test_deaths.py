"""What kills processes and pods: the group lives and dies as one, and serves again."""

from __future__ import annotations

import time

import pytest

from tests.cluster import history
from tests.cluster.conftest import Measured
from tests.cluster.kubectl import until
from tests.cluster.space import Group, Space, script

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("victim", ["engine", "agent"])
def test_kill_9(victim: str, rank: int, space: Space, measured: Measured) -> None:
    """Of the engine: all ranks restart in place. Of the agent: the guard ends the engine and starts another agent."""
    with space.watched("pods") as seen, space.group("kill") as group:
        group.serving()
        before = group.epoch()
        pid = group.processes(rank)[victim]
        space.kubectl.python(group.member(rank), script("processes"), "kill", str(pid))
        measured(f"kill -9 of rank {rank}'s {victim}: serving again", group.next_epoch(before))
        group.check()
        assert history.restarts(seen["pods"].events) == {}
        if victim == "engine":
            failure = group.status()["first_failure"]
            assert failure["rank"] == rank, failure


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_9_of_the_guard(rank: int, space: Space, on_nodes: Space, measured: Measured) -> None:
    """From the node: the kernel ends the container with it. The other pod's container lives."""
    with space.watched("pods") as seen, space.group("kill") as group:
        group.serving()
        before = group.epoch()
        (pod,) = [p for p in group.found() if p["metadata"]["name"] == group.member(rank)]
        uid, node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        killer = on_nodes.run("killer", "first_process", uid, "launcher", node=node, privileged=True)
        said = on_nodes.ended(killer)
        assert said.startswith("killed"), said
        measured(f"kill -9 of rank {rank}'s guard: serving again", group.next_epoch(before))
        group.check()
        assert history.restarts(seen["pods"].events) == {group.member(rank): 1}


@pytest.mark.parametrize("victim", ["engine", "agent", "guard"])
def test_out_of_memory(victim: str, space: Space, measured: Measured) -> None:
    """The kernel ends the process, or (memory.oom.group, Kubernetes 1.28 with cgroup v2) the whole container."""
    with space.watched("pods") as seen, space.group("oom") as group:
        group.serving()
        before, lives = group.epoch(), group.lives(group.member(1))
        pid = group.processes(1)[victim]
        # the program that takes the memory may be ended with the container: then kubectl has no answer
        arguments = ("exec", "-i", group.member(1), "--", "python3", "-", "starve", str(pid))
        space.kubectl.attempt(*arguments, text=script("processes"))
        measured(f"out of memory, the {victim} first: serving again", group.next_epoch(before))
        group.check()
        if group.lives(group.member(1)) != lives:
            (pod,) = [p for p in group.found() if p["metadata"]["name"] == group.member(1)]
            reason = history.engine_state(pod)["lastState"]["terminated"]["reason"]
            assert reason in ("OOMKilled", "Error"), reason
        elif victim == "engine":
            assert group.status()["first_failure"]["rank"] == 1
        assert set(history.restarts(seen["pods"].events)) <= {group.member(1)}


@pytest.mark.parametrize(("who", "rank"), [("leader", 0), ("worker", 1)])
def test_pod_is_deleted(who: str, rank: int, space: Space, measured: Measured) -> None:
    """In good order: nobody waits for a lease, and the other pod's container stays.

    That is a start and the 5 s for which a pod that was told to go keeps serving, and 3 s for the cluster. A wait for a
    lease would come on top.
    """
    with space.watched("pods") as seen, space.group("delete") as group:
        start = group.serving()
        stays = group.lives(group.member(1 - rank))
        seconds = replaced(group, [group.member(rank)])
        measured(f"{who}'s pod deleted: serving again", seconds, "at most 12 s on an idle cluster")
        group.check()
        assert group.lives(group.member(1 - rank)) == stays
        assert history.restarts(seen["pods"].events) == {}
        assert seconds <= start + 8, f"the start took {start:.1f} s"


def test_group_that_gave_up_serves_once_the_cause_is_gone(space: Space, measured: Measured) -> None:
    """Its restarts are spent and every launcher has exited; each round of container restarts is one more attempt."""
    fails = ["--crash-after", "1", "--crash-at", "startup", "--fault-epochs", "1,2,3"]
    with space.watched("pods") as seen, space.group("spent", engine=fails, options=["--max-restarts", "1"]) as group:
        measured("restarts spent, cause gone: serving after", group.serving(600.0))
        group.check()
        status = group.status()
        assert status["epoch"] >= 4 and status["first_failure"], status
        assert set(history.restarts(seen["pods"].events)) == set(group.members)


def test_whole_group_is_deleted(space: Space, measured: Measured) -> None:
    with space.group("delete") as group:
        group.serving()
        measured("all pods deleted: serving again", replaced(group, group.members))
        group.check()


def test_pod_is_evicted(space: Space, measured: Measured) -> None:
    """The budget lets one pod go, and the others of its group once that one is gone, since they no longer serve."""
    with space.group("evict", size=3) as group:
        group.serving()
        before = group.lives(group.member(1))
        done = space.kubectl.evict(group.member(1))
        assert done.returncode == 0, done.stderr
        second = space.kubectl.evict(group.member(2))
        assert second.returncode == 0 or "disruption budget" in second.stderr, second.stderr
        group.again(before)
        group.check()
        measured(
            "evicted: a pod of the group while another was on its way", "refused" if second.returncode else "let go"
        )


def replaced(group: Group, names: list[str]) -> float:
    """Seconds from the deletion of these pods until the group serves with new ones."""
    before = group.lives(*names)
    began = time.monotonic()
    group.kubectl("delete", "pod", "--wait=false", *names)
    until("new pods serve", lambda: group.serves() and not before & group.lives(*names), words=group.words)
    return time.monotonic() - began
