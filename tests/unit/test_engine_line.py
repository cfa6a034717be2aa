"""Engine options as people write them: each error shows a line that works when it is followed."""

# ruff: noqa: E501

from __future__ import annotations

import shlex

import pytest
from click.testing import CliRunner

from launcher.cli import engine_line, main
from launcher.errors import LauncherError, UsageError

PLAN = "plan --engine vllm --size 2 --gpus-per-pod 8 --engine-version 0.12.0 --rank 0 --leader a"


def plan(line: str | list[str]) -> tuple[str, str]:
    """The plan's text, or an error's message and fix."""
    words = shlex.split(line) if isinstance(line, str) else line
    result = CliRunner().invoke(main.cli, words)
    if isinstance(result.exception, LauncherError):
        return result.exception.message, result.exception.fix
    assert result.exit_code == 0, (line, result.output, result.exception)
    return result.output, ""


@pytest.mark.parametrize(
    ("line", "named", "planned"),
    [
        (f"{PLAN} --model m --tensor-parallel-size 16", "--tensor-parallel-size (vllm) is --tp", "--tensor-parallel-size 16"),
        (f"{PLAN} --model m --tensor_parallel_size=16", "is --tp", "--tensor-parallel-size 16"),
        (f"{PLAN} --model m -tp 16", "-tp (vllm) is --tp", "--tensor-parallel-size 16"),
        (f"{PLAN} --model m --tp 8 --pipeline-parallel-size 2", "is --pp", "--pipeline-parallel-size 2"),
        (f"{PLAN} /models/w --tp 16", "the model is given by --model", "serve /models/w"),
        (f"{PLAN} --tp 16 org/model", "the model is given by --model", "serve org/model"),
        (f"{PLAN} --model m --tp 16 --max-model-len 4096", "goes after --", "--max-model-len 4096"),
        (f"{PLAN} --model m --tp 16 --max-model-len=4096 -- --seed 1", "goes after --", "--seed 1"),
        (f"{PLAN} --model m --tp 16 --enable-expert-parallel", "is --ep", "--enable-expert-parallel"),
        (f"{PLAN} --model m --tp 16 --nnodes 2", "--nnodes is the launcher's to set", "--nnodes 2"),
        ("plan --engine sglang --size 2 --gpus-per-pod 8 --rank 0 --leader a --model m --tp-size 16", "is --tp", "--tp-size 16"),
        ("plan --engine sglang --size 2 --gpus-per-pod 8 --rank 0 --leader a --model m --tp 16 --ep 8", "--ep-size", "--ep-size 8"),
        ("plan --engine vllm --size 2 --gpus-per-pod 8 --rank 0 --leader a --model m --tp 16 --ep 8", "--ep takes no number", "--enable-expert-parallel"),
    ],
)  # fmt: skip
def test_a_fix_that_is_followed_works(line: str, named: str, planned: str) -> None:
    message, fix = plan(line)
    assert named in message
    command = shlex.split(fix)
    assert command[:2] == ["cli", "plan"] or command[0] == "launcher", fix
    text, none = plan(command[1:])
    assert none == "", (text, none)
    assert planned in " ".join(text.replace("\\\n", " ").split())


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("serve /models/w --tensor-parallel-size 8", "run --model /models/w --tp 8"),
        ("vllm serve /models/w -tp 8 --seed 1", "run --engine vllm --model /models/w --tp 8 -- --seed 1"),
        ("sglang serve --model-path /m --tp-size 8", "run --engine sglang --model /m --tp 8"),
        ("/models/w --tp 8", "run --model /models/w --tp 8"),
        ("org/model", "run --model org/model"),
    ],
)
def test_a_line_of_an_engines_own(line: str, fix: str) -> None:
    message, said = plan(line)
    assert message and said.endswith(fix), (message, said)


