"""RDMA from sysfs trees of real situations, through reading to the variables that collectives are given."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path

import pytest

from launcher.errors import ConfigError
from launcher.network.addresses import Interface, holder
from launcher.network.environment import Surroundings
from launcher.network.gid import nccl_auto_index, parse_version
from launcher.network.hca import Kind
from launcher.network.nccl import file_settings, names, number
from launcher.network.rdma import Allocated, Gid, RdmaPort, allocated, natural, read, roots
from launcher.network.rdma_environment import Rdma, rdma_environment

NEW, OLD = "2.27.3", "2.21.5"
LO = Interface("lo", ("127.0.0.1/8",))
ETH0 = Interface("eth0", ("10.244.1.7/32",))
V1, V2 = "IB/RoCE v1", "RoCE v2"
Entry = tuple[str, str, str]  # IP, type, ndev


class Node:
    """A sysfs and a dev tree as the kernel lays them out, newlines and errors included."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.dev = root / "sys", root / "dev"
        (self.sysfs / "class/net").mkdir(parents=True)
        (self.dev / "infiniband").mkdir(parents=True)
        self.count = 0

    def device(
        self,
        name: str,
        gids: dict[int, Entry] | None = None,
        *,
        layer: str = "Ethernet",
        state: str = "4: ACTIVE",
        rate: str = "400 Gb/sec (4X NDR)",
        openable: bool = True,
        netdev: str = "",
        pci: str = "",
        table: int = 16,
    ) -> None:
        """One device with one port. Empty entries of the GID table read zero, their attributes give an error."""
        home = self.sysfs / "devices" / (pci or f"0000:{self.count:02x}:00.0")
        verbs = f"uverbs{self.count}"
        self.count += 1
        (home / "infiniband_verbs" / verbs).mkdir(parents=True)
        (home / "infiniband" / name).mkdir(parents=True)
        ib = self.sysfs / "class/infiniband" / name
        port = ib / "ports/1"
        for folder in ("gids", "gid_attrs/types", "gid_attrs/ndevs"):
            (port / folder).mkdir(parents=True)
        (ib / "device").symlink_to(os.path.relpath(home, ib))
        for file, text in (("state", state), ("link_layer", layer), ("rate", rate), ("phys_state", "5: LinkUp")):
            (port / file).write_text(text + "\n")
        for index in range(table):
            entry = (gids or {}).get(index)
            (port / f"gids/{index}").write_text(_raw(entry[0] if entry else "::") + "\n")
            for folder, value in (("types", entry and entry[1]), ("ndevs", entry and entry[2])):
                attribute = port / f"gid_attrs/{folder}/{index}"
                if value:
                    attribute.write_text(value + "\n")
                else:
                    # A file with no read of its own: the kernel answers EINVAL (as root) or EACCES.
                    attribute.symlink_to("/proc/self/clear_refs")
        if openable:
            (self.dev / "infiniband" / verbs).touch()
        if netdev:
            (self.sysfs / "class/net" / netdev).mkdir()
            (self.sysfs / "class/net" / netdev / "device").symlink_to(home)

    def interface(self, name: str) -> None:
        """One without a device link: veth, macvlan, bond."""
        (self.sysfs / "class/net" / name).mkdir()

    def rdma(
        self,
        *pod: Interface,
        env: dict[str, str] | None = None,
        mode: str = "auto",
        nccl: str | None = NEW,
        network_status: str = "",
    ) -> Rdma:
        env = env or {}
        among = (LO, ETH0, *pod)
        fabric = read(self.sysfs, self.dev)
        found = rdma_environment(
            Surroundings(env), mode, fabric, allocated(env, network_status), among, holder("10.244.1.7", among), nccl
        )
        assert len({v.name for v in found.variables}) == len(found.variables)
        return found


