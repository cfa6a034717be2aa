"""Engine files that are wrong: each error names the file, the place, the value and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.engines.file.engine import DeclarativeEngine, load_engine_file
from launcher.engines.file.schema import parse
from launcher.errors import ConfigError

HEAD = 'name = "x"\n'
ALL = '[all]\ncommand = ["e"]\n'
BOTH = '[leader]\ncommand = ["e"]\n[worker]\ncommand = ["e"]\n'


def stage(entries: str) -> str:
    return HEAD + "[[stages]]\n" + entries


@pytest.mark.parametrize(
    ("text", "place", "value", "fix"),
    [
        # keys
        ("nam = 1\n" + HEAD + ALL, "nam is no key", "", "did you mean name?"),
        (HEAD + BOTH.replace("command", "comand", 1), "leader.comand is no key", "", "did you mean command?"),
        (HEAD + ALL + '[health]\nurll = "x"\n', "health.urll", "", "did you mean url?"),
        (stage('name = "a"\ncommand = ["e"]\ngates = 1\n'), "stages[0].gates", "", "did you mean gate?"),
        (HEAD + ALL + "[ports]\nrpc = { nr = 1 }\n", "ports.rpc.nr", "", "number"),
        # parts that are missing
        (ALL, "name is missing", "", 'name = "my-engine"'),
        (HEAD, "has no command", "", "[leader] and [worker]"),
        (HEAD + '[leader]\ncommand = ["e"]\n', "has [leader]: no whole engine", "", "[worker]"),
        (HEAD + ALL + BOTH, "has [leader] and [worker] and [all]", "", "[all] where"),
        (HEAD + "[all]\n", "all.command is missing", "", "command = ["),
        (stage('command = ["e"]\n'), "stages[0].name is missing", "", "name ="),
        (HEAD + ALL + "[ports]\nrpc = { external = true }\n", "ports.rpc.number is missing", "", "number = 8000"),
        (
            HEAD + '[all]\ncommand = ["e"]\ngate = { kind = "tcp" }\n',
            "all.gate.target is missing",
            "",
            "{address:8000}",
        ),
        (HEAD + '[all]\ncommand = ["e"]\ngate = {}\n', "all.gate.kind is missing", "", "started, exited"),
        (HEAD + ALL + '[health]\nrunning = "r"\n', "health.metrics is missing", "", "/metrics"),
        (HEAD + ALL + '[health]\ncanary = "/v1"\n', "health.canary_body is missing", "", "say both"),
        # types and values
        ("name = 7\n" + ALL, "name is 7", "not a text", 'name = "..."'),
        ('name = "a b"\n' + ALL, "name is 'a b'", "no name", "letters"),
        (HEAD + '[all]\ncommand = "serve it"\n', "all.command is 'serve it'", "not a list", "one element a word"),
        (HEAD + "[all]\ncommand = []\n", "all.command is []", "not a list", "one element a word"),
        (HEAD + '[all]\ncommand = ["e", 7]\n', "all.command[1] is 7", "not a text", '"7"'),
        (HEAD + '[all]\ncommand = ["e", ["-x", true]]\n', "all.command[1][1] is true", "not a text", "write"),
        ("completes = 1\n" + HEAD + ALL, "completes is 1", "neither true nor false", "completes = true"),
        ('stop_grace = "3"\n' + HEAD + ALL, "stop_grace is '3'", "no number of seconds", "30"),
        ("stop_grace = -1\n" + HEAD + ALL, "stop_grace is -1", "no number of seconds", "30"),
        ("versions = [1]\n" + HEAD + ALL, "versions is [1]", "not a list of texts", "..."),
        ('owned = ["rpc"]\n' + HEAD + ALL, "owned is ['rpc']", "'rpc' is no option", "--rank"),
        ("env = 3\n" + HEAD + ALL, "env is 3", "not a table", "[env]"),
        (HEAD + ALL + "[env]\nA = true\n", "env.A is true", "not a text", 'A = "..."'),
        (HEAD + ALL + '[env]\n"A-B" = "x"\n', "env.A-B", "cannot be the name of a variable", "letters"),
        (HEAD + ALL + "[ports]\nrpc = 70000\n", "ports.rpc is 70000", "no port", "1 to 65535"),
        (HEAD + ALL + '[ports]\nrpc = { number = "7" }\n', "ports.rpc.number is '7'", "no port", "without quotes"),
        (HEAD + ALL + "[ports]\nport = 7\n", "ports.port is 7", "cannot be called port", "api"),
        (HEAD + ALL + "[ports]\n7 = 7\n", "ports.7 is 7", "cannot be called 7", "otherwise"),
        (
            HEAD + ALL + '[ports]\na = { number = 1, on = "al" }\n',
            "ports.a.on is 'al'",
            "not one of",
            "leader, worker, all",
        ),
        (stage('name = "a"\non = "head"\ncommand = ["e"]\n'), "stages[0].on is 'head'", "not one of", "leader"),
        ('stages = "a"\n' + HEAD, "stages is 'a'", "not a list of stages", "[[stages]]"),
        (HEAD + '[all]\ncommand = ["e"]\ngate = { kind = "tpc" }\n', "all.gate.kind is 'tpc'", "not one of", "tcp"),
        (
            HEAD + '[all]\ncommand = ["e"]\ngate = { kind = "started", target = "x" }\n',
            "all.gate.target",
            "has none",
            "tcp",
        ),
        (
            HEAD + '[all]\ncommand = ["e"]\ngate = { kind = "exited", settle = 1 }\n',
            "all.gate.settle",
            "only",
            "leave it",
        ),
        (HEAD + ALL + '[health]\nurl = "http://x"\nport = 1\n', "health.url", "beside path or port", "say the url"),
        (HEAD + ALL + '[health]\npath = "up"\n', "health.path is 'up'", "not an absolute path", "/health"),
        (
            HEAD + ALL + '[health]\nport = "rcp"\n[ports]\nrpc = 1\n',
            "health.port is 'rcp'",
            "no port",
            "did you mean rpc?",
        ),
        # stages
        (
            stage('name = "a"\ncommand = ["e"]\n[[stages]]\nname = "a"\non = "leader"\ncommand = ["f"]\n'),
            *("stages[1].on is 'leader'", "said already by a command of stage a", "a name of its own"),
        ),
        (
            stage(
                "".join(f'name = "{n}"\ncommand = ["e"]\n[[stages]]\n' for n in "ab") + 'name = "a"\ncommand = ["e"]\n'
            ),
            *("stages[2].name is 'a'", "the name of an earlier stage", "one after the other"),
        ),
        # placeholders
        (HEAD + '[all]\ncommand = ["e", "{adress}"]\n', "all.command[1]: {adress} is no placeholder", "", "address?"),
        (HEAD + '[all]\ncommand = ["e", "{}"]\n', "all.command[1]: {} is no placeholder", "", "{{ and }}"),
        (HEAD + '[all]\ncommand = ["e", "a{b"]\n', "all.command[1]: 'a{b'", "without its other half", "{{"),
        (HEAD + '[all]\ncommand = ["e", "a}b"]\n', "all.command[1]: 'a}b'", "without its other half", "}}"),
        (HEAD + '[all]\ncommand = ["e", "{tp:1}"]\n', "all.command[1]: {tp:1}", "nothing after a colon", "{tp}"),
        (
            HEAD + '[all]\ncommand = ["e", "{leader:http}"]\n',
            "all.command[1]: {leader:http}",
            "'http' is no port",
            "65535",
        ),
        (HEAD + '[all]\ncommand = ["e", "{leader:70000}"]\n', "{leader:70000}", "'70000' is no port", "65535"),
        (HEAD + '[all]\ncommand = ["e", "{port:rcp}"]\n[ports]\nrpc = 1\n', "{port:rcp}", "names no port", "mean rpc?"),
        (HEAD + '[all]\ncommand = ["e", "{env}"]\n', "all.command[1]: {env}", "which variable", "{env:NAME}"),
        (
            HEAD + '[all]\ncommand = ["e", "x={args}"]\n',
            "all.command[1]: 'x={args}'",
            "stands for a list",
            "of its own",
        ),
        (
            HEAD + '[all]\ncommand = ["e", ["{args}"]]\n',
            "all.command[1][0]: '{args}'",
            "stands for a list",
            "of its own",
        ),
        (HEAD + ALL + '[env]\nA = "{args}"\n', "env.A: '{args}'", "stands for a list", "of its own"),
        (HEAD + ALL + '[all.env]\nA = "{rnk}"\n', "all.env.A: {rnk}", "no placeholder", "mean rank?"),
        (HEAD + ALL + '[health]\nurl = "{rnk}"\n', "health.url: {rnk}", "no placeholder", "mean rank?"),
    ],
)
def test_a_wrong_file_says_where_what_and_how_to_mend_it(text: str, place: str, value: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        DeclarativeEngine(parse(text.encode(), "my.toml"), {})
    assert error.value.message.startswith("my.toml")
    assert place in error.value.message and value in error.value.message
    assert fix in error.value.fix
    assert error.value.code == 78


@pytest.mark.parametrize("raw", [b"name = ", b"\xff", b'a = "\n', b"x = " + b"[" * 20000])
def test_what_is_not_toml(raw: bytes) -> None:
    with pytest.raises(ConfigError, match=r"my\.toml is not TOML: "):
        parse(raw, "my.toml")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_engine_file(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_engine_file(str(tmp_path))
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load_engine_file(str(large))
