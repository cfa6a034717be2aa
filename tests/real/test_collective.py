"""A real gloo all-reduce between pods with two network interfaces, of which the wrong one leads nowhere.

Each pod's own name stands in /etc/hosts for the interface that leads nowhere: gloo looks its name up and takes that.
Without the launcher's environment the all-reduce fails, with it it passes; `launcher doctor --collective` is how a
person sees the same. On a machine with a GPU, NCCL does an all-reduce on it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.node.gpus import visible_gpus
from launcher.preflight.group import collective_program
from tests.pods import ROOT, Cluster, Pod, PodProcess
from tests.real import install

pytestmark = [pytest.mark.real, pytest.mark.pods, pytest.mark.timeout(900)]

PROGRAM = ROOT / "launcher/preflight/group/collective_program.py"
LAUNCHER = Path(sys.executable).with_name("launcher")
PORT = 29777
SECONDS = 120.0
POLICY = """
table bridge closed {{
  chain to_worker {{ type filter hook forward priority 0; ip daddr {worker} tcp flags & (syn | ack) == syn drop; }}
}}
"""


@pytest.fixture(scope="module")
def torch() -> Path:
    """An interpreter that has torch."""
    try:
        return install.engine("vllm").python
    except install.NotInstallable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def pods(cluster: Cluster) -> list[Pod]:
    """Two pods with eth0, which reaches the other, and net1, which does not; their names mean net1."""
    made = [cluster.pod(f"engine-{i}") for i in range(2)]
    for number, pod in enumerate(made):
        wrong = f"10.99.{number}.1"
        pod._sandbox.configure(
            "link add net1 type veth peer name net1-end",  # a cable whose other end nobody holds
            f"address add {wrong}/24 dev net1",
            "link set net1 up",
            "link set net1-end up",
        )
        (pod.folder / "hosts").write_text(f"127.0.0.1\tlocalhost\n{wrong}\t{pod.hostname}\n")
    return made


def all_reduce(pods: list[Pod], python: Path, env: list[dict[str, str]]) -> list[PodProcess]:
    """The program itself on both pods, to its end."""
    command = [str(python), str(PROGRAM), "--pods", "2", "--local", "1", "--backend", "gloo", "--seconds", "10"]
    command += ["--master", pods[0].ip, str(PORT)]
    started = [pod.start([*command, "--rank", str(i)], env[i]) for i, pod in enumerate(pods)]
    for process in started:
        process.wait(SECONDS)
    return started


def doctor(pods: list[Pod], *args: str) -> list[PodProcess]:
    """`launcher doctor` as PID 1 of both pods, to its end."""
    started = []
    for rank, pod in enumerate(pods):
        who = {"LAUNCHER_RANK": str(rank), "LAUNCHER_SIZE": "2", "LAUNCHER_LEADER": pods[0].fqdn, "POD_IP": pod.ip}
        started.append(pod.start([LAUNCHER, "doctor", "--engine", "reference", *args], who))
    for process in started:
        process.wait(SECONDS)
    return started


def page_of(process: PodProcess) -> dict[str, Any]:
    """The JSON object among the lines of the log."""
    output = process.output()
    found = json.JSONDecoder().raw_decode(output[output.index("\n{\n") + 1 :])[0]
    assert isinstance(found, dict)
    return found


def said(page: dict[str, Any], rank: int, check: str) -> dict[str, Any]:
    return next(f for f in page["ranks"][rank]["findings"] if f["check"] == check)


def test_without_the_launchers_environment_it_fails_and_with_it_it_passes(pods: list[Pod], torch: Path) -> None:
    failed = all_reduce(pods, torch, [{}, {}])
    assert all(p.returncode for p in failed), [p.output() for p in failed]
    chosen = []
    for rank, pod in enumerate(pods):
        who = {"LAUNCHER_RANK": str(rank), "LAUNCHER_SIZE": "2", "LAUNCHER_LEADER": pods[0].fqdn}
        page = json.loads(
            pod.exec([LAUNCHER, "plan", "--engine", "reference", "--address", pod.ip, "--json"], who).stdout
        )
        chosen.append({v["name"]: v["value"] for v in page["variables"] if v["set_by"] == "launcher"})
        assert chosen[rank]["GLOO_SOCKET_IFNAME"] == "eth0"
    passed = all_reduce(pods, torch, chosen)
    assert [p.returncode for p in passed] == [0, 0], [p.output() for p in passed]
    line = next(x for x in passed[0].output().splitlines() if x.startswith(collective_program.RESULT))
    result = json.loads(line[len(collective_program.RESULT) :])
    assert result["ranks"] == 2 and [row["bytes"] for row in result["rows"]] == list(collective_program.SIZES["gloo"])
    assert all(row["us"] > 0 for row in result["rows"])


def test_doctor_runs_it_with_the_chosen_environment(pods: list[Pod], torch: Path, tmp_path: Path) -> None:
    engine = pods[0].cluster.folder / "torch.toml"
    engine.write_text('name = "torch"\nversions = ["torch"]\n[all]\ncommand = ["true"]\n')
    args = ("--engine-file", str(engine), "--python", str(torch), "--collective", "--json")
    started = []
    for rank, pod in enumerate(pods):
        who = {"LAUNCHER_RANK": str(rank), "LAUNCHER_SIZE": "2", "LAUNCHER_LEADER": pods[0].fqdn, "POD_IP": pod.ip}
        started.append(pod.start([LAUNCHER, "doctor", *args], who))
    codes = [process.wait(SECONDS) for process in started]
    assert codes == [0, 0], [p.output() for p in started]
    page = page_of(started[0])
    assert page["collective"]["ranks"] == 2 and page["collective"]["backend"] == "gloo"
    assert said(page, 1, "path mtu")["level"] == "ok"
    assert page["ranks"][1]["path_mtu"] == 1500


def test_a_path_that_swallows_large_packets(pods: list[Pod]) -> None:
    """The pods believe in 1,500 bytes, the bridge between them passes 1,400: nobody tells, packets are gone."""
    pods[0].cluster._node.configure(*(f"link set {pod._veth} mtu 1400" for pod in pods))
    ended = doctor(pods, "--group", "--json")
    assert [p.returncode for p in ended] == [1, 1], [p.output() for p in ended]
    found = said(page_of(ended[0]), 1, "path mtu")
    assert found["level"] == "fail" and "packets of 1400 bytes do" in found["what"]


def test_a_policy_that_lets_only_the_known_ports_through(pods: list[Pod]) -> None:
    """Connections to the leader pass, those to a random port of the worker do not."""
    pods[0].cluster._node.run(["nft", "-f", "-"], stdin=POLICY.format(worker=pods[1].ip))
    ended = doctor(pods, "--group", "--json")
    assert [p.returncode for p in ended] == [1, 1], [p.output() for p in ended]
    page = page_of(ended[0])
    assert said(page, 1, "to leader")["level"] == "ok"
    blocked = said(page, 1, "from leader")
    assert blocked["level"] == "fail" and "no answer" in blocked["what"] and "NetworkPolicy" in blocked["fix"]


def test_nccl_on_the_gpus_of_this_machine() -> None:
    """GPU detection, and an NCCL all-reduce over all GPUs that are here."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        pytest.skip("no nvidia-smi: no NVIDIA GPU on this machine")
    listed = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False, timeout=60)
    found = visible_gpus({}, Path("/dev"), listed.stdout)
    if not found.count:
        pytest.skip(f"no GPU on this machine: {listed.stdout or listed.stderr}")
    assert found.model and found.why == "nvidia-smi -L"
    python = next((p for p in (sys.executable, shutil.which("python3")) if p and _has_cuda(p)), None)
    if python is None:
        pytest.skip("no interpreter here has a torch that sees the GPU")
    command = [python, str(PROGRAM), "--rank", "0", "--pods", "1", "--local", str(found.count)]
    command += ["--master", "127.0.0.1", str(PORT), "--backend", "nccl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith(collective_program.RESULT))
    assert json.loads(line[len(collective_program.RESULT) :])["ranks"] == found.count


def _has_cuda(python: str) -> bool:
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([python, "-c", code], capture_output=True, check=False, timeout=120).returncode == 0