def _raw(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    full = ipaddress.IPv6Address(f"::ffff:{address}") if parsed.version == 4 else parsed
    return full.exploded


def table(ip: str, ndev: str = "net1", first: int = 0) -> dict[int, Entry]:
    """The four entries that mlx5 makes for an interface with one IPv4 address."""
    local = "fe80::1234:56ff:fe78:9abc"
    return {
        first: (local, V1, ndev),
        first + 1: (local, V2, ndev),
        first + 2: (ip, V1, ndev),
        first + 3: (ip, V2, ndev),
    }


def net(ip: str, name: str = "net1") -> Interface:
    return Interface(name, (ip,))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def values(rdma: Rdma) -> dict[str, str]:
    return {v.name: v.value for v in rdma.variables}


# ------------------------------------------------------------------------------------------ kinds of pod


def test_no_rdma(node: Node) -> None:
    found = node.rdma()
    assert (found.kind, found.ports, found.variables, found.warnings) == (Kind.NONE, (), (), ())
    assert found.why


def test_veth_only(node: Node) -> None:
    """The device opens (shared-device plugin), but the pod has no interface over it: every GID is zero."""
    node.device("mlx5_0")
    node.interface("eth0")
    found = node.rdma()
    assert found.kind is Kind.NO_GID
    assert values(found) == {"NCCL_IB_DISABLE": "1", "UCX_NET_DEVICES": "eth0"}
    assert "its GID table is empty" in found.warnings[0]
    assert "Multus" in found.warnings[0]


def test_veth_with_the_gids_of_others(node: Node) -> None:
    """A driver that shows the whole table: entries of other pods, whose interface is called net1 too."""
    node.device("mlx5_0", table("192.168.5.77"))
    found = node.rdma(net("192.168.5.9/24", "eth1"))
    assert found.kind is Kind.NO_GID
    assert "holds 192.168.5.77" in found.warnings[0]


def test_sriov_with_shared_netns(node: Node) -> None:
    """Every device of the node is in sysfs; the two that were given to the pod open."""
    for i in range(4):
        node.device(f"mlx5_{i}", table(f"10.0.{i}.1", f"ens{i}"), openable=False)
    node.device("mlx5_7", table("192.168.5.9"), netdev="net1")
    node.device("mlx5_12", table("192.168.6.9", "net2"), netdev="net2")
    found = node.rdma(net("192.168.5.9/24"), net("192.168.6.9/24", "net2"))
    assert found.kind is Kind.SRIOV_SHARED
    assert values(found) == {
        "NCCL_IB_HCA": "=mlx5_7:1,mlx5_12:1",
        "UCX_NET_DEVICES": "mlx5_7:1,mlx5_12:1,eth0",
        "NVSHMEM_ENABLE_NIC_PE_MAPPING": "1",
        "NVSHMEM_HCA_LIST": "mlx5_7:1,mlx5_12:1",
        "NCCL_IB_GID_INDEX": "3",
        "NVSHMEM_IB_GID_INDEX": "3",
        "UCX_IB_GID_INDEX": "3",
        "MC_GID_INDEX": "3",
    }
    assert found.warnings == ()
    assert any("mlx5_0 is left out" in w and "No such file" in w for w in found.why)


def test_sriov_with_exclusive_netns(node: Node) -> None:
    node.device("mlx5_7", table("192.168.5.9"), netdev="net1")
    found = node.rdma(net("192.168.5.9/24"))
    assert found.kind is Kind.SRIOV_EXCLUSIVE
    assert values(found)["NCCL_IB_HCA"] == "=mlx5_7:1"
    assert "NVSHMEM_HCA_LIST" not in values(found)


def test_macvlan_with_the_shared_device_plugin(node: Node) -> None:
    """No device link from net1; own and others' entries side by side, all of them called net1, own ones last."""
    gids = {**table("10.0.0.1", "ens1"), **table("192.168.5.8", first=4), **table("192.168.5.9", first=8)}
    node.device("mlx5_0", gids)
    node.interface("net1")
    found = node.rdma(net("192.168.5.9/24"))
    assert found.kind is Kind.MACVLAN
    assert values(found)["NCCL_IB_GID_INDEX"] == "11"


def test_a_sparse_table(node: Node) -> None:
    """Another namespace's entries give EINVAL and read zero: only the pod's own show, far up in the table."""
    node.device("mlx5_3", {9: ("192.168.5.9", V1, "net1"), 10: ("192.168.5.9", V2, "net1")}, table=256)
    assert values(node.rdma(net("192.168.5.9/24")))["NCCL_IB_GID_INDEX"] == "10"


def test_entries_whose_attributes_cannot_be_read(node: Node) -> None:
    """They vanish between two reads, and some drivers show the GIDs of other namespaces without their attributes."""
    node.device("mlx5_3", {1: ("192.168.5.9", "", ""), 2: ("192.168.5.8", "", ""), 4: ("192.168.5.9", V2, "net1")})
    (node.sysfs / "class/infiniband/mlx5_3/ports/1/rate").unlink()
    assert values(node.rdma(net("192.168.5.9/24")))["NCCL_IB_GID_INDEX"] == "4"


@pytest.mark.parametrize("ip", [(), (net("172.16.0.5/16", "ib0"),)])
def test_infiniband(node: Node, ip: tuple[Interface, ...]) -> None:
    """With or without IPoIB: no GID work."""
    for i in range(2):
        node.device(f"mlx5_{i}", {0: ("fe80::1", V1, "")}, layer="InfiniBand", netdev=f"ib{i}")
    found = node.rdma(*ip)
    assert found.kind is Kind.INFINIBAND
    assert values(found) == {"NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1", "UCX_NET_DEVICES": "mlx5_0:1,mlx5_1:1,eth0"}


def test_the_host_network(node: Node) -> None:
    """Eight adapters of the compute fabric, one of management: the slow one is left out."""
    pod = [net("10.1.0.1/24", "ens1"), Interface("docker0", ("172.17.0.1/16",))]
    node.device("mlx5_0", table("10.1.0.1", "ens1"), rate="25 Gb/sec (1X EDR)", netdev="ens1")
    for i in range(1, 9):
        node.device(f"mlx5_{i}", table(f"10.2.{i}.1", f"rdma{i}"), netdev=f"rdma{i}")
        pod.append(net(f"10.2.{i}.1/24", f"rdma{i}"))
    found = node.rdma(*pod)
    assert found.kind is Kind.HOST
    assert found.ports == tuple(f"mlx5_{i}:1" for i in range(1, 9))
    assert values(found)["NCCL_IB_GID_INDEX"] == "3"
    assert any("25 Gb/s, less than half of the fastest (400)" in w for w in found.why)


def test_a_bond(node: Node) -> None:
    node.device("mlx5_bond_0", table("10.3.0.1", "bond0"))
    node.interface("bond0")
    found = node.rdma(net("10.3.0.1/24", "bond0"))
    assert values(found)["NCCL_IB_HCA"] == "=mlx5_bond_0:1"


def test_nothing_was_given(node: Node) -> None:
    node.device("mlx5_0", table("10.0.0.1", "ens1"), openable=False)
    found = node.rdma()
    assert (found.kind, found.variables) == (Kind.NOT_GIVEN, ())
    assert "request the device plugin's resource" in found.warnings[0]


def test_a_uverbs_device_that_cannot_be_opened(node: Node) -> None:
    node.device("mlx5_0", table("192.168.5.9"), openable=False)
    (node.dev / "infiniband/uverbs0").mkdir()
    assert "uverbs0: Is a directory" in node.rdma(net("192.168.5.9/24")).warnings[0]


def test_ports_that_are_down(node: Node) -> None:
    node.device("mlx5_0", state="1: DOWN")
    node.device("mlx5_1", state="2: INIT", layer="InfiniBand")
    found = node.rdma()
    assert (found.kind, found.variables) == (Kind.DOWN, ())
    assert "mlx5_0:1: the port is DOWN; mlx5_1:1: the port is INIT" in found.warnings[0]


def test_infiniband_and_ethernet_on_one_host(node: Node) -> None:
    node.device("mlx5_0", table("192.168.5.9"), rate="100 Gb/sec (4X EDR)", netdev="net1")
    for i in range(1, 5):
        node.device(f"mlx5_{i}", layer="InfiniBand")
    found = node.rdma(net("192.168.5.9/24"))
    assert found.kind is Kind.INFINIBAND
    assert found.ports == tuple(f"mlx5_{i}:1" for i in range(1, 5))


def test_efa(node: Node) -> None:
    node.device("rdmap16s27", layer="Unknown")
    found = node.rdma()
    assert (found.kind, found.variables, found.warnings) == (Kind.FOREIGN, (), ())


def test_ipv6_only(node: Node) -> None:
    node.device("mlx5_0", {1: ("fe80::1", V2, "net1"), 4: ("fd00:5::9", V1, "net1"), 5: ("fd00:5::9", V2, "net1")})
    assert values(node.rdma(net("fd00:5::9/64")))["NCCL_IB_GID_INDEX"] == "5"


def test_ipv4_is_preferred(node: Node) -> None:
    node.device("mlx5_0", {2: ("fd00:5::9", V2, "net1"), 6: ("192.168.5.9", V2, "net1")})
    assert values(node.rdma(Interface("net1", ("fd00:5::9/64", "192.168.5.9/24"))))["NCCL_IB_GID_INDEX"] == "6"


def test_the_netdev_breaks_a_tie(node: Node) -> None:
    """A stale entry of the same IP under another interface."""
    node.device("mlx5_0", {3: ("192.168.5.9", V2, "gone"), 7: ("192.168.5.9", V2, "net1")})
    assert values(node.rdma(net("192.168.5.9/24")))["NCCL_IB_GID_INDEX"] == "7"


# ----------------------------------------------------------------------------------- what was given to the pod


def privileged(node: Node) -> tuple[Interface, ...]:
    node.device("mlx5_0", table("192.168.4.9", "net0"), pci="0000:3b:00.0")
    node.device("mlx5_7", table("192.168.5.9"), pci="0000:3b:02.6", netdev="net1")
    return net("192.168.4.9/24", "net0"), net("192.168.5.9/24")


INFO = {"0000:3b:02.6": {"generic": {"deviceID": "0000:3b:02.6"}, "rdma": {"rdma_dev": "mlx5_7"}}}
STATUS = [
    {"name": "cbr0", "interface": "eth0", "ips": ["10.244.1.7"], "default": True, "dns": {}},
    {"name": "d/n", "device-info": {"type": "pci", "pci": {"pci-address": "0:3", "rdma-device": "mlx5_7"}}, "dns": {}},
]


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ({"PCIDEVICE_NVIDIA_COM_RDMA_INFO": json.dumps(INFO)}, ""),
        ({"PCIDEVICE_NVIDIA_COM_RDMA": "0000:3b:02.6,0000:3b:02.7"}, ""),
        ({}, json.dumps(STATUS)),
    ],
)
def test_a_privileged_pod_uses_what_was_given_to_it(node: Node, env: dict[str, str], status: str) -> None:
    found = node.rdma(*privileged(node), env=env, network_status=status)
    assert found.ports == ("mlx5_7:1",)
    assert any("mlx5_0 is left out: not among the devices given to this pod" in w for w in found.why)


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ({"PCIDEVICE_X_INFO": "{not json", "PCIDEVICE_Y": "0000:99:00.0", "PCIDEVICE_Z": ""}, "["),
        ({}, ""),
        ({}, '{"a": null, "b": [1]}'),
    ],
)
def test_hints_that_say_nothing_of_these_devices(node: Node, env: dict[str, str], status: str) -> None:
    assert node.rdma(*privileged(node), env=env, network_status=status).ports == ("mlx5_0:1", "mlx5_7:1")


