"""Plans from engine files: the two examples of the documentation, placeholders, stages, health, ports, secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from launcher.engines.base import Engine, PlanContext
from launcher.engines.file import placeholders, schema
from launcher.engines.file.engine import DeclarativeEngine, load_engine_file
from launcher.engines.registry import load
from launcher.errors import ConfigError, UsageError
from launcher.model import Epoch, Gate, Identity, NodeFacts, Plan, Port, Shared, Weights
from launcher.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
GUIDE = ROOT / "docs" / "engine-file.md"

SMALL = """
name = "small"
[leader]
command = ["engine", "serve"]
[worker]
command = ["engine", "join", "{leader}"]
"""


def declared(text: str, environ: dict[str, str] | None = None) -> DeclarativeEngine:
    return DeclarativeEngine(schema.parse(text.encode(), "my.toml"), environ or {})


def identity(size: int, rank: int = 0) -> Identity:
    return Identity("ns/a", rank, size, f"a-{rank}", "a-0", "explicit")


def plans(
    engine: Engine,
    size: int = 3,
    ip: str = "10.0.0.",
    bind: str = "0.0.0.0",
    epoch: int = 1,
    gpus: int | None = None,
    **said: Any,
) -> list[Plan]:
    shared = Shared(Epoch(epoch, "abcdef"), tuple(f"{ip}{n + 1}" for n in range(size)))
    settings = Settings().replace(**said)
    context = PlanContext(settings, identity(size), NodeFacts(gpus=gpus), shared, bind)
    return [engine.plan(context, rank) for rank in range(size)]


def argv(plan: Plan, stage: int = 0) -> tuple[str, ...]:
    (process,) = plan.stages[stage].processes
    return process.argv


def command(*elements: str, on: str = "all") -> str:
    """A file with one command."""
    shown = ", ".join(e if e.startswith("[") else f'"{e}"' for e in elements)
    if on == "all":
        return f'name = "x"\n[all]\ncommand = [{shown}]\n'
    return f'name = "x"\n[[stages]]\nname = "s"\non = "{on}"\ncommand = [{shown}]\n'


# ------------------------------------------------------------------------------------------------- examples


def test_llama_cpp() -> None:
    engine = load_engine_file(str(EXAMPLES / "llama-cpp-rpc.toml"), {})
    said: dict[str, Any] = {"model": "/m.gguf", "engine_args": ("-ngl", "99")}
    leader, *workers = plans(engine, 3, **said)
    assert [[s.name for s in p.stages] for p in (leader, *workers)] == [["rpc", "server"]] * 3
    assert leader.stages[0].processes == () and all(w.stages[1].processes == () for w in workers)
    for rank, worker in enumerate(workers, 1):
        assert argv(worker) == ("ggml-rpc-server", "-H", f"10.0.0.{rank + 1}", "-p", "50052")
        assert worker.stages[0].processes[0].gate == Gate("tcp", f"10.0.0.{rank + 1}:50052")
        assert worker.ports == (Port(50052, "rpc"),)
    assert argv(leader, 1) == (
        *("llama-server", "-m", "/m.gguf", "--alias", "/m.gguf", "--rpc", "10.0.0.2:50052,10.0.0.3:50052"),
        *("--host", "0.0.0.0", "--port", "8080", "--metrics", "-ngl", "99"),
    )
    assert leader.stages[1].processes[0].gate == Gate("http", "http://127.0.0.1:8080/health")
    assert leader.health.metrics_url == "http://127.0.0.1:8080/metrics"
    assert leader.health.progress == ("llamacpp:tokens_predicted_total", "llamacpp:prompt_tokens_total")
    assert leader.ports == (Port(8080, "api", external=True),)
    assert leader.stages[0].timeout == 120
    (alone,) = plans(engine, 1, **said, port=9000, served_model_name=("a", "b"))
    assert "--rpc" not in argv(alone, 1) and argv(alone, 1)[3:5] == ("--alias", "a")
    assert alone.ports == (Port(9000, "api", external=True),)
    engine.check(Settings(model="/m.gguf"), identity(3), NodeFacts())
    with pytest.raises(UsageError, match="--rpc"):
        engine.check(Settings(model="/m.gguf", engine_args=("--rpc", "evil:1")), identity(3), NodeFacts())
    with pytest.raises(ConfigError, match=r"stages\[1\]\.command\[2\]: \{model\} has no value: --model was not given"):
        engine.check(Settings(), identity(3), NodeFacts())


#: Options of the programs in the examples, where no registry has the program: read from llama.cpp's common/arg.cpp and
#: tools/rpc/rpc-server.cpp (revision 075f1e0).
OPTIONS = {
    "llama-server": {"-m", "--model", "--alias", "--rpc", "--host", "--port", "--metrics", "-ngl"},
    "ggml-rpc-server": {"-H", "--host", "-p", "--port", "-t", "--threads", "-d", "--device", "-m", "--mem", "-c"},
}


def test_the_examples_know_their_programs_options() -> None:
    readme = (ROOT / "README.md").read_text()
    block = readme[readme.index("    # llama.toml") : readme.index("## What happens when")]
    of_readme = declared("\n".join(line[4:] for line in block.splitlines()), {})
    for engine in (of_readme, load_engine_file(str(EXAMPLES / "llama-cpp-rpc.toml"), {})):
        leader, worker = plans(engine, 2, model="/m.gguf")
        for words in (argv(leader, 1), argv(worker)):
            used = {w for w in words[1:] if w.startswith("-")}
            assert used <= OPTIONS[words[0]], used
        assert "127.0.0.1" not in argv(leader, 1) and "10.0.0.2" in argv(worker)
        assert worker.stages[0].processes[0].gate.kind == "tcp"
        assert leader.health.url == "http://127.0.0.1:8080/health"
        assert {p.name for p in (*leader.ports, *worker.ports)} == {"api", "rpc"}


def test_torchrun() -> None:
    engine = load_engine_file(str(EXAMPLES / "torchrun.toml"), {})
    assert engine.distributions(Settings()) == ("torch",)
    made = plans(engine, 2, gpus=4, engine_args=("train.py", "--lr", "0.1"), python="/opt/python")
    for rank, plan in enumerate(made):
        assert argv(plan) == (
            *("/opt/python", "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank)),
            *("--nproc-per-node", "4", "--rdzv-backend", "static", "--rdzv-endpoint", "10.0.0.1:29500"),
            *("--max-restarts", "0", "train.py", "--lr", "0.1"),
        )
        (process,) = plan.stages[0].processes
        assert plan.completes
        assert process.completes and process.gate == Gate("exited") and process.env == {"PYTHONUNBUFFERED": "1"}
        assert plan.stop_grace == 10
    assert [p.ports for p in made] == [(Port(29500, "master"),), ()]
    assert plans(engine, 2, gpus=4, epoch=2)[0].ports == (Port(29501, "master"),)
    with pytest.raises(ConfigError, match="give --gpus-per-pod"):
        plans(engine, 2)
    assert "--nproc-per-node" in argv(plans(engine, 2, gpus_per_pod=8)[0])


def test_the_guide_tells_of_every_key_and_placeholder_and_its_files_work() -> None:
    guide = GUIDE.read_text()
    keys = {*schema.TOP, *schema.COMMAND, *schema.STAGE, *schema.GATE, *schema.PORT}
    keys |= {*schema.HEALTH}
    assert {key for key in keys if not re.search(rf"`\[*{key}\]*`", guide)} == set()
    assert {name for name in placeholders.PLACEHOLDERS if f"`{{{name}" not in guide} == set()
    assert {kind for kind in schema.GATES if f"`{kind}`" not in guide} == set()
    files = [text for text in re.findall(r"```toml\n(.*?)```", guide, re.DOTALL) if text.startswith("name")]
    assert len(files) == 2
    for text in files:
        plans(declared(text, {"HF_TOKEN": "x"}), 2, model="m", gpus=1)
    for example in EXAMPLES.glob("*.toml"):
        assert example.name in guide


# --------------------------------------------------------------------------------------------- placeholders


@pytest.mark.parametrize(
    ("text", "leader", "worker"),
    [
        ("{model}", "m", "m"),
        ("{served_model_name}", "m", "m"),
        ("{tp}/{pp}/{dp}/{world}", "4/2/1/8", "4/2/1/8"),
        ("{rank} of {size}", "0 of 3", "1 of 3"),
        ("{gpus}", "2", "2"),
        ("{leader}", "10.0.0.1", "10.0.0.1"),
        ("{address}", "10.0.0.1", "10.0.0.2"),
        ("{addresses}", "10.0.0.1,10.0.0.2,10.0.0.3", "10.0.0.1,10.0.0.2,10.0.0.3"),
        ("{workers}", "10.0.0.2,10.0.0.3", "10.0.0.2,10.0.0.3"),
        ("tcp://{leader:4000}", "tcp://10.0.0.1:4000", "tcp://10.0.0.1:4000"),
        ("{workers:4000}", "10.0.0.2:4000,10.0.0.3:4000", "10.0.0.2:4000,10.0.0.3:4000"),
        ("{bind:port}", "0.0.0.0:8000", "0.0.0.0:8000"),
        ("{port}", "8000", "8000"),
        ("{leader:master_port} {master_port}", "10.0.0.1:29500 29500", "10.0.0.1:29500 29500"),
        ("{python}", "python3", "python3"),
        ("{epoch}", "1", "1"),
        ("{env:HOME}", "/root", "/root"),
        ("{{not}} {{{tp}}}", "{not} {4}", "{not} {4}"),
        ("", "", ""),
    ],
)
def test_placeholders(text: str, leader: str, worker: str) -> None:
    engine = declared(command("e", text), {"HOME": "/root"})
    made = plans(engine, 3, model="m", tp=4, pp=2, gpus=2)
    assert [argv(made[0])[1], argv(made[1])[1]] == [leader, worker]


def test_ipv6_is_bracketed_beside_a_port_only() -> None:
    made = plans(declared(command("e", "{leader}", "{leader:5}", "{workers:5}", "{bind:5}")), 2, ip="fd00::", bind="::")
    assert argv(made[0])[1:] == ("fd00::1", "[fd00::1]:5", "[fd00::2]:5", "[::]:5")


def test_named_ports() -> None:
    text = '[ports]\nrpc = 7000\napi = 9000\nside = { number = 7001, external = true, on = "worker" }\n'
    engine = declared(command("e", "{port:rpc}", "{address:rpc}", "{port}", "{port:api}") + text)
    leader, worker = plans(engine, 2)
    assert argv(worker)[1:] == ("7000", "10.0.0.2:7000", "9000", "9000")
    assert leader.ports == (Port(7000, "rpc"), Port(9000, "api", external=True))
    assert worker.ports == (Port(7000, "rpc"), Port(7001, "side", external=True))
    assert argv(plans(engine, 2, port=9999)[0])[3:] == ("9999", "9999")
    with pytest.raises(ConfigError, match=r"ports\.rpc is 7000, and so is --agent-port"):
        engine.check(Settings(agent_port=7000), identity(2), NodeFacts())


def test_the_master_port_keeps_away_from_the_ports_of_the_file() -> None:
    made = plans(declared(command("e", "{master_port}") + "[ports]\nrpc = 29500\n"), 2)
    assert argv(made[0])[1] == "29501"


def test_a_list_of_its_own_is_left_out_where_it_has_no_value() -> None:
    engine = declared(command("e", '["--peers", "{workers:1}"]', '["--model={model}", "--x"]', '["-v"]'))
    assert argv(plans(engine, 1)[0]) == ("e", "-v")
    assert argv(plans(engine, 2, model="m")[0]) == ("e", "--peers", "10.0.0.2:1", "--model=m", "--x", "-v")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{workers}", "a group of 1 has no workers"),
        ("{model}", "--model was not given"),
        ("{served_model_name}", "--model was not given"),
        ("{gpus}", "the GPUs of this pod are not known"),
        ("{env:NOWHERE}", "the variable NOWHERE is not set in this pod"),
    ],
)
def test_a_placeholder_without_a_value_is_an_error_with_a_way_out(text: str, said: str) -> None:
    engine = declared(command("e", f"--x={text}"))
    with pytest.raises(ConfigError) as error:
        engine.check(Settings(), identity(1), NodeFacts())
    assert f"my.toml: all.command[1]: {text} has no value: {said}" in error.value.message
    assert "list of their own" in error.value.fix


def test_arguments_stand_where_the_file_says_or_at_the_end() -> None:
    args: dict[str, Any] = {"engine_args": ("-a", "1")}
    assert [argv(p)[-2:] for p in plans(declared(SMALL), 2, **args)] == [("-a", "1")] * 2
    placed = SMALL.replace('"serve"', '"serve", "{args}", "last"')
    made = plans(declared(placed), 2, **args)
    assert [argv(p) for p in made] == [("engine", "serve", "-a", "1", "last"), ("engine", "join", "10.0.0.1")]
    staged = '[[stages]]\nname = "a"\ncommand = ["a"]\n[[stages]]\nname = "b"\ncommand = ["b"]\n'
    (plan,) = plans(declared('name = "x"\n' + staged), 1, **args)
    assert [argv(plan, 0), argv(plan, 1)] == [("a",), ("b", "-a", "1")]


# ------------------------------------------------------------------------------------- stages, gates, health


def test_two_commands_of_one_stage_and_every_gate() -> None:
    text = """
