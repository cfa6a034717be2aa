"""A start of a real engine is seen as it goes: weights of half a gigabyte are read, on a store that is slow enough."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pods import Cluster
from tests.real import recipes
from tests.real.install import NotInstallable
from tests.real.launched import LaunchedGroup, engine_arguments
from tests.real.model import MAKE, tiny_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

#: Eight files of 70 MB: small enough to load on two cores, large enough to be seen.
LARGER = (
    MAKE.replace("hidden_size=128", "hidden_size=1024")
    .replace("intermediate_size=256", "intermediate_size=4096")
    .replace("num_hidden_layers=4", "num_hidden_layers=16")
    .replace("save_pretrained(folder)\n", 'save_pretrained(folder, max_shard_size="70MB")\n')
)


def larger_model(python: str, folder: Path) -> int:
    """Make the model; the bytes of its weights."""
    shutil.copytree(tiny_model(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    subprocess.run([python, "-c", LARGER, str(folder)], check=True, capture_output=True)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["vllm-mp", "sglang"])
def test_weights_are_seen_being_read(cluster: Cluster, kind: str, tmp_path: Path) -> None:
    name = kind.partition("-")[0]
    try:
        arguments = engine_arguments(kind)
        env = recipes.environment(name)
    except NotInstallable as reason:
        pytest.skip(f"{name} cannot be installed here: {reason}")
    folder = tmp_path / "model"
    total = larger_model(arguments[arguments.index("--python") + 1], folder)
    arguments[arguments.index("--model") + 1] = str(folder)
    group = LaunchedGroup(cluster, 2, arguments, env)
    for rank in range(2):
        group.pod(rank)
    group.start_all()
    seen: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    until = time.monotonic() + recipes.READY_SECONDS
    while not (status := group.status()).get("ready"):
        assert time.monotonic() < until, group.logs()
        for row in status.get("members", []):
            if row["progress"] is not None:
                seen[row["rank"]].append(row["progress"])
        time.sleep(0.5)
    steps = {rank: list(dict.fromkeys(row["step"] for row in rows)) for rank, rows in seen.items()}
    (start,) = status["starts"]
    print(f"\n{kind}: steps {steps}; the start {start}")
    for rank, rows in seen.items():
        assert {"imports", "rest"} <= set(steps[rank]), group.logs()
        assert all(row["bytes_total"] in (None, total) for row in rows)
        read = [row["bytes_read"] for row in rows if row["bytes_read"] is not None]
        assert read == sorted(read) and (not read or read[-1] <= total)
    for one in start["ranks"]:
        assert abs(sum(one["steps"].values()) - start["seconds"]) <= 0.02 * start["seconds"]
        assert one["steps"]["imports"] > one["steps"]["preparing"]
    slowest = next(one for one in start["ranks"] if one["slowest"])
    assert slowest["steps"]["weights"] > 0, "the engine's lines say how long it took, even where nothing was seen"
    assert group.terminate_all() == {0: 0, 1: 0}, group.logs()
