"""A process that ends by a signal because our own stop told it to go is no failure: not in a drain, nor beside one."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.group import PATIENCE, Group, until
from tests.e2e.test_launcher_edges import local

pytestmark = pytest.mark.timing

#: After TERM it tidies up for a moment and then kills itself, as SGLang's watchdog does (kill_process_tree).
KILLS_ITSELF = """
import os, signal, time
def told(*_):
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, told)
print("serving", flush=True)
while True:
    time.sleep(1)
"""
FAILS = """
import os, sys, time
print("serving", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
print("RuntimeError: the true reason", flush=True)
sys.exit(7)
"""
SERVING = 'gate = { kind = "line", target = "serving" }'


def engine(tmp_path: Path, **tables: list[str]) -> str:
    file = tmp_path / "engine.toml"
    text = "".join(f"[{name}]\ncommand = {json.dumps(command)}\n{SERVING}\n" for name, command in tables.items())
    file.write_text(f'name = "engine"\n{text}')
    return str(file)


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    return said


def runs(group: Group) -> None:
    until("the group runs", lambda: all(group.status(r).get("ready") for r in range(group.size)))


def test_a_neighbour_that_kills_itself_when_told_to_stop_does_not_cover_the_cause(tmp_path: Path) -> None:
    now = tmp_path / "now"
    fails = ["python3", "-c", FAILS, str(now)]
    file = engine(tmp_path, leader=["python3", "-c", KILLS_ITSELF], worker=fails)
    process, group = local(2, "--max-restarts", "0", "--engine-file", file, engine=())
    runs(group)
    now.touch()
    said = ended(process)
    assert process.returncode == 7, said
    assert "first failure: rank 1" in said and "ended with exit code 7" in said
    assert "RuntimeError: the true reason" in said
    assert "SIGKILL" not in said


def test_an_engine_that_kills_itself_when_told_to_go_has_drained(tmp_path: Path) -> None:
    file = engine(tmp_path, all=["python3", "-c", KILLS_ITSELF])
    process, group = local(1, "--drain-settle", "0", "--engine-file", file, engine=())
    runs(group)
    process.send_signal(signal.SIGTERM)
    said = ended(process)
    assert process.returncode == 0, said
    assert "first failure" not in said and "ERROR" not in said and "SIGKILL" not in said
