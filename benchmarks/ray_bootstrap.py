"""Two pods to a command that runs on a whole two-node Ray cluster, by every way that people have.

script           `ray start --head`, then a new interpreter every 5 s that counts nodes; the worker tries every 5 s
symmetric-run    `ray symmetric-run --min-nodes 2`, Ray's own
run.sh           this project's leader|worker with the script's options
launcher         `launcher --engine vllm --backend ray`; the command is where `vllm serve` would start
whole Ray        the same, with Ray's dashboard, client server and monitor, which it leaves out otherwise

The clock starts when the later of the two pods starts. The worker starts with the leader, 3 s later, 10 s later. The
command is a stand-in that tells when it runs, and then asks Ray whether the cluster was whole.
"""

from __future__ import annotations

import os
import select
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import plot
from benchmarks.pods import need_pods
from benchmarks.record import Budget, Record
from benchmarks.rounds import alternate, progress
from launcher.errors import ConfigError
from tests.pods import ROOT, Cluster, Pod, PodProcess, until
from tests.real.install import NotInstallable, cache, engine
from tests.real.launched import LAUNCHER

ROUNDS = 5
LATE = {"both at once": 0.0, "worker 3 s late": 3.0, "worker 10 s late": 10.0}
CASES = tuple(LATE)
FLOOR = "script"
MEASURE = "both pods up to command on the whole cluster"
SECONDS = 120.0
HERE = Path(__file__).resolve().parent
START = ("--num-cpus=2", "--num-gpus=1", "--object-store-memory=100000000", "--disable-usage-stats")
OPTIONS = shlex.join(START)

BUDGETS = tuple(
    Budget(f"{case}: launcher against {other}", case, MEASURE, "launcher", limit, against=other)
    for case in CASES
    for other, limit in (("script", 0.6), ("symmetric-run", 0.4))
)


@dataclass(frozen=True)
class Way:
    """How a contestant starts each pod. The last argument is the command for the whole cluster."""

    leader: Callable[[Pod, Pod, list[str]], list[str]]
    worker: Callable[[Pod, Pod, list[str]], list[str]]


def run(record: Record, rounds: int, cases: list[str]) -> None:
    """Every contestant in every case, a fresh cluster each."""
    need_pods()
    turns = [(case, name) for case in LATE if case in cases for name in WAYS]
    for case, name in alternate(turns, rounds, "ray-bootstrap"):
        took = bootstrap(WAYS[name], LATE[case])
        record.add(case, MEASURE, "s", name, took)
        progress(f"{case}, {name}: {took:.2f} s")


def bootstrap(way: Way, late: float) -> float:
    """Seconds from the start of the later pod to the start of the command. Raises RuntimeError."""
    with Cluster(shared=[cache()]) as cluster:
        leader, worker = cluster.pod("engine-0"), cluster.pod("engine-1")
        fifo, nodes = cluster.folder / "runs", cluster.folder / "nodes"
        os.mkfifo(fifo)
        env = _environment(leader) | {"BENCH_FIFO": str(fifo), "BENCH_NODES": str(nodes)}
        command = [_python(), "-m", "vllm.entrypoints.cli.main", "serve"]
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            opened = select.poll()
            opened.register(reader, select.POLLIN)
            first = leader.start(way.leader(leader, worker, command), env | _identity(leader, cluster))
            time.sleep(late)
            began = time.monotonic()
            second = worker.start(way.worker(leader, worker, command), env | _identity(worker, cluster))
            told = opened.poll(SECONDS * 1000)
            took = time.monotonic() - began
        finally:
            os.close(reader)
        if not told:
            raise RuntimeError(f"no command within {SECONDS:g} s\n{_said(first, second)}")
        counted = until(lambda: nodes.exists() and nodes.read_text(), SECONDS, "the command to count nodes")
        if counted != "2":
            raise RuntimeError(f"the command ran on {counted} nodes\n{_said(first, second)}")
        for process in (first, second):
            process.kill_all()
    return took


def _said(*processes: PodProcess) -> str:
    return "\n---\n".join(process.output()[-3000:] for process in processes)


def _python() -> str:
    try:
        return str(engine("ray").python)
    except NotInstallable as why:
        raise ConfigError(f"this benchmark needs Ray: {why}", "see benchmarks/README.md, What each one needs") from None


def _environment(pod: Pod) -> dict[str, str]:
    """The interpreter with Ray is python3 and its script ray, and the stand-in is what it knows as vllm."""
    path = f"{Path(_python()).parent}:{pod.environment['PATH']}"
    return {**engine("ray").env, "PATH": path, "PYTHONPATH": str(HERE / "stand_ins"), "RAY_USAGE_STATS_ENABLED": "0"}


def _identity(pod: Pod, cluster: Cluster) -> dict[str, str]:
    return {
        "POD_NAME": pod.name,
        "POD_NAMESPACE": cluster.namespace,
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "LAUNCHER_TERMINATION_LOG": "/tmp/termination-log",
    }


# ----------------------------------------------------------------------------------------------------- contestants


def _script(role: str) -> Callable[[Pod, Pod, list[str]], list[str]]:
    def argv(leader: Pod, worker: Pod, command: list[str]) -> list[str]:
        if role == "leader":
            return [str(HERE / "ray_script.sh"), "leader", "2", "6379", OPTIONS, *command]
        return [str(HERE / "ray_script.sh"), "worker", leader.fqdn, "6379", OPTIONS]

    return argv


def _symmetric(leader: Pod, worker: Pod, command: list[str]) -> list[str]:
    ray = str(Path(_python()).with_name("ray"))
    return [ray, "symmetric-run", "--address", f"{leader.fqdn}:6379", "--min-nodes", "2", *START, "--", *command]


def _run_sh(role: str) -> Callable[[Pod, Pod, list[str]], list[str]]:
    def argv(leader: Pod, worker: Pod, command: list[str]) -> list[str]:
        script = [str(ROOT / "run.sh"), role]
        if role == "leader":
            words = [*script, "--ray_cluster_size=2", *START]
            return ["/bin/sh", "-c", f"{shlex.join(words)} && exec {shlex.join(command)}"]
        return [*script, f"--ray_address={leader.fqdn}", *START]

    return argv


def _launcher(*more: str) -> Callable[[Pod, Pod, list[str]], list[str]]:
    options = shlex.join([*(word for word in START if not word.startswith("--num-gpus")), *more])

    def argv(leader: Pod, worker: Pod, command: list[str]) -> list[str]:
        own = ["--engine", "vllm", "--backend", "ray", "--python", command[0], "--model", "stand-in", "--tp", "2"]
        group = ["--size", "2", "--service", leader.cluster.service, "--gpus-per-pod", "1"]
        return [str(LAUNCHER), *own, *group, "--ray-args", options]

    return argv


WAYS: Mapping[str, Way] = {
    "script": Way(_script("leader"), _script("worker")),
    "symmetric-run": Way(_symmetric, _symmetric),
    "run.sh": Way(_run_sh("leader"), _run_sh("worker")),
    "launcher": Way(_launcher(), _launcher()),
    "launcher, whole Ray": Way(_launcher("--include-dashboard=true"), _launcher("--include-dashboard=true")),
}


def draw(record: Record, path: Path) -> None:
    """A panel for each lateness."""
    plot.boxes(record, path)