# ------------------------------------------------------------------------------------------- different indexes


def rails(node: Node, *, second: int = 5) -> tuple[Interface, ...]:
    node.device("mlx5_0", {3: ("10.10.1.9", V2, "net1")}, netdev="net1")
    node.device("mlx5_1", {second: ("10.10.2.9", V2, "net2")}, netdev="net2")
    return net("10.10.1.9/24"), net("10.10.2.9/24", "net2")


def test_different_indexes_with_a_new_nccl(node: Node) -> None:
    found = node.rdma(*rails(node))
    assert "NCCL_IB_GID_INDEX" not in values(found)
    assert values(found)["NCCL_IB_ADDR_RANGE"] == values(found)["NVSHMEM_IB_ADDR_RANGE"] == "10.10.0.0/22"
    assert found.warnings == ()


def test_different_indexes_with_an_old_nccl(node: Node) -> None:
    found = node.rdma(*rails(node), nccl=OLD)
    assert not {"NCCL_IB_GID_INDEX", "NCCL_IB_ADDR_RANGE"} & set(values(found))
    assert "mlx5_0:1: 3 (10.10.1.9), mlx5_1:1: 5 (10.10.2.9)" in found.warnings[0]
    assert "NCCL 2.26.2 or later" in found.warnings[0]


