"""What stands after ``--``: every spelling of an owned option is found, nothing else is, and no secret is shown."""

from __future__ import annotations

import pytest

from launcher.engines import arguments, engine_config
from launcher.engines.sglang.options import OWNED as SGLANG
from launcher.engines.vllm.options import OWNED as VLLM
from launcher.errors import ConfigError, UsageError
from launcher.settings import Settings


def refused(text: str, owned: tuple[arguments.Owned, ...] = VLLM) -> str:
    """What the error says, or nothing."""
    try:
        arguments.refuse_owned(text.split(), owned, Settings(tp=2, origins={"tp": "LAUNCHER_TP"}))
    except UsageError as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    "text",
    [
        *("-tp 4", "-tp=4", "-t 4", "--tensor-parallel-size 4", "--tensor-parallel-size=4", "--tensor_parallel_size=4"),
        *("--tensor-par 4", "--ten=4"),
    ],
)
def test_every_spelling_of_an_owned_option(text: str) -> None:
    assert refused(text) == (f"'-- {text}': the tensor parallel size is the launcher's to set, and it is LAUNCHER_TP=2")


@pytest.mark.parametrize(
    "text",
    [
        *("-n 2", "-n2", "--nnodes=2", "-r1", "--node-rank 1", "--node_rank=1", "--headless", "--headl"),
        *(
            "--data-parallel-start-rank 2",
            "-dpr 2",
            "--data-parallel-hybrid-lb",
            "--no-data-parallel-hybrid-lb",
            "-dph",
        ),
        *("--data-parallel-backend ray", "--data_parallel_address=1.2.3.4", "--master-addr x", "--data-parallel 3"),
    ],
)
def test_what_the_launcher_derives(text: str) -> None:
    assert refused(text).startswith(f"'-- {text}': ")


@pytest.mark.parametrize(
    "text", ["-ep", "--enable-expert-parallel", "--no-enable-expert-parallel", "--port 1", "--model x"]
)
def test_other_owned_options(text: str) -> None:
    assert "is the launcher's to set" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        *("--max-model-len 100", "--host 0.0.0.0", "--uds /x", "--ssl-keyfile k", "--root-path /a", "--seed -1"),
        *("-dcp 2", "-pcp 2", "-cc {}", "-O3", "-q fp8", "-sc {}", "--model-impl auto", "--data-parallel-rpc-port 1"),
        *("--distributed-timeout-seconds 60", "--master", "--enable-eplb", "--api-key x", "--config a.yaml", ""),
    ],
)
def test_what_is_the_users(text: str) -> None:
    if text == "--master":
        assert refused(text)  # ambiguous for the engine too
    else:
        assert refused(text) == ""


@pytest.mark.parametrize("text", ["--tp 2", "--tp-size=2", "--model a", "--dist-init-addr a:1", "--enable-ep-moe"])
def test_sglangs_spellings(text: str) -> None:
    assert refused(text, SGLANG)


@pytest.mark.parametrize(
    "text", ["--enable-dp-attention", "--attn-dp-size 2", "--moe-dp-size 2", "--dist-timeout 60", "--nccl-port 1"]
)
def test_what_is_the_users_of_sglang(text: str) -> None:
    assert refused(text, SGLANG) == ""


def test_a_stray_word_is_no_option() -> None:
    assert refused("meta/llama --seed 1") == "'-- meta/llama': options are expected there, and this is none"


def test_the_fix_names_the_launchers_flag() -> None:
    with pytest.raises(UsageError) as caught:
        arguments.refuse_owned(("--served_model_name", "a", "b"), VLLM, Settings())
    assert caught.value.fix == (
        "give --served-model-name a b to the launcher (before any --), and leave --served_model_name out"
    )
    with pytest.raises(UsageError) as caught:
        arguments.refuse_owned(("-ep",), VLLM, Settings())
    assert caught.value.fix == "give --ep to the launcher (before any --), and leave -ep out"