@pytest.mark.parametrize(
    "word", ["--port 9000", "--port\t9000", "-tp 4", "--tensor-parallel-size 4", "--max-model-len 9 "]
)
def test_an_option_and_its_value_in_one_word(word: str) -> None:
    name, value = word.split()[:2]
    base = [*PLAN.split(), "--model", "m"]
    message, fix = plan([*base, word])
    assert "one word with a blank in it" in message
    assert fix.endswith(f"{name} {value}")
    message, fix = plan([*base, "--", word])
    assert "one word with a blank in it" in message
    if name == "--max-model-len":
        assert fix.endswith(f"{name} {value}")
    else:
        given = fix.removeprefix("give ").partition(" to the launcher")[0]
        text, none = plan([*base, *shlex.split(given), *(["--tp", "16"] if name == "--port" else ["--pp", "4"])])
        assert none == "", text


def test_a_trailing_blank() -> None:
    message, fix = plan([*PLAN.split(), "--model", "m", "--tp", "16", "--", "--enforce-eager "])
    assert "ends in a blank" in message and fix == "write --enforce-eager"


@pytest.mark.parametrize(
    "args",
    [
        ["--override-generation-config", '{"a": 1}'],
        ['--override-generation-config={"a": 1}'],
        ['-O{"level": 3}'],
        ["--chat-template", "a b"],
        ["--seed", "-1"],
    ],
)
def test_values_with_blanks_are_left_alone(args: list[str]) -> None:
    text, fix = plan([*PLAN.split(), "--model", "m", "--tp", "16", "--", *args])
    assert fix == "", text


def test_a_value_of_ours_that_looks_like_an_option() -> None:
    text, fix = plan([*PLAN.split(), "--backend", "ray", "--model", "m", "--tp", "16", "--ray-args", "--num-cpus 4"])
    assert fix == "" and "--num-cpus" in text


def test_misspellings_of_ours_stay_ours() -> None:
    result = CliRunner().invoke(main.cli, ["plan", "--agent-prot", "1"])
    assert "--agent-port" in result.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--grpc", "no HTTP endpoint"),
        ("--api-server-count 0", "no HTTP endpoint"),
        ("--api-server-count=0", "no HTTP endpoint"),
        ("-asc 0", "no HTTP endpoint"),
        ("--disable-expert-parallel", "expert parallelism is the launcher's"),
        ("--no-enable-expert-parallel", "expert parallelism is the launcher's"),
    ],
)
def test_what_cannot_be_watched_or_is_owned(args: str, words: str) -> None:
    message, fix = plan(f"{PLAN} --model m --tp 16 -- {args}")
    assert words in message
    assert fix.startswith("leave "), fix
    assert plan(f"{PLAN} --model m --tp 16")[1] == ""


def test_sglang_without_http() -> None:
    line = "plan --engine sglang --size 2 --gpus-per-pod 8 --rank 0 --leader a --model m --tp 16 -- "
    assert "no HTTP endpoint" in plan(line + "--smg-grpc-mode")[0]
    assert "does not divide --tp 16" in plan(line + "--ep-size 5")[0]
    text, fix = plan(line + "--ep-size 8")
    assert fix == "" and text.count("--ep-size 8")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--enable-fault-tolerance", "external load balancing"),
        ("--enable-elastic-ep", "number of ranks"),
        ("--load-format ipc_cache", "vllm preload"),
        ("--load-format=ipc_cache", "vllm preload"),
        ('--kv-transfer-config \'{"kv_connector": "NixlConnector"}\'', "connector's library"),
        ("--kv-transfer-config.kv_connector NixlConnector", "connector's library"),
    ],
)
def test_a_word_on_what_an_option_needs(args: str, words: str) -> None:
    text, fix = plan(f"{PLAN} --model m --tp 16 -- {args}")
    assert fix == "" and words in text


