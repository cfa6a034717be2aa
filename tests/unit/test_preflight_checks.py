"""Each check of the preflight, on trees and values of real situations."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.common.text import size_text
from launcher.model import Identity, NodeFacts, Plan, Port, Stage
from launcher.preflight.checks import disk, gpus, limits, memory, model, names, network, ports, process, run, software
from launcher.preflight.checks.registry import CHECKS, Check
from launcher.preflight.finding import Finding, Level, ok
from launcher.preflight.pod import Node, cgroup
from launcher.settings import Settings

GIB = 1 << 30
H200 = "GPU {i}: NVIDIA H200 (UUID: GPU-aaaaaaaa-0000-0000-0000-00000000000{i})\n"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A pod with nothing in it: empty /proc, /sys and /dev."""
    for name in ("proc/self", "sys/fs/cgroup", "dev/shm", "home"):
        (tmp_path / name).mkdir(parents=True)
    return Node(
        Settings(engine="vllm", model=str(tmp_path / "model")),
        {
            "LAUNCHER_PROC": str(tmp_path / "proc"),
            "LAUNCHER_SYSFS": str(tmp_path / "sys"),
            "LAUNCHER_DEV": str(tmp_path / "dev"),
            "HOME": str(tmp_path / "home"),
        },
    )


def said(node: Node, **changes: object) -> Node:
    """The node with settings as a user says them."""
    origins = {name: "--" + name.replace("_", "-") for name in changes}
    return replace(node, settings=node.settings.replace(**changes, origins=origins))


def smi(count: int) -> str:
    return "".join(H200.format(i=i) for i in range(count))


def worst(findings: Iterable[Finding]) -> Finding:
    order = [Level.FAIL, Level.WARN, Level.OK, Level.SKIPPED]
    found = min(findings, key=lambda f: order.index(f.level))
    if found.level in (Level.FAIL, Level.WARN):
        assert found.why and found.fix, found
    return found


# ----------------------------------------------------------------------------------------------------------- GPUs


def test_gpus_that_fit(node: Node) -> None:
    (node.proc / "driver/nvidia").mkdir(parents=True)
    (node.proc / "driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs)\nGCC version: 12\n"
    )
    node = replace(said(node, tp=8), smi=smi(8))
    found = list(gpus.check(node))
    assert [(f.level, f.what) for f in found] == [(Level.OK, "8 x NVIDIA H200, driver 570.86.15")]
    assert found[0].facts == {"gpu.count": "8", "gpu.model": "NVIDIA H200", "driver": "570.86.15"}


def test_the_proprietary_driver_names_itself_otherwise(node: Node) -> None:
    (node.proc / "driver/nvidia").mkdir(parents=True)
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023"
    (node.proc / "driver/nvidia/version").write_text(text)
    assert gpus.driver_version(node) == "535.129.03"


def test_what_a_start_has_learned_is_believed(node: Node) -> None:
    """Eight MIG instances of one GPU: one device file."""
    (node.dev / "nvidia0").touch()
    learned = replace(said(node, tp=8), facts=NodeFacts(gpus=8, gpu_model="NVIDIA H200 MIG 1g.18gb"))
    assert worst(gpus.check(learned)).what == "8 x NVIDIA H200 MIG 1g.18gb"


def test_too_few_and_idle_gpus(node: Node) -> None:
    few = worst(gpus.check(replace(said(node, tp=8), smi=smi(4))))
    assert few.level is Level.FAIL and "needs 8 GPUs here, and there are 4" in few.what
    idle = worst(gpus.check(replace(said(node, tp=2), smi=smi(4))))
    assert idle.level is Level.WARN and "2 of 4 GPUs stay idle" in idle.what


def test_a_driver_that_does_not_answer(node: Node) -> None:
    found = worst(gpus.check(replace(node, smi="Failed to initialize NVML: Driver/library mismatch", smi_code=18)))
    assert found.level is Level.FAIL
    assert "nvidia-smi -L ended with 18: Failed to initialize NVML" in found.what


def test_no_gpu(node: Node) -> None:
    assert worst(gpus.check(node)).level is Level.WARN
    cpu = replace(node, facts=NodeFacts(versions={"vllm": "0.32.0+cpu"}, versions_known=True))
    assert worst(gpus.check(cpu)).level is Level.OK
    assert worst(gpus.check(said(node, gpus_per_pod=0))).level is Level.OK
    assert worst(gpus.check(said(node, engine="reference"))).level is Level.OK
    assert worst(gpus.check(said(node, engine_file="llama.toml"))).level is Level.OK


