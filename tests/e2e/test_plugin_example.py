"""The plug-in of docs/plugins.md, as a reader would copy it: planned, and run by two launchers on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import plugins
from tests.e2e.group import fetch, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plugins.install(tmp_path_factory.mktemp("site"), plugins.documented())


def launcher(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", *args]
    return subprocess.run(
        command, env=plugins.environment(folder), capture_output=True, text=True, timeout=300, check=False
    )


def test_it_is_listed_and_planned(folder: Path) -> None:
    listed = launcher(folder, "engines")
    assert "launcher-tiny 1.0 (launcher_tiny.engine:TinyEngine)" in listed.stdout, listed.stderr
    planned = launcher(folder, "plan", "--engine", "tiny", "--size", "2")
    assert planned.returncode == 0, planned.stderr
    assert "server.py" in planned.stdout and "TINY_TOKEN='***'" in planned.stdout
    assert "a process of an earlier one is turned away" in planned.stdout
    assert "29600  meeting, on rank 0" in planned.stdout


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--pp", "2"], 78, "--pp 2: tiny has no pipeline parallelism"),
        (["--", "-p", "80"], 64, "give --port 80 to the launcher"),
        (["-p", "80"], 64, "-p (tiny) is --port here"),
    ],
)
def test_it_refuses(folder: Path, args: list[str], code: int, words: str) -> None:
    refused = launcher(folder, "plan", "--engine", "tiny", "--size", "2", *args)
    assert (refused.returncode, words in refused.stderr) == (code, True), refused.stderr


def test_it_runs_and_starts_again(folder: Path, tmp_path: Path) -> None:
    env = {"PYTHONPATH": plugins.environment(folder)["PYTHONPATH"]}
    with running(tmp_path, 2, "--engine", "tiny", "--restart-backoff", "0.2s", env=env) as group:
        group.until("the group serves", group.serves)
        assert fetch(group.addresses[0], group.port, "/").text == "hello\n"
        before = group.epoch()
        os.kill(group.root(1), signal.SIGKILL)
        group.until("the group serves again", lambda: group.serves(before))
        assert fetch(group.addresses[0], group.port, "/").text == "hello\n"