@pytest.mark.parametrize(
    ("own", "engine"),
    [
        (["--engine", "vllm", "--api-key", "sk-1234"], []),
        (["--engine", "vllm", "--api-key=sk-1234"], []),
        (["--engine", "vllm", "--api-key sk-1234"], []),
        (["--engine", "vllm", "--max-model-len", "8192"], ["--api-key", "sk-1234"]),
    ],
)
def test_an_error_shows_no_secret_of_the_engines(own: list[str], engine: list[str]) -> None:
    """Errors go to the pod's log; the value is replaced by *** there."""
    with pytest.raises(UsageError) as caught:
        engine_line.check(own, engine, {"--engine": True, "--model": True, "--token-file": True}, "launcher run")
    said = f"{caught.value.message}\n{caught.value.fix}"
    assert "sk-1234" not in said and "--api-key" in said and "***" in said


# --------------------------------------------------------------------------- every owned option, and its fix followed

VALUES = {
    "model": "/other",
    "served_model_name": "n",
    "tp": "16",
    "pp": "2",
    "dp": "2",
    "port": "9000",
    "backend": "mp",
    "master_port": "29600",
}


def spellings() -> list[tuple[str, str, str]]:
    """Engine, spelling and setting of every option that the launcher owns."""
    from launcher.engines.registry import spellings as tables

    return [(engine, name, one.setting) for engine, owned in tables() for one in owned for name in one.names]


@pytest.mark.parametrize(("engine", "spelling", "setting"), spellings())
def test_the_fix_of_every_owned_option_works(engine: str, spelling: str, setting: str) -> None:
    version = "0.33.0" if engine == "vllm" else "0.5.23"
    base = ["plan", "--engine", engine, "--size", "2", "--gpus-per-pod", "16", "--rank", "0", "--leader", "a"]
    base += ["--engine-version", version, *([] if setting == "model" else ["--model", "m"])]
    value = [VALUES[setting]] if setting in VALUES else [] if setting == "ep" or not takes_value(spelling) else ["1"]
    message, fix = plan([*base, "--", spelling, *value])
    assert spelling in message and "is the launcher's to set" in message
    if setting:
        assert fix.startswith("give --"), fix
        given, _, rest = fix.removeprefix("give ").partition(" to the launcher (before any --), and leave ")
        assert rest == f"{spelling} out"
        followed = [*base, *shlex.split(given)]
    else:
        assert fix == f"leave {spelling} out of it"
        followed = base
    if setting == "dp" and engine == "sglang":  # whose replicas do not span pods without it
        followed = [*followed, "--", "--enable-dp-attention"]
    if setting != "tp" and "--tp" not in followed:
        at = followed.index("--") if "--" in followed else len(followed)
        followed = [*followed[:at], "--tp", "16", *followed[at:]]
    text, none = plan(followed)
    assert none == "", (message, fix, text)


def takes_value(spelling: str) -> bool:
    flags = (
        "--headless",
        "--use-ray",
        "--data-parallel-hybrid-lb",
        "-dph",
        "--data-parallel-external-lb",
        "-dpe",
        "--data-parallel-multi-port-external-lb",
        "-dpm",
    )
    return spelling not in flags


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("plan --engine vllm --model m --tp 3 --size 2 --rank 0 --leader a --gpus-per-pod 8", "--tp 3"),
        (
            "plan --engine sglang --model m --tp 6 --dp 4 --size 2 --rank 0 --leader a -- --enable-dp-attention",
            "multiple",
        ),
        ("plan --engine vllm --size 2 --rank 0 --leader a", "--model is not given"),
        ("plan --engine vlm --model m", "there is no such engine"),
        ("plan --engine sglang --model m --backend ray", "without Ray"),
        ("plan --engine vllm --model m --rank 5 --size 2 --leader x", "ranks 0 to 1"),
        ("plan --engine vllm --model m --port 9471", "are the same port"),
        ("plan --engine vllm --model m --rdma maybe", "is not one of"),
        ("plan --engine vllm --model m --lease 1h30", "not a duration"),
    ],
)
def test_other_errors_name_a_fix(line: str, words: str) -> None:
    result = CliRunner().invoke(main.cli, shlex.split(line))
    if isinstance(result.exception, LauncherError):
        assert words in result.exception.message and result.exception.fix
    else:
        assert words in result.output
