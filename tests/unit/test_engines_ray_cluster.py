"""The program that runs inside the engine's interpreter, run as a process, with a small stand-in for Ray's package.

The stand-in has the names that the program uses of Ray, and a file in the place of the cluster: nodes that the
test writes. A real Ray is used in tests/real.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.engines.ray import cluster_program, stages

STATE = """
import json, os
class GlobalState:
    def _initialize_global_state(self, options):
        assert options == ("create", os.environ["CLUSTER_ADDRESS"]), options
    def node_table(self):
        with open(os.environ["CLUSTER"]) as file:
            found = json.load(file)
        if isinstance(found, str):
            raise type(found, (Exception,), {})("refused")
        return found
"""
RAYLET = """
import json, os
class GcsClient:
    def __init__(self, address):
        with open(os.environ["CLUSTER"]) as file:
            if json.load(file) == "InvalidAuthToken":
                raise RuntimeError("RPC error: Unauthenticated: InvalidAuthToken")
class GcsClientOptions:
    @classmethod
    def create(cls, address, cluster, *, allow_cluster_id_nil, fetch_cluster_id_if_nil):
        return ("create", address)
"""
RAY = """
import json, os
def init(address, log_to_driver, configure_logging):
    print("init", address, flush=True)
def nodes():
    with open(os.environ["CLUSTER"]) as file:
        return json.load(file)
"""
SCRIPTS = """
import sys
from ray._private.utils import get_ray_client_dependency_error
loaded = []
for name in ("ray.util.state.state_cli", "ray.dashboard.modules.job.cli"):
    try:
        __import__(name)
        loaded.append(name)
    except ImportError:
        pass
