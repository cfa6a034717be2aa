"""vLLM's plans: the exact command of each rank for each backend, release and size, and what is refused, in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.engines.base import Engine
from launcher.engines.vllm.engine import VLLMEngine
from launcher.errors import ConfigError, LauncherError, UsageError
from launcher.model import Gate, Health, NodeFacts, Port
from launcher.network.environment import Surroundings, Variable
from launcher.planning import steps, variables
from launcher.settings import Settings
from tests.unit.engine_plans import check, command, context, facts, plan, process

ENGINE = VLLMEngine()
SERVE = "python3 -P -m vllm.entrypoints.cli.main serve m "
NEW = facts(vllm="0.33.0", python="3.11.9")
RAY = facts(vllm="0.33.0", python="3.12.1", ray="2.60.0")

QUIET = "--disable-access-log-for-endpoints /health,/metrics"


def said(**values: object) -> Settings:
    origins = {name: "--" + name.replace("_", "-") for name in values}
    return Settings(model="m", origins=origins).replace(**values)


def commands(settings: Settings, size: int, known: NodeFacts) -> list[str]:
    return [command(plan(ENGINE, settings, size, rank, known)) for rank in range(size)]


def test_it_is_an_engine() -> None:
    assert isinstance(ENGINE, Engine)
    assert ENGINE.interpreter(Settings()) == "python3"
    assert ENGINE.interpreter(Settings(python="/opt/venv/bin/python")) == "/opt/venv/bin/python"
    assert ENGINE.distributions(Settings())[:3] == ("vllm", "ray", "torch")


@pytest.mark.parametrize(
    ("settings", "size", "known", "expected"),
    [
        pytest.param(
            said(tp=2, pp=2, grace=60),
            1,
            RAY,
            [SERVE + "--tensor-parallel-size 2 --pipeline-parallel-size 2 --shutdown-timeout 53 " + QUIET],
            id="one pod: no Ray, no nodes",
        ),
        pytest.param(said(), 1, NEW, [SERVE + "--shutdown-timeout 23 " + QUIET], id="nothing said"),
        pytest.param(
            said(tp=4, ep=True, port=9000, served_model_name=("a", "b")),
            2,
            NEW,
            [
                SERVE + "--tensor-parallel-size 4 --enable-expert-parallel --served-model-name a b --port 9000"
                f" --shutdown-timeout 23 {QUIET} --distributed-executor-backend mp --nnodes 2 --node-rank 0"
                " --master-addr 10.0.0.1 --master-port 29501",
                SERVE + "--tensor-parallel-size 4 --enable-expert-parallel --served-model-name a b --port 9000"
                " --shutdown-timeout 23 --distributed-executor-backend mp --nnodes 2 --node-rank 1"
                " --master-addr 10.0.0.1 --master-port 29501 --headless",
            ],
            id="mp",
        ),
        pytest.param(
            said(tp=2, engine_args=("--shutdown-timeout", "5", "--max-model-len=8192")),
            2,
            facts(vllm="0.11.2", python="3.10.2"),
            [
                "python3 -m vllm.entrypoints.cli.main serve m --tensor-parallel-size 2"
                " --distributed-executor-backend mp --nnodes 2 --node-rank 0 --master-addr 10.0.0.1"
                " --master-port 29501 --shutdown-timeout 5 --max-model-len=8192",
                "python3 -m vllm.entrypoints.cli.main serve m --tensor-parallel-size 2"
                " --distributed-executor-backend mp --nnodes 2 --node-rank 1 --master-addr 10.0.0.1"
                " --master-port 29501 --headless --shutdown-timeout 5 --max-model-len=8192",
            ],
            id="0.11.2 has nodes and no shutdown timeout; Python 3.10 has no -P; arguments come last",
        ),
        pytest.param(
            said(tp=2, dp=4),
            2,
            facts(vllm="0.10.2", python="3.12"),
            [
                SERVE + "--tensor-parallel-size 2 --data-parallel-size 4 --distributed-executor-backend mp"
                " --data-parallel-size-local 2 --data-parallel-address 10.0.0.1 --data-parallel-rpc-port 29550",
                SERVE + "--tensor-parallel-size 2 --data-parallel-size 4 --distributed-executor-backend mp"
                " --data-parallel-size-local 2 --data-parallel-start-rank 2 --data-parallel-address 10.0.0.1"
                " --data-parallel-rpc-port 29550 --headless",
            ],
            id="whole replicas in each pod need no nodes; the start rank is on headless ranks only",
        ),
        pytest.param(
            said(tp=4, dp=2, engine_args=("--api-server-count", "3", "-dpp", "13345")),
            4,
            facts(vllm="0.17.0"),
            [
                "python3 -m vllm.entrypoints.cli.main serve m --tensor-parallel-size 4 --data-parallel-size 2"
                + (" " + QUIET if rank == 0 else "")
                + " --distributed-executor-backend mp"
                f" --nnodes 4 --node-rank {rank} --master-addr 10.0.0.1 --master-port 29501"
                + (" --headless -dpp 13345" if rank else " --api-server-count 3 -dpp 13345")
                for rank in range(4)
            ],
            id="a replica over two pods; API servers on rank 0 only; a port that the user said",
        ),
    ],
)
def test_commands(settings: Settings, size: int, known: NodeFacts, expected: list[str]) -> None:
    check(ENGINE, settings, size, known)
    assert commands(settings, size, known) == expected


@pytest.mark.parametrize(
    ("version", "own", "quiet"),
    [
        ("0.15.1", (), False),
        ("0.16.0", (), True),
        ("0.17.0rc1", (), True),
        ("0.33.0", ("--disable-access-log-for-endpoints=/mine",), False),
        ("0.33.0", ("--disable_access_log_for_endpoints", "/mine"), False),
        ("0.33.0", ("--disable-uvicorn-access-log",), False),
        ("0.33.0", ("--no-disable-uvicorn-access-log",), False),
        ("0.33.0", ("--log-config-file", "/my.json"), False),
        ("0.33.0", ("--config", "/my.yaml"), False),
        ("0.33.0", ("--max-model-len=8192",), True),
    ],
)
def test_probes_are_left_out_of_the_access_log_where_that_can_be_said(
    version: str, own: tuple[str, ...], quiet: bool
) -> None:
    known = facts(vllm=version, python="3.12.1")
    leader, worker = commands(said(tp=2, engine_args=own), 2, known)
    assert (QUIET in leader) is quiet
    assert QUIET not in worker, "a headless rank has no API"


@pytest.mark.parametrize(
    ("settings", "size", "known", "why"),
    [
        (said(tp=2), 2, NEW, "backend mp: auto, and this interpreter has no ray"),
        (said(tp=2), 2, RAY, "backend ray: auto, and this interpreter has ray 2.60.0"),
        (said(tp=2, backend="mp"), 2, RAY, "backend mp: --backend mp"),
        (said(tp=2), 2, facts(vllm="0.8.5", ray="2.43.0"), "backend ray: auto, and this interpreter has ray 2.43.0"),
        (
            said(tp=2),
            2,
            facts(vllm="0.32.0+cpu", ray="2.60.0"),
            "backend mp: auto, and vLLM on CPU does not take Ray (--backend ray asks for it all the same)",
        ),
        (said(tp=2, backend="ray"), 2, facts(vllm="0.32.0+cpu", ray="2.60.0"), "backend ray: --backend ray"),
        (said(tp=2), 1, RAY, "one pod: no Ray, no --nnodes"),
        (said(tp=2), 2, NodeFacts(), "backend mp: auto, ray is not known to be there"),
        (said(tp=2, engine_version="0.8.5"), 2, NodeFacts(), "backend ray: auto, and vLLM 0.8.5 has no --nnodes"),
        (said(dp=4), 2, NEW, "--dp 4 over 2 pods: 2 whole replicas in each, so no --nnodes is needed"),
        (said(tp=2, dp=2), 4, NEW, "--dp 2 over 4 pods: each replica spans 2 pods"),
    ],
)
def test_the_choice_of_a_backend_is_explained(settings: Settings, size: int, known: NodeFacts, why: str) -> None:
    assert why in check(ENGINE, settings, size, known).why


@pytest.mark.parametrize(
    ("settings", "known", "warning"),
    [
        (said(tp=2), NodeFacts(), "vLLM's version is not known here: 0.33.0 is assumed (say it with --engine-version)"),
        (said(tp=2), facts(vllm="0.1.dev1+g12ab"), "vLLM calls itself 0.1.dev1+g12ab: taken for as new as 0.33.0"),
        (said(tp=2), facts(vllm="dev"), "vLLM calls itself dev: taken for as new as 0.33.0"),
        (said(tp=2), facts(vllm="0.33.0", gpus=8), "each pod has 8 GPUs and uses 1: 7 stay idle"),
    ],
)
def test_warnings(settings: Settings, known: NodeFacts, warning: str) -> None:
    assert warning in check(ENGINE, settings, 2, known).warnings


def test_a_backend_for_one_pod_is_ignored_with_a_warning() -> None:
    warnings = check(ENGINE, said(backend="ray"), 1, RAY).warnings
    assert warnings == ("--backend ray is ignored: one pod needs no backend",)


@pytest.mark.parametrize(
    ("settings", "size", "known", "message", "fix"),
    [
        pytest.param(
            said(tp=2, backend="mp"),
            2,
            facts(vllm="0.11.0"),
            "--backend mp: vLLM 0.11.0 has no --nnodes, which came with 0.11.2",
            "use --backend ray, or vLLM 0.11.2 or later",
            id="mp on an old vLLM",
        ),
        pytest.param(
            said(tp=2),
            2,
            facts(vllm="0.10.2"),
            "vLLM 0.10.2 cannot run on 2 pods here: it has no --nnodes (that came with 0.11.2), and python3 has no ray",
            "install ray in the engine's interpreter, or use vLLM 0.11.2 or later",
            id="auto with neither",
        ),
        pytest.param(
            said(tp=2, backend="ray", python="/opt/py"),
            2,
            replace(NEW),
            "--backend ray: /opt/py has vLLM 0.33.0 and no ray (it is no dependency of vLLM any more)",
            "install ray in the engine's interpreter (pip install 'ray[default]'), or use --backend mp",
            id="Ray that is not there",
        ),
        pytest.param(
            said(tp=2),
            2,
            facts(torch="2.9"),
            "python3 has no vllm",
            "name the Python that vLLM is installed in with --python, or install it there",
            id="no vLLM",
        ),
        pytest.param(
            said(tp=4, dp=3),
            2,
            NEW,
            "--dp 3 over 2 pods: a pod must hold whole replicas, or a replica whole pods",
            "make --dp a multiple or a divisor of 2",
            id="replicas that fit nothing",
        ),
        pytest.param(
            said(tp=4, dp=3, backend="ray"),
            2,
            RAY,
            "--dp 3 over 2 pods: a pod must hold whole replicas, or a replica whole pods",
            "make --dp a multiple or a divisor of 2",
            id="the same with Ray",
        ),
        pytest.param(
            said(tp=2, dp=2),
            2,
            facts(vllm="0.8.5", ray="2.43.0"),
            "--dp 2 over 2 pods with Ray: vLLM 0.8.5 has no --data-parallel-backend",
            "leave --dp out, or use vLLM 0.10.2 or later",
            id="data parallel with Ray on an old vLLM",
        ),
        pytest.param(
            said(tp=3),
            2,
            NEW,
            "--tp 3 x --pp 1 = 3 ranks cannot be spread evenly over 2 pods",
            "make --tp x --pp x --dp a multiple of 2, or change the number of pods",
            id="topology",
        ),
        pytest.param(
            said(tp=2, engine_args=("-pcp", "4")),
            2,
            facts(vllm="0.33.0", gpus=2),
            "--tp 2 x --pp 1 x --prefill-context-parallel-size 4 = 8 ranks over 2 pods are 4 a pod, and this pod has 2"
            " GPUs",
            "use 4 pods or more (--size), give each 4 GPUs, or make --tp x --pp x --dp at most 4",
            id="prefill context parallel counts",
        ),
        pytest.param(
            said(tp=2, handoff=True),
            2,
            RAY,
            "--handoff with the Ray backend: the leader needs more than one process (Ray's head and vLLM)",
            "leave --handoff out, or use --backend mp",
            id="handoff",
        ),
        pytest.param(
            Settings(),
            1,
            NEW,
            "--model is not given",
            "say which model to serve: --model NAME or a path",
            id="no model",
        ),
    ],
)
def test_what_cannot_work(settings: Settings, size: int, known: NodeFacts, message: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(ENGINE, settings, size, known)
    assert (caught.value.message, caught.value.fix) == (message, fix)


@pytest.mark.parametrize(
    "args", [("-tp", "4"), ("-tp=4",), ("--tensor-parallel-size=4",), ("--tensor_parallel_size", "4")]
)
def test_an_owned_option_is_refused_with_both_values(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        check(ENGINE, said(tp=2, engine_args=args), 1, NEW)
    assert (
        caught.value.message
        == f"'-- {' '.join(args)}': the tensor parallel size is the launcher's to set, and it is --tp 2"
    )
    assert caught.value.fix == f"give --tp 4 to the launcher (before any --), and leave {args[0].partition('=')[0]} out"


READY = "VLLM_ENGINE_READY_TIMEOUT_S"
SERVERS = "--api-server-count"


@pytest.mark.parametrize(
    ("settings", "size", "environ", "sets"),
    [
        (said(), 1, {}, False),
        (said(tp=2), 2, {}, False),
        (said(tp=2, backend="ray"), 2, {}, False),
        (said(startup_timeout=900.0), 1, {}, False),
        (said(engine_args=(SERVERS, "1")), 1, {}, False),
        (said(engine_args=(SERVERS, "4")), 1, {}, True),
        (said(engine_args=("-asc=4",)), 1, {}, True),
        (said(tp=2, engine_args=("--api_server_count=2",)), 2, {}, True),
        (said(dp=2), 1, {}, True),
        (said(dp=2), 2, {}, True),
        (said(dp=2, engine_args=(SERVERS, "1"), backend="mp"), 2, {}, False),
        (said(dp=2, engine_args=(SERVERS, "1"), backend="ray"), 2, {}, True),
        (said(), 1, {"VLLM_USE_RUST_FRONTEND": "1"}, True),
        (said(), 1, {"VLLM_USE_RUST_FRONTEND": "0"}, False),
    ],
)
def test_the_ready_timeout_is_set_where_api_servers_are_processes_of_their_own(
    settings: Settings, size: int, environ: dict[str, str], sets: bool
) -> None:
    """vLLM hashes it into its compile cache: nowhere else, on all ranks alike, in all epochs alike."""
    known = facts(vllm="0.33.0", ray="2.60.0")
    for startup_timeout in (None, 900.0, 200_000.0):
        for epoch in (1, 7):
            for rank in range(size):
                asked = settings.replace(startup_timeout=startup_timeout)
                planned = ENGINE.plan(context(asked, size, known, epoch, environ=environ), rank)
                for one in (p for stage in planned.stages for p in stage.processes):
                    assert one.defaults.get(READY) == ("86400" if sets else None)


def test_an_old_vllm_gets_no_new_environment() -> None:
    old, new = (process(plan(ENGINE, said(dp=2), 1, 0, facts(vllm=v))) for v in ("0.11.2", "0.14.1"))
    assert dict(old.defaults) == {}
    assert dict(new.defaults) == {READY: "86400"}
    assert old.unset == new.unset == ("VLLM_PORT",)


@pytest.mark.parametrize(
    ("version", "args", "withheld"),
    [
        ("0.15.0", (), True),
        ("0.16.0", (), True),
        ("0.16.0", ("--kv-transfer-config", '{"kv_connector": "NixlConnector"}'), False),
        ("0.16.0", ("--kv-transfer-config.kv_connector", "NixlConnector"), False),
        ("0.16.0", ("--config", "some.yaml"), False),
        ("0.32.0", (), False),
        ("0.33.0", (), False),
    ],
)
def test_a_variable_with_the_pods_address_is_withheld_where_vllm_hashes_it(
    version: str, args: tuple[str, ...], withheld: bool
) -> None:
    """Else each new pod, which has another address, would compile again."""
    name = "VLLM_NIXL_SIDE_CHANNEL_HOST"
    network = {name: "10.0.0.1", "VLLM_HOST_IP": "10.0.0.1"}
    known = facts(vllm=version, ray="2.60.0")
    for backend in ("mp", "ray"):
        planned = plan(ENGINE, said(tp=2, backend=backend, engine_args=args), 2, 1, known)
        made = steps.with_environment(planned, network)
        for one in (p for stage in made.stages for p in stage.processes):
            assert (name not in one.environment({})) == withheld
            assert one.environment({})["VLLM_HOST_IP"] == "10.0.0.1"
            assert one.environment({name: "10.9.9.9"})[name] == "10.9.9.9", "the user's value stays"
        shown = {v.name for v in variables.of_rank(ENGINE, planned, (_own_address(name),), Surroundings({}))}
        assert (name not in shown) == withheld


def _own_address(name: str) -> Variable:
    return Variable(name, "10.0.0.1", "launcher", "this pod's address")


def test_the_number_of_api_servers_in_a_config_file_is_refused(tmp_path: Path) -> None:
    """The plan depends on it, and a headless rank would refuse to start with it."""
    for key in ("api-server-count", "api_server_count"):
        file = tmp_path / "engine.yaml"
        file.write_text(f"max-model-len: 512\n{key}: 4\n")
        with pytest.raises(ConfigError) as caught:
            check(ENGINE, said(engine_args=("--config", str(file))), 1, NEW)
        assert str(caught.value.message).endswith(
            f"says {key}: 4, and the launcher must know it to plan the engine's processes"
        )
        assert "give '--api-server-count 4' after the --" in caught.value.fix


def test_the_master_port_moves_with_the_epoch_and_a_said_one_stays() -> None:
    def port(settings: Settings, epoch: int) -> str:
        argv = process(ENGINE.plan(context(settings, 2, NEW, epoch), 1)).argv
        return argv[argv.index("--master-port") + 1]

    assert [port(said(tp=2), n) for n in (1, 2, 16, 17)] == ["29501", "29502", "29516", "29501"]
    assert [port(said(tp=2, port=29502), n) for n in (1, 2)] == ["29501", "29503"]
    assert [port(said(tp=2, master_port=4000), n) for n in (1, 2)] == ["4000", "4000"]


def test_addresses_of_the_sixth_kind_and_a_bind_of_its_own() -> None:
    six = command(ENGINE.plan(context(said(tp=2), 2, NEW, ip="fd00::{}", bind="::"), 0))
    assert " --host :: " in six and " --master-addr fd00::1 " in six
    local = ENGINE.plan(context(said(tp=2), 2, NEW, ip="127.0.0.{}", bind="127.0.0.1"), 0)
    assert " --host 127.0.0.1 " in command(local)
    assert local.health.url == "http://127.0.0.1:8000/health"
    own = ENGINE.plan(context(said(engine_args=("--host", "10.1.1.1")), 1, NEW, bind="127.0.0.1"), 0)
    assert command(own).count("--host") == 1
    assert own.health.url == "http://10.1.1.1:8000/health"


def test_only_rank_0_is_asked_for_its_health() -> None:
    leader, worker = (plan(ENGINE, said(tp=2, served_model_name=("x",)), 2, r, NEW) for r in (0, 1))
    assert worker.health == Health()
    assert leader.health.url == "http://127.0.0.1:8000/health"
    assert leader.health.metrics_url == "http://127.0.0.1:8000/metrics"
    assert leader.health.canary_url == "http://127.0.0.1:8000/v1/completions"
    assert leader.health.canary_body == '{"model": "x", "prompt": "1", "max_tokens": 1, "temperature": 0}'
    assert leader.health.running == ("vllm:num_requests_running",)
    assert leader.ports == (Port(8000, "api", external=True), Port(29501, "master"))
    assert worker.ports == ()
    assert process(leader).gate == Gate("http", "http://127.0.0.1:8000/health")
    assert process(worker).gate == Gate()


def test_a_config_file_of_the_engine_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    args = ("--config", str(path))

    def outcome(text: str, **values: object) -> str:
        path.write_text(text)
        try:
            check(ENGINE, said(engine_args=args, **values), 1, NEW)
        except LauncherError as error:
            return f"{error.message} | {error.fix}"
        return ""

    assert outcome("tensor-parallel-size: 4\nmax-model-len: 100\n", tp=4) == ""
    assert outcome("tensor_parallel_size: 4  # four\n") == (
        f"{path} says tensor_parallel_size: 4, the launcher says --tp (default None): the tensor parallel size is the"
        " launcher's to set | give --tp 4 before the --, and take tensor_parallel_size out of the file"
    )
    assert "take nnodes out of the file" in outcome("nnodes: 2\n")
    assert "give '--host 1.2.3.4' after the --" in outcome("host: '1.2.3.4'\n")
    assert outcome("compilation-config:\n  tensor-parallel-size: 4\n") == ""
    path.unlink()
    with pytest.raises(ConfigError, match=r"cannot be read: .*No such file"):
        check(ENGINE, said(engine_args=args), 1, NEW)
    (warning,) = check(ENGINE, said(engine_args=args, engine_version="0.33.0"), 1, NodeFacts()).warnings
    assert warning.endswith("not compared here")


def test_the_fingerprint_names_the_backend_only_where_it_has_one() -> None:
    print_ = dict(ENGINE.fingerprint(said(tp=2), RAY))
    assert (print_["backend"], print_["ray.version"], print_["python.version"]) == ("ray", "2.60.0", "3.12")
    print_ = dict(ENGINE.fingerprint(said(tp=2, backend="mp"), RAY))
    assert print_["backend"] == "mp" and "ray.version" not in print_
