"""Requests lost and latency added while one of two groups is told to go under load, as on a scale-down.

Two groups of two pods serve behind one endpoint list; clients ask without pause, four short requests (1 s) for each
long one (10 s), and retry nothing. Then all pods of one group get SIGTERM at the same moment, and the list still names
it for 2 s, as EndpointSlices and proxies lag. Every request that is not answered in full is lost.

launcher          drains: serves on for --drain-settle and until nothing is in flight, then stops rank 0, then the rest
engine alone      SIGTERM reaches the engine on every pod; rank 0 finishes what it has for up to 10 s, if it can
with preStop      the same after the `sleep 5` that many manifests have
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import plot
from benchmarks.pods import SERVING_SECONDS, need_pods
from benchmarks.record import Budget, Record
from benchmarks.rounds import alternate, progress
from tests.pods import ROOT, Cluster, Pod, PodProcess, until
from tests.real.launched import LaunchedGroup

ROUNDS = 5
CASES = ("one of two groups goes",)
FLOOR = "launcher"
LOST, GONE = "requests lost", "SIGTERM to the end of the last process"
BEFORE, MEANWHILE = "latency of short requests before", "latency of short requests from SIGTERM on"
SENT = "requests at stake"  #: sent to the group after SIGTERM, or in flight then
CLIENTS = 24
TOKEN_SECONDS = 0.05
SHORT, LONG = 20, 200  #: tokens
LAG = 2.0
WARM_SECONDS = 8.0
GRACE = 30.0
GOES = "goes"
PORT = 8000
ENGINE = ["--token-seconds", str(TOKEN_SECONDS)]

BUDGETS = (Budget("requests lost by the launcher, any round", CASES[0], LOST, "launcher", 0, statistic="max"),)


def run(record: Record, rounds: int, cases: list[str]) -> None:
    """Every contestant once a round, on pods of its own."""
    need_pods()
    for name in alternate(list(CONTESTANTS), rounds, "drain"):
        answers, told, ended = one_round(CONTESTANTS[name])
        before = [a for a in answers if a.sent + a.took < told and a.tokens == SHORT]
        stake = [a for a in answers if a.goes and a.sent + a.took >= told]
        after = [a for a in answers if told <= a.sent < max(ended, told + LAG) and a.tokens == SHORT and not a.lost]
        lost = [a for a in answers if a.lost]
        case = cases[0]
        record.add(case, LOST, "requests", name, len(lost))
        record.add(case, SENT, "requests", name, len(stake))
        record.add(case, GONE, "s", name, ended - told)
        record.add(case, BEFORE, "ms", name, *(1000 * a.took for a in before if not a.lost))
        record.add(case, MEANWHILE, "ms", name, *(1000 * a.took for a in after))
        whys = ", ".join(sorted({a.lost for a in lost}))
        progress(f"{name}: {len(lost)} of {len(stake)} lost ({whys}), {ended - told:.1f} s")


def one_round(start: Contestant) -> tuple[list[Asked], float, float]:
    """All requests, when SIGTERM was sent, and when the last process of the group had ended (monotonic)."""
    with Cluster() as cluster:
        stays, goes = start(cluster, "stays"), start(cluster, GOES)
        for group in (stays, goes):
            until(lambda g=group: _serves(g.leader), SERVING_SECONDS, "both groups serve")  # type: ignore[misc]
        service = Service([stays.leader, goes.leader])
        with load(cluster, service) as answers:
            time.sleep(WARM_SECONDS)
            told = time.monotonic()
            threading.Timer(LAG, service.remove, [goes.leader]).start()
            goes.terminate()
            ended = max(goes.ended(told + 2 * GRACE))
            time.sleep(max(0.0, told + LAG + 2.0 - time.monotonic()))
        for process in stays.processes:
            process.kill_all()
    return answers, told, ended


def _serves(leader: Pod) -> bool:
    return leader.http(f"http://{leader.ip}:{PORT}/health", timeout=2).status == 200


# ------------------------------------------------------------------------------------------------------------ load


@dataclass(frozen=True)
class Asked:
    """One request."""

    sent: float  #: monotonic
    took: float  #: seconds
    tokens: int
    lost: str  #: why; empty: it was not
    goes: bool  #: to the group that is told to go


class Service:
    """The endpoints that clients know, one after the other."""

    def __init__(self, pods: list[Pod]) -> None:
        self._pods = pods
        self._turn = itertools.count()

    def next(self) -> Pod:
        pods = self._pods
        return pods[next(self._turn) % len(pods)]

    def remove(self, gone: Pod) -> None:
        self._pods = [pod for pod in self._pods if pod is not gone]


@contextlib.contextmanager
def load(cluster: Cluster, service: Service) -> Iterator[list[Asked]]:
    """Clients that ask without pause for the length of the block; what is in flight at its end is waited for."""
    answers: list[Asked] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            answers.append(ask(cluster, service.next(), LONG if random.random() < 0.2 else SHORT))

    clients = [threading.Thread(target=client, daemon=True) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in clients:
            thread.join(60)


def ask(cluster: Cluster, pod: Pod, tokens: int) -> Asked:
    """A completion, by the address that the service gave."""
    sent = time.monotonic()
    body = {"model": "reference", "prompt": "drain", "max_tokens": tokens}
    lost = ""
    try:
        answer = cluster.http(f"http://{pod.ip}:{PORT}/v1/completions", data=body, timeout=30)
        if answer.status != 200:
            lost = f"status {answer.status}"
        elif answer.json()["usage"]["completion_tokens"] != tokens:
            lost = "cut short"
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        lost = type(error).__name__
    took = time.monotonic() - sent
    if lost:
        time.sleep(0.05)  # a refused connection is no reason to ask ten thousand times
    return Asked(sent, took, tokens, lost, pod.name.startswith(GOES))


# ----------------------------------------------------------------------------------------------------- contestants


class Serving:
    """One group of two pods."""

    def __init__(self, leader: Pod, processes: list[PodProcess], before_term: float = 0.0) -> None:
        self.leader = leader
        self.processes = processes
        self._before_term = before_term

    def terminate(self) -> None:
        """What the kubelet does on every pod at once: preStop, then SIGTERM."""
        time.sleep(self._before_term)
        for process in self.processes:
            process.signal(15)

    def ended(self, deadline: float) -> list[float]:
        """When each process had ended; one that has not by then is killed, as the kubelet would."""
        left, times = list(self.processes), []
        while left:
            for process in list(left):
                if time.monotonic() > deadline:
                    process.kill_all()
                if process.returncode is not None:
                    times.append(time.monotonic())
                    left.remove(process)
            time.sleep(0.02)
        return times


Contestant = Callable[[Cluster, str], Serving]


def _launched(cluster: Cluster, name: str) -> Serving:
    group = LaunchedGroup(cluster, 2, ["--engine", "reference", "--", *ENGINE], name=name)
    for rank in range(2):
        group.start(rank, "--drain-settle", "5s", "--grace", str(GRACE))
    return Serving(group.pods[0], list(group.processes.values()))


def _alone(before_term: float) -> Contestant:
    def start(cluster: Cluster, name: str) -> Serving:
        pods = [cluster.pod(f"{name}-{rank}") for rank in range(2)]
        program = [sys.executable, "-I", "-S", str(ROOT / "launcher" / "reference" / "__main__.py")]
        common = ["--size", "2", "--peers", ",".join(pod.ip for pod in pods), "--port", str(PORT), *ENGINE]
        processes = [pod.start([*program, "--rank", str(rank), *common]) for rank, pod in enumerate(pods)]
        return Serving(pods[0], processes, before_term)

    return start


CONTESTANTS: dict[str, Contestant] = {
    "launcher": _launched,
    "engine alone": _alone(0.0),
    "with preStop": _alone(5.0),
}


def draw(record: Record, path: Path) -> None:
    """Lost requests, the time it takes, and latencies meanwhile; the table has those before, too."""
    shown = (LOST, GONE, MEANWHILE)
    plot.boxes(record, path, lambda one: one.measure in shown, title=lambda one: one.measure)