@pytest.mark.parametrize(
    ("env", "level", "words"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, Level.FAIL, "4 GPUs are here and none may be used"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, Level.WARN, "CUDA_VISIBLE_DEVICES=0,1 lets 2 of 4 GPUs through"),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, Level.WARN, "asks for no GPU and 4 are here"),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-bbbb"}, Level.WARN, "names GPU-bbbb, which nvidia-smi does not list"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, Level.OK, "4 x NVIDIA H200"),
    ],
)
def test_visible_devices_against_what_is_there(node: Node, env: dict[str, str], level: Level, words: str) -> None:
    found = worst(gpus.check(replace(node, environ={**node.environ, **env}, smi=smi(4))))
    assert found.level is level and words in found.what


def test_gpus_were_asked_for_and_none_came(node: Node) -> None:
    found = list(gpus.check(replace(node, environ={**node.environ, "NVIDIA_VISIBLE_DEVICES": "all"})))
    assert any("no GPU is here" in f.what and "runtimeClassName" in f.fix for f in found)


def test_gpus_of_another_maker(node: Node) -> None:
    (node.dev / "kfd").touch()
    assert [f.level for f in gpus.check(node)] == [Level.SKIPPED]


# --------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("total", "tp", "level"),
    [
        (64 << 20, 8, Level.FAIL),
        (64 << 20, 1, Level.WARN),
        (4 * GIB, 2, Level.WARN),
        (4 * GIB, 1, Level.OK),
        (16 * GIB, 8, Level.OK),
    ],
)
def test_shm(node: Node, total: int, tp: int, level: Level) -> None:
    found = memory.judge_shm(said(node, tp=tp), total, total)
    assert found.level is level
    assert size_text(total) in found.what and found.facts == {"shm": size_text(total)}


def test_shm_that_is_not_there(node: Node) -> None:
    (node.dev / "shm").rmdir()
    assert worst(memory.check_shm(node)).level is Level.FAIL
    (node.dev / "shm").mkdir()
    assert [f.check for f in memory.check_shm(node)] == ["shm"]


def cgroup_v2(node: Node, path: str = "/", **files: str) -> None:
    (node.proc / "self/cgroup").write_text(f"0::{path}\n")
    for name, value in files.items():
        (node.sys / "fs/cgroup" / name.replace("_", ".", 1)).write_text(value + "\n")


def test_a_cgroup_v2_limit_is_read_from_the_root_of_the_container(node: Node) -> None:
    cgroup_v2(node, "/kubepods/pod1/c1", memory_max=str(10 * GIB))
    assert cgroup(node, "memory.max", "memory", "memory.limit_in_bytes") == 10 * GIB
    cgroup_v2(node, memory_max="max")
    assert cgroup(node, "memory.max", "memory", "memory.limit_in_bytes") is None


def test_a_cgroup_v1_limit(node: Node) -> None:
    (node.proc / "self/cgroup").write_text("9:memory:/kubepods/x\n8:pids:/kubepods/x\n0::/\n")
    folder = node.sys / "fs/cgroup/memory/kubepods/x"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(3 * GIB))
    assert cgroup(node, "memory.max", "memory", "memory.limit_in_bytes") == 3 * GIB
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert cgroup(node, "memory.max", "memory", "memory.limit_in_bytes") is None
    assert cgroup(node, "pids.max", "pids", "pids.max") is None


def weights(node: Node, size: int) -> None:
    """A model of ``size`` bytes, none of which take room on the disk."""
    folder = Path(node.settings.model or "")
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size)


def test_the_model_against_the_memory_limit(node: Node) -> None:
    weights(node, 100 * GIB)
    (node.proc / "meminfo").write_text("MemTotal:       2113000000 kB\n")
    cgroup_v2(node, memory_max=str(60 * GIB))
    on_gpus = worst(memory.check_limit(replace(node, facts=NodeFacts(gpus=8))))
    assert on_gpus.level is Level.WARN and "limit 60 GiB" in on_gpus.what and "100 GiB on disk" in on_gpus.what
    assert worst(memory.check_limit(said(node, gpus_per_pod=0))).level is Level.FAIL
    spread = said(node, gpus_per_pod=0, pp=2, size=2)
    assert "50 GiB for one pod" in worst(memory.check_limit(spread)).what
    assert worst(memory.check_limit(spread)).level is Level.OK


def test_no_memory_limit(node: Node) -> None:
    assert worst(memory.check_limit(node)).what == "no limit"


# --------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limit", "capable", "rdma", "level"),
    [
        (None, False, True, Level.OK),
        (65536, True, True, Level.OK),
        (65536, False, False, Level.OK),
        (65536, False, True, Level.FAIL),
        (64 * GIB, False, True, Level.WARN),
    ],
)
def test_memlock(limit: int | None, capable: bool, rdma: bool, level: Level) -> None:
    assert worst([limits.judge_memlock(limit, capable, rdma)]).level is level


