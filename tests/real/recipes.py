"""What makes each engine run the tiny model on a CPU, on top of what the launcher sets, and what it must then say.

The launcher's part is not here: for vLLM --nnodes --node-rank --master-addr --master-port --headless
--distributed-executor-backend, the tensor parallel size, VLLM_HOST_IP, GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME and the
`ray start` commands; for SGLang --dist-init-addr --nnodes --node-rank --tp, SGLANG_HOST_IP, GLOO_SOCKET_IFNAME; for
both the model, its served name and the port.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.real.install import Engine, cache, engine, exclusive
from tests.real.model import tiny_model

VLLM_ARGS: Sequence[str] = (
    "--enforce-eager",
    "--max-model-len=512",
    # Of the machine's memory, and reserved at once: for each pod.
    "--gpu-memory-utilization=0.15",
)
VLLM_ENV: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Else each rank binds its threads to cores that it believes to have alone.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}

RAY_START_ARGS: Sequence[str] = (
    # With the platform plugin of stand_ins vLLM asks Ray for GPUs; this is where they come from.
    "--num-gpus=1",
    "--num-cpus=2",
    "--object-store-memory=100000000",
    "--disable-usage-stats",
)
RAY_HEAD_ARGS: Sequence[str] = (
    # Some ten processes of 90 MiB that no test asks.
    "--include-dashboard=false",
)

SGLANG_ARGS: Sequence[str] = (
    "--device=cpu",
    "--attention-backend=torch_native",
    "--sampling-backend=pytorch",
    "--disable-cuda-graph",
    "--disable-overlap-schedule",
    "--disable-radix-cache",
    "--mem-fraction-static=0.1",
    "--max-total-tokens=4096",
    "--skip-server-warmup",
    "--disable-custom-all-reduce",
    "--sleep-on-idle",
)
SGLANG_ENV: Mapping[str, str] = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "SGLANG_CPU_OMP_THREADS_BIND": "0-1|0-1",
}

MODEL_NAME = "tiny"
REQUEST: Mapping[str, object] = {
    "model": MODEL_NAME,
    "prompt": "the engine of every pod",
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
}
READY_SECONDS = 1500
"""How long to wait for an engine: some 50 s on two idle cores; beside 30 busy processes 600 s were seen."""
ANSWER_SECONDS = 600
"""How long to wait for a completion: ranks wait for each other at every layer (55 s were seen at load 17)."""


def single_command(name: str, port: int) -> list[str]:
    """The engine of this name ("vllm" or "sglang") as one process on loopback."""
    common = ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
    python, model = str(engine(name).python), str(tiny_model())
    if name == "vllm":
        # -m and not the script `vllm`, so that the interpreter alone says which engine this is.
        return [python, "-m", "vllm.entrypoints.cli.main", "serve", model, *common, *VLLM_ARGS]
    return [python, "-m", "sglang.launch_server", "--model-path", model, *common, *SGLANG_ARGS]


def environment(name: str) -> dict[str, str]:
    """What the engine's processes need: its interpreter first in PATH, and the CPU settings."""
    return {**engine(name).env, **(VLLM_ENV if name == "vllm" else SGLANG_ENV)}


def expected_completion(name: str) -> str:
    """The text that one process of the engine gives for REQUEST; run once (a minute), then read from the cache."""
    installed = engine(name)
    file = cache() / "completions" / f"{name}-{_key(installed)}.json"
    with exclusive(file.with_suffix(".lock")):
        if not file.exists():
            text = _single_completion(name)
            fresh = file.with_suffix(".new")
            fresh.write_text(json.dumps({"request": REQUEST, "text": text}, indent=1))
            fresh.rename(file)
    text = json.loads(file.read_text())["text"]
    assert isinstance(text, str)
    return text


def _key(installed: Engine) -> str:
    facts = (installed.python.parent.parent.name, tiny_model().name, REQUEST, VLLM_ARGS, SGLANG_ARGS)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _single_completion(name: str) -> str:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with _running(single_command(name, port), environment(name), cache() / "completions" / f"{name}.log") as server:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + READY_SECONDS
        while not _healthy(f"{url}/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"single {name} did not become ready (exit code {server.poll()}): {_last(name)}")
            time.sleep(0.2)
        body = json.dumps(REQUEST).encode()
        asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS) as answer:
            text = json.load(answer)["choices"][0]["text"]
    assert isinstance(text, str)
    return text


@contextlib.contextmanager
def _running(argv: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        server = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **env}, start_new_session=True
        )
    try:
        yield server
    finally:
        # Its whole session: the engine's other processes rename themselves and outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last(name: str) -> str:
    return (cache() / "completions" / f"{name}.log").read_text(errors="replace")[-1500:]
