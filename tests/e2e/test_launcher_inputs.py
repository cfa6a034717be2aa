"""Bad input, by the real command: the exit code of its kind, one message with the fix, and nothing started."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.group import LAUNCHER

USAGE, CONFIG, UNAVAILABLE = 64, 78, 69

# variables, arguments, exit code, words of the message
CASES: list[tuple[dict[str, str], str, int, tuple[str, ...]]] = [
    # what cannot be read
    ({}, "--tp x", USAGE, ("--tp", "'x' is not a valid integer", "launcher run --help")),
    ({}, "--tp", USAGE, ("--tp", "requires an argument")),
    ({}, "--tpp 3", USAGE, ("--tpp", "--tp")),
    ({}, "run stray", USAGE, ("'stray' is no option", "goes after --")),
    ({}, "--tp 2 stray", USAGE, ("'stray' is no option",)),
    ({}, "nonsense", USAGE, ("no command 'nonsense'",)),
    ({}, "plam", USAGE, ("did you mean `launcher plan`",)),
    ({}, "--grace soon", USAGE, ("--grace", "'soon' is not a duration", "write 90, 90s, 1.5m or 2h")),
    ({}, "--hang-timeout -1", USAGE, ("--hang-timeout", "'-1'")),
    ({}, "--join-timeout inf", USAGE, ("--join-timeout", "'inf'")),
    ({"LAUNCHER_TP": "x"}, "", USAGE, ("LAUNCHER_TP=x", "give --tp")),
    ({"LAUNCHER_HANDOFF": "maybe"}, "", USAGE, ("LAUNCHER_HANDOFF=maybe", "write true or false")),
    ({"LAUNCHER_ENGINE_ARGS": "'open"}, "", USAGE, ("LAUNCHER_ENGINE_ARGS", "No closing quotation")),
    ({}, "--engine refrence", USAGE, ("--engine refrence", "did you mean reference?", "--engine-file")),
    ({}, "--config /no/such/file", USAGE, ("--config /no/such/file", "No such file")),
    ({}, "--config {bad_toml}", USAGE, ("bad.toml is not TOML",)),
    ({}, "--config {odd_toml}", USAGE, ("no setting join-timout", "did you mean join-timeout?")),
    ({}, "-- --nosuch 3", USAGE, ("--nosuch is not an option of the reference engine",)),
    ({}, "-- --crash-after abc", USAGE, ("--crash-after: 'abc' is not a number",)),
    ({}, "-- --rank 3", USAGE, ("--rank", "the launcher's to set", "fix: leave --rank out")),
    ({}, "--tp 2 -- --tp=4", USAGE, ("-- --tp=4", "it is --tp 2", "fix: give --tp 4 to the launcher")),
    ({}, "-- --port=9", USAGE, ("--port",)),
    # what can be read and cannot work
    ({}, "--tp 0", CONFIG, ("--tp 0 is too small", "give 1 or more")),
    ({}, "--size 0", CONFIG, ("--size 0 is too small",)),
    ({}, "--port 70000", CONFIG, ("--port 70000 is not a port", "from 1 to 65535")),
    ({}, "--port 12345 --group-port 12345", CONFIG, ("--port 12345", "--group-port 12345", "are the same port")),
    ({"LAUNCHER_LEASE": "500ms"}, "", CONFIG, ("LAUNCHER_LEASE=0.5 is too short", "10 is the default")),
    ({}, "--max-restarts -1", CONFIG, ("--max-restarts -1 is too small",)),
    ({}, "--log-format xml", CONFIG, ("--log-format xml", "text, json")),
    ({}, "--backend foo", CONFIG, ("--backend foo", "auto, ray, mp")),
    ({}, "--worker-ready maybe", CONFIG, ("--worker-ready maybe", "group, never")),
    ({}, "--token-file /no/such/file", CONFIG, ("--token-file /no/such/file", "No such file")),
    ({}, "--token-file {empty}", CONFIG, ("--token-file", "too short to be a secret", "openssl rand")),
    ({}, "--engine-file /no/such.toml", CONFIG, ("--engine-file /no/such.toml", "No such file")),
    ({}, "--rank 5 --size 2 --leader x", CONFIG, ("--rank 5", "--size 2", "ranks 0 to 1")),
    ({}, "--size 2", CONFIG, ("--size 2", "this pod's rank", "--rank is not given", "fix: give --rank, --size")),
    ({}, "--rank 1", CONFIG, ("--rank 1 is given without --size", "give --size and --leader")),
    ({}, "--leader 127.0.0.1", CONFIG, ("--leader 127.0.0.1 is given without --rank and --size",)),
    ({}, "--size 3 --peers a,b --rank 0", CONFIG, ("--size 3 contradicts --peers a,b",)),
    ({}, "--address 300.1.1.1", CONFIG, ("--address 300.1.1.1 is not an IP address",)),
    (
        {},
        "--rank 0 --size 2 --leader 127.0.0.1 --interface nosuch0",
        CONFIG,
        ("--interface nosuch0", "there is no interface nosuch0"),
    ),
    ({}, "--python /no/such/python", CONFIG, ("reference could not be started", "/no/such/python")),
    # who does not come
    (
        {},
        "--rank 1 --size 2 --leader 127.0.0.1 --address 127.0.0.2 --join-timeout 500ms",
        UNAVAILABLE,
        ("no group within 0.5 s (--join-timeout)", "refused: nothing listens there yet"),
    ),
    (
        {},
        "--rank 0 --size 2 --leader 127.0.0.1 --address 127.0.0.1 --join-timeout 500ms",
        UNAVAILABLE,
        ("rank 1 did not come within 0.5 s (--join-timeout)",),
    ),
    (
        {},
        "--rank 1 --size 2 --leader no-such-host.invalid --join-timeout 500ms",
        UNAVAILABLE,
        ("no-such-host.invalid", "--join-timeout 0 waits for ever"),
    ),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    texts = {"bad_toml": "tp = = 3\n", "odd_toml": 'join-timout = "3s"\n', "empty": ""}
    for name, text in texts.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return {name: str(tmp_path / name.replace("_", ".")) for name in texts}


@pytest.mark.parametrize(("variables", "args", "code", "words"), CASES, ids=[f"{v or ''}{a}" for v, a, _, _ in CASES])
def test_bad_input(
    files: dict[str, str], tmp_path: Path, variables: dict[str, str], args: str, code: int, words: tuple[str, ...]
) -> None:
    port = 10000 + os.getpid() % 20000  # of this worker alone: nothing is ever started here
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCHER_", "POD_"))}
    defaults = {
        "LAUNCHER_ENGINE": "reference",
        "LAUNCHER_AGENT_PORT": str(port),
        "LAUNCHER_GROUP_PORT": str(port + 1),
        "LAUNCHER_RESTART_BACKOFF": "0",
        "LAUNCHER_TERMINATION_LOG": str(tmp_path / "termination"),
    }
    (tmp_path / "termination").touch()
    done = subprocess.run(
        [str(LAUNCHER), *args.format(**files).split()],
        env={**clean, **defaults, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    for word in words:
        assert word in said, said
    assert "Traceback" not in said
    assert "chain is whole" not in said
    if "--python" not in args:
        assert "stage started" not in said


def test_config_file_and_precedence(tmp_path: Path) -> None:
    """A flag goes before a variable, a variable before the file."""
    config = tmp_path / "launcher.toml"
    config.write_text(
        'engine = "reference"\nsize = 2\nrank = 0\nleader = "a"\naddress = "10.0.0.1"\nmodel = "file"\ntp = 4\n'
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCHER_", "POD_"))}
    plan = subprocess.run(
        [str(LAUNCHER), "plan", "--json", "--config", str(config), "--model", "flag"],
        env={**clean, "LAUNCHER_TP": "6", "LAUNCHER_MODEL": "variable"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert json.loads(plan)["settings"]["model"] == "--model flag"
    assert '"flag"' in plan and '"file"' not in plan
    assert '"--workers", "3"' in " ".join(plan.split())
