"""Ray's stages for vLLM: who runs what, with which token, and what is refused."""

from __future__ import annotations

import pytest

from launcher.engines.ray import stages
from launcher.engines.vllm.engine import VLLMEngine
from launcher.errors import UsageError
from launcher.model import Gate, NodeFacts, Port
from launcher.settings import Settings
from tests.unit.engine_plans import TOKEN, check, command, context, facts, plan, process

ENGINE = VLLMEngine()
SCRIPT = f"python3 {stages.CLUSTER} "
NEW = facts(vllm="0.33.0", python="3.12", ray="2.60.0", gpus=2)


def said(**values: object) -> Settings:
    return Settings(model="m", tp=4, backend="ray", origins={k: "--" + k.replace("_", "-") for k in values}).replace(
        **values
    )


def test_two_pods() -> None:
    leader, worker = (plan(ENGINE, said(), 2, rank, NEW) for rank in (0, 1))
    assert [s.name for s in leader.stages] == [s.name for s in worker.stages] == ["ray", "engine"]
    temp = stages.temp_dir(context(said(), 2))
    assert len(temp) == len("/tmp/ray-123456")
    assert command(leader, "ray") == (
        SCRIPT + "start --lean --count 10.0.0.1:6379 2 4 10.0.0.1,10.0.0.2 -- start --head --block"
        f" --node-ip-address 10.0.0.1 --port 6379 --include-dashboard=false --no-monitor --temp-dir {temp}"
    )
    assert command(worker, "ray") == (
        SCRIPT + "start --lean --after 10.0.0.1:6379 -- start --address 10.0.0.1:6379 --block"
        " --node-ip-address 10.0.0.2"
    )
    assert command(leader) == (
        "python3 -P -m vllm.entrypoints.cli.main serve m --tensor-parallel-size 4 --shutdown-timeout 23"
        " --disable-access-log-for-endpoints /health,/metrics"
        " --distributed-executor-backend ray"
    )
    assert worker.stages[1].processes == ()
    assert leader.ports == (Port(8000, "api", external=True), Port(6379, "ray-gcs"))
    assert worker.ports == ()


def test_each_gate_and_its_time() -> None:
    leader, worker = (plan(ENGINE, said(ray_timeout=90), 2, rank, NEW) for rank in (0, 1))
    assert process(leader, "ray").gate == Gate("line", "ray-ready:")
    assert process(worker, "ray").gate == Gate()
    assert process(leader).gate == Gate("http", "http://127.0.0.1:8000/health")
    assert [s.timeout for s in leader.stages] == [s.timeout for s in worker.stages] == [90, None]
    assert leader.stages[0].on_timeout == (
        "Ray did not count 2 nodes and 4 GPUs within 90 s (--ray-timeout): the leader's last lines say what is missing;"
        " see that the pods reach each other on all ports"
    )


