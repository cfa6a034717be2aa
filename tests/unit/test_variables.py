"""Every variable of the engine: its value, who set it, why; and the facts of the network that the group compares."""

from __future__ import annotations

from pathlib import Path

from launcher.engines.vllm.engine import VLLMEngine
from launcher.model import Plan, Process, Stage
from launcher.network import facts
from launcher.network.addresses import Interface, holder
from launcher.network.environment import Surroundings, Variable
from launcher.planning import variables
from tests.unit.test_network_rdma import ETH0, LO, V1, V2, Node, net, table

PLAN = Plan(
    0,
    (
        Stage(
            "engine",
            (
                Process(
                    "vllm",
                    ("vllm",),
                    env={"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN": "s3cret"},
                    secret_env=frozenset({"RAY_AUTH_TOKEN"}),
                    unset=("VLLM_PORT",),
                    defaults={"RAY_USAGE_STATS_ENABLED": "0", "VLLM_ENGINE_READY_TIMEOUT_S": "86400"},
                ),
            ),
        ),
    ),
)
CHOSEN = (Variable("NCCL_SOCKET_IFNAME", "=eth0", "launcher", "it holds 10.0.0.1"),)


def rows(environ: dict[str, str], image: dict[str, str] | None = None) -> dict[str, Variable]:
    return {v.name: v for v in variables.of_rank(VLLMEngine(), PLAN, CHOSEN, Surroundings(environ, image or {}))}


def test_who_set_what_and_why() -> None:
    found = rows({"NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_x", "SHELL": "/bin/sh", "CUDA_HOME": "/c"}, {"CUDA_HOME": "/c"})
    assert (found["NCCL_DEBUG"].setter, found["NCCL_DEBUG"].value) == ("user", "INFO")
    assert found["CUDA_HOME"].setter == "image"
    assert found["NCCL_SOCKET_IFNAME"] == CHOSEN[0]
    assert found["RAY_ADDRESS"].setter == "launcher" and "epoch" in found["RAY_ADDRESS"].why
    assert "SHELL" not in found


def test_secrets_are_masked() -> None:
    found = rows({"HF_TOKEN": "hf_x", "VLLM_API_KEY": "k"})
    assert {found[n].value for n in ("HF_TOKEN", "VLLM_API_KEY", "RAY_AUTH_TOKEN")} == {"***"}
    assert "hf_x" not in str(found) and "s3cret" not in str(found)


def test_what_the_user_set_holds_over_a_default_and_not_over_the_plan() -> None:
    found = rows({"RAY_USAGE_STATS_ENABLED": "1", "RAY_ADDRESS": "auto", "VLLM_PORT": "8000"})
    assert (found["RAY_USAGE_STATS_ENABLED"].value, found["RAY_USAGE_STATS_ENABLED"].setter) == ("1", "user")
    assert found["RAY_ADDRESS"].value == "10.0.0.1:6379" and found["RAY_ADDRESS"].why.endswith("instead of auto")
    assert found["VLLM_PORT"].value == variables.UNSET and "several nodes" in found["VLLM_PORT"].why


def test_links_of_services_are_nobodys_settings() -> None:
    assert "VLLM_SERVICE_HOST" not in rows({"VLLM_SERVICE_HOST": "10.0.0.1"})


def test_the_images_environment_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "image.env").write_bytes(b"CUDA_HOME=/c\0PATH=/bin\0EMPTY=\0")
    env = {"LAUNCHER_IMAGE_ENV": str(tmp_path / "image.env")}
    assert variables.image_environment(env) == {"CUDA_HOME": "/c", "PATH": "/bin", "EMPTY": ""}
    assert variables.image_environment({"LAUNCHER_IMAGE_ENV": str(tmp_path / "none")}) == {}


def test_the_table_names_the_launchers_first() -> None:
    found = tuple(rows({"NCCL_DEBUG": "IN\x1bFO", "NCCL_ALGO": ""}).values())
    lines = variables.table(found)
    setters = [line.split()[2] for line in lines if "PORT" not in line]
    assert setters == sorted(setters, key=["launcher", "user", "image"].index)
    assert any("IN?FO" in line for line in lines) and any("(empty)" in line for line in lines)
    assert variables.table(()) == []


# ------------------------------------------------------------------------------------------- facts of the network


def network_facts(node: Node, *pod: Interface, env: dict[str, str] | None = None) -> dict[str, str]:
    from launcher.network.rdma import read

    among = (LO, ETH0, *pod)
    own = holder("10.244.1.7", among)
    return facts.of(own, node.rdma(*pod, env=env), read(node.sysfs, node.dev), among, node.sysfs)


def test_rails(tmp_path: Path) -> None:
    node, pod = Node(tmp_path), []
    for i in range(4):
        rate = "400 Gb/sec (4X NDR)" if i else "200 Gb/sec (2X NDR)"
        node.device(f"mlx5_{i}", table(f"10.2.{i}.1", f"net{i}"), netdev=f"net{i}", rate=rate)
        (node.sysfs / f"class/net/net{i}/mtu").write_text("9000\n")
        pod.append(net(f"10.2.{i}.1/24", f"net{i}"))
    node.interface("eth0")
    (node.sysfs / "class/net/eth0/mtu").write_text("1450\n")
    assert network_facts(node, *pod) == {
        "interface": "eth0",
        "mtu": "1450",
        "rdma.kind": "RoCE, SR-IOV",
        "rdma.rails": "4",
        "rdma.rates": "1 x 200 Gb/s, 3 x 400 Gb/s",
        "rdma.layer": "Ethernet",
        "rdma.mtu": "9000",
        "rdma.gids": "RoCE v2",
    }
    assert network_facts(node, *pod, env={"NCCL_IB_GID_INDEX": "2"})["rdma.gids"] == V1
    assert network_facts(node, *pod, env={"NCCL_IB_GID_INDEX": "9"})["rdma.gids"] == "none"


def test_rails_at_different_indexes_are_v2(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.device("mlx5_0", {3: ("10.10.1.9", V2, "net1")}, netdev="net1")
    node.device("mlx5_1", {5: ("10.10.2.9", V2, "net2")}, netdev="net2")
    assert network_facts(node, net("10.10.1.9/24"), net("10.10.2.9/24", "net2"))["rdma.gids"] == V2


def test_no_rails(tmp_path: Path) -> None:
    assert network_facts(Node(tmp_path)) == {"interface": "eth0", "rdma.kind": "no RDMA device", "rdma.rails": "0"}
