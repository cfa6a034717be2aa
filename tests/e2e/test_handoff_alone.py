"""A pod that is alone and hands off, by the real command: the engine is executed at once, or all goes the long way."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.group import LAUNCHER, PATIENCE
from tests.ports import free_port

LOOK = "echo $$; tr '\\\\0' '\\\\n' < /proc/self/environ; cat /proc/self/status; ls -l /proc/self/fd; exit 7"


def engine_file(folder: Path, command: str, more: str = "") -> Path:
    file = folder / "engine.toml"
    file.write_text(f'name = "shell"\n{more}\n[all]\ncommand = ["sh", "-c", "{command}"]\n')
    return file


def launch(
    file: Path, *more: str, env: Mapping[str, str] | None = None, port: int | None = None, fds: tuple[int, ...] = ()
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LAUNCHER, "--engine-file", file, "--agent-port", str(port or free_port()), "--handoff", *more],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        pass_fds=fds,
    )


def test_the_engine_has_the_pid_and_a_fresh_process(tmp_path: Path) -> None:
    """No descriptor, signal or variable of ours, nor what our parent left open."""
    ours = {"LAUNCHER_LEADER_ENV_OWN": "1", "LAUNCHER_WORKER_ENV_OWN": "2", "LAUNCHER_REPLACES": "x"}
    inherited = os.open(os.devnull, os.O_RDONLY)
    process = launch(engine_file(tmp_path, LOOK), env=ours, fds=(inherited,))
    os.close(inherited)
    out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 7, said
    assert int(out.split()[0]) == process.pid
    for name in ("SigIgn", "SigBlk", "SigCgt"):
        assert re.search(rf"{name}:\t0+\n", out), (name, out)
    assert len(re.findall(r" -> ", out)) == 4, out
    assert {"OWN=1", "PYTHONUNBUFFERED=1"} <= set(out.splitlines())
    assert "LAUNCHER_REPLACES" not in out and "_ENV_OWN" not in out
    assert [line.split("rank=0 ")[1].split(" ")[0] for line in said.splitlines()] == ["alone", "engine", "hands"]


def test_an_engine_that_cannot_be_executed(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text('name = "none"\n[all]\ncommand = ["/no/such/engine"]\n')
    process = launch(file)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 127
    assert "exec of /no/such/engine: No such file or directory" in said


def test_a_port_in_use_is_said_once_and_nothing_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = launch(engine_file(tmp_path, "echo started"), port=taken.getsockname()[1])
        out, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (78, "")
    assert "cannot be used: Address already in use" in said
    assert said.count("launcher: --agent-port") == 1


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    process = launch(engine_file(tmp_path, "true"), "--tp", "x")
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 64
    assert said.count("'x' is not a valid integer") == 1


@pytest.mark.parametrize("more", ["--state-dir", "stages"])
def test_what_is_not_plain_goes_the_long_way(tmp_path: Path, more: str) -> None:
    """To the same end."""
    args = ("--state-dir", str(tmp_path)) if more == "--state-dir" else ()
    file = engine_file(tmp_path, LOOK)
    if more == "stages":
        first = '[[stages]]\nname = "one"\non = "all"\ncommand = ["sh", "-c", "echo $$; exit 7"]\n'
        second = '[[stages]]\nname = "two"\non = "all"\ncommand = ["true"]\n'
        file.write_text(f'name = "two"\n{first}{second}')
    process = launch(file, *args)
    out, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, int(out.split()[0])) == (7, process.pid)
    assert "joined the group" in said and "hands off" in said


def test_a_signal_before_the_engine_ends_the_launcher(tmp_path: Path) -> None:
    """None is lost while nobody can hear it: the engine file is a FIFO, so that the launcher waits in its middle."""
    engine = engine_file(tmp_path, "echo started")
    fifo = tmp_path / "fifo.toml"
    os.mkfifo(fifo)
    process = launch(fifo)
    with open(fifo, "wb") as opened:  # when the launcher reads
        process.send_signal(signal.SIGTERM)
        content = engine.read_bytes()
        engine.replace(fifo)  # what is read the long way
        opened.write(content)
    out, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "")
    assert "received signal" in said and "hands off" not in said
