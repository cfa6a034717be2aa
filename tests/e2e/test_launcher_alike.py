"""Whole and alike: nothing starts while a pod is missing, other, double, or of another group; each is said in words."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.e2e.group import Group, running


def test_a_pod_that_is_not_alike(tmp_path: Path) -> None:
    """Nothing is started; every pod shows which facts of which rank differ; it heals when the pod is made alike."""
    odd = ("--model", "other", "--tp", "4", "--lease", "7s", "--", "--max-num-seqs", "3")
    told = (
        "rank 2: model other, group has reference",
        "rank 2: tp 4, group has 1",
        "rank 2: lease 7, group has 10",
        "rank 2: engine.args.max-num-seqs",
    )
    with running(tmp_path, 3, start=False) as group:
        group.start(0)
        group.start(1)
        group.start(2, *odd)
        group.until_phase("mismatched")
        for rank in range(3):
            for words in told:
                group.until(words, lambda r=rank, w=words: w in group.status(r)["waiting_for"])  # type: ignore[misc]
            assert 'launcher_phase{phase="mismatched"} 1' in group.ask(rank, "/metrics").text
            assert group.ask(rank, "/readyz").status == 503
        assert all("stage started" not in group.output(rank) for rank in range(3))
        assert not group.engines()
        group.terminate(2)
        assert group.code(2) == 0
        group.restart(2)
        assert group.until_serving() == 1


def test_another_version_of_the_launcher(tmp_path: Path) -> None:
    """A rolling update: the new pod waits until the others are new as well."""
    newer = tmp_path / "newer" / "launcher"
    newer.parent.mkdir()
    newer.symlink_to(Path(__file__).parents[2] / "launcher")
    (newer.parent / "sitecustomize.py").write_text("import launcher\nlauncher.__version__ = '99.0'\n")
    new = {"PYTHONPATH": str(newer.parent)}
    with running(tmp_path, 2, start=False) as group:
        group.start(0)
        group.start(1, env=new)
        group.until_phase("mismatched")
        assert "rank 1: engine.version 99.0, group has" in group.status(0)["waiting_for"]
        group.terminate(0)
        assert group.code(0) == 0
        group.restart(0, env=new)
        group.until_serving()


def test_a_wrong_size_on_one_pod(tmp_path: Path) -> None:
    with running(tmp_path, 2, start=False) as group:
        group.start(0)
        group.start(1, size=3)
        group.until_phase("mismatched")
        assert group.status(0)["waiting_for"] == "rank 1: size 3, group has 2"
        assert not group.engines()
        group.terminate(1)
        group.code(1)
        group.restart(1)
        group.until_serving()


def test_a_rank_beyond_the_size(tmp_path: Path) -> None:
    with running(tmp_path, 3, start=False) as group:
        group.start(0, size=2)
        group.start(2, size=3)
        text = "rank 2 of size 3 came, but the leader's size is 2: check --size"
        group.until("the pod is told", lambda: group.status(2).get("waiting_for") == text)
        group.until("it is in the log", lambda: text in group.output(2))
        assert not group.engines()


def test_two_pods_with_one_rank(tmp_path: Path) -> None:
    """The first holds its rank, the group serves; the second is told both addresses, waits, and takes over."""
    with running(tmp_path, 3, "--lease", "3", "--restart-backoff", "0.3", start=False) as group:
        group.size = 2
        group.start(0)
        group.start(1)
        group.until_serving()
        twin = {"LAUNCHER_RANK": "1"}
        group.start(2, env=twin)
        group.until("the newcomer is told", lambda: "two pods are rank 1" in group.status(2).get("waiting_for", ""))
        told = group.status(2)["waiting_for"]
        assert group.addresses[1] in told and group.addresses[2] in told
        group.until("it is in the log", lambda: "duplicate rank" in group.output(0))
        group.complete("still here", 5)
        group.kill_rank(1)
        del group.processes[1]
        group.until(
            "the newcomer takes the rank", lambda: group.status(0)["members"][1]["address"] == group.addresses[2]
        )
        group.until("serving again", lambda: group.status(2).get("ready") and group.epoch() == 2)
        group.complete("hello again", 5)


def test_a_launcher_that_was_taken_over_goes_on_under_a_new_name(tmp_path: Path) -> None:
    """And those after it in its pod will know: the state file tells."""
    with running(tmp_path, 3, "--lease", "20", start=False) as group:
        group.size = 2
        group.start(0)
        group.start(1, env={"LAUNCHER_STATE_DIR": str(tmp_path)})
        group.until_serving()
        memory = tmp_path / "launcher-rank-1.json"
        before = json.loads(memory.read_text())["incarnation"]
        agent = group.agent(1)
        os.kill(agent, signal.SIGSTOP)
        group.start(2, env={"LAUNCHER_RANK": "1"})
        group.until(
            "the newcomer takes the rank", lambda: group.status(0)["members"][1]["address"] == group.addresses[2]
        )
        os.kill(agent, signal.SIGCONT)
        group.until("it goes by another name", lambda: json.loads(memory.read_text())["incarnation"] == f"{before}-2")
        group.until(
            "the newcomer keeps the rank", lambda: "two pods are rank 1" in group.status(1).get("waiting_for", "")
        )


def test_two_leaders_of_one_group(tmp_path: Path) -> None:
    """A second pod that says it is rank 0 is alone with itself: the workers know one address."""
    with running(tmp_path, 3, start=False) as group:
        group.size = 2
        group.start(0)
        group.start(2, env={"LAUNCHER_RANK": "0"})
        group.start(1)
        group.until_serving()
        assert group.phase(2) == "gathering"


def test_a_pod_of_another_group_reaches_this_leader(tmp_path: Path) -> None:
    with running(tmp_path, 2, group_id="ns/one", start=False) as group:
        group.start(0)
        group.start(1, env={"LAUNCHER_GROUP_ID": "ns/two"})
        text = "this is the leader of group ns/one, not of ns/two"
        group.until("the stranger is told", lambda: group.status(1).get("waiting_for") == text)
        group.until("the leader waits", lambda: group.status(0).get("waiting_for") == "waiting for rank 1")
        assert group.phase(0) == "gathering"
        group.terminate(1)
        assert group.code(1) == 0
        group.restart(1)
        group.until_serving()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """Somebody else's server on the API port: said, and tried again until the port is free."""
    import socket

    with running(tmp_path, 2, "--restart-backoff", "0.3", start=False) as group, socket.socket() as other:
        other.bind((group.addresses[0], group.port))
        other.listen()
        group.start_all()
        who = f"process {os.getpid()} (python"  # or python3
        text = f"port {group.port} (api) is in use on this pod by {who}"
        group.until("told", lambda: text in str(group.status(1).get("first_failure")))
        assert not group.engines()
        other.close()
        group.until_serving()
        assert group.status(0)["restarts"] == 0


def test_a_group_port_that_is_taken(tmp_path: Path) -> None:
    with running(tmp_path, 2, start=False) as group:
        first = Group(tmp_path, 2, start=False)
        group.start(0)
        group.until_phase("gathering", 0)
        first.addresses, first.group_port = group.addresses, group.group_port
        first.start(0)
        assert first.code(0) == 78
        assert f"--group-port {group.group_port} cannot be used: Address already in use by process " in first.output(0)
        assert "fix: is another launcher running here?" in first.output(0)
