"""Hangs of vLLM over mp, SGLang (both tensor parallel) and bare torch, over two pods: the autopsy names the right rank.

One rank's worker computes without end in the middle of a forward pass, sits in a system call there, or is stopped.
LAUNCHER_HANG_TURNS says how often each (1); docs/hangs.md has the result of five.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pods import Cluster, until, why_not
from tests.real import recipes
from tests.real.install import NotInstallable, engine
from tests.real.launched import AGENT, PORT, LaunchedGroup, engine_arguments

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

TURNS = int(os.environ.get("LAUNCHER_HANG_TURNS", "1"))
WORDS = {"busy": "is in `busy`", "blocked": "is in `blocked`", "stopped": "is stopped (state T)"}
HELPERS = Path(__file__).with_name("hanging_workers")
TOLD = "/tmp/hang"
LONG = {"max_tokens": 450}
SECONDS = 300.0  #: until the hang is noticed: deadlines are four times as long on a busy machine


def torch_arguments() -> list[str]:
    """Two ranks that do nothing but compute and all-reduce, with the torch of vLLM's interpreter."""
    return ["--engine-file", str(HELPERS / "torch.toml"), "--python", str(engine("vllm").python), "--port", str(PORT)]


@pytest.fixture(
    scope="module", params=["torch", *(pytest.param(name, marks=pytest.mark.chaos) for name in ("vllm-mp", "sglang"))]
)
def group(request: pytest.FixtureRequest) -> Iterator[LaunchedGroup]:
    reason = why_not()
    if reason:
        pytest.skip(f"pods cannot be made here: {reason}")
    name = request.param.partition("-")[0]
    try:
        if name == "torch":
            arguments, env = torch_arguments(), {"OMP_NUM_THREADS": "1"}
        else:
            arguments, env = engine_arguments(request.param), dict(recipes.environment(name))
            recipes.expected_completion(name)
    except NotInstallable as reason:
        pytest.skip(f"{name} cannot be installed here: {reason}")
    at = arguments.index("--") if "--" in arguments else len(arguments)
    more = ("--restart-backoff", "1s", "--max-restarts", "100", "--hang-timeout", "5s", "--unresponsive-timeout", "20s")
    paths = ":".join(filter(None, (str(HELPERS), env.get("PYTHONPATH", ""))))
    with Cluster() as cluster:
        made = LaunchedGroup(cluster, 2, [*arguments[:at], *more, *arguments[at:]], env, name=request.param)
        for rank in range(2):
            made.start(rank, env={"PYTHONPATH": paths, "HANGING_WORKERS": TOLD})
        made.until_serving()
        yield made
        made.terminate_all()


@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("how", WORDS)
def test_the_rank_that_hangs_is_named(group: LaunchedGroup, how: str, turn: int) -> None:
    rank = (turn + list(WORDS).index(how)) % 2
    epoch = int(group.until_serving()["epoch"])
    pod, hung = group.pods[rank], threading.Event()

    def ask() -> None:
        """Long requests, one after the other: vLLM counts one as running only when its first step has been made."""
        while not hung.is_set():
            with contextlib.suppress(Exception):
                group.complete(LONG)

    if group.name != "torch":
        group.complete()  # the first one is slow
        threading.Thread(target=ask, daemon=True).start()
        time.sleep(1)
    pod.exec(["sh", "-c", f"echo {how} > {TOLD}"])  # each pod has a /tmp of its own

    def found() -> dict[str, object] | None:
        autopsy = group.status().get("autopsy")
        return autopsy if autopsy and autopsy["epoch"] >= epoch else None

    try:
        autopsy = until(found, SECONDS, "an autopsy") or {}
    except AssertionError as error:
        raise AssertionError(f"{error}\n{group.logs()}") from None
    finally:
        hung.set()
        pod.exec(["rm", TOLD])
    whole = group.pods[0].http(f"http://localhost:{AGENT}/autopsy", timeout=10).body
    print(whole)
    assert autopsy["rank"] == rank, whole
    assert WORDS[how] in str(autopsy["verdict"])
    group.until_serving(epoch + 1)
    if group.name != "torch":
        assert group.complete() == recipes.expected_completion(group.name.partition("-")[0])