name = "x"
completes = true
[[stages]]
name = "prepare"
command = ["prepare"]
gate = { kind = "exited" }
[[stages]]
name = "store"
on = "leader"
command = ["store"]
gate = { kind = "line", target = "listening on {address}" }
timeout = 5
[[stages]]
name = "store"
on = "worker"
command = ["wait-for", "{leader}"]
gate = { kind = "started", settle = 2 }
timeout = 7
[[stages]]
name = "run"
command = ["run"]
gate = { kind = "http", target = "http://{address:8000}/ready" }
"""
    leader, worker = plans(declared(text), 2)
    assert [s.name for s in leader.stages] == [s.name for s in worker.stages] == ["prepare", "store", "run"]
    gates = [[s.processes[0].gate for s in p.stages] for p in (leader, worker)]
    assert gates[0] == [
        Gate("exited"), Gate("line", "listening on 10.0.0.1"), Gate("http", "http://10.0.0.1:8000/ready")
    ]  # fmt: skip
    assert gates[1][1] == Gate("started", settle=2.0)
    assert [s.processes[0].completes for s in leader.stages] == [True, False, True]
    assert not leader.completes  # the last command has a gate of its own: it serves
    assert [s.timeout for s in leader.stages] == [None, 7, None]
    assert "stage store 7 s" in leader.stages[1].on_timeout


def test_health_by_path_and_port_by_url_and_none() -> None:
    assert plans(declared(SMALL), 2)[0].health.url is None
    assert plans(declared(SMALL), 2)[0].ports == ()
    health = '[health]\npath = "/up"\nmetrics = "/metrics"\nrunning = "r"\nwaiting = ["w1", "w2"]\n'
    leader, worker = plans(declared(SMALL + health), 2, bind="127.0.0.2")
    assert (leader.health.url, leader.health.metrics_url) == (
        *("http://127.0.0.2:8000/up", "http://127.0.0.2:8000/metrics"),
    )
    assert (leader.health.running, leader.health.waiting, leader.health.progress) == (("r",), ("w1", "w2"), ())
    assert leader.stages[0].processes[0].gate == Gate("http", "http://127.0.0.2:8000/up")
    assert leader.ports == (Port(8000, "api", external=True),)
    assert worker.health.url is None and worker.stages[0].processes[0].gate == Gate()
    assert plans(declared(SMALL + "[health]\nport = 9\n"), 2, bind="::")[0].health.url == "http://[::1]:9/health"
    named = '[health]\nport = "side"\n[ports]\nside = 10\n'
    assert plans(declared(SMALL + named), 2)[0].health.url == "http://127.0.0.1:10/health"
    url = '[health]\nurl = "https://{leader:8443}/v2/ready"\nmetrics = "http://{leader:9}/m"\ninsecure = true\n'
    made = plans(declared(SMALL + url), 2)[0].health
    assert (made.url, made.metrics_url, made.insecure) == (
        *("https://10.0.0.1:8443/v2/ready", "http://10.0.0.1:9/m", True),
    )


def test_the_canary() -> None:
    text = (
        '[health]\ncanary = "/v1/completions"\ncanary_body = { model = "{served_model_name}", n = [{ a = "{b}" }] }\n'
    )
    health = plans(declared(SMALL + text), 2, served_model_name=("nice",))[0].health
    assert health.canary_url == "http://127.0.0.1:8000/v1/completions"
    assert health.canary_body == '{"model": "nice", "n": [{"a": "{b}"}]}'
    assert plans(declared(SMALL + text), 2)[0].health.canary_body == '{"n": [{"a": "{b}"}]}'


def test_environment_and_secrets() -> None:
    text = """