def main():
    import ray._private.services, ray._private.utils, ray.util.state.state_cli
    print("args", sys.argv, flush=True)
    print("loaded", loaded, flush=True)
    print("client", get_ray_client_dependency_error() is None, flush=True)
    print("dashboard", ray._private.utils.get_dashboard_dependency_error() is None, flush=True)
    print("server", ray._private.services.start_api_server(1, x=2), flush=True)
    sys.exit(3)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    files = {
        "ray/__init__.py": RAY,
        "ray/_raylet.py": RAYLET,
        "ray/_private/__init__.py": "",
        "ray/_private/state.py": STATE,
        "ray/_private/services.py": "def start_api_server(*a, **k): return 'url', 'process'\n",
        "ray/_private/utils.py": "def get_ray_client_dependency_error(): return None\n"
        "def get_dashboard_dependency_error(): return None\n",
        "ray/scripts/__init__.py": "",
        "ray/scripts/scripts.py": SCRIPTS,
        "ray/util/__init__.py": "",
        "ray/util/state/__init__.py": "",
        "ray/util/state/state_cli.py": "",
        "ray/dashboard/__init__.py": "",
        "ray/dashboard/modules/__init__.py": "",
        "ray/dashboard/modules/job/__init__.py": "",
        "ray/dashboard/modules/job/cli.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "site"


@pytest.fixture
def gcs() -> Iterator[str]:
    """Something that listens where the GCS would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


class Cluster:
    """A running program and the file that it takes for a cluster."""

    def __init__(self, site: Path, address: str, *arguments: str, error: str = "") -> None:
        self.file = site / "cluster.json"
        self.nodes(error=error)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environ |= {"PYTHONPATH": str(site), "CLUSTER": str(self.file), "CLUSTER_ADDRESS": address}
        self.process = subprocess.Popen(
            [sys.executable, stages.CLUSTER, *arguments], env=environ, stdout=subprocess.PIPE, text=True
        )

    def nodes(self, *nodes: tuple[str, bool, int], error: str = "") -> None:
        found = [
            {"NodeManagerAddress": a, "Alive": alive, "Resources": {"GPU": g} if g else {}} for a, alive, g in nodes
        ]
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(error or found))
        temporary.rename(self.file)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> int:
        code = self.process.wait(timeout=90)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def test_the_same_word_on_both_sides() -> None:
    assert cluster_program.READY == stages.READY


def test_it_waits_for_alive_nodes_and_gpus_and_says_what_is_missing(site: Path, gcs: str) -> None:
    cluster = Cluster(site, gcs, "wait", gcs, "2", "4", "10.0.0.1,10.0.0.2")
    assert cluster.line() == "waiting for Ray: 0 of 2 nodes (missing 10.0.0.1, 10.0.0.2), 0 of 4 GPUs"
    cluster.nodes(("10.0.0.1", True, 2), ("10.0.0.9", False, 2))
    assert cluster.line() == "waiting for Ray: 1 of 2 nodes (missing 10.0.0.2), 2 of 4 GPUs"
    cluster.nodes(("10.0.0.1", True, 2), ("10.0.0.2", True, 0))
    assert cluster.line() == "waiting for Ray: 2 of 2 nodes, 2 of 4 GPUs (10.0.0.1 2, 10.0.0.2 0)"
    cluster.nodes(("10.0.0.1", True, 2), ("10.0.0.2", True, 2), ("10.0.0.3", True, 1))
    assert cluster.line() == "ray-ready: 3 nodes, 5 GPUs"
    assert cluster.end() == 0


def test_no_gpu_is_asked_for(site: Path, gcs: str) -> None:
    cluster = Cluster(site, gcs, "wait", gcs, "1", "0")
    assert cluster.line() == "waiting for Ray: 0 of 1 nodes"
    cluster.nodes(("192.0.2.2", True, 0))
    assert cluster.line() == "ray-ready: 1 nodes, 0 GPUs"
    assert cluster.end() == 0


def test_a_token_that_is_refused_ends_it_and_an_error_does_not(site: Path, gcs: str) -> None:
    cluster = Cluster(site, gcs, "wait", gcs, "1", "0")
    assert cluster.line() == "waiting for Ray: 0 of 1 nodes"
    cluster.nodes(error="RpcError")
    assert cluster.line() == f"Ray's head at {gcs} does not answer: refused"
    cluster.nodes(error="AuthenticationError")
    assert cluster.line().startswith("Ray refused this pod's token")
    assert cluster.line() == "refused"
    assert cluster.end() == 77


def test_a_token_that_is_refused_at_once(site: Path, gcs: str) -> None:
    (site / "ray" / "scripts" / "scripts.py").write_text("import time\ndef main(): time.sleep(60)\n")
    commands = (
        ("wait", gcs, "1", "0"),
        ("start", "--after", gcs, "--", "start"),
        ("start", "--count", gcs, "1", "0", "10.0.0.1", "--", "start", "--head"),
    )
    for command in commands:
        cluster = Cluster(site, gcs, *command, error="InvalidAuthToken")
        assert cluster.line().startswith("Ray refused this pod's token")
        assert cluster.end() == 77


def test_a_ray_with_other_insides_is_asked_by_its_public_api(site: Path, gcs: str) -> None:
    (site / "ray" / "_raylet.py").write_text("")
    cluster = Cluster(site, gcs, "wait", gcs, "1", "0")
    assert cluster.line() == f"init {gcs}"
    cluster.nodes(("10.0.0.1", True, 0))
    while (line := cluster.line()).startswith("waiting"):
        pass
    assert line == "ray-ready: 1 nodes, 0 GPUs"
    assert cluster.end() == 0


def test_a_whole_start(site: Path, gcs: str) -> None:
    cluster = Cluster(site, gcs, "start", "--", "start", "--head")
    assert cluster.line() == "args ['ray', 'start', '--head']"
    assert cluster.line() == "loaded ['ray.util.state.state_cli', 'ray.dashboard.modules.job.cli']"
    assert [cluster.line() for _ in range(3)] == ["client True", "dashboard True", "server ('url', 'process')"]
    assert cluster.end() == 3


def test_a_lean_start_leaves_out_and_puts_back(site: Path, gcs: str) -> None:
    cluster = Cluster(site, gcs, "start", "--lean", "--", "start", "--head")
    assert cluster.line() == "args ['ray', 'start', '--head']"
    assert cluster.line() == "loaded []"
    assert [cluster.line() for _ in range(3)] == ["client False", "dashboard False", "server (None, None)"]
    assert cluster.end() == 3


def test_a_worker_starts_once_the_heads_node_is_alive(site: Path, gcs: str) -> None:
    cluster = Cluster(site, gcs, "start", "--lean", "--after", gcs, "--", "start", "--address", gcs)
    cluster.nodes(("10.0.0.1", False, 0))
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.process.wait(timeout=0.5)
    cluster.nodes(("10.0.0.1", True, 0))
    assert cluster.line() == f"args ['ray', 'start', '--address', '{gcs}']"
    assert cluster.end() == 3


def test_a_head_counts_meanwhile(site: Path, gcs: str) -> None:
    scripts = site / "ray" / "scripts" / "scripts.py"
    scripts.write_text(SCRIPTS.replace("sys.exit(3)", "import time; time.sleep(60)"))
    cluster = Cluster(site, gcs, "start", "--count", gcs, "1", "0", "10.0.0.1", "--", "start", "--head")
    lines = {cluster.line() for _ in range(6)}
    assert {"args ['ray', 'start', '--head']", "waiting for Ray: 0 of 1 nodes (missing 10.0.0.1)"} <= lines
    cluster.nodes(("10.0.0.1", True, 0))
    assert cluster.line() == "ray-ready: 1 nodes, 0 GPUs"
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.process.wait(timeout=0.3)
    cluster.process.kill()
    assert cluster.end() == -9


def test_a_head_ends_where_nobody_can_count(site: Path, gcs: str) -> None:
    scripts = site / "ray" / "scripts" / "scripts.py"
    scripts.write_text(SCRIPTS.replace("sys.exit(3)", "import time; time.sleep(60)"))
    refused = Cluster(site, gcs, "start", "--count", gcs, "1", "0", "10.0.0.1", "--", "start", "--head")
    refused.nodes(error="AuthenticationError")
    assert refused.end() == 77
    broken = Cluster(site, gcs, "start", "--count", gcs, "one", "0", "10.0.0.1", "--", "start", "--head")
    assert broken.end() == 70


def test_a_head_of_another_ray_counts_in_a_process_of_its_own(site: Path, gcs: str) -> None:
    (site / "ray" / "_raylet.py").write_text("")
    scripts = site / "ray" / "scripts" / "scripts.py"
    scripts.write_text(SCRIPTS.replace("sys.exit(3)", "import time; time.sleep(60)"))
    cluster = Cluster(site, gcs, "start", "--count", gcs, "1", "0", "10.0.0.1", "--", "start", "--head")
    cluster.nodes(("10.0.0.1", True, 0))
    lines: list[str] = []
    while not lines or not lines[-1].startswith("ray-ready:"):
        lines.append(cluster.line())
    assert f"init {gcs}" in lines
    cluster.process.kill()
    assert cluster.end() == -9


def test_it_explains_itself(site: Path, gcs: str) -> None:
    cluster = Cluster(site, gcs, "nonsense")
    assert cluster.end() == 64