def test_every_process_has_the_token_and_the_address_and_the_engines_environment() -> None:
    for rank in (0, 1):
        for stage in plan(ENGINE, said(), 2, rank, NEW).stages:
            for one in stage.processes:
                assert dict(one.env) == {
                    "RAY_ADDRESS": "10.0.0.1:6379",
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN": TOKEN,
                }
                assert "RAY_AUTH_TOKEN" in one.secret_env
                assert one.unset == ("VLLM_PORT",)
                assert "VLLM_ENGINE_READY_TIMEOUT_S" not in one.defaults
                if stage.name == "ray":
                    assert one.defaults["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "0"
                assert TOKEN not in " ".join(one.argv)


@pytest.mark.parametrize(
    ("version", "token"), [("2.43.0", False), ("2.51.2", False), ("2.52.0", True), ("2.60.0", True), (None, True)]
)
def test_which_ray_has_a_token(version: str | None, token: bool) -> None:
    assert stages.has_token(version) is token
    known = facts(vllm="0.33.0", ray=version) if version else NodeFacts()
    env = process(plan(ENGINE, said(), 2, 0, known), "ray").env
    assert ("RAY_AUTH_TOKEN" in env) is token


@pytest.mark.parametrize(
    ("version", "args", "lean"),
    [
        ("2.42.0", (), False),
        ("2.43.0", (), True),
        ("2.60.1", (), True),
        ("2.61.0", (), False),
        ("2.60.0", ("--include-dashboard=true",), False),
        ("2.60.0", ("--ray-client-server-port", "10001"), False),
        ("2.60.0", ("--num-cpus", "4"), True),
    ],
)
def test_only_a_ray_that_was_tried_is_made_lean(version: str, args: tuple[str, ...], lean: bool) -> None:
    known = facts(vllm="0.33.0", ray=version)
    leader, worker = (plan(ENGINE, said(ray_args=args), 2, rank, known) for rank in (0, 1))
    assert ("--lean" in command(leader, "ray")) is lean
    assert ("--lean" in command(worker, "ray")) is lean
    assert ("--no-monitor" in command(leader, "ray")) is lean
    (why,) = [w for w in check(ENGINE, said(ray_args=args), 2, known).why if w.startswith("Ray ")]
    assert ("no dashboard, client server or monitor" in why) is lean


def test_what_the_user_adds() -> None:
    settings = said(ray_args=("--num-cpus=4", "--temp-dir", "/big", "--dashboard-port", "9"), gpus_per_pod=2)
    leader, worker = (plan(ENGINE, settings, 2, rank, NEW) for rank in (0, 1))
    assert command(leader, "ray").endswith(" --port 6379 --num-gpus 2 --num-cpus=4 --temp-dir /big --dashboard-port 9")
    assert command(worker, "ray").endswith(" --node-ip-address 10.0.0.2 --num-gpus 2 --num-cpus=4")
    said_there = said(ray_args=("--num-gpus", "1"), gpus_per_pod=2)
    assert command(plan(ENGINE, said_there, 2, 0, NEW), "ray").count("--num-gpus") == 1


@pytest.mark.parametrize(
    ("args", "message", "fix"),
    [
        (
            ("--port=7000",),
            "'--ray-args --port=7000': Ray's port is the launcher's to set, and it is --ray-port (default 6379)",
            "give --ray-port 7000 to the launcher (before any --), and leave --port out",
        ),
        (
            ("--head",),
            "'--ray-args --head': which pod is the head is the launcher's to set (from the pod's rank and the leader's"
            " address)",
            "leave --head out of it",
        ),
        (
            ("4",),
            "'--ray-args 4': options are expected there, and this is none",
            "give options after --ray-args",
        ),
    ],
)
def test_what_the_user_may_not_say(args: tuple[str, ...], message: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(ENGINE, said(ray_args=args), 2, NEW)
    assert (caught.value.message, caught.value.fix) == (message, fix)


@pytest.mark.parametrize(
    ("settings", "known", "count"),
    [
        (said(), NEW, "2 4"),
        (said(), facts(vllm="0.33.0", ray="2.60.0"), "2 4"),
        (said(), facts(vllm="0.33.0", ray="2.60.0", gpus=0), "2 0"),
        (said(ray_args=("--num-gpus", "2")), facts(vllm="0.33.0", ray="2.60.0", gpus=0), "2 4"),
        (said(gpus_per_pod=0), NEW, "2 0"),
        (said(tp=2, dp=2), NEW, "2 4"),
    ],
)
def test_gpus_are_counted_where_they_are_asked_for(settings: Settings, known: NodeFacts, count: str) -> None:
    assert f" --count 10.0.0.1:6379 {count} " in command(plan(ENGINE, settings, 2, 0, known), "ray")


@pytest.mark.parametrize(
    ("settings", "flags", "strategy"),
    [
        (said(tp=2, dp=4), "--data-parallel-backend ray --data-parallel-size-local 2", None),
        (said(tp=4, dp=1), "--distributed-executor-backend ray", None),
    ],
)
def test_replicas_within_pods(settings: Settings, flags: str, strategy: str | None) -> None:
    served = process(plan(ENGINE, settings, 2, 0, NEW))
    assert " ".join(served.argv).endswith(flags)
    assert served.defaults.get("VLLM_RAY_DP_PACK_STRATEGY") == strategy


def test_replicas_that_span_pods() -> None:
    served = process(plan(ENGINE, said(tp=4, dp=2), 4, 0, NEW))
    assert " ".join(served.argv).endswith("--distributed-executor-backend ray --data-parallel-backend ray")
    assert served.defaults["VLLM_RAY_DP_PACK_STRATEGY"] == "span"


def test_the_folder_is_another_each_epoch_and_group_and_the_same_on_all_ranks() -> None:
    one, two = (stages.temp_dir(context(said(), 2, NEW, epoch)) for epoch in (1, 2))
    assert one != two
    assert one.startswith("/tmp/ray-")
    socket = one + "/session_2026-11-22_20-55-00_123456_1234567/sockets/plasma_store.12"
    assert len(socket.encode()) < 107


def test_addresses_of_the_sixth_kind() -> None:
    leader = ENGINE.plan(context(said(), 2, NEW, ip="fd00::{}"), 0)
    assert "--count [fd00::1]:6379 2 4 fd00::1,fd00::2 " in command(leader, "ray")
    assert process(leader).env["RAY_ADDRESS"] == "[fd00::1]:6379"
