"""SGLang's plans: the exact command of each rank for each release and size, and what is refused, in words."""

from __future__ import annotations

import pytest

from launcher.engines.base import Engine
from launcher.engines.sglang.engine import SGLangEngine
from launcher.errors import ConfigError, UsageError
from launcher.model import Gate, Health, NodeFacts, Port
from launcher.settings import Settings
from tests.unit.engine_plans import check, command, context, facts, plan, process

ENGINE = SGLangEngine()
SERVE = "python3 -m sglang.launch_server --model-path m "
NEW = facts(sglang="0.5.23")
DP_ATTENTION = ("--enable-dp-attention",)

QUIET = "--uvicorn-access-log-exclude-prefixes /health /metrics"


def said(**values: object) -> Settings:
    origins = {name: "--" + name.replace("_", "-") for name in values}
    return Settings(engine="sglang", model="m", origins=origins).replace(**values)


def test_it_is_an_engine() -> None:
    assert isinstance(ENGINE, Engine)
    assert ENGINE.distributions(Settings())[0] == "sglang"


@pytest.mark.parametrize(
    ("settings", "size", "known", "expected"),
    [
        pytest.param(
            said(tp=2, port=8080, served_model_name=("x",)),
            1,
            NEW,
            [SERVE + f"--tp-size 2 --served-model-name x --host 0.0.0.0 --port 8080 {QUIET} --enable-metrics"],
            id="one pod",
        ),
        pytest.param(
            said(tp=4, pp=2, ep=True, engine_args=("--mem-fraction-static", "0.8")),
            2,
            NEW,
            [
                SERVE + f"--tp-size 4 --pp-size 2 --ep-size 4 --dist-init-addr 10.0.0.1:20000 --nnodes 2"
                f" --node-rank {rank} --host 0.0.0.0 {QUIET} --enable-metrics --mem-fraction-static 0.8"
                for rank in (0, 1)
            ],
            id="two pods",
        ),
        pytest.param(
            said(tp=4, pp=1, ep=True, engine_args=("--host=::", "--enable-metrics")),
            2,
            facts(sglang="0.4.4.post1"),
            [
                SERVE + f"--tp-size 4 --enable-ep-moe --dist-init-addr 10.0.0.1:20000 --nnodes 2 --node-rank {rank}"
                " --host=:: --enable-metrics"
                for rank in (0, 1)
            ],
            id="0.4.4 has no --pp-size; expert parallelism was a switch; the user's own host",
        ),
        pytest.param(
            said(tp=8, dp=8, engine_args=DP_ATTENTION, master_port=5000),
            2,
            NEW,
            [
                SERVE + f"--tp-size 8 --dp-size 8 --dist-init-addr 10.0.0.1:5000 --nnodes 2 --node-rank {rank}"
                f" --host 0.0.0.0 {QUIET} --enable-metrics --enable-dp-attention"
                for rank in (0, 1)
            ],
            id="data parallel attention lies inside tensor parallelism",
        ),
    ],
)
def test_commands(settings: Settings, size: int, known: NodeFacts, expected: list[str]) -> None:
    check(ENGINE, settings, size, known)
    assert [command(plan(ENGINE, settings, size, rank, known)) for rank in range(size)] == expected


@pytest.mark.parametrize(
    ("version", "own", "quiet"),
    [
        ("0.5.7", (), False),
        ("0.5.8", (), True),
        ("0.5.8.post1", (), True),
        ("0.5.23", ("--uvicorn-access-log-exclude-prefixes", "/mine"), False),
        ("0.5.23", ("--config", "/my.yaml"), False),
        ("0.5.23", ("--log-level=info",), True),
    ],
)
def test_probes_are_left_out_of_the_access_log_where_that_can_be_said(
    version: str, own: tuple[str, ...], quiet: bool
) -> None:
    settings = said(engine_args=own)
    assert (QUIET in command(plan(ENGINE, settings, 1, 0, facts(sglang=version)))) is quiet