def test_ipc_lock_is_bit_14() -> None:
    assert limits.has_capability("Name:\tx\nCapEff:\t0000000000004000\n", limits.IPC_LOCK)
    assert not limits.has_capability("CapPrm:\t0000000000004000\nCapEff:\t00000000a80425fb\n", limits.IPC_LOCK)
    assert not limits.has_capability("", limits.IPC_LOCK)


@pytest.mark.parametrize(
    ("soft", "level"), [(1 << 20, Level.OK), (20000, Level.OK), (1024, Level.WARN), (64, Level.FAIL)]
)
def test_nofile(soft: int, level: Level) -> None:
    assert worst([limits.judge_nofile(soft, 1 << 20)]).level is level


@pytest.mark.parametrize(
    ("limit", "level"), [(None, Level.OK), (32768, Level.OK), (1024, Level.WARN), (100, Level.FAIL)]
)
def test_pids(limit: int | None, level: Level) -> None:
    assert worst([limits.judge_pids(limit, 64)]).level is level


# ----------------------------------------------------------------------------------------------------- disk, model


def test_folders_that_cannot_be_written(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(node.environ["HOME"]))
    found = list(disk.check(node))
    bad = [f.what for f in found if f.level is Level.WARN]
    assert len(bad) == 3 and all("cannot be written by user" in what for what in bad)
    assert {"hub", "kernels", "vLLM"} == {w for w in ("hub", "kernels", "vLLM") if any(w in b for b in bad)}


def test_a_user_without_a_home(node: Node) -> None:
    bare = replace(node, environ={**node.environ, "HOME": "~"})
    assert disk.folders(bare)["vLLM's cache"] == "/.cache/vllm"


def test_folders_follow_the_variables(node: Node) -> None:
    env = {**node.environ, "HF_HOME": "/hf", "VLLM_CACHE_ROOT": "/v", "TRITON_CACHE_DIR": "/t", "TMPDIR": "/x"}
    assert {"/hf", "/v", "/t", "/x"} <= set(disk.folders(replace(node, environ=env)).values())


def test_a_whole_model(node: Node) -> None:
    weights(node, 10)
    found = worst(model.check(node))
    assert found.level is Level.OK and "LlamaForCausalLM; 1 weight files, 10 B" in found.what
    assert found.facts["model.config"].startswith("sha256:")


def test_a_model_that_is_not_there(node: Node) -> None:
    assert worst(model.check(node)).level is Level.FAIL


def test_a_model_with_a_file_missing(node: Node) -> None:
    weights(node, 10)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (Path(node.settings.model or "") / "model.safetensors.index.json").write_text(json.dumps(index))
    found = worst(model.check(node))
    assert found.level is Level.FAIL and "model-00002.safetensors" in found.what


def test_a_model_of_lfs_pointers(node: Node) -> None:
    weights(node, 10)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (Path(node.settings.model or "") / "model.safetensors").write_text(pointer)
    found = worst(model.check(node))
    assert found.level is Level.FAIL and "Git LFS pointers" in found.what


def test_a_config_that_is_no_json(node: Node) -> None:
    weights(node, 10)
    (Path(node.settings.model or "") / "config.json").write_text("<html>")
    assert worst(model.check(node)).level is Level.FAIL


def test_a_model_on_a_hub(node: Node) -> None:
    hub = said(node, model="meta/llama")
    assert worst(model.check(hub)).level is Level.SKIPPED
    offline = replace(hub, environ={**hub.environ, "HF_HUB_OFFLINE": "1"})
    assert worst(model.check(offline)).level is Level.FAIL
    (Path(node.environ["HOME"]) / ".cache/huggingface/hub/models--meta--llama").mkdir(parents=True)
    assert worst(model.check(offline)).level is Level.OK


def test_a_folder_without_a_model(node: Node) -> None:
    Path(node.settings.model or "").mkdir()
    assert worst(model.check(node)).level is Level.WARN


def test_a_folder_without_weights(node: Node) -> None:
    weights(node, 10)
    (Path(node.settings.model or "") / "model.safetensors").unlink()
    found = worst(model.check(node))
    assert found.level is Level.FAIL and "no weight files" in found.what
    for args in (("--load-format", "dummy"), ("--load-format=runai_streamer",)):
        assert worst(model.check(said(node, engine_args=args))).level is Level.OK
    assert worst(model.check(said(node, engine="reference"))).level is Level.OK


