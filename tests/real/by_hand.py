"""Two pods, one engine, no launcher: proves the recipes, and where to look when a launcher test with an engine fails.

    python -m tests.real.by_hand vllm-mp|vllm-ray|sglang [--keep-logs FOLDER]

Needs root (tests/pods.py). Prints times, memory and the completion, and ends with 0 if it is the single process's.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.pods import Answer, Cluster, Pod, PodProcess, until, why_not
from tests.real import recipes
from tests.real.install import cache, engine
from tests.real.model import tiny_model

PORT = 8000


@dataclass(frozen=True)
class Running:
    """An engine over two pods that serves; `processes` are what was started, in the order of the stages."""

    cluster: Cluster
    leader: Pod
    worker: Pod
    processes: list[PodProcess]

    def complete(self) -> str:
        answer: Answer = self.leader.http(
            f"http://{self.leader.ip}:{PORT}/v1/completions", data=recipes.REQUEST, timeout=recipes.ANSWER_SECONDS
        )
        assert answer.status == 200, answer.body
        return str(answer.json()["choices"][0]["text"])


def node_environment(kind: str, pod: Pod) -> dict[str, str]:
    """What the launcher sets on each node, and the recipe's."""
    own = "SGLANG_HOST_IP" if kind == "sglang" else "VLLM_HOST_IP"
    launcher = {own: pod.ip, "GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0", "PYTHONUNBUFFERED": "1"}
    return {**recipes.environment("sglang" if kind == "sglang" else "vllm"), **launcher}


def serve(kind: str, *rest: str) -> list[str]:
    """`vllm serve` as the launcher would run it."""
    python = str(engine("vllm").python)
    model = [str(tiny_model()), "--served-model-name", recipes.MODEL_NAME, "--port", str(PORT), "-tp", "2"]
    backend = ["--distributed-executor-backend", kind.removeprefix("vllm-")]
    return [python, "-m", "vllm.entrypoints.cli.main", "serve", *model, *backend, *recipes.VLLM_ARGS, *rest]


def start_mp(leader: Pod, worker: Pod) -> list[PodProcess]:
    nodes = ["--nnodes", "2", "--master-addr", leader.ip, "--master-port", "29501"]
    first = leader.start(serve("vllm-mp", *nodes, "--node-rank", "0"), node_environment("vllm-mp", leader))
    second = worker.start(
        serve("vllm-mp", *nodes, "--node-rank", "1", "--headless"), node_environment("vllm-mp", worker)
    )
    return [first, second]


def start_ray(leader: Pod, worker: Pod) -> list[PodProcess]:
    ray = [str(engine("vllm").python), "-m", "ray.scripts.scripts", "start", "--block", *recipes.RAY_START_ARGS]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_ADDRESS": f"{leader.ip}:6379"}
    environments = [{**node_environment("vllm-ray", pod), **token} for pod in (leader, worker)]
    head = [*ray, *recipes.RAY_HEAD_ARGS, "--head", "--port=6379", f"--node-ip-address={leader.ip}"]
    first = leader.start(head, environments[0])
    until(lambda: "runtime started" in first.output(), 60, "the head has started")
    second = worker.start([*ray, f"--address={leader.ip}:6379", f"--node-ip-address={worker.ip}"], environments[1])
    until(lambda: "runtime started" in second.output(), 60, "the worker has joined")
    # In one PID namespace: a Ray driver finds its node by looking for the raylet among the processes.
    return [first, second, leader.start(serve("vllm-ray"), environments[0], beside=first)]


def start_sglang(leader: Pod, worker: Pod) -> list[PodProcess]:
    def start(pod: Pod, rank: int) -> PodProcess:
        model = ["--model-path", str(tiny_model()), "--served-model-name", recipes.MODEL_NAME, "--tp", "2"]
        nodes = ["--nnodes", "2", "--node-rank", str(rank), "--dist-init-addr", f"{leader.ip}:20000"]
        common = ["--host", "0.0.0.0", "--port", str(PORT), *recipes.SGLANG_ARGS]
        argv = [str(engine("sglang").python), "-m", "sglang.launch_server", *model, *nodes, *common]
        return pod.start(argv, node_environment("sglang", pod))

    return [start(leader, 0), start(worker, 1)]


STARTS = {"vllm-mp": start_mp, "vllm-ray": start_ray, "sglang": start_sglang}


@contextlib.contextmanager
def running(kind: str, logs: Path | None = None, memory_limit: int | None = 8 << 30) -> Iterator[Running]:
    """The engine over two pods, once it serves. What its processes wrote is copied to `logs`, whatever came of them."""
    with Cluster(shared=[cache()]) as cluster:
        leader, worker = (cluster.pod(f"engine-{rank}", memory_limit=memory_limit) for rank in range(2))
        processes: list[PodProcess] = []
        try:
            processes += STARTS[kind](leader, worker)
            until(lambda: _serves(leader, processes), recipes.READY_SECONDS, f"{kind} serves")
            yield Running(cluster, leader, worker, processes)
        finally:
            if logs:
                logs.mkdir(parents=True, exist_ok=True)
                for number, process in enumerate(processes):
                    shutil.copy(process.log, logs / f"{kind}-{number}.log")


def _serves(leader: Pod, processes: list[PodProcess]) -> bool:
    for process in processes:
        if process.returncode is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.output()[-3000:]}")
    return leader.http(f"http://{leader.ip}:{PORT}/health").status == 200


def report(kind: str, logs: Path | None) -> bool:
    """Prints what is worth knowing; whether the completion is right."""
    expected = recipes.expected_completion("sglang" if kind == "sglang" else "vllm")
    began = time.monotonic()
    with running(kind, logs) as now:
        print(f"{kind}: ready after {time.monotonic() - began:.1f} s", flush=True)
        asked = time.monotonic()
        text = now.complete()
        print(f"{kind}: answered after {time.monotonic() - asked:.1f} s")
        print(f"{kind}: {text!r} is {'the same' if text == expected else f'not {expected!r}'}")
        for pod in (now.leader, now.worker):
            print(f"{kind}: {pod.name}: peak memory {pod.memory_peak() / 2**20:.0f} MiB")
            for one in pod.processes():
                print(f"    {_resident(one.pid):5d} MiB {one.pid_inside:5d} {one.state} {one.command[:90]}")
    return text == expected


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 >> 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(STARTS))
    parser.add_argument("--keep-logs", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 69
    return 0 if report(options.kind, options.keep_logs) else 1


if __name__ == "__main__":
    raise SystemExit(main())