name = "x"
unset = ["VLLM_PORT"]
[env]
A = "all"
B = "all {rank}"
HF_TOKEN = "{env:HF_TOKEN}"
[leader]
command = ["e", "--key", "{env:API_KEY}"]
[leader.env]
B = 7
PLAIN = "{env:API_KEY}"
[worker]
command = ["e"]
"""
    engine = declared(text, {"HF_TOKEN": "hush", "API_KEY": "shh"})
    leader, worker = (p.stages[0].processes[0] for p in plans(engine, 2))
    assert leader.env == {"A": "all", "B": "7", "HF_TOKEN": "hush", "PLAIN": "shh"}
    assert worker.env == {"A": "all", "B": "all 1", "HF_TOKEN": "hush"}
    assert (leader.secret_env, worker.secret_env) == (frozenset({"HF_TOKEN", "PLAIN"}), frozenset({"HF_TOKEN"}))
    assert leader.unset == ("VLLM_PORT",)
    checked = engine.check(Settings(), identity(2), NodeFacts())
    assert len(checked.warnings) == 1 and "leader.command[2] puts API_KEY on a command line" in checked.warnings[0]
    assert "hush" not in repr(engine.fingerprint(Settings(), NodeFacts()))
    # A variable that only the leader's pod has is no error of a worker's.
    declared(text, {"HF_TOKEN": "x"}).check(Settings(), identity(2, rank=1), NodeFacts())


def test_topology_is_checked_where_the_file_asks() -> None:
    settings = Settings(tp=3)
    declared(SMALL).check(settings, identity(2), NodeFacts(gpus=4))
    with pytest.raises(ConfigError, match="3 ranks cannot be spread evenly over 2 pods"):
        declared("topology = true\n" + SMALL).check(settings, identity(2), NodeFacts(gpus=4))


def test_fingerprint_tells_the_file_the_versions_and_the_arguments() -> None:
    text = 'versions = ["engine", "torch", "extra"]\n' + SMALL
    engine = declared(text)
    facts = NodeFacts(versions={"engine": "1.0", "torch": "2.0", "extra": "3"}, versions_known=True)
    found = engine.fingerprint(Settings(engine_args=("--x", "1"), tp=2), facts)
    assert (found["engine"], found["engine.version"], found["torch.version"], found["extra.version"]) == (
        *("small", "1.0", "2.0", "3"),
    )
    assert found["engine.args.x"] == "1" and found["tp"] == "2"
    assert found["engine.file"] != declared(text + "# changed\n").fingerprint(Settings(), facts)["engine.file"]


def test_it_is_an_engine_that_the_registry_loads(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('summary = "what it is"\npython = "/p"\n' + SMALL)
    engine = load(Settings(engine_file=str(path)))
    assert isinstance(engine, Engine) and (engine.name, engine.summary) == ("small", "what it is")
    assert engine.interpreter(Settings()) == "/p" and engine.interpreter(Settings(python="/q")) == "/q"
    assert "stages" not in engine.check(Settings(), identity(2), NodeFacts()).warnings


def test_a_pattern_takes_placeholders_as_they_are() -> None:
    """An address has no meaning of its own in it, and a brace is doubled."""
    text = r"""
