"""The command line: precedence of flags, variables and file; errors by name; help, completion and plan."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher import __version__
from launcher.cli import commands, main, options, sources
from launcher.errors import ConfigError, UsageError
from launcher.settings import Settings


def settings(args: list[str], env: dict[str, str] | None = None) -> tuple[Settings, tuple[str, ...]]:
    """Settings as ``launcher run`` would read them."""
    found, _, warnings = sources.parse(args, env or {})
    return found, warnings


def test_a_flag_goes_before_a_variable_before_a_file_before_the_default(tmp_path: Path) -> None:
    file = tmp_path / "launcher.toml"
    file.write_text('tp = 2\npp = 3\ndp = 4\nlease = "20s"\nengine-args = ["--x", "y"]\nep = true\n')
    found, _ = settings(["--config", str(file), "--tp", "8"], {"LAUNCHER_TP": "4", "LAUNCHER_PP": "5"})
    assert (found.tp, found.pp, found.dp, found.lease, found.ep) == (8, 5, 4, 20.0, True)
    assert found.engine_args == ("--x", "y")
    assert found.said("tp") == "--tp 8"
    assert found.said("pp") == "LAUNCHER_PP=5"
    assert found.said("dp") == f"{file}: dp 4"
    assert found.said("size") == "--size (default None)"


def test_every_option_has_a_variable() -> None:
    samples = {"int": "3", "float": "3s", "bool": "true"}
    kinds = {f.name: f for f in fields(Settings)}
    for parameter in options.ALL:
        name = str(parameter.name)
        kind = str(kinds[name].type).removesuffix(" | None")
        text = samples.get(kind) or kinds[name].metadata.get("choices", ("text",))[-1]
        found, warnings = settings([], {f"LAUNCHER_{name.upper()}": text})
        assert name in found.origins, f"{name} has no variable"
        assert not warnings


def test_every_setting_has_one_option_and_its_help_names_the_default() -> None:
    assert sorted(str(o.name) for o in options.ALL) == sorted(
        f.name for f in fields(Settings) if f.name not in ("engine_args", "origins")
    )
    shown = {o.name: o.help or "" for o in options.ALL}
    assert shown["lease"].endswith("[10s]") and shown["startup_stall_timeout"].endswith("[30m]")
    assert shown["restart_window"].endswith("[1h]") and shown["restart_backoff"].endswith("[60s]")
    assert shown["canary_interval"].endswith("[0]") and shown["preflight"].endswith("[on]")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("500ms", 0.5), ("0", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert settings(["--startup-timeout", text])[0].startup_timeout == seconds


@pytest.mark.parametrize(
    ("args", "env", "words"),
    [
        ([], {"LAUNCHER_TP": "two"}, "LAUNCHER_TP=two"),
        ([], {"LAUNCHER_HANDOFF": "perhaps"}, "LAUNCHER_HANDOFF=perhaps"),
        ([], {"LAUNCHER_ENGINE_ARGS": "'open"}, "LAUNCHER_ENGINE_ARGS"),
        (["--config", "/nonexistent.toml"], {}, "/nonexistent.toml"),
    ],
)
def test_what_cannot_be_read_is_said_by_name(args: list[str], env: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("/", ".")):
        settings(args, env)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--tp", "0"], "--tp 0 is too small"),
        (["--port", "70000"], "--port 70000 is not a port"),
        (["--backend", "mpi"], "--backend mpi is not one of"),
        (["--lease", "0.1s"], "--lease 0.1"),
        (["--agent-port", "9470"], "are the same port"),
        (["--size", "0"], "--size 0"),
    ],
)
def test_what_cannot_work_is_said_by_name(args: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(args)


def test_an_unknown_entry_of_the_file_names_its_neighbour(tmp_path: Path) -> None:
    file = tmp_path / "l.toml"
    file.write_text("joint-timeout = 3\n")
    with pytest.raises(UsageError, match="joint-timeout"):
        settings(["--config", str(file)])
    file.write_text("tp = [")
    with pytest.raises(UsageError, match="not TOML"):
        settings(["--config", str(file)])


def test_service_links_and_unknown_variables_are_warned_of() -> None:
    _, warnings = settings([], {"LAUNCHER_PORT": "tcp://10.0.0.1:80", "LAUNCHER_TYPO": "1"})
    assert any("LAUNCHER_PORT" in w for w in warnings)
    assert any("LAUNCHER_TYPO" in w for w in warnings)


@pytest.mark.parametrize(
    ("args", "run"),
    [
        ([], True),
        (["--engine", "vllm"], True),
        (["run", "--engine", "vllm"], True),
        (["--model", "plan"], True),
        (["--engine", "x", "--", "--help"], True),
        (["plan"], False),
        (["--version"], False),
        (["run", "--help"], False),
        (["status", "--watch"], False),
    ],
)
def test_only_a_run_starts_the_guard(args: list[str], run: bool) -> None:
    assert commands.is_run(args) is run


def test_every_command_is_known_before_its_options_are_read() -> None:
    assert main.cli.commands.keys() == {"run", *commands.COMMANDS}
    assert {*commands.GROUPED} <= {name for option in options.DOCTOR for name in option.opts}


def test_help_names_every_section_and_completion_prints_a_script() -> None:
    text = CliRunner().invoke(main.cli, ["run", "--help"]).output
    for title, _ in options.SECTIONS:
        assert f"{title}:" in text
    for shell in ("bash", "zsh", "fish"):
        assert "_LAUNCHER_COMPLETE" in CliRunner().invoke(main.cli, ["completion", shell]).output
    assert __version__ in CliRunner().invoke(main.cli, ["--version"]).output


def _launcher(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "/usr/bin:/bin", **env}
    )


def test_plan_prints_every_ranks_command_and_hides_secrets() -> None:
    args = ["plan", "--json", "--engine", "vllm", "--backend", "mp", "--model", "m", "--tp", "8", "--pp", "2"]
    args += ["--size", "2", "--gpus-per-pod", "8", "--", "--api-key", "hunter2", "--max-model-len", "8192"]
    done = _launcher(*args)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    page = json.loads(done.stdout)
    assert page["identity"]["size"] == 2 and [r["rank"] for r in page["ranks"]] == [0, 1]
    assert {s["name"] for s in page["sources"]} == {"explicit", "lws", "job", "slurm", "statefulset", "alone"}
    argv = page["ranks"][1]["stages"][-1]["processes"][0]["argv"]
    assert argv[argv.index("--node-rank") + 1] == "1" and "--headless" in argv and "8192" in argv
    assert any(p["external"] and p["name"] == "api" for p in page["ports"])


def test_plan_in_a_statefulset_says_who_this_pod_is_and_why() -> None:
    env = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "POD_NAME": "llama-5", "POD_NAMESPACE": "ns"}
    done = _launcher("plan", "--engine", "reference", "--size", "2", "--service", "peers", **env)
    assert done.returncode == 0, done.stderr
    assert "this is rank 1 (statefulset)" in done.stdout
    assert "llama-4.peers.ns.svc.cluster.local" in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["paln"], 64, "did you mean `launcher plan`"),
        (["plan", "--tpp", "2"], 64, "--tpp"),
        (["plan", "--tpp", "2"], 64, "launcher plan --help"),
        (["render", "-f", "-", "--replica", "keep"], 64, "launcher render --help"),
        (["plan", "--engine", "vlm"], 64, "vllm"),
        (["plan", "--engine", "vllm", "--model", "m", "--tp", "2", "--", "-tp=4"], 64, "-tp"),
        (["plan", "--engine", "vllm", "--model", "m", "--tp", "3", "--size", "2", "--gpus-per-pod", "8"], 78, "3"),
        (["status", "--url", "http://127.0.0.1:1"], 69, "127.0.0.1:1"),
    ],
)
def test_mistakes_are_answered_in_words_with_the_code_of_their_kind(args: list[str], code: int, words: str) -> None:
    done = _launcher(*args)
    assert done.returncode == code, done.stderr + done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_is_exact_where_it_can_be() -> None:
    """Addresses that were given stand in the plan; this pod's processes show what the table of variables shows."""
    env = {"POD_IP": "10.9.8.8", "POD_NAME": "x"}
    words = ["plan", "--engine", "vllm", "--backend", "mp", "--model", "m", "--tp", "2", "--size", "2", "--rank", "1"]
    words += ["--leader", "10.9.8.7", "--engine-version", "0.33.0", "--gpus-per-pod", "1", "--json"]
    page = json.loads(CliRunner().invoke(main.cli, words, env=env).stdout)
    argv = page["ranks"][1]["stages"][0]["processes"][0]["argv"]
    assert argv[argv.index("--master-addr") + 1] == "10.9.8.7"
    assert "<ip of" not in json.dumps(page["ranks"])
    own = page["ranks"][1]["stages"][0]["processes"][0]["env"]
    table = {v["name"]: v["value"] for v in page["variables"] if v["set_by"] == "launcher"}
    assert own["VLLM_HOST_IP"] == table["VLLM_HOST_IP"] == "10.9.8.8"
    assert {name: value for name, value in own.items() if name in table} == {n: table[n] for n in own if n in table}
    assert page["ranks"][0]["stages"][0]["processes"][0]["env"]["VLLM_HOST_IP"] == "10.9.8.7"


def test_a_pod_alone_has_an_address_too() -> None:
    words = ["plan", "--engine", "vllm", "--model", "m", "--tp", "2", "--engine-version", "0.33.0", "--json"]
    page = json.loads(CliRunner().invoke(main.cli, words, env={"POD_IP": "10.9.8.8"}).stdout)
    own = page["ranks"][0]["stages"][0]["processes"][0]["env"]
    for name in ("VLLM_HOST_IP", "SGLANG_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST"):
        assert own[name] == "10.9.8.8"
    six = json.loads(CliRunner().invoke(main.cli, words, env={"POD_IP": "fd00::8"}).stdout)
    argv = six["ranks"][0]["stages"][0]["processes"][0]["argv"]
    assert argv[argv.index("--host") + 1] == "::"