def test_different_indexes_with_an_unknown_nccl(node: Node) -> None:
    found = node.rdma(*rails(node), nccl=None)
    assert "NCCL_IB_ADDR_RANGE" in values(found)
    assert "the engine's version is not known" in found.warnings[0]


def test_the_same_index_with_an_old_nccl(node: Node) -> None:
    assert values(node.rdma(*rails(node, second=3), nccl=OLD))["NCCL_IB_GID_INDEX"] == "3"


def test_a_range_that_leaves_others_out(node: Node) -> None:
    """A neighbour of the same subnet stands before the own entry: the subnet chooses it, a narrow range does not."""
    node.device("mlx5_0", {1: ("10.10.0.200", V2, "net1"), 3: ("10.10.0.8", V2, "net1")})
    node.device("mlx5_1", {1: ("10.10.0.201", V2, "net2"), 5: ("10.10.0.9", V2, "net2")})
    found = node.rdma(net("10.10.0.8/24"), net("10.10.0.9/24", "net2"))
    assert values(found)["NCCL_IB_ADDR_RANGE"] == "10.10.0.8/31"


def test_of_equally_sure_indexes_the_lowest(node: Node) -> None:
    """The netdev speaks for 8 on one port and for 3 on the other."""
    node.device("mlx5_0", {3: ("10.10.0.8", V2, "old"), 8: ("10.10.0.8", V2, "net1")})
    node.device("mlx5_1", {3: ("10.10.0.9", V2, "net2"), 8: ("10.10.0.9", V2, "old")})
    found = node.rdma(net("10.10.0.8/24"), net("10.10.0.9/24", "net2"))
    assert values(found)["NCCL_IB_GID_INDEX"] == "3"


