"""How waits and outages are told, who holds a port, which command shows a group's pods, and a status of many ranks."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from launcher import log as launchers_log
from launcher.agent.outage import Outage
from launcher.cli.status import ranges, table
from launcher.identity import look_at
from launcher.log import REMIND_SECONDS, Log, WaitLines
from launcher.model import Identity
from launcher.node import listener


def test_a_wait_lasts_from_its_beginning_whatever_its_reason_is() -> None:
    wait = WaitLines()
    assert wait.line("waiting for rank 1", 10.0) == "waiting for rank 1"
    assert wait.line("waiting for rank 1", 10.0 + REMIND_SECONDS - 1) == ""
    assert wait.line("waiting for rank 1", 10.0 + REMIND_SECONDS) == "still waiting for rank 1"
    assert wait.line("a version differs", 100.0) == "a version differs"
    assert wait.lasted(100.0) == 90.0
    assert wait.line("", 110.0) == "" and wait.lasted(120.0) == 0.0
    assert wait.line("waiting for rank 1", 130.0) == "waiting for rank 1" and wait.lasted(131.0) == 1.0


def test_a_long_wait_is_a_warning_that_says_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers_log, "LONG_SECONDS", 0.0)
    lines: list[str] = []
    log = Log(lines.append, 0)
    log.look_at = "kubectl get pods -n ns -l x"
    log.waiting("waiting for rank 1")
    assert "WARNING waiting for rank 1" in lines[0] and 'look_at="kubectl get pods -n ns -l x"' in lines[0]


def test_an_outage_is_closed_by_one_line() -> None:
    outage = Outage()
    assert outage.enter("starting", False, 0.0) == outage.enter("running", False, 5.0) == ""
    assert outage.enter("draining", False, 6.0) == outage.enter("stopping", True, 10.0) == ""
    assert outage.enter("backoff", False, 11.0) == outage.enter("starting", False, 12.0) == ""
    assert outage.enter("running", False, 22.4) == "serving again after 12.4 s"


def test_a_start_that_failed_first_is_closed_too() -> None:
    outage = Outage()
    for phase, failed, at in (("starting", False, 0.0), ("stopping", True, 1.0), ("starting", False, 2.0)):
        assert outage.enter(phase, failed, at) == ""
    assert outage.enter("running", False, 4.0) == "serving 3.0 s after a failure"
    fresh = Outage()
    assert fresh.enter("stopping", False, 1.0) == fresh.enter("running", False, 4.0) == "", "a pod left: no failure"


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_process_that_listens_is_named(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        port = server.getsockname()[1]
        assert listener.of(port) == "", "it is bound, and does not listen"
        server.listen()
        assert listener.of(port).startswith(f"process {os.getpid()} (")
        assert listener.of(port, host) and not listener.of(port, "192.0.2.1")
    assert listener.of(port, host) == ""


def who(source: str, name: str = "engine-1", peers: tuple[str, ...] = ()) -> Identity:
    return Identity("ns/engine-0", 1, 2, name, "engine-0.engine.ns.svc.cluster.local", source, peers)


def test_the_command_that_shows_the_pods_is_the_platforms() -> None:
    names = tuple(f"engine-{rank}.engine.ns.svc.cluster.local" for rank in range(2))
    pods = "'statefulset.kubernetes.io/pod-name in (engine-0,engine-1)'"
    assert look_at.command(who("statefulset", peers=names), {}, "ns") == f"kubectl get pods -n ns -l {pods}"
    assert look_at.command(who("job", "train-1"), {}) == "kubectl get pods -l batch.kubernetes.io/job-name=train"
    assert look_at.command(who("lws"), {}, "ns").endswith("-n ns -l leaderworkerset.sigs.k8s.io/name")
    assert look_at.command(who("slurm"), {"SLURM_JOB_ID": "7"}) == "squeue --job 7 --steps"
    assert look_at.command(who("explicit"), {}) == ""
    assert look_at.command(who("explicit"), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == "kubectl get pods -o wide"


def members(size: int, **unlike: dict[str, Any]) -> list[dict[str, Any]]:
    usual = {"state": "running", "address": "10.0.0.1", "last_seen_s": 0.2, "engine_pids": [7]}
    return [{"rank": rank, **usual, **unlike.get(f"r{rank}", {})} for rank in range(size)]


def test_a_bad_rank_among_many_is_shown() -> None:
    rows = members(1000, r700={"state": "absent", "last_seen_s": None}, r900={"state": "leaving"})
    text = table({"ready": True, "rank": 0, "size": 1000, "members": rows})
    assert "\n  700   absent" in text and "\n  900   leaving" in text
    assert "  and 38-699,701-899,901-999: running" in text
    starting = {"stage": "engine", "step": "weights", "ratio": 0.5}
    slow = {f"r{rank}": {"state": "starting", "progress": starting} for rank in range(100)}
    slow["r99"] = {"state": "starting", "progress": {**starting, "ratio": 0.1, "eta_s": 90.0}}
    text = table({"phase": "starting", "rank": 0, "size": 100, "members": members(100, **slow)})
    assert "100 ranks start; rank 99: weights 10 %, about 90 s left" in text
    assert "\n  99    starting" in text


def test_bad_ranks_beyond_all_rows_are_named_in_ranges() -> None:
    many = {f"r{rank}": {"state": "absent", "last_seen_s": None} for rank in range(100, 1000)}
    text = table({"rank": 0, "size": 1000, "members": members(1000, **many)})
    assert "-999: absent" in text and text.count("\n") < 60
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