def test_reading_a_value() -> None:
    args = ("--host", "a", "--x", "--host=b", "--seed", "-1", "--api-key", "k1", "k2")
    assert arguments.last(args, "--host") == "b"
    assert arguments.last(args, "--x") is None
    assert arguments.last(args, "--seed") == "-1"
    assert arguments.has(args, "--x") and not arguments.has(args, "--y")
    assert arguments.has(("--no-enable-log",), "--enable-log")
    assert arguments.without(args, "--host", "--api-key") == ("--x", "--seed", "-1")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ("--api-key k1 k2 --seed 1", "--api-key *** *** --seed 1"),
        ("--api-key=k1 --hf-token t", "--api-key=*** --hf-token ***"),
        ("--hf_token=t --ssl-keyfile-password p", "--hf_token=*** --ssl-keyfile-password ***"),
        ("--tokenizer t --max-tokens 3 --ssl-keyfile f", "--tokenizer t --max-tokens 3 --ssl-keyfile f"),
        ('--x {"access_key":"a","n":1}', '--x {"access_key":"***","n":1}'),
        ("--store redis://me:pw@host/0", "--store redis://me:***@host/0"),
    ],
)
def test_secrets_are_masked(argv: str, shown: str) -> None:
    assert " ".join(arguments.mask(argv.split())) == shown


def test_facts_tell_arguments_apart_and_no_secret() -> None:
    found = arguments.facts(
        ("--max_model_len=8", "--api-key", "s3cret", "--x", "--x", "2", "--host", "10.0.0.1", "--long", "v" * 300),
        ("--host",),
    )
    assert found["engine.args.max-model-len"] == "8"
    assert found["engine.args.x"] == "given, 2"
    assert found["engine.args.api-key"].startswith("sha256:")
    assert found["engine.args.long"].startswith("sha256:")
    assert len(found) == 4
    assert "s3cret" not in str(found)
    assert arguments.facts(("--max-model-len", "8")) == arguments.facts(("--max_model_len=8",))


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("a: 1\nb-c: 'x # y'  # z\n", {"a": "1", "b-c": "x # y"}),
        ('---\n# c\n\n"d": "e"\nf:\n  g: 1\n- h\n', {"d": "e", "f": ""}),
        ("url: http://x:1/y\nflag: true\n", {"url": "http://x:1/y", "flag": "true"}),
        ("", {}),
    ],
)
def test_a_config_file(text: str, entries: dict[str, str], tmp_path: object) -> None:
    path = f"{tmp_path}/c.yaml"
    with open(path, "w") as file:
        file.write(text)
    assert engine_config.read_config(path) == entries


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{a: 1}\n", "line 1: '{a: 1}' is no 'key: value'"),
        (b"a: 1\njust words\n", "line 2: 'just words' is no 'key: value'"),
        (b"\xff\xfe", "cannot be read"),
        (b"a: " + b"x" * (1 << 20), "larger than 1 MiB"),
    ],
)
def test_a_config_file_that_is_none(content: bytes, words: str, tmp_path: object) -> None:
    path = f"{tmp_path}/c.yaml"
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(ConfigError) as caught:
        engine_config.read_config(path)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("entries", "said", "fine"),
    [
        ({"tensor-parallel-size": "2"}, {"tp": 2}, True),
        ({"tensor-parallel-size": "2"}, {"tp": 4}, False),
        ({"enable_expert_parallel": "True"}, {"ep": True}, True),
        ({"enable_expert_parallel": "true"}, {}, False),
        ({"enable-expert-parallel": "false"}, {}, True),
        ({"port": "8000"}, {}, True),
        ({"port": "8001"}, {}, False),
        ({"port": "8001"}, {"port": 8001}, True),
        ({"model": "m"}, {"model": "m"}, True),
        ({"model": "m"}, {}, False),
        ({"headless": "true"}, {}, False),
        ({"max-model-len": "5"}, {}, True),
    ],
)
def test_a_config_file_is_compared(entries: dict[str, str], said: dict[str, object], fine: bool) -> None:
    settings = Settings().replace(**said)
    if fine:
        engine_config.compare_config("c.yaml", entries, VLLM, settings)
    else:
        with pytest.raises(ConfigError, match=r"^c\.yaml says "):
            engine_config.compare_config("c.yaml", entries, VLLM, settings)


def test_settings_that_go_on_as_they_were_given() -> None:
    """What an engine takes as the launcher does needs a row in its table, and nothing else."""
    said = Settings(tp=4, ep=True, served_model_name=("a", "b"), backend="mp", model="m")
    words = "--tensor-parallel-size 4 --enable-expert-parallel --served-model-name a b"
    assert arguments.passed_on(VLLM, said) == tuple(words.split())
    assert arguments.passed_on(VLLM, Settings()) == ()
    assert arguments.passed_on(SGLANG, Settings(model="m", pp=2)) == ("--model-path", "m", "--pp-size", "2")
