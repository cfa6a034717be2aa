"""A group of pods whose PID 1 is the launcher, as a StatefulSet would start them: what the tests of real engines share.

    with Cluster() as cluster:
        group = LaunchedGroup(cluster, 2, ["--engine", "vllm", ...], env)
        group.start_all()
        group.until_serving()

Pods are called engine-0, engine-1, ... behind the headless Service `engine`. Every pod gets the same command line.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.engines import versions
from launcher.model import EMPTY
from tests.pods import Cluster, Pod, PodError, PodProcess, until
from tests.real import recipes
from tests.real.install import engine
from tests.real.model import tiny_model

PORT = 8000
AGENT = 9471
LAUNCHER = Path(sys.executable).parent / "launcher"


def engine_arguments(kind: str) -> list[str]:
    """The launcher's command line for a kind: vllm-mp, vllm-ray, sglang; tensor parallel over two pods."""
    name = kind.partition("-")[0]
    own = ["--engine", name, "--python", str(engine(name).python), "--model", str(tiny_model()), "--tp", "2"]
    own += ["--served-model-name", recipes.MODEL_NAME, "--port", str(PORT)]
    if name == "vllm":
        own += ["--backend", kind.partition("-")[2], "--gpus-per-pod", "1"]
        if kind == "vllm-ray":
            own += ["--ray-args", shlex.join(a for a in recipes.RAY_START_ARGS if not a.startswith("--num-gpus"))]
        return [*own, "--", *recipes.VLLM_ARGS]
    return [*own, "--", *recipes.SGLANG_ARGS]


class LaunchedGroup:
    """Pods of one group, the launcher in each."""

    def __init__(
        self,
        cluster: Cluster,
        size: int,
        arguments: Sequence[str],
        env: Mapping[str, str] | None = None,
        name: str = "engine",
        grace: float = 20.0,
    ) -> None:
        self.cluster = cluster
        self.size = size
        self.name = name
        own = ["--size", str(size), "--service", cluster.service, "--grace", str(grace), "--drain-settle", "1s"]
        at = list(arguments).index("--") if "--" in arguments else len(arguments)
        self.arguments = [*arguments[:at], *own, *arguments[at:]]
        self.env = dict(env or {})
        self.pods: dict[int, Pod] = {}
        self.processes: dict[int, PodProcess] = {}

    def pod(self, rank: int, **options: Any) -> Pod:
        """Make the pod of a rank (no program runs in it yet)."""
        self.pods[rank] = self.cluster.pod(f"{self.name}-{rank}", **options)
        return self.pods[rank]

    def start(self, rank: int, *more: str, env: Mapping[str, str] | None = None) -> PodProcess:
        """Start the launcher in a rank's pod as PID 1."""
        pod = self.pods.get(rank) or self.pod(rank)
        at = self.arguments.index("--") if "--" in self.arguments else len(self.arguments)
        argv = [str(LAUNCHER), *self.arguments[:at], *more, *self.arguments[at:]]
        identity = {
            "POD_NAME": pod.name,
            "POD_NAMESPACE": self.cluster.namespace,
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "LAUNCHER_TERMINATION_LOG": "/tmp/termination-log",
        }
        pod.exec(["touch", "/tmp/termination-log"])
        self.processes[rank] = pod.start(argv, {**identity, **self.env, **(env or {})})
        return self.processes[rank]

    def start_all(self) -> None:
        for rank in range(self.size):
            self.start(rank)

    # ------------------------------------------------------------------------------------------------- looking

    def status(self, rank: int = 0) -> dict[str, Any]:
        """/status of a rank; empty while nothing answers."""
        pod = self.pods[rank]
        try:
            answer = pod.http(f"http://localhost:{AGENT}/status", timeout=5)  # details are for the pod itself
        except (OSError, PodError):
            return {}
        status = json.loads(answer.body) if answer.status == 200 else {}
        return status if isinstance(status, dict) else {}

    def until_told(self, seconds: float = 120.0) -> dict[str, Any]:
        """/status of rank 0, which may be late on a busy machine."""
        return until(self.status, seconds, "the leader's /status") or {}

    def until_serving(self, epoch: int = 1, seconds: float = recipes.READY_SECONDS) -> dict[str, Any]:
        """Wait until the group serves in ``epoch`` or a later one; its status. Fails early when a launcher ends."""

        def serving() -> dict[str, Any] | None:
            ended = {r: p.returncode for r, p in self.processes.items() if p.returncode is not None}
            assert not ended, f"launchers ended: {ended}\n{self.logs()}"
            status = self.status()
            return status if status.get("ready") and (status.get("epoch") or 0) >= epoch else None

        try:
            return until(serving, seconds, f"the group to serve in epoch {epoch}") or {}
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def complete(self, more: Mapping[str, Any] = EMPTY) -> str:
        """The greedy completion of the recipes' request, with ``more`` of its fields."""
        leader = self.pods[0]
        try:
            answer = leader.http(
                f"http://{leader.ip}:{PORT}/v1/completions",
                data={**recipes.REQUEST, **more},
                timeout=recipes.ANSWER_SECONDS,
            )
        except OSError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None
        assert answer.status == 200, f"{answer.body!r}\n{self.logs()}"
        return str(answer.json()["choices"][0]["text"])

    def models(self) -> list[str]:
        leader = self.pods[0]
        answer = leader.http(f"http://{leader.ip}:{PORT}/v1/models", timeout=30)
        return [m["id"] for m in answer.json()["data"]]

    def logs(self, lines: int = 60) -> str:
        """What the launchers printed last, for a failing test's message."""
        return "\n".join(
            f"--- rank {rank}\n" + "\n".join(p.output().splitlines()[-lines:]) for rank, p in self.processes.items()
        )

    def engine_processes(self, rank: int) -> list[Any]:
        """All processes of a rank's pod but the launcher's own, and what it asks an interpreter in passing."""
        return self.engine_processes_of(self.pods[rank])

    def engine_processes_of(self, pod: Pod) -> list[Any]:
        """The same of a pod that is no more in the group."""
        passing = (str(LAUNCHER), versions.PREFIX)
        return [p for p in pod.processes() if p.state != "Z" and not any(own in p.command for own in passing)]

    def workers(self, rank: int) -> list[Any]:
        """The processes of a rank that make tokens, by the title that their engine gave them."""
        return [p for p in self.engine_processes(rank) if _makes_tokens(p.command)]

    # -------------------------------------------------------------------------------------------------- ending

    def terminate_all(self, seconds: float = 120.0) -> dict[int, int]:
        """SIGTERM to all at the same moment, as on scale-down; the exit codes."""
        for process in self.processes.values():
            if process.returncode is None:
                process.signal(15)
        until_time = time.monotonic() + seconds
        return {r: p.wait(max(1.0, until_time - time.monotonic())) for r, p in self.processes.items()}


def _makes_tokens(command: str) -> bool:
    """Others may die unnoticed, a spare worker of Ray's for one."""
    busy = command.startswith("ray::") and "IDLE" not in command
    return busy or "VLLM::Worker" in command or "sglang::scheduler" in command