def test_no_range_can_tell_them_apart(node: Node) -> None:
    node.device("mlx5_0", {1: ("10.10.0.9", V2, "net1"), 3: ("10.10.0.8", V2, "net1")})
    node.device("mlx5_1", {1: ("10.10.0.10", V2, "net2"), 5: ("10.10.0.11", V2, "net2")})
    found = node.rdma(net("10.10.0.8/24"), net("10.10.0.11/24", "net2"))
    assert "NCCL_IB_ADDR_RANGE" not in values(found)
    assert "no address range makes NCCL choose them" in found.warnings[0]


def test_ipv6_rails(node: Node) -> None:
    node.device("mlx5_0", {0: ("fe80::1", V1, "net1"), 3: ("fd00:1::9", V2, "net1")})
    node.device("mlx5_1", {0: ("fe80::2", V1, "net2"), 5: ("fd00:2::9", V2, "net2")})
    found = node.rdma(net("fd00:1::9/64"), net("fd00:2::9/64", "net2"))
    assert values(found)["NCCL_IB_ADDR_FAMILY"] == "AF_INET6"
    assert values(found)["NCCL_IB_ADDR_RANGE"] == "fd00::/30"


@pytest.mark.parametrize(
    ("gids", "within", "index"),
    [
        ({}, None, 0),
        (table("10.0.0.1"), None, 3),
        ({**table("10.0.0.1"), **table("10.0.1.1", first=4)}, None, 3),
        ({**table("10.0.0.1"), **table("10.0.1.1", first=4)}, "10.0.1.0/24", 7),
        (table("10.0.0.1"), "10.9.0.0/16", 0),
        ({2: ("10.0.0.1", V1, "e")}, None, 2),
        ({0: ("10.0.0.1", V2, "e"), 1: ("10.0.0.2", V2, "e")}, None, 0),
    ],
)
def test_nccls_own_choice(gids: dict[int, Entry], within: str | None, index: int) -> None:
    port = RdmaPort("m", 1, "ACTIVE", "Ethernet", 1.0, tuple(Gid(i, *entry) for i, entry in gids.items()))
    assert nccl_auto_index(port, "AF_INET", ipaddress.ip_network(within) if within else None) == index


# ------------------------------------------------------------------------------------------------- modes


def test_off(node: Node) -> None:
    pod = rails(node)
    assert values(node.rdma(*pod, mode="off")) == {"NCCL_IB_DISABLE": "1", "UCX_NET_DEVICES": "eth0"}
    assert "has no effect" in node.rdma(*pod, mode="off", env={"NCCL_IB_HCA": "mlx5_0"}).warnings[0]
    assert "does not hold for NCCL" in node.rdma(*pod, mode="off", env={"NCCL_IB_DISABLE": "0"}).warnings[0]


def test_require(node: Node) -> None:
    with pytest.raises(ConfigError, match="--rdma require, but this pod has no RDMA device"):
        node.rdma(mode="require")
    pod = rails(node)
    assert node.rdma(*pod, mode="require").ports == ("mlx5_0:1", "mlx5_1:1")
    with pytest.raises(ConfigError, match="RoCE is impossible") as error:
        node.rdma(mode="require")
    assert "Multus" in error.value.fix
    with pytest.raises(ConfigError, match="contradicts NCCL_IB_DISABLE=1"):
        node.rdma(*pod, mode="require", env={"NCCL_IB_DISABLE": "1"})
    with pytest.raises(ConfigError, match="NCCL_IB_HCA=mlx4 matches no usable port"):
        node.rdma(*pod, mode="require", env={"NCCL_IB_HCA": "mlx4"})


def test_an_unknown_mode(node: Node) -> None:
    with pytest.raises(ConfigError, match="--rdma maybe is not one of auto, off, require"):
        node.rdma(mode="maybe")


