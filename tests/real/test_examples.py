"""The engine files of docs/examples with the real programs that a registry has: torchrun, two ranks, one all-reduce."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.install import NotInstallable, engine

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
LAUNCHER = Path(sys.executable).with_name("launcher")
WORK = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
tensor = torch.ones(4) * (dist.get_rank() + 1)
dist.all_reduce(tensor)
print("sum", int(tensor[0]), "of", dist.get_world_size(), sys.argv[1:], flush=True)
"""


def test_torchrun(tmp_path: Path) -> None:
    try:
        python = engine("vllm").python  # which has torch
    except NotInstallable as error:
        pytest.skip(str(error))
    (tmp_path / "work.py").write_text(WORK)
    words = [
        "local",
        "--size",
        "2",
        "--engine-file",
        str(ROOT / "docs/examples/torchrun.toml"),
        "--python",
        str(python),
    ]
    words += ["--gpus-per-pod", "1", "--port", "18080", "--", str(tmp_path / "work.py"), "--batch", "16"]
    done = subprocess.run(
        [str(LAUNCHER), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("sum 3 of 2 ['--batch', '16']") == 2, said
