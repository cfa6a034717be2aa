"""Identity from real inputs: what Kubernetes, LeaderWorkerSet, JobSet and Slurm put into a pod."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ConfigError
from launcher.identity import identify
from launcher.identity.nodelist import expand
from launcher.model import Identity
from launcher.settings import Settings

K8S = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
LWS = {"LWS_LEADER_ADDRESS": "vllm-1.vllm.ns", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "0"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "4",
    "SLURM_JOB_NODELIST": "node[001-003],gpu1",
    "SLURM_LOCALID": "0",
}


def said(**values: Any) -> Settings:
    """Settings as if each value had been given as a flag."""
    return Settings(**values, origins={name: "--" + name.replace("_", "-") for name in values})


def who(env: dict[str, str], hostname: str = "box", /, **values: Any) -> Identity:
    return identify(said(**values), env, hostname, "")[0]


def refused(env: dict[str, str], hostname: str = "box", /, **values: Any) -> str:
    with pytest.raises(ConfigError) as error:
        who(env, hostname, **values)
    assert error.value.fix, "an error says what to do"
    return str(error.value)


# ------------------------------------------------------------------------------------------------------- alone


def test_a_workstation_is_alone() -> None:
    identity, reports, warnings = identify(Settings(), {}, "desk.example.com")
    assert identity == Identity(group="desk", rank=0, size=1, name="desk", leader="desk", source="alone")
    assert [r.name for r in reports] == ["explicit", "lws", "job", "slurm", "statefulset", "alone"]
    assert [r.applied for r in reports] == [False] * 5 + [True]
    assert all(r.why for r in reports)
    assert warnings == ()


def test_a_statefulset_pod_without_size_is_alone() -> None:
    assert who({**K8S, "POD_NAME": "vllm-3"}, "vllm-3").source == "alone"


def test_size_without_any_rank_says_what_was_looked_for() -> None:
    text = refused({}, size=2)
    assert "--size 2, but nothing tells this pod's rank" in text
    for source in (
        "explicit: --rank is not given",
        "lws: LWS_",
        "job: JOB_",
        "slurm: SLURM_",
        "statefulset: not inside",
    ):
        assert source in text
    assert "--rank, --size and --leader" in text


def test_half_an_explicit_identity_is_never_alone() -> None:
    assert "--rank 1 is given without --size" in refused({}, rank=1)
    assert "--leader a is given without --rank and --size" in refused({}, leader="a")
    assert "where rank 0 is" in refused({}, rank=1, size=2)
    assert "by which name" in refused({}, rank=0, size=2)


def test_rank_0_without_size_is_alone() -> None:
    assert who({}, rank=0).alone


# ---------------------------------------------------------------------------------------------------- explicit


def test_explicit() -> None:
    identity = who({}, "b", rank=1, size=2, leader="a.example.com")
    assert (identity.source, identity.rank, identity.size, identity.leader) == ("explicit", 1, 2, "a.example.com")
    assert identity.group == "a.example.com"
    assert not identity.waits_forever


def test_explicit_wins_over_every_other_source() -> None:
    env = {**LWS, **SLURM, "JOB_COMPLETION_INDEX": "7"}
    identity, reports, _ = identify(said(rank=2, size=3, leader="a"), env, "x-9")
    assert (identity.source, identity.rank, identity.size) == ("explicit", 2, 3)
    assert reports[1].why == "not consulted: explicit decided"


def test_explicit_rank_out_of_range() -> None:
    text = refused({}, rank=2, size=2, leader="a")
    assert "rank 2 from --rank 2 is out of range: the group has 2 pods (--size 2), ranks 0 to 1" in text


def test_size_0_is_refused() -> None:
    assert "--size 0" in refused({}, size=0)


def test_variables_are_named_as_variables() -> None:
    settings = Settings(rank=5, size=2, leader="a", origins={"rank": "LAUNCHER_RANK", "size": "launcher.toml: size"})
    with pytest.raises(ConfigError, match=r"LAUNCHER_RANK=5 .*launcher.toml: size 2"):
        identify(settings, {}, "h")


@pytest.mark.parametrize("leader", ["tcp://a", "a:9470", "[::1]", "a b", "a,b", "10.0.0.1:80"])
def test_a_leader_that_is_no_host(leader: str) -> None:
    assert "no port" in refused({}, rank=1, size=2, leader=leader)


@pytest.mark.parametrize("leader", ["a", "a.b.c.", "10.0.0.1", "fd00::1"])
def test_a_leader_that_is_a_host(leader: str) -> None:
    assert who({}, rank=1, size=2, leader=leader).leader == leader


def test_peers_tell_rank_by_own_name() -> None:
    identity = who({}, "b", peers=("a.example.com", "b.example.com", "c.example.com"))
    assert (identity.rank, identity.size, identity.leader) == (1, 3, "a.example.com")
    assert identity.name_of(2) == "c.example.com"


def test_peers_tell_rank_by_own_address() -> None:
    assert who({"POD_IP": "10.0.0.2"}, "x", peers=("10.0.0.1", "10.0.0.2")).rank == 1
    assert who({"POD_IP": "10.0.0.2"}, "x", peers=("127.0.0.1", "127.0.0.2"), address="127.0.0.1").rank == 0


def test_an_equal_name_beats_a_similar_one() -> None:
    assert who({}, "gpu", peers=("gpu.a", "gpu")).rank == 1


def test_peers_that_cannot_be() -> None:
    assert "names A. twice, as rank 0 and as rank 2" in refused({}, "a", peers=("a", "b", "A."))
    assert "--size 3 contradicts --peers a,b" in refused({}, "a", peers=("a", "b"), size=3)
    assert "--leader b contradicts --peers a,b" in refused({}, "a", peers=("a", "b"), leader="b")
    assert "--peers does not name" not in refused({}, "z", peers=("a", "b"))
    assert "does not name this pod (z)" in refused({}, "z", peers=("a", "b"))
    assert "more than once: gpu.a (rank 0), gpu.b (rank 1)" in refused({}, "gpu", peers=("gpu.a", "gpu.b"))
    assert "--rank 0 is a in --peers a,b, but this pod is b" in refused({}, "b", peers=("a", "b"), rank=0)
    assert "out of range" in refused({}, "z", peers=("a", "b"), rank=2)


def test_rank_decides_where_peers_do_not_name_the_pod() -> None:
    assert who({}, "z", peers=("a", "b"), rank=1).rank == 1


def test_peers_with_the_rank_of_another_source() -> None:
    identity = who({"JOB_COMPLETION_INDEX": "1"}, "job-1", peers=("a", "b"))
    assert (identity.source, identity.rank, identity.size, identity.leader) == ("job", 1, 2, "a")
    assert identity.peers == ("a", "b")


# --------------------------------------------------------------------------------------------------------- lws


def test_an_lws_leader_called_1_is_rank_0() -> None:
    identity = who({**K8S, **LWS, "POD_NAMESPACE": "ns"}, "vllm-1", size=2)
    assert (identity.rank, identity.source, identity.leader) == (0, "lws", "vllm-1.vllm.ns")
    assert identity.group == "ns/vllm-1.vllm.ns"
    assert identity.waits_forever
    assert identity.peers == ()


def test_an_lws_worker() -> None:
    identity = who({**LWS, "LWS_WORKER_INDEX": "1", "POD_NAME": "vllm-1-1", "POD_IP": "10.1.1.1"}, "vllm-1-1")
    assert (identity.rank, identity.name, identity.address) == (1, "vllm-1-1", "10.1.1.1")


def test_the_lws_address_is_opaque() -> None:
    assert who({**LWS, "LWS_LEADER_ADDRESS": "10.2.3.4"}).leader == "10.2.3.4"
    assert who({**LWS, "LWS_LEADER_ADDRESS": "x_y-!"}).leader == "x_y-!"


def test_an_ip_is_like_nothing_but_itself() -> None:
    assert "contradicts" in refused({**LWS, "LWS_LEADER_ADDRESS": "10.2.3.4"}, leader="10.2.3")
    assert who({**LWS, "LWS_LEADER_ADDRESS": "10.2.3.4"}, leader="10.2.3.4").leader == "10.2.3.4"


def test_lws_of_one_pod_is_alone_but_says_lws() -> None:
    identity = who({**LWS, "LWS_GROUP_SIZE": "1"})
    assert identity.alone
    assert identity.source == "lws"


@pytest.mark.parametrize(
    ("change", "values", "words"),
    [
        ({"LWS_WORKER_INDEX": "2"}, {}, "rank 2 from LWS_WORKER_INDEX=2 is out of range: the group has 2 pods"),
        ({"LWS_WORKER_INDEX": "two"}, {}, "LWS_WORKER_INDEX=two is not a whole number"),
        ({"LWS_WORKER_INDEX": "-1"}, {}, "LWS_WORKER_INDEX=-1 is too small"),
        ({"LWS_GROUP_SIZE": "0"}, {}, "LWS_GROUP_SIZE=0 is too small"),
        ({"LWS_GROUP_SIZE": "1_0"}, {}, "LWS_GROUP_SIZE=1_0 is not a whole number"),
        ({"LWS_WORKER_INDEX": ""}, {}, "LWS_WORKER_INDEX is not set"),
        ({"LWS_LEADER_ADDRESS": "", "LWS_GROUP_SIZE": ""}, {}, "LWS_LEADER_ADDRESS and LWS_GROUP_SIZE are not set"),
        ({}, {"size": 4}, "--size 4 contradicts size 2 from LWS_GROUP_SIZE=2"),
        ({}, {"size": 1}, "--size 1 contradicts size 2 from LWS_GROUP_SIZE=2"),
        ({}, {"rank": 1}, "--rank 1 contradicts rank 0 from LWS_WORKER_INDEX=0"),
        ({}, {"leader": "other"}, "--leader other contradicts leader vllm-1.vllm.ns from LWS_LEADER_ADDRESS="),
    ],
)
def test_lws_errors(change: dict[str, str], values: dict[str, Any], words: str) -> None:
    assert words in refused({**LWS, **change}, "vllm-1", **values)


def test_what_an_old_lws_lacks_can_be_said() -> None:
    identity = who({"LWS_LEADER_ADDRESS": "l", "LWS_GROUP_SIZE": "2"}, rank=1)
    assert (identity.rank, identity.source) == (1, "lws")


def test_equal_explicit_values_are_welcome() -> None:
    assert who(LWS, rank=0, size=2).source == "lws"
    assert who(LWS, leader="VLLM-1.vllm.ns.svc.cluster.local").source == "lws"
    assert who(LWS, leader="vllm-1").leader == "vllm-1.vllm.ns"


# --------------------------------------------------------------------------------------------------------- job


def test_an_indexed_job() -> None:
    env = {**K8S, "JOB_COMPLETION_INDEX": "1", "POD_NAME": "bench-1-x7k2p", "POD_NAMESPACE": "ns"}
    identity = who(env, "bench-1", size=2, service="bench")
    assert (identity.rank, identity.source, identity.name) == (1, "job", "bench-1")
    assert identity.leader == "bench-0.bench.ns.svc.cluster.local"
    assert identity.peers[1] == "bench-1.bench.ns.svc.cluster.local"
    assert not identity.waits_forever


def test_each_child_job_of_a_jobset_is_a_group() -> None:
    env = {**K8S, "JOB_COMPLETION_INDEX": "3", "POD_NAMESPACE": "ns", "JOBSET_NAME": "llm"}
    assert who(env, "llm-workers-1-3", size=4).leader == "llm-workers-1-0.llm.ns.svc.cluster.local"


def test_a_job_with_the_full_name_as_hostname() -> None:
    env = {**K8S, "JOB_COMPLETION_INDEX": "1"}
    identity = who(env, "bench-1.sub.ns.svc.corp.internal", size=2)
    assert identity.leader == "bench-0.sub.ns.svc.corp.internal"
    assert identity.group == "ns/bench-0.sub.ns.svc.corp.internal"


def test_job_with_a_leader_said() -> None:
    assert who({"JOB_COMPLETION_INDEX": "1"}, "node7", size=2, leader="10.0.0.1").leader == "10.0.0.1"


def test_job_with_size_1_is_alone() -> None:
    assert who({"JOB_COMPLETION_INDEX": "3"}, "bench-3", size=1).source == "alone"


@pytest.mark.parametrize(
    ("env", "hostname", "values", "words"),
    [
        ({"JOB_COMPLETION_INDEX": "1"}, "bench-1", {}, "Kubernetes does not tell its size"),
        ({"JOB_COMPLETION_INDEX": "1"}, "bench-1", {"size": 2}, "give --service"),
        ({"JOB_COMPLETION_INDEX": "1"}, "bench-1", {"size": 2, "service": "b"}, "POD_NAMESPACE"),
        ({"JOB_COMPLETION_INDEX": "1"}, "node7", {"size": 2, "service": "b"}, "does not end in -1"),
        ({"JOB_COMPLETION_INDEX": "2"}, "bench-2", {"size": 2, "leader": "a"}, "completions and parallelism"),
        ({"JOB_COMPLETION_INDEX": "one"}, "bench-1", {"size": 2}, "JOB_COMPLETION_INDEX=one is not a whole number"),
        (
            {"JOB_COMPLETION_INDEX": "1", "POD_NAMESPACE": "n"},
            "bench-1",
            {"size": 2, "rank": 0, "service": "b"},
            "--rank 0 contradicts rank 1 from JOB_COMPLETION_INDEX=1",
        ),
    ],
)
def test_job_errors(env: dict[str, str], hostname: str, values: dict[str, Any], words: str) -> None:
    assert words in refused(env, hostname, **values)


# ------------------------------------------------------------------------------------------------------- slurm


def test_slurm() -> None:
    identity = who(SLURM, "node002")
    assert (identity.rank, identity.size, identity.leader, identity.name) == (1, 4, "node001", "node002")
    assert identity.peers == ("node001", "node002", "node003", "gpu1")
    assert identity.group == "slurm-77.0/node001"


def test_a_slurm_step_smaller_than_its_job() -> None:
    env = {**SLURM, "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[002-003]"}
    assert who(env).peers == ("node002", "node003")


def test_slurm_on_one_node_is_alone_but_says_slurm() -> None:
    identity = who({**SLURM, "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "gpu1"})
    assert identity.alone
    assert identity.source == "slurm"


def test_a_slurm_login_node_is_alone() -> None:
    assert who({"SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "node[1-4]"}).source == "alone"


def test_a_batch_script_without_srun_is_warned_of() -> None:
    env = {k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}
    assert "srun" in identify(Settings(), env, "x")[2][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SLURM_NODEID": "4"}, "out of range"),
        ({"SLURM_NNODES": "3"}, "SLURM_NNODES=3 contradicts SLURM_JOB_NODELIST=node[001-003],gpu1, which names 4"),
        ({"SLURM_NNODES": ""}, "SLURM_NNODES is not set"),
        ({"SLURM_JOB_NODELIST": ""}, "SLURM_JOB_NODELIST is not set"),
        ({"SLURM_LOCALID": "3"}, "--ntasks-per-node=1"),
        ({"SLURMD_NODENAME": "gpu1"}, "SLURM_NODEID=1 is node002"),
        ({"SLURM_JOB_NODELIST": "node[1-"}, "cannot be read as a Slurm node list"),
    ],
)
def test_slurm_errors(change: dict[str, str], words: str) -> None:
    assert words in refused({**SLURM, **change})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        ("node[001-003,7],gpu1", ("node001", "node002", "node003", "node7", "gpu1")),
        ("n[9-11]", ("n9", "n10", "n11")),
        ("n[08-10]-ib", ("n08-ib", "n09-ib", "n10-ib")),
        ("r[1-2]n[01-02]", ("r1n01", "r1n02", "r2n01", "r2n02")),
    ],
)
def test_node_lists(text: str, names: tuple[str, ...]) -> None:
    assert expand(text, "X") == names


@pytest.mark.parametrize("text", ["a[", "a]", "a[]", "a[x]", "a[3-1]", "a,,b", ",a", "a,", "a[1-2", "a[[1]]", "a[-1]"])
def test_node_lists_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        expand(text, f"SLURM_JOB_NODELIST={text}")


def test_a_huge_node_list_is_refused_at_once() -> None:
    for text in ("a[0-999999999]", "a[1-60000]b[1-60000]", ",".join(["a[1-60000]", "b[1-60000]"])):
        with pytest.raises(ConfigError):
            expand(text, "X")


@given(st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,5}[a-z]", fullmatch=True), min_size=1, max_size=6, unique=True))
def test_plain_node_lists_stay_as_they_are(names: list[str]) -> None:
    assert expand(",".join(names), "X") == tuple(names)


@given(st.text(alphabet="a1-[],", max_size=12))
def test_node_lists_are_read_or_refused(text: str) -> None:
    try:
        names = expand(text, "X")
    except ConfigError:
        return
    assert all(names)
    assert not any(c in name for name in names for c in "[],")


# ------------------------------------------------------------------------------------------------- statefulset


def stateful(ordinal: int, **values: Any) -> Identity:
    env = {**K8S, "POD_NAME": f"vllm-{ordinal}", "POD_NAMESPACE": "ns"}
    return who(env, f"vllm-{ordinal}", service="vllm-peers", **values)


def test_a_statefulset() -> None:
    identity = stateful(1, size=2)
    assert identity == Identity(
        group="ns/vllm-0.vllm-peers.ns.svc.cluster.local",
        rank=1,
        size=2,
        name="vllm-1",
        leader="vllm-0.vllm-peers.ns.svc.cluster.local",
        source="statefulset",
        peers=("vllm-0.vllm-peers.ns.svc.cluster.local", "vllm-1.vllm-peers.ns.svc.cluster.local"),
        waits_forever=True,
    )


@given(st.integers(0, 1000), st.integers(2, 64), st.integers(0, 64))
def test_groups_of_a_statefulset_partition_it(start: int, size: int, offset: int) -> None:
    identity = stateful(start + offset, size=size, ordinal_start=start)
    leader = start + offset // size * size
    assert identity.rank == offset % size
    assert identity.leader == f"vllm-{leader}.vllm-peers.ns.svc.cluster.local"
    assert identity.peers[identity.rank].startswith(f"vllm-{start + offset}.")
    assert stateful(leader, size=size, ordinal_start=start).group == identity.group


def test_ordinals_from_each_place() -> None:
    base = {**K8S, "POD_NAMESPACE": "ns"}
    assert who({**base, "POD_INDEX": "1"}, "vllm-1", size=2, service="s").rank == 1
    assert who({**base, "POD_INDEX": "", "POD_NAME": "vllm-1"}, "node-7", size=2, service="s").rank == 1
    assert who(base, "vllm-1", size=2, service="s").rank == 1
    assert who(base, "vllm-1.s.ns.svc.cluster.local", size=2).leader == "vllm-0.s.ns.svc.cluster.local"


def test_the_full_hostname_tells_service_namespace_and_domain() -> None:
    identity = who(K8S, "a-b-3.peers.prod.svc.corp.internal", size=2)
    assert (identity.rank, identity.leader) == (1, "a-b-2.peers.prod.svc.corp.internal")
    assert identity.name == "a-b-3"


def test_the_service_accounts_namespace() -> None:
    identity = identify(said(size=2, service="s"), K8S, "vllm-1", "prod\n")[0]
    assert identity.group == "prod/vllm-0.s.prod.svc.cluster.local"


def test_a_statefulset_with_a_leader_said_needs_no_service() -> None:
    assert who({**K8S, "POD_NAME": "vllm-1"}, "vllm-1", size=2, leader="lead").leader == "lead"


def test_outside_kubernetes_a_hostname_tells_nothing() -> None:
    assert "statefulset: not inside Kubernetes" in refused({}, "gpu-7", size=2)


def test_a_deployment_pod_is_no_statefulset_pod() -> None:
    text = refused({**K8S, "POD_NAME": "vllm-7d9f8c-abcde"}, "vllm-7d9f8c-abcde", size=2)
    assert "POD_NAME vllm-7d9f8c-abcde does not end in an ordinal" in text
    assert "does not end in an ordinal" in refused(K8S, "node-007", size=2)


@pytest.mark.parametrize(
    ("env", "hostname", "values", "words"),
    [
        ({"POD_NAME": "v-1"}, "v-1", {}, "give --service"),
        ({"POD_NAME": "v-1"}, "v-1", {"service": "s"}, "POD_NAMESPACE"),
        ({"POD_NAME": "v-1", "POD_INDEX": "2"}, "v-1", {}, "POD_INDEX=2 contradicts POD_NAME=v-1"),
        ({"POD_INDEX": "x"}, "v-1", {}, "POD_INDEX=x is not a whole number"),
        ({"POD_INDEX": "3"}, "node-7", {"service": "s", "namespace": "n"}, "set POD_NAME"),
        ({"POD_NAME": "v-1"}, "v-1", {"ordinal_start": 2}, "ordinal 1 from POD_NAME v-1 is below --ordinal-start 2"),
        ({"POD_NAME": "v-3"}, "v-3", {"leader": "a"}, "cannot be the leader of group 1 too"),
        ({"POD_NAME": "v-1", "POD_NAMESPACE": "n"}, "v-1", {"service": "s", "rank": 0}, "--rank 0 contradicts rank 1"),
        ({"POD_NAME": "v-1"}, "v-1", {"service": "s.n.svc"}, "give its name only"),
        (
            {"POD_NAMESPACE": "n"},
            "v-1",
            {"service": "s", "namespace": "m"},
            "--namespace m contradicts the namespace n",
        ),
        ({}, "v-1.t.n.svc.c.l", {"service": "s"}, "--service s contradicts the Service t"),
        ({}, "v-1.t.n.svc.c.l", {"cluster_domain": "d"}, "--cluster-domain d contradicts the domain c.l"),
    ],
)
def test_statefulset_errors(env: dict[str, str], hostname: str, values: dict[str, Any], words: str) -> None:
    assert words in refused({**K8S, **env}, hostname, size=2, **values)


def test_one_group_id_for_several_groups_is_warned_of() -> None:
    env = {**K8S, "POD_NAME": "v-3", "POD_NAMESPACE": "n"}
    identity, _, warnings = identify(said(size=2, service="s", group_id="mine"), env, "v-3")
    assert identity.group == "mine"
    assert "--group-id mine is the same" in warnings[0]


# ----------------------------------------------------------------------------------------------------- address


def test_own_address() -> None:
    assert who({"POD_IP": "10.0.0.1"}).address == "10.0.0.1"
    assert who({"POD_IP": "10.0.0.1"}, address="fd00::1").address == "fd00::1"
    assert who({"POD_IP": "", "POD_IPS": "10.0.0.3,fd00::3"}).address == "10.0.0.3"
    assert who({}).address is None


def test_an_address_that_is_none() -> None:
    assert "--address eth0 is not an IP address" in refused({}, address="eth0")
    assert "POD_IP=0.0.0.0 is no address of one pod" in refused({"POD_IP": "0.0.0.0"})


@given(
    st.dictionaries(
        st.sampled_from([*LWS, *SLURM, *K8S, "POD_NAME", "POD_INDEX", "POD_NAMESPACE", "JOB_COMPLETION_INDEX"]),
        st.sampled_from(["", "0", "1", "2", "-1", "x", "vllm-1", "a,b", "n[1-2]", "ns"]),
    ),
    st.sampled_from(["box", "vllm-1", "vllm-1.s.ns.svc.c.l", ""]),
    st.none() | st.integers(0, 3),
    st.none() | st.integers(1, 3),
    st.none() | st.sampled_from(["a", "vllm-0"]),
)
def test_every_environment_gives_an_identity_or_an_error_in_words(
    env: dict[str, str], hostname: str, rank: int | None, size: int | None, leader: str | None
) -> None:
    values = {k: v for k, v in {"rank": rank, "size": size, "leader": leader}.items() if v is not None}
    try:
        identity, reports, _ = identify(said(**values), env, hostname)
    except ConfigError as error:
        assert error.fix
        return
    assert 0 <= identity.rank < identity.size
    assert not identity.peers or len(identity.peers) == identity.size
    assert sum(r.applied for r in reports) == 1
    assert rank in (None, identity.rank)
    assert size in (None, identity.size)


# ------------------------------------------------------------------------------- what the pod's own files tell

KUBELETS = (
    "search inf.svc.k8s.corp.example svc.k8s.corp.example k8s.corp.example\nnameserver 10.31.0.10\noptions ndots:5\n"
)
POD = {"POD_NAME": "ruby-1", "POD_NAMESPACE": "inf", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}


@pytest.mark.parametrize(
    ("resolv_conf", "domain"),
    [
        (KUBELETS, "k8s.corp.example"),
        ("search inf.svc.cluster.local svc.cluster.local cluster.local\n", "cluster.local"),
        ("search old.example\nsearch a.svc.x.y. svc.x.y. x.y.\n", "x.y"),
        ("search corp.example\n", "cluster.local"),
        ("search a.svc.x.y\n", "cluster.local"),
        ("search\n", "cluster.local"),
        ("search svc svc. .svc. svc.\n", "cluster.local"),
        ("", "cluster.local"),
    ],
)
def test_the_clusters_domain_is_in_the_search_list(resolv_conf: str, domain: str) -> None:
    settings = Settings(size=2, service="ruby-hl")
    found, _, _ = identify(settings, POD, "ruby-1", resolv_conf=resolv_conf)
    assert found.leader == f"ruby-0.ruby-hl.inf.svc.{domain}"


def test_a_domain_that_is_given_goes_before_the_search_list() -> None:
    settings = Settings(
        size=2, service="ruby-hl", cluster_domain="mine", origins={"cluster_domain": "--cluster-domain"}
    )
    assert identify(settings, POD, "ruby-1", resolv_conf=KUBELETS)[0].leader.endswith(".svc.mine")


def test_on_the_host_network_the_nodes_name_is_no_ordinal() -> None:
    settings = Settings(size=2, service="peers")
    env = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "POD_NAMESPACE": "inf"}
    hosts = "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n"
    with pytest.raises(ConfigError, match=r"gpu-node-17 is the node's") as error:
        identify(settings, env, "gpu-node-17", hosts=hosts)
    assert "POD_NAME" in error.value.fix
    named, _, _ = identify(settings, {**env, "POD_NAME": "opal-1"}, "gpu-node-17", hosts=hosts)
    assert (named.rank, named.name) == (1, "opal-1")
    assert identify(settings, env, "opal-1", hosts="# Kubernetes-managed hosts file.\n")[0].rank == 1


@pytest.mark.parametrize("leader", ["127.0.0.1", "127.0.1.1", "localhost", "::1", "0.0.0.0", "LOCALHOST."])
def test_a_workers_leader_is_another_machine(leader: str) -> None:
    with pytest.raises(ConfigError, match="is this machine itself") as error:
        identify(Settings(rank=1, size=2, leader=leader), {"POD_IP": "10.0.0.7"}, "box-b")
    assert "launcher local" in error.value.fix
    with pytest.raises(ConfigError, match="is this machine itself"):
        identify(Settings(rank=1, size=2, leader=leader), {}, "box-b")
    identify(Settings(rank=0, size=2, leader=leader), {}, "box-a")
    identify(Settings(rank=1, size=2, leader=leader, address="127.0.0.2"), {}, "box-a")


def test_an_allocation_of_slurm_is_no_step() -> None:
    env = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    with pytest.raises(ConfigError, match="salloc") as error:
        identify(Settings(), env, "login")
    assert "srun --ntasks-per-node=1" in error.value.fix
    assert identify(Settings(size=1), env, "login")[0].alone
    assert identify(Settings(), {**env, "SLURM_NNODES": "1"}, "login")[0].alone
    assert identify(Settings(), {**env, "SLURM_NODEID": "1"}, "n2")[0].rank == 1


@pytest.mark.parametrize("leader", ["$LEADER", "$(LWS_LEADER_ADDRESS)", "${X}-0"])
def test_a_variable_that_nothing_has_replaced(leader: str) -> None:
    with pytest.raises(ConfigError, match="nothing has replaced"):
        identify(Settings(rank=1, size=2, leader=leader), {}, "box-b")