def test_the_user_switched_it_off(node: Node) -> None:
    found = node.rdma(*rails(node), env={"NCCL_IB_DISABLE": "1"})
    assert [(v.name, v.value, v.setter) for v in found.variables] == [("NCCL_IB_DISABLE", "1", "user")]
    assert found.ports == ()


# --------------------------------------------------------------------------------------- the user's own values


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"NCCL_IB_GID_INDEX": "5"}, "NCCL_IB_GID_INDEX=5 cannot work: entry 5 of mlx5_0:1 is empty; 3 would"),
        ({"NCCL_IB_GID_INDEX": "2"}, "entry 2 of mlx5_0:1 is IB/RoCE v1, not RoCE v2"),
        ({"NCCL_IB_GID_INDEX": "7"}, "entry 7 of mlx5_0:1 holds 192.168.5.8, which is not an IP of this pod"),
        ({"NCCL_IB_GID_INDEX": "three"}, "NCCL_IB_GID_INDEX=three is not a number"),
        ({"NCCL_IB_GID_INDEX": "1"}, "is link-local, which reaches one network segment only; 3 holds"),
        ({"NCCL_IB_GID_INDEX": " 0x1"}, "is link-local"),
        ({"MC_GID_INDEX": "0"}, "MC_GID_INDEX=0: entry 0 of mlx5_0:1 is link-local"),
        ({"UCX_IB_GID_INDEX": "9"}, "UCX_IB_GID_INDEX=9 cannot work"),
        ({"NCCL_IB_TC": "300"}, "NCCL_IB_TC=300 is not a number from 0 to 255"),
        ({"NCCL_IB_SL": "x"}, "NCCL_IB_SL=x is not a number from 0 to 15"),
        ({"NCCL_IB_HCA": "mlx5_9"}, "NCCL_IB_HCA=mlx5_9 matches no usable port of this pod, which has mlx5_0:1"),
        ({"NCCL_IB_HCA": "^mlx5"}, "matches no usable port"),
        ({"NCCL_IB_HCA": "mlx5_0,mlx5_7"}, "mlx5_7 matches no device of this pod, which has mlx5_0:1"),
        ({"NCCL_IB_HCA": "=mlx5_0,mlx5"}, "mlx5 matches no device"),
        ({"NCCL_IB_HCA": "mlx5_0, mlx5_0"}, "' mlx5_0' matches no device"),
        ({"NCCL_IB_HCA": "mlx5_0:1,mlx5_0:2"}, "mlx5_0:2 matches no device"),
        ({"NCCL_IB_DISABLE": "true"}, "is read as 0 by NCCL"),
        ({"NCCL_IB_SL": "0x1f"}, "NCCL_IB_SL=0x1f is not a number from 0 to 15"),
        ({"UCX_NET_DEVICES": "mlx5_4:1"}, "UCX_NET_DEVICES=mlx5_4:1 names mlx5_4:1; usable here are eth0, lo"),
    ],
)
def test_values_that_cannot_work(node: Node, env: dict[str, str], words: str) -> None:
    node.device("mlx5_0", {**table("192.168.5.9"), 7: ("192.168.5.8", V2, "net1")}, netdev="net1")
    found = node.rdma(net("192.168.5.9/24"), env=env)
    assert any(words in w for w in found.warnings), found.warnings
    assert env.items() <= values(found).items() or set(env) & {"MC_GID_INDEX", "UCX_IB_GID_INDEX", "NCCL_IB_DISABLE"}


@pytest.mark.parametrize(
    "env",
    [
        {"NCCL_IB_GID_INDEX": "3"},
        {"NCCL_IB_GID_INDEX": "0x3"},
        {"NCCL_IB_GID_INDEX": " 3"},
        {"NCCL_IB_GID_INDEX": "-1"},
        {"NCCL_IB_TC": "128"},
        {"NCCL_IB_TC": "0x6a"},
        {"NCCL_IB_TC": "-1"},
        {"NCCL_IB_SL": "017"},
        {"NCCL_IB_HCA": "mlx5"},
        {"NCCL_IB_HCA": "mlx"},
        {"NCCL_IB_HCA": "^mlx4"},
        {"NCCL_IB_DISABLE": "0x0"},
        {"NCCL_IB_HCA": "=mlx5_0:1"},
        {"NCCL_IB_HCA": "mlx5_0"},
        {"UCX_IB_GID_INDEX": "auto"},
        {"UCX_NET_DEVICES": "all"},
        {"UCX_NET_DEVICES": "mlx5_0:1,eth0"},
        {"NCCL_IB_ADDR_RANGE": "192.168.0.0/16"},
        {"NVSHMEM_HCA_LIST": "mlx5_0:1"},
    ],
)
def test_values_that_can_work(node: Node, env: dict[str, str]) -> None:
    node.device("mlx5_0", table("192.168.5.9"), netdev="net1")
    assert node.rdma(net("192.168.5.9/24"), env=env).warnings == ()


