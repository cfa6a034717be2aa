"""The collective environment: what is set, and what is said of the user's own variables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.network.addresses import Interface
from launcher.network.environment import Surroundings, Variable, collective_environment
from launcher.network.nccl import names

LO = Interface("lo", ("127.0.0.1/8", "::1/128"))
ETH0 = Interface("eth0", ("10.0.0.5/24", "fd00::5/64"))
NET1 = Interface("net1", ("192.168.7.5/16",))
POD = (ETH0, LO, NET1)


def made(
    env: dict[str, str], address: str = "10.0.0.5", interface: Interface | None = None
) -> tuple[dict[str, Variable], tuple[str, ...]]:
    variables, warnings = collective_environment(Surroundings(env), address, POD, interface)
    assert len({v.name for v in variables}) == len(variables)
    return {v.name: v for v in variables}, warnings


def test_all_that_is_set() -> None:
    variables, warnings = made({})
    assert {n: v.value for n, v in variables.items()} == {
        "NCCL_SOCKET_IFNAME": "=eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "TP_SOCKET_IFNAME": "eth0",
        "NCCL_SOCKET_FAMILY": "AF_INET",
        "VLLM_HOST_IP": "10.0.0.5",
        "SGLANG_HOST_IP": "10.0.0.5",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "10.0.0.5",
    }
    assert {v.setter for v in variables.values()} == {"launcher"}
    assert all(v.why for v in variables.values())
    assert warnings == ()


def test_ipv6() -> None:
    variables, _ = made({}, "fd00::5")
    assert variables["NCCL_SOCKET_FAMILY"].value == "AF_INET6"
    assert variables["GLOO_SOCKET_IFNAME"].value == "eth0"


def test_ranks_on_one_machine() -> None:
    variables, _ = made({}, "127.0.0.2")
    assert variables["GLOO_SOCKET_IFNAME"].value == "lo"
    assert variables["VLLM_HOST_IP"].value == "127.0.0.2"


def test_an_interface_of_the_users() -> None:
    variables, warnings = made({}, interface=NET1)
    assert variables["NCCL_SOCKET_IFNAME"].value == "=net1"
    assert variables["VLLM_HOST_IP"].value == "10.0.0.5"
    assert warnings == ()


def test_an_address_that_no_interface_holds() -> None:
    variables, warnings = made({}, "203.0.113.1")
    assert "GLOO_SOCKET_IFNAME" not in variables
    assert "no interface of this pod holds its address 203.0.113.1" in warnings[0]


def test_who_set_a_variable() -> None:
    around = Surroundings({"GLOO_SOCKET_IFNAME": "eth0", "TP_SOCKET_IFNAME": "net1"}, {"GLOO_SOCKET_IFNAME": "eth0"})
    setters = {v.name: v.setter for v in collective_environment(around, "10.0.0.5", POD)[0]}
    assert setters["GLOO_SOCKET_IFNAME"] == "image"
    assert setters["TP_SOCKET_IFNAME"] == "user"
    assert setters["NCCL_SOCKET_IFNAME"] == "launcher"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NCCL_SOCKET_IFNAME", "ib0", "matches no interface: this pod has eth0, lo, net1"),
        ("NCCL_SOCKET_IFNAME", "=eth", "matches no interface"),
        ("NCCL_SOCKET_IFNAME", "^e,l,n", "matches no interface"),
        ("GLOO_SOCKET_IFNAME", "=eth0", "give plain names"),
        ("GLOO_SOCKET_IFNAME", "eth0,ib0", "names ib0, which is no interface"),
        ("TP_SOCKET_IFNAME", "eth0,net1", "names eth0,net1, which is no interface"),
        ("NCCL_SOCKET_FAMILY", "IPv4", "neither AF_INET nor AF_INET6"),
        ("NCCL_SOCKET_FAMILY", "AF_INET6", "does not fit this pod's address 10.0.0.5"),
        ("VLLM_HOST_IP", "10.0.0.1", "is not an address of this pod"),
        ("SGLANG_HOST_IP", "127.0.0.1", "cannot be reached by the other pods"),
        ("VLLM_NIXL_SIDE_CHANNEL_HOST", "localhost", "cannot be reached"),
        ("VLLM_HOST_IP", "", "is set but empty"),
    ],
)
def test_what_cannot_work_is_kept_and_warned_of(name: str, value: str, words: str) -> None:
    variables, warnings = made({name: value})
    assert variables[name] == Variable(name, value, "user", "set in the environment: kept")
    assert len(warnings) == 1
    assert warnings[0].startswith(name)
    assert words in warnings[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NCCL_SOCKET_IFNAME", "eth"),
        ("NCCL_SOCKET_IFNAME", "^lo,docker"),
        ("NCCL_SOCKET_IFNAME", "=eth0,net1"),
        ("NCCL_SOCKET_IFNAME", "eth"),
        ("NCCL_SOCKET_IFNAME", "^docker,lo"),
        ("GLOO_SOCKET_IFNAME", "net1,eth0"),
        ("NCCL_SOCKET_FAMILY", "AF_INET"),
        ("VLLM_HOST_IP", "192.168.7.5"),
    ],
)
def test_what_can_work_is_kept_in_silence(name: str, value: str) -> None:
    variables, warnings = made({name: value})
    assert (variables[name].value, variables[name].setter) == (value, "user")
    assert warnings == ()


def test_a_variable_against_the_interface_flag() -> None:
    _, warnings = made({"NCCL_SOCKET_IFNAME": "=eth0", "GLOO_SOCKET_IFNAME": "eth0"}, interface=NET1)
    assert len(warnings) == 2
    assert all("leaves out net1, which --interface names" in w for w in warnings)


@pytest.mark.parametrize(
    ("rule", "name", "matches"),
    [
        ("eth", "eth10", True),
        ("=eth1", "eth10", False),
        ("=eth1,eth10", "eth10", True),
        ("^eth1", "eth10", False),
        ("^=eth1", "eth10", True),
        ("^docker,lo", "eth0", True),
    ],
)
def test_nccls_rule(rule: str, name: str, matches: bool) -> None:
    assert names(rule).match(name) is matches


NAMES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_FAMILY", "VLLM_HOST_IP", "PATH")


@given(
    st.dictionaries(st.sampled_from(NAMES), st.text(alphabet="eth01^=,.AF_IN6", max_size=8)),
    st.sampled_from(["10.0.0.5", "fd00::5", "192.168.7.5", "127.0.0.1", "203.0.113.1"]),
    st.permutations(POD),
)
def test_the_users_variables_never_change(env: dict[str, str], address: str, pod: list[Interface]) -> None:
    variables, warnings = collective_environment(Surroundings(env), address, pod)
    for v in variables:
        assert (v.setter == "launcher") == (v.name not in env)
        assert v.value == env.get(v.name, v.value)
    assert (variables, warnings) == collective_environment(Surroundings(env), address, POD)
