"""What must hold for every fabric: order changes nothing, the user's variables stay, and what is chosen is right."""

from __future__ import annotations

import ipaddress
import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.network.addresses import Interface
from launcher.network.environment import Surroundings
from launcher.network.gid import _supernet, choose_gid, nccl_auto_index, own_gids
from launcher.network.nccl import names
from launcher.network.rdma import ROCE_V2, Allocated, Device, Fabric, Gid, RdmaPort
from launcher.network.rdma_environment import Rdma, rdma_environment

OWN = ("10.1.0.9", "10.1.1.9", "10.2.0.9", "fd00:1::9")
OTHERS = ("10.1.0.8", "10.1.1.200", "10.9.0.1", "fd00:1::8", "fe80::1")
POD = (
    Interface("eth0", ("10.244.0.5/32",)),
    Interface("lo", ("127.0.0.1/8", "::1/128")),
    Interface("net1", ("10.1.0.9/24", "fd00:1::9/64")),
    Interface("net2", ("10.1.1.9/24", "10.2.0.9/16")),
)
USER = (
    ("NCCL_IB_HCA", ("mlx5_0", "=mlx5_1:1", "^mlx5_2", "mlx9", "")),
    ("NCCL_IB_GID_INDEX", ("0", "3", "5", "-1", "x")),
    ("NCCL_IB_ADDR_RANGE", ("10.0.0.0/8",)),
    ("NCCL_IB_DISABLE", ("0", "1", "")),
    ("NVSHMEM_HCA_LIST", ("mlx5_0:1",)),
    ("UCX_NET_DEVICES", ("all", "mlx5_0:1", "eth0")),
    ("UCX_IB_GID_INDEX", ("auto", "3")),
    ("MC_GID_INDEX", ("1", "7")),
)

gids = st.dictionaries(
    st.integers(0, 9),
    st.tuples(
        st.sampled_from(OWN + OTHERS),
        st.sampled_from([ROCE_V2, ROCE_V2, "IB/RoCE v1", ""]),
        st.sampled_from(["net1", "net2", ""]),
    ),
    max_size=6,
).map(lambda table: tuple(Gid(i, *entry) for i, entry in sorted(table.items())))


@st.composite
def fabrics(draw: st.DrawFn) -> Fabric:
    devices = []
    for name in draw(st.lists(st.sampled_from([f"mlx5_{i}" for i in (0, 1, 2, 10)]), unique=True, max_size=4)):
        port = RdmaPort(
            name,
            1,
            draw(st.sampled_from(["ACTIVE", "ACTIVE", "ACTIVE", "DOWN"])),
            draw(st.sampled_from(["Ethernet", "Ethernet", "Ethernet", "InfiniBand", "Unknown"])),
            draw(st.sampled_from([400.0, 400.0, 200.0, 100.0])),
            draw(gids),
        )
        devices.append(Device(name, (port,), why_not=draw(st.sampled_from(["", "", "", "cannot be opened"]))))
    return Fabric(tuple(devices), tuple(draw(st.sets(st.just(("net1", "mlx5_0"))))))


environments = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in USER})
versions = st.sampled_from([None, "2.20.5", "2.25.1", "2.26.2", "2.27.3"])
givens = st.sampled_from([Allocated(), Allocated(frozenset({"mlx5_1"}), said_by=("PCIDEVICE_X_INFO",))])


def made(
    env: dict[str, str], fabric: Fabric, given: Allocated, nccl: str | None, pod: tuple[Interface, ...] = POD
) -> Rdma:
    return rdma_environment(Surroundings(env), "auto", fabric, given, pod, POD[0], nccl)


@given(fabrics(), environments, givens, versions, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_never_changes_the_outcome(
    fabric: Fabric, env: dict[str, str], given: Allocated, nccl: str | None, chance: random.Random
) -> None:
    def mixed(device: Device) -> Device:
        return replace(
            device, ports=tuple(replace(p, gids=tuple(chance.sample(p.gids, len(p.gids)))) for p in device.ports)
        )

    devices = tuple(chance.sample([mixed(d) for d in fabric.devices], len(fabric.devices)))
    other = Fabric(devices, fabric.functions)
    pod = tuple(chance.sample(POD, len(POD)))
    assert made(env, fabric, given, nccl) == made(env, other, given, nccl, pod)


@given(fabrics(), environments, givens, versions)
@settings(max_examples=60, deadline=None)
def test_the_users_variables_never_change(
    fabric: Fabric, env: dict[str, str], given: Allocated, nccl: str | None
) -> None:
    found = made(env, fabric, given, nccl)
    assert len({v.name for v in found.variables}) == len(found.variables)
    for v in found.variables:
        assert (v.setter == "launcher") == (v.name not in env)
        assert v.value == env.get(v.name, v.value)


@given(fabrics(), versions)
@settings(max_examples=100, deadline=None)
def test_whatever_nccl_then_uses_is_this_pods(fabric: Fabric, nccl: str | None) -> None:
    found = made({}, fabric, Allocated(), nccl)
    variables = {v.name: v.value for v in found.variables}
    ports = [p for d in fabric.devices for p in d.ports if str(p) in found.ports]
    if not ports:
        assert "NCCL_IB_HCA" not in variables
        return
    for device in fabric.devices:
        for port in device.ports:
            assert names(variables["NCCL_IB_HCA"]).match(port.device, port.number) == (port in ports)
    assert all(p.active for p in ports)
    assert len({p.link_layer for p in ports}) == 1
    for port in (p for p in ports if p.roce):
        if "NCCL_IB_GID_INDEX" in variables:
            index = int(variables["NCCL_IB_GID_INDEX"])
        elif "NCCL_IB_ADDR_RANGE" in variables:
            within = ipaddress.ip_network(variables["NCCL_IB_ADDR_RANGE"])
            index = nccl_auto_index(port, variables.get("NCCL_IB_ADDR_FAMILY", "AF_INET"), within)
        else:
            assert found.warnings, "neither an index nor a range: the user is told"
            continue
        entry = port.gid(index)
        assert entry is not None
        assert (entry.type, entry.address in OWN) == (ROCE_V2, True)


@given(st.lists(gids, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_an_index_is_chosen_whenever_all_agree(tables: list[tuple[Gid, ...]]) -> None:
    ports = [RdmaPort(f"mlx5_{i}", 1, "ACTIVE", "Ethernet", 400.0, table) for i, table in enumerate(tables)]
    own = [{g.index for g in own_gids(p, POD)} for p in ports]
    if not all(own):
        return
    choice = choose_gid(ports, POD, "2.27.3")
    agreed = set.intersection(*own)
    assert (choice.index in agreed) if agreed else (choice.index is None)
    assert bool(choice.range) + bool(choice.problem) + (choice.index is not None) == 1


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), min_size=1, max_size=5))
def test_a_supernet_is_the_smallest(pairs: list[tuple[int, int]]) -> None:
    networks = [ipaddress.IPv4Network(pair, strict=False) for pair in pairs]
    result = _supernet(networks)
    assert isinstance(result, ipaddress.IPv4Network)
    assert all(n.subnet_of(result) for n in networks)
    if result.prefixlen < 32:
        assert not any(all(n.subnet_of(half) for n in networks) for half in result.subnets())