@pytest.mark.parametrize("name", ["$MODEL", "$(MODEL)", "${MODEL}/w", "/models/$NAME"])
def test_a_model_whose_name_is_a_variable(node: Node, name: str) -> None:
    found = worst(model.check(said(node, model=name)))
    assert found.level is Level.FAIL and "nothing has replaced" in found.what


@pytest.mark.parametrize("name", ["s3://bucket/m", "gs://bucket/m", "az://a/b"])
def test_a_model_in_an_object_store(node: Node, name: str) -> None:
    found = worst(model.check(said(node, model=name)))
    assert found.level is Level.SKIPPED and "object store" in found.what


@pytest.mark.parametrize("name", ["m" * 5000, "/" + "m" * 300])
def test_a_model_that_is_no_path(node: Node, name: str) -> None:
    assert worst(model.check(said(node, model=name))).level is Level.FAIL


# ---------------------------------------------------------------------------------------------------- the software


def test_versions(node: Node) -> None:
    facts = NodeFacts({"vllm": "0.33.0", "torch": "2.13.0", "nvidia-nccl-cu12": "2.27.3"}, True)
    found = worst(software.check(replace(node, facts=facts)))
    assert found.what == "vllm 0.33.0, torch 2.13.0, NCCL 2.27.3"
    assert found.facts["nccl.version"] == "2.27.3"
    two = replace(facts, versions={**facts.versions, "nvidia-nccl-cu13": "2.28.1"})
    assert "two NCCLs are installed" in worst(software.check(replace(node, facts=two))).what
    bare = replace(node, facts=NodeFacts({"python": "3.12.1"}, True))
    assert worst(software.check(bare)).what == "no vllm, python 3.12.1"


def test_an_interpreter_that_does_not_start(node: Node) -> None:
    found = worst(software.check(replace(node, trouble={"engine": "the interpreter /x cannot be started"})))
    assert found.level is Level.FAIL


# -------------------------------------------------------------------------------------------------- names and ports

WORKER = Identity("ns/llama-0", 1, 2, "llama-1", "127.0.0.1", "statefulset")


@pytest.mark.parametrize(
    ("error", "level", "words"),
    [
        (None, Level.OK, "answers"),
        (ConnectionRefusedError(), Level.WARN, "refuses"),
        (TimeoutError(), Level.FAIL, "no answer"),
        (OSError(113, "No route to host"), Level.FAIL, "No route to host"),
    ],
)
def test_what_a_network_policy_looks_like(error: OSError | None, level: Level, words: str) -> None:
    found = worst([names.judge_leader("llama-0 is 10.0.0.1", 9470, error)])
    assert found.level is level and words in found.what
    if level is Level.FAIL:
        assert "NetworkPolicy" in found.why


def test_a_leader_whose_name_does_not_resolve(node: Node) -> None:
    gone = replace(WORKER, leader="no-such-pod.invalid")
    found = worst(names.check_leader(replace(node, identity=gone)))
    assert found.level is Level.FAIL and "publishNotReadyAddresses" in found.fix


def test_a_leader_that_does_not_listen(node: Node) -> None:
    import socket

    with socket.socket() as closed:  # bound, not listening: refuses
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        found = worst(names.check_leader(replace(said(node, group_port=port), identity=WORKER)))
        assert found.level is Level.WARN
        closed.listen()
        assert worst(names.check_leader(replace(said(node, group_port=port), identity=WORKER))).level is Level.OK


def test_ports(node: Node) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        planned = replace(node, plan=Plan(0, (Stage("engine"),), ports=(Port(number, "api"),)), agent=True)
        from launcher.planning.pod_network import Network

        planned = replace(planned, network=Network("127.0.0.1", "", (), ()))
        found = worst(ports.check(planned))
        assert found.level is Level.FAIL and f"port {number} (api) is in use" in found.what
        assert worst(ports.check(replace(planned, running=True))).level is Level.SKIPPED
    assert worst(ports.check(planned)).level is Level.OK


def test_the_network_in_findings(node: Node) -> None:
    from launcher.planning.pod_network import Network

    warning = "collectives use TCP: this pod has RDMA devices without an active port; bring the links up"
    chosen = Network("10.0.0.1", "told", (), (warning,), ("RDMA: none",), {"interface": "eth0", "mtu": "1500"})
    found = list(network.check(replace(node, network=chosen)))
    assert found[0].what == "10.0.0.1 on eth0 (MTU 1500): told"
    assert found[-1].level is Level.WARN and found[-1].what == warning
    of_user = replace(chosen, warnings=("NCCL_IB_GID_INDEX=5 cannot work: entry 5 of mlx5_0:1 is empty; 3 would",))
    last = list(network.check(replace(node, network=of_user)))[-1]
    assert (last.check, last.fix.split(":")[0]) == ("rdma", "take NCCL_IB_GID_INDEX out of the environment")
    broken = list(network.check(replace(node, trouble={"network": "--rdma require, but no device\n  fix: mount it"})))
    assert (broken[0].level, broken[0].fix) == (Level.FAIL, "mount it")