@pytest.mark.parametrize(
    ("settings", "size", "known", "message", "fix"),
    [
        pytest.param(
            said(tp=2, pp=2),
            2,
            facts(sglang="0.4.4.post1"),
            "--pp 2: SGLang 0.4.4.post1 has no pipeline parallelism, which came with 0.4.10.post2",
            "use --tp over all pods, or SGLang 0.4.10.post2 or later",
            id="no pipeline yet",
        ),
        pytest.param(
            said(tp=2, dp=2),
            2,
            NEW,
            "--dp 2 over 2 pods: SGLang's replicas do not span pods",
            "add '-- --enable-dp-attention' (data parallel attention inside --tp), or run one group a replica",
            id="replicas over pods",
        ),
        pytest.param(
            said(tp=4, dp=3, engine_args=DP_ATTENTION),
            2,
            NEW,
            "--tp 4 is no multiple of --dp 3: with DP attention the data parallel groups lie inside the tensor parallel"
            " group",
            "make --tp a multiple of --dp",
            id="attention groups that do not fit",
        ),
        pytest.param(
            said(tp=2, backend="ray"),
            2,
            NEW,
            "--backend ray: SGLang's ranks find each other without Ray",
            "leave --backend out",
            id="Ray",
        ),
        pytest.param(
            said(served_model_name=("a", "b")),
            1,
            NEW,
            "--served-model-name a,b: SGLang serves one name",
            "give --served-model-name once",
            id="two names",
        ),
        pytest.param(
            said(tp=2, dp=4),
            1,
            facts(sglang="0.5.23", gpus=4),
            "--tp 2 x --pp 1 x --dp 4 = 8 ranks over 1 pod are 8 a pod, and this pod has 4 GPUs",
            "use 2 pods or more (--size), give each 8 GPUs, or make --tp x --pp x --dp at most 4",
            id="replicas in one pod need GPUs",
        ),
        pytest.param(
            said(),
            1,
            facts(torch="2.9"),
            "python3 has no sglang",
            "name the Python that SGLang is installed in with --python, or install it there",
            id="not installed",
        ),
        pytest.param(
            Settings(engine="sglang"),
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
    "args", [("--tp", "4"), ("--tp-size=4",), ("--tensor-parallel-size", "4"), ("--tensor-par=4",), ("--nnodes", "2")]
)
def test_an_owned_option_is_refused(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="is the launcher's to set"):
        check(ENGINE, said(tp=2, engine_args=args), 1, NEW)


def test_the_rendezvous_moves_with_the_epoch_and_keeps_clear_of_the_other_ports() -> None:
    def address(settings: Settings, epoch: int) -> str:
        argv = process(ENGINE.plan(context(settings, 2, NEW, epoch), 1)).argv
        return argv[argv.index("--dist-init-addr") + 1]

    assert [address(said(tp=2), n) for n in (1, 2, 8, 9)] == [f"10.0.0.1:{p}" for p in (20000, 20032, 20224, 20000)]
    assert [address(said(tp=2, port=20038), n) for n in (1, 2)] == ["10.0.0.1:20000", "10.0.0.1:20064"]
    six = ENGINE.plan(context(said(tp=2), 2, NEW, ip="fd00::{}", bind="::"), 0)
    assert "--dist-init-addr [fd00::1]:20000" in command(six)


def test_ports_with_data_parallel_attention() -> None:
    leader, worker = (plan(ENGINE, said(tp=4, dp=2, engine_args=DP_ATTENTION), 2, rank, NEW) for rank in (0, 1))
    assert [p.number for p in leader.ports] == [30000, *range(20000, 20007), 20013]
    assert leader.ports[0] == Port(30000, "api", external=True)
    assert worker.ports == ()
    assert [p.number for p in plan(ENGINE, said(tp=2), 2, 0, NEW).ports] == [30000, 20000]


def test_only_rank_0_is_asked_for_its_health() -> None:
    leader, worker = (plan(ENGINE, said(tp=2), 2, rank, NEW) for rank in (0, 1))
    assert worker.health == Health() and process(worker).gate == Gate()
    assert leader.health.url == "http://127.0.0.1:30000/health"
    assert process(leader).gate == Gate("http", "http://127.0.0.1:30000/health")
    assert leader.health.timeout == 25.0  # its /health makes a token and gives itself 20 s
    assert leader.health.progress[0] == "sglang:realtime_tokens_total"


def test_an_unknown_version_is_taken_for_the_newest() -> None:
    (warning,) = check(ENGINE, said(tp=2), 2).warnings
    assert warning == "SGLang's version is not known here: 0.5.23 is assumed (say it with --engine-version)"
    (warning,) = check(ENGINE, said(tp=2), 2, facts(sglang="0.0.0.dev0+g1")).warnings
    assert warning == "SGLang calls itself 0.0.0.dev0+g1: taken for as new as 0.5.23"


def test_the_fingerprint() -> None:
    found = dict(ENGINE.fingerprint(said(tp=2), facts(sglang="0.5.23", torch="2.9.1", nvidia_nccl_cu12="2.27.5")))
    assert found["engine.version"] == "0.5.23"
    assert found["torch.version"] == "2.9.1"
    assert found["nccl.version"] == "2.27.5"
    assert "backend" not in found
