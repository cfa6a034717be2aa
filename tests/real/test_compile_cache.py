"""Nothing of ours makes vLLM compile again: its compile cache is found under the same name with and without us.

vLLM hashes every variable that it knows into that name, but for a list of its own (`envs.compile_factors`). Here its
own code hashes what the launcher's engines really get.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.pods import until
from tests.ports import free_port
from tests.real import recipes
from tests.real.install import NotInstallable, engine
from tests.real.model import tiny_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

LAUNCHER = Path(sys.executable).parent / "launcher"
READY = "VLLM_ENGINE_READY_TIMEOUT_S"
STARTUP_TIMEOUTS = ((), ("--startup-timeout", "900"), ("--startup-timeout", "2h"))

#: Prints the hash of each environment that it reads, by vLLM's own code.
HASHES = """
import json, os, sys
asked = json.load(sys.stdin)
from vllm import envs
from vllm.config.utils import hash_factors
found = []
for one in asked:
    os.environ.clear()
    os.environ.update(one)
    found.append(hash_factors(envs.compile_factors()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def vllm() -> Path:
    """The interpreter of a real vLLM."""
    try:
        tiny_model()
        return engine("vllm").python
    except NotInstallable as reason:
        pytest.skip(f"vLLM cannot be installed here: {reason}")


def plain_environment() -> dict[str, str]:
    """What an engine that is started by hand would get."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("LAUNCHER_", "VLLM_"))}
    return {**own, **recipes.environment("vllm")}


def hashes(python: Path, environments: Sequence[Mapping[str, str]]) -> list[str]:
    done = subprocess.run(
        [python, "-c", HASHES],
        input=json.dumps([*map(dict, environments)]),
        capture_output=True,
        text=True,
        timeout=600,
        env=plain_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(environments)
    return [str(one) for one in found]


def planned(python: Path, *arguments: str, env: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of every process of every rank, as `launcher plan` says it."""
    argv = [LAUNCHER, "plan", "--engine", "vllm", "--python", python, "--model", str(tiny_model()), "--json"]
    asked = subprocess.run(
        [*map(str, argv), *arguments],
        env={**env, "POD_IP": "10.9.8.7"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    processes = [p for r in json.loads(asked.stdout)["ranks"] for s in r["stages"] for p in s["processes"]]
    assert processes
    return [{**{k: v for k, v in env.items() if k not in p["unset"]}, **p["env"]} for p in processes]


GROUP = ("--leader", "engine-0", "--rank", "0", "--gpus-per-pod", "1")


#: The launcher's arguments, variables of the user, and whether vLLM obeys the variable there.
PLANS: Sequence[tuple[tuple[str, ...], Mapping[str, str], bool]] = (
    (("--size", "1"), {}, False),
    ((*GROUP, "--size", "2", "--tp", "2", "--backend", "mp"), {}, False),
    ((*GROUP, "--size", "2", "--tp", "2", "--backend", "ray"), {}, False),
    ((*GROUP, "--size", "2", "--pp", "2", "--backend", "mp", "--", "--api-server-count", "1"), {}, False),
    (("--size", "1", "--", "--api-server-count", "2"), {}, True),
    ((*GROUP, "--size", "2", "--dp", "2", "--backend", "mp"), {}, True),
    ((*GROUP, "--size", "2", "--dp", "2", "--backend", "ray"), {}, True),
    (("--size", "1"), {"VLLM_USE_RUST_FRONTEND": "1"}, True),
)


def test_plans_leave_the_name_of_the_compile_cache_alone(vllm: Path) -> None:
    asked: list[Mapping[str, str]] = []  # by hand, by hand with the variable, then every process of every plan
    spans = []
    for arguments, env, sets in PLANS:
        plain = {**plain_environment(), **env}
        at = arguments.index("--") if "--" in arguments else len(arguments)
        found = []
        for limit in STARTUP_TIMEOUTS:
            found += planned(vllm, *arguments[:at], *limit, *arguments[at:], env=plain)
        assert {READY in one for one in found} == {sets}, arguments
        spans.append((len(asked), len(asked) + 2 + len(found)))
        asked += [plain, {**plain, READY: "86400"}, *found]
    all_hashes = hashes(vllm, asked)
    for (arguments, _, sets), (begin, end) in zip(PLANS, spans, strict=True):
        plain_hash, with_it, *ours = all_hashes[begin:end]
        assert plain_hash != with_it
        # The same for all ranks, processes and values of --startup-timeout; nothing but the variable differs.
        assert set(ours) == {with_it if sets else plain_hash}, arguments


def test_real_engine_processes_have_an_environment_of_the_same_hash(vllm: Path, tmp_path: Path) -> None:
    """What the guard executes, and not only what a plan says: an interpreter that writes its environment down."""
    seen: list[Mapping[str, str]] = []
    for n, limit in enumerate(STARTUP_TIMEOUTS):
        spy, file = tmp_path / f"python-{n}", tmp_path / f"environment-{n}"
        spy.write_text(
            '#!/bin/sh\ncase "$*" in *vllm.entrypoints.cli.main*)\n'
            f"    env -0 > {shlex.quote(str(file))}; exit 3\n"
            f'esac\nexec {shlex.quote(str(vllm))} "$@"\n'
        )
        spy.chmod(0o755)
        api, agent = str(free_port()), str(free_port())
        argv = [LAUNCHER, "--engine", "vllm", "--python", spy, "--model", tiny_model(), "--size", "1", "--port", api]
        argv += ["--agent-port", agent, "--max-restarts", "0", *limit]
        done = subprocess.run(
            [*map(str, argv)], env=plain_environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 3, done.stderr
        pairs = (entry.partition("=") for entry in file.read_text().split("\0") if entry)
        seen.append({name: value for name, _, value in pairs})
    assert len(set(hashes(vllm, [plain_environment(), *seen]))) == 1


@pytest.mark.chaos
def test_a_start_under_the_launcher_hits_the_cache_of_a_plain_one(vllm: Path, tmp_path: Path) -> None:
    """`vllm serve` compiles; the launcher's engine, on another port and with a limit, compiles nothing anew."""
    cache = tmp_path / "cache"
    env = {**plain_environment(), "VLLM_CACHE_ROOT": str(cache)}
    ports = [free_port() for _ in range(3)]
    plain = [a for a in recipes.single_command("vllm", ports[0]) if a != "--enforce-eager"]
    first = _until_ready(plain, env, ports[0], tmp_path / "plain.log")
    names, kernels = _names(cache), _kernels(cache)
    assert names and kernels, (tmp_path / "plain.log").read_text(errors="replace")[-3000:]
    ours: list[str] = [*map(str, (LAUNCHER, "--engine", "vllm", "--python", vllm, "--model", tiny_model()))]
    ours += ["--size", "1", "--served-model-name", recipes.MODEL_NAME, "--startup-timeout", "50m"]
    ours += ["--port", str(ports[1]), "--agent-port", str(ports[2]), "--drain-settle", "0"]
    ours += ["--", *(a for a in recipes.VLLM_ARGS if a != "--enforce-eager")]
    second = _until_ready(ours, env, ports[1], tmp_path / "ours.log")
    said = (tmp_path / "ours.log").read_text(errors="replace")
    assert _names(cache) == names, said[-5000:]
    assert _kernels(cache) == kernels, said[-5000:]
    print(f"\n{len(kernels)} kernels; ready: plain, which compiles, {first:.0f} s; under the launcher {second:.0f} s")


def _names(cache: Path) -> set[str]:
    """The folders, named by hashes, in which vLLM keeps what it compiled."""
    folders = [cache / "torch_compile_cache", cache / "torch_compile_cache" / "torch_aot_compile"]
    return {str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()}


def _kernels(cache: Path) -> set[str]:
    """What TorchInductor compiled (on a CPU, with g++)."""
    return {str(path) for path in cache.rglob("*.so")}


def _until_ready(argv: list[str], env: Mapping[str, str], port: int, log: Path) -> float:
    """Run until the engine is healthy, then end it in good order; the seconds until then."""
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
        )
    try:

        def healthy() -> bool:
            assert process.poll() is None, log.read_text(errors="replace")[-5000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        until(healthy, recipes.READY_SECONDS, "the engine to be ready")
        seconds = time.monotonic() - began
        process.terminate()
        process.wait(recipes.READY_SECONDS)
        return seconds
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