name = "x"
[all]
command = ["e"]
gate = { kind = "pattern", target = '^\d{{4}}-.*up at {address:8000}$' }
"""
    leader, _ = plans(declared(text), 2)
    assert leader.stages[0].processes[0].gate == Gate("pattern", r"^\d{4}-.*up at 10\.0\.0\.1:8000$")


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("kind = 'pattern', target = '(a+)+$'", "too slow"),
        ("kind = 'pattern', target = '[unclosed'", "no regular expression"),
        ("kind = 'pattern', target = '.*.*.*x'", "more than two repeats"),
        ("kind = 'line', target = ' '", "every line contains that"),
    ],
)
def test_a_gate_that_cannot_work_is_refused(gate: str, words: str) -> None:
    engine = declared(f'name = "x"\n[all]\ncommand = ["e"]\ngate = {{ {gate} }}\n')
    with pytest.raises(ConfigError) as refused:
        plans(engine, 2)
    assert "all.gate.target is" in str(refused.value) and words in str(refused.value)


def test_progress_is_read_from_lines() -> None:
    text = (
        SMALL
        + """
[progress]
weights = ["shard (?P<done>[0-9]+)/(?P<total>[0-9]+)", "loaded in (?P<took>[0-9.]+) s"]
graphs = "graphs: (?P<percent>[0-9]+)%"
over = "warm"
"""
    )
    plan = plans(declared(text), 2, model="/m")[1]
    assert [(line.step, line.pattern[:6]) for line in plan.step_lines] == [
        ("weights", "shard "),
        ("weights", "loaded"),
        ("graphs", "graphs"),
        ("rest", "warm"),
    ]
    assert plan.weights == Weights("/m")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('weight = "x"', "did you mean weights"),
        ("weights = 3", "not a list of texts"),
        ('weights = "("', "no regular expression"),
        ('weights = "(a+)+b"', "too slow"),
        ('compile = ["ok", ".*.*.*x"]', "too slow"),
        ('weights = "(?P<percnt>[0-9]+)%"', "did you mean percent"),
        ('weights = "(?P<done>[0-9]+) of"', "only one of the groups done and total"),
        (f"weights = {['x'] * 33}", "more than 32 patterns"),
    ],
)
def test_progress_that_cannot_be_read(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        declared(f"{SMALL}[progress]\n{line}\n")
    assert "progress" in str(error.value) and said in str(error.value)