def test_the_users_index_goes_to_the_others_too(node: Node) -> None:
    node.device("mlx5_0", table("192.168.5.9"), netdev="net1")
    for given in ("1", "0x1", " 1"):
        found = values(node.rdma(net("192.168.5.9/24"), env={"NCCL_IB_GID_INDEX": given}))
        assert found["MC_GID_INDEX"] == found["UCX_IB_GID_INDEX"] == "1"


@pytest.mark.parametrize("value", ["1", "0x1", " 7", "-1", "01"])
def test_what_switches_rdma_off(node: Node, value: str) -> None:
    found = node.rdma(*rails(node), env={"NCCL_IB_DISABLE": value})
    assert (found.ports, found.warnings) == ((), ())


@pytest.mark.parametrize("value", ["0", "", "false", "no", " 0"])
def test_what_does_not(node: Node, value: str) -> None:
    assert node.rdma(*rails(node), env={"NCCL_IB_DISABLE": value}).ports


LOCAL: dict[int, Entry] = {0: ("fe80::1", V1, "ens0"), 1: ("fe80::1", V2, "ens0")}


def test_ports_without_an_ip_are_left_to_nccl(node: Node) -> None:
    node.device("mlx5_0", LOCAL)
    ens0 = Interface("ens0", ())
    found = node.rdma(ens0)
    assert values(found) == {}
    (warning,) = found.warnings
    assert "no IP on ens0" in warning and "impossible" not in warning and "TCP" not in warning
    own = {"NCCL_IB_HCA": "mlx5_0", "NCCL_IB_GID_INDEX": "1"}
    kept = node.rdma(ens0, env=own)
    assert (values(kept), kept.warnings) == (own, ())
    assert "TCP" not in " ".join(kept.why) and "impossible" not in " ".join(kept.why)
    assert node.rdma(ens0, env={**own, "NCCL_IB_GID_INDEX": "0"}).warnings == ()
    assert "entry 5 of mlx5_0:1 is empty" in node.rdma(ens0, env={**own, "NCCL_IB_GID_INDEX": "5"}).warnings[0]
    assert node.rdma(ens0, env=own, mode="require").warnings == ()


def test_roce_v1_alone_is_left_to_nccl(node: Node) -> None:
    node.device("mlx5_0", {0: ("fe80::1", V1, "net1"), 1: ("192.168.5.9", V1, "net1")}, netdev="net1")
    found = node.rdma(net("192.168.5.9/24"))
    assert values(found) == {}
    assert "as RoCE v1 only" in found.warnings[0]
    assert node.rdma(net("192.168.5.9/24"), env={"NCCL_IB_GID_INDEX": "1"}).warnings == ()


def test_the_users_list_goes_before_the_faster_fabric(node: Node) -> None:
    node.device("ib0", layer="InfiniBand", rate="400 Gb/sec (4X NDR)")
    node.device("roce0", table("192.168.5.9"), rate="100 Gb/sec (4X EDR)", netdev="net1")
    pod = net("192.168.5.9/24")
    assert node.rdma(pod).ports == ("ib0:1",)
    found = node.rdma(pod, env={"NCCL_IB_HCA": "roce0"})
    assert (found.ports, found.warnings) == (("roce0:1",), ())
    assert values(found)["NCCL_IB_GID_INDEX"] == "3"
    (warning,) = node.rdma(pod, env={"NCCL_IB_HCA": "roce0,ib0"}).warnings
    assert "mixes link layers" in warning