# --------------------------------------------------------------------------------------------------------- process


@pytest.mark.parametrize(
    ("name", "command", "reaps", "level", "words"),
    [
        ("launcher", "/opt/launcher/launcher --engine vllm", None, Level.OK, "PID 1 is the launcher"),
        ("python3", "python3 -m launcher run", None, Level.OK, "PID 1 is the launcher"),
        ("sh", "sh -c sleep 5; launcher --engine vllm", True, Level.WARN, "PID 1 is a shell"),
        ("tini", "tini -- x", None, Level.OK, "passes signals on"),
        ("pause", "/pause", True, Level.OK, "adopts"),
        ("", "", None, Level.SKIPPED, "cannot be seen"),
    ],
)
def test_pid_1(name: str, command: str, reaps: bool | None, level: Level, words: str) -> None:
    found = worst([process.judge_init(name, command, reaps)])
    assert found.level is level and words in found.what


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("/opt/launcher/launcher --tp 2 -- --x", ["--tp", "2", "--", "--x"]),
        ("python3 -m launcher run --tp 2", ["--tp", "2"]),
        ("python3 -I -S /opt/launcher/run.py --tp 2", ["--tp", "2"]),
        ("python3 -I -S /opt/launcher/run.py -m launcher.x", None),
        ("/venv/bin/python /venv/bin/launcher", []),
        ("sh -c launcher --tp 2", None),
        ("launcher doctor --group", None),
        ("sleep inf", None),
        ("", None),
    ],
)
def test_the_options_of_the_launcher_that_runs_here(tmp_path: Path, command: str, options: list[str] | None) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in command.split()))
    assert process.options_of_pid_1(str(tmp_path)) == options


def test_a_shell_that_starts_the_launcher_is_a_shell() -> None:
    found = process.judge_init("bash", "bash -c /opt/launcher/launcher --engine vllm && true", True)
    assert found.level is Level.WARN


def test_service_links(node: Node) -> None:
    raw = {"VLLM_PORT": "tcp://10.0.0.1:80", "VLLM_SERVICE_HOST": "10.0.0.1"}
    found = worst(process.check_links(replace(node, raw=raw)))
    assert found.level is Level.WARN and "enableServiceLinks: false" in found.fix
    assert worst(process.check_links(replace(node, raw={"X_SERVICE_HOST": "10.0.0.1"}))).level is Level.OK


def test_grace(node: Node) -> None:
    assert worst(process.check_grace(said(node, grace=6.0))).level is Level.FAIL
    assert worst(process.check_grace(said(node, grace=120.0))).level is Level.OK
    in_kubernetes = replace(node, raw={"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert worst(process.check_grace(in_kubernetes)).level is Level.WARN
    slow = replace(said(node, startup_timeout=60.0), plan=Plan(0, (Stage("ray", timeout=300.0),)))
    assert worst(process.check_grace(slow)).check == "startup"


# ----------------------------------------------------------------------------------------------------- all together


def test_a_check_that_hangs_or_breaks_is_left_behind(node: Node) -> None:
    def hangs(node: Node) -> Iterable[Finding]:
        time.sleep(60)
        return ()

    def breaks(node: Node) -> Iterable[Finding]:
        raise RuntimeError("oh")

    began = time.monotonic()
    fine = Check("three", lambda n: [ok("three", "fine")])
    found = run.run(node, [Check("one", hangs), Check("two", breaks), fine], 0.3)
    assert time.monotonic() - began < 30
    assert [(f.check, f.level) for f in found] == [
        ("one", Level.SKIPPED),
        ("two", Level.SKIPPED),
        ("three", Level.OK),
    ]
    assert "not done within 0.3 s" in found[0].what and "RuntimeError: oh" in found[1].what


def test_every_check_has_a_say_on_an_empty_pod(node: Node) -> None:
    found = run.run(node, seconds=60)
    assert {check.name for check in CHECKS} <= {f.check for f in found} | {"own name"}
    assert not any("a bug" in f.why for f in found)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (512, "512 B"), (64 << 20, "64 MiB"), (int(1.5 * GIB), "1.5 GiB"), (1 << 41, "2 TiB")],
)
def test_sizes_for_people(number: int, text: str) -> None:
    assert size_text(number) == text