def test_what_stands_in_nccls_files_is_the_users(node: Node, tmp_path: Path) -> None:
    conf = tmp_path / "my.conf"
    conf.write_text("# of the image\nNCCL_IB_HCA==mlx5_0\nNCCL_IB_GID_INDEX=9\r\n NCCL_IB_TC=1\nFOO=1\nNCCL_DEBUG\n")
    (tmp_path / ".nccl.conf").write_text("NCCL_IB_SL=3\n")
    system = tmp_path / "etc.conf"
    system.write_text("NCCL_IB_HCA=mlx5_1\nNCCL_IB_TIMEOUT=22\n")
    env = {"NCCL_CONF_FILE": str(conf), "HOME": str(tmp_path)}
    assert {n: v for n, (v, _) in file_settings(env, str(system)).items()} == {
        "NCCL_IB_HCA": "=mlx5_0",
        "NCCL_IB_GID_INDEX": "9",
        "NCCL_IB_TIMEOUT": "22",
    }
    assert file_settings({"HOME": str(tmp_path)}, str(system))["NCCL_IB_SL"] == ("3", str(tmp_path / ".nccl.conf"))
    around = Surroundings.here(env)
    found = around.variable("NCCL_IB_HCA", "other", "")
    assert (found.value, found.setter, found.why) == ("=mlx5_0", "user", f"set in {conf}: kept")
    over = Surroundings.here({**env, "NCCL_IB_HCA": "mine"}).variable("NCCL_IB_HCA", "other", "")
    assert (over.value, over.why) == ("mine", "set in the environment: kept")


def test_nccl_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\0NCCL=\n")
    for name in ("folder", "fifo", "bytes", "absent"):
        assert file_settings({"NCCL_CONF_FILE": str(tmp_path / name)}, str(tmp_path / "absent")) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x6a", 106),
        (" 7", 7),
        ("010", 8),
        ("-1", -1),
        ("false", 0),
        ("", 0),
        ("5abc", 5),
        ("0", 0),
        ("09", 0),
        ("+3", 3),
    ],
)
def test_numbers_as_nccl_reads_them(text: str, value: int) -> None:
    assert number(text) == value


def test_the_users_range_is_not_overruled_by_an_index(node: Node) -> None:
    node.device("mlx5_0", table("192.168.5.9"), netdev="net1")
    found = values(node.rdma(net("192.168.5.9/24"), env={"NCCL_IB_ADDR_RANGE": "192.168.0.0/16"}))
    assert "NCCL_IB_GID_INDEX" not in found


def test_the_users_list_of_devices_narrows_the_rest(node: Node) -> None:
    found = node.rdma(*rails(node), env={"NCCL_IB_HCA": "=mlx5_1"})
    assert found.ports == ("mlx5_1:1",)
    assert values(found)["NCCL_IB_GID_INDEX"] == "5"
    assert values(found)["NVSHMEM_HCA_LIST"] == "mlx5_1:1"


def test_a_beginning_that_means_more(node: Node) -> None:
    for name in ("mlx5_1", "mlx5_10"):
        node.device(name, layer="InfiniBand")
    found = node.rdma(env={"NCCL_IB_HCA": "mlx5_1"})
    assert "also means mlx5_10:1; write NCCL_IB_HCA==mlx5_1" in found.warnings[0]


def test_where_rdma_is_impossible_what_the_user_insists_on_is_kept(node: Node) -> None:
    node.device("mlx5_0")
    found = node.rdma(env={"NCCL_IB_HCA": "mlx5_0"})
    assert "NCCL_IB_DISABLE" not in values(found)
    assert "NCCL_IB_HCA=mlx5_0 cannot work here: kept" in found.warnings[1]


# ------------------------------------------------------------------------------------------------ small things


def test_roots() -> None:
    assert roots({}) == (Path("/sys"), Path("/dev"))
    assert roots({"LAUNCHER_SYSFS": "/a", "LAUNCHER_DEV": "/b"}) == (Path("/a"), Path("/b"))


def test_this_machine_can_be_read() -> None:
    read(Path("/sys"), Path("/dev"))


def test_nothing_allocated() -> None:
    assert allocated({"PATH": "/bin"}) == Allocated()


def test_natural_order() -> None:
    assert sorted(["mlx5_10", "mlx5_2", "mlx5_bond_0", "irdma1"], key=natural) == [
        "irdma1",
        "mlx5_2",
        "mlx5_10",
        "mlx5_bond_0",
    ]


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.27.3", (2, 27, 3)), ("2.21.5+cuda12.4", (2, 21, 5)), ("2.28", (2, 28, 0)), ("", None), (None, None)],
)
def test_versions(text: str | None, version: tuple[int, ...] | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        ("mlx5_1", True),
        ("=mlx5_1", False),
        ("=mlx5_10", True),
        ("=mlx5_10:1", True),
        ("=mlx5_10:2", False),
        ("^mlx5_1", False),
        ("^=mlx5_1", True),
        ("mlx4,mlx5", True),
    ],
)
def test_nccls_rule_for_devices(rule: str, matches: bool) -> None:
    assert names(rule).match("mlx5_10", 1) is matches
