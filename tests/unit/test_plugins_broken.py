"""A plug-in that raises or returns nonsense, in any member: an error in words with its name, exit code 78."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from launcher.cli import plan as show
from launcher.engines import registry
from launcher.engines.base import Engine
from launcher.engines.plugin import Door, Plugin, PluginError, _nonsense
from launcher.errors import ConfigError, ExitCode
from launcher.model import Gate, Health, NodeFacts, Plan, Port, Process, Stage, StepLine
from launcher.preflight import doctor
from launcher.settings import Settings
from tests import plugins
from tests.ports import free_port
from tests.unit.test_render import SAMPLE

PROJECT = """
[project]
name = "my-engines"
version = "1.2"
entry-points."launcher.engines".mine = "my_engines:Mine"
"""
MODULE = """
import os, sys
from launcher.engines.base import Engine
from launcher.errors import LauncherError
from launcher.model import Plan, Process, Stage

MEMBER, _, HOW = os.environ.get("BROKEN", "").partition(" ")

class Mute(Exception):
    def __str__(self):
        raise SystemExit(1)
    __repr__ = __str__

class Odd:
    def __repr__(self):
        raise SystemExit(1)

def broken():
    if HOW == "raises":
        return {}["no such key"]
    if HOW == "exits":
        sys.exit("no licence")
    if HOW == "is mute":
        raise Mute
    if HOW == "raises ours":
        raise LauncherError("a bug of the launcher, says who?")
    return Odd()

class Mine(Engine):
    name = "mine"
    summary = "my own"
    def __init__(self):
        if MEMBER == "__init__":
            broken()
    def plan(self, context, rank):
        if MEMBER == "epoch" and len(context.shared.epoch.leader) > 1:
            broken()
        return Plan(rank, (Stage("engine", (Process("mine", ("true",)),)),))
    def __getattribute__(self, name):
        if name != MEMBER:
            return super().__getattribute__(name)
        return (lambda *arguments: broken()) if callable(super().__getattribute__(name)) else broken()

if MEMBER == "import":
    broken()
"""
MEMBERS = sorted(name for name in {*vars(Engine), *get_type_hints(Engine)} if not name.startswith("_"))
HOW = ("raises", "exits", "is mute", "raises ours", "returns nonsense")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plugins.install(tmp_path / "site", {"pyproject.toml": PROJECT, "my_engines.py": MODULE})


@pytest.fixture
def imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The plug-in in this process; what is broken in it is chosen by BROKEN before it is imported."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_engines", raising=False)
    importlib.invalidate_caches()
    return monkeypatch


SETTINGS = Settings(engine="mine", size=2, rank=0, leader="a", origins={"engine": "--engine"})


def test_one_that_is_well(imported: pytest.MonkeyPatch) -> None:
    page = show.plan(SETTINGS, {}, ())
    assert [rank["stages"][0]["processes"][0]["argv"] for rank in page["ranks"]] == [["true"], ["true"]]
    engine = registry.load(SETTINGS)
    assert engine.interpreter(SETTINGS) == "python3" and engine.local(SETTINGS, 2, NodeFacts()).first_host == 1
    assert engine.fingerprint(SETTINGS, NodeFacts())["engine"] == "mine"


def test_the_door_has_every_member_of_the_contract() -> None:
    attributes = set(vars(Plugin(registry.by_name("reference"), Door("engine reference", "here"))))
    assert set(MEMBERS) <= {*vars(Plugin), *attributes}
    assert len(MEMBERS) > 12


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("member", [*MEMBERS, "__init__", "import"])
def test_plan(imported: pytest.MonkeyPatch, member: str, how: str) -> None:
    imported.setenv("BROKEN", f"{member} {how}")
    if how == "returns nonsense" and member in ("__init__", "import"):
        show.plan(SETTINGS, {}, ())  # nobody looks at what they return
        return
    with pytest.raises(ConfigError) as caught:
        show.plan(SETTINGS, {}, ())
    assert caught.value.code == ExitCode.CONFIG
    assert "mine" in caught.value.message and "\n" not in caught.value.message
    assert member.strip("_") in caught.value.message or "loaded" in caught.value.message
    assert "correct my_engines:Mine of my-engines 1.2" in caught.value.fix
    if how == "raises":
        assert "KeyError: 'no such key'" in caught.value.message and "my_engines.py, line" in caught.value.fix


@pytest.mark.parametrize("member", [*MEMBERS, "__init__", "import"])
def test_doctor(imported: pytest.MonkeyPatch, member: str, capsys: pytest.CaptureFixture[str]) -> None:
    imported.setenv("BROKEN", f"{member} exits")
    code = doctor.run(SETTINGS.replace(origins={"engine": "--engine", "model": ""}), {}, (), {}, as_json=True)
    findings = json.loads(capsys.readouterr().out)["findings"]
    (said,) = [f for f in findings if "mine" in f["what"]]
    assert code == ExitCode.CONFIG and said["level"] == "fail" and "no licence" in said["what"]
    assert not [f for f in findings if "bug of the launcher" in f["why"]]


def test_the_listing(imported: pytest.MonkeyPatch) -> None:
    imported.setenv("BROKEN", "import exits")
    (mine,) = [summary for name, summary, _ in registry.available() if name == "mine"]
    assert "SystemExit: no licence" in mine
    assert registry.spellings("mine")[0][0] == "sglang" and registry.images("mine")


COMMANDS = {
    "plan": ["plan"],
    "doctor": ["doctor"],
    "run": ["run"],
    "handoff": ["run", "--handoff"],
    "local": ["local", "--size", "2"],
    "render": ["render", "-f", "service.yaml", "--launcher-image", "registry/launcher:1", "--query", "x"],
    "manifest": ["plan", "-f", "pods.yaml"],
}
PODS = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: mine}
spec:
  replicas: 2
  serviceName: mine
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: mine}}
  template:
    metadata: {labels: {app: mine}}
    spec:
      containers:
      - {name: engine, image: mine, command: [launcher], args: [--engine, mine, --size, "2", --service, mine]}
"""


def refused(folder: Path, broken: str, *args: str, cwd: Path | None = None) -> str:
    """What the launcher prints, as a process that must end with 78, where the plug-in is ``broken``."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *args],
        cwd=cwd,
        env={**plugins.environment(folder), "BROKEN": broken, "LAUNCHER_AGENT_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == ExitCode.CONFIG, said
    return said


@pytest.mark.parametrize("broken", ["import exits", "check is mute", "plan returns nonsense"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(folder: Path, tmp_path: Path, command: str, broken: str) -> None:
    engine = [] if command in ("render", "manifest") else ["--engine", "mine"]
    own = SAMPLE.replace("--engine, vllm, --backend, mp,", "--engine, mine,").replace(
        ', --, --max-model-len, "8192"', ""
    )
    (tmp_path / "service.yaml").write_text(own)
    (tmp_path / "pods.yaml").write_text(PODS)
    said = refused(folder, broken, *COMMANDS[command], *engine, cwd=tmp_path)
    assert "mine" in said and re.search(r"my-\s*engines 1\.2", said) and "Traceback" not in said, said


def test_a_plan_that_fails_in_the_first_epoch_only(folder: Path) -> None:
    """With real addresses, after the group has formed."""
    said = refused(folder, "epoch exits", "--engine", "mine")
    assert "engine mine: plan() failed: SystemExit: no licence" in said and "Traceback" not in said


def test_ctrl_c_stays_what_it_is(imported: pytest.MonkeyPatch) -> None:
    engine = registry.load(SETTINGS)
    imported.setattr(sys.modules["my_engines"].Mine, "interpreter", _interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        engine.interpreter(SETTINGS)


def _interrupted(*_: object) -> str:
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------ plans that cannot be

PROCESS = Process("mine", ("true",))
STAGE = Stage("engine", (PROCESS,))
PLAN = Plan(0, (STAGE,))


def of(**changes: Any) -> Plan:
    return replace(PLAN, stages=(replace(STAGE, processes=(replace(PROCESS, **changes),)),))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (replace(PLAN, rank=1), "rank is 1, not 0"),
        (replace(PLAN, stages=()), "stages is empty"),
        (replace(PLAN, stages=(STAGE, STAGE)), "stages[1].name is engine, and so is that of another stage"),
        (replace(PLAN, stages=(replace(STAGE, name="a\nb"),)), "stages[0].name is 'a\\nb'"),
        (replace(PLAN, stages=(replace(STAGE, timeout=0.0),)), "stages[0].timeout is 0"),
        (replace(PLAN, ports=(Port(70000, "api"),)), "ports[0].number is 70000"),
        (replace(PLAN, health=Health(url="localhost:8000/health")), "health.url is 'localhost:8000/health', no URL"),
        (replace(PLAN, health=Health(url="http://[::1:8000/")), "no URL"),
        (replace(PLAN, health=Health(timeout=0.0)), "health.timeout is 0"),
        (replace(PLAN, stop_grace=-1.0), "stop_grace is -1"),
        (replace(PLAN, step_lines=(StepLine("load", "x"),)), "step_lines[0].step is 'load', not one of weights,"),
        (replace(PLAN, step_lines=(StepLine("weights", "x"), StepLine("rest", "("))), "step_lines[1].pattern is '('"),
        (replace(PLAN, step_lines=(StepLine("weights", "(a+)+b"),)), "too slow"),
        (of(name=""), "stages[0].processes[0].name is ''"),
        (of(argv=()), "argv is empty"),
        (of(argv=("a\0b",)), "argv or cwd holds what no command line can"),
        (of(argv=("\ud800",)), "argv or cwd holds what no command line can"),
        (of(env={"A=B": "1"}), "env has 'A=B'='1', which no environment can hold"),
        (of(gate=Gate("open")), "gate.kind is 'open', not one of started, exited, line, pattern, tcp, http"),
        (of(gate=Gate("line")), "gate.target is empty"),
        (of(gate=Gate("tcp", "localhost")), "no host:port"),
        (of(gate=Gate("http", "ftp://a")), "no URL"),
        (of(gate=Gate("pattern", "(a+)+")), "too slow"),
        (of(gate=Gate(settle=-1.0)), "gate.settle is -1"),
        (PLAN, ""),
    ],
)
def test_a_plan_of_the_right_types(plan: Plan, words: str) -> None:
    wrong = _nonsense(plan, 0)
    assert words in wrong and bool(wrong) == bool(words)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "it is None, not Plan"),
        (of(argv=["true"]), "stages[0].processes[0].argv is ['true'], not tuple[str, ...]"),
        (of(argv=("sleep", 1)), "stages[0].processes[0].argv[1] is 1, not str"),
        (of(env={"PORT": 1}), "stages[0].processes[0].env['PORT'] is 1, not str"),
        (replace(PLAN, ports=(Port(True, "api"),)), "ports[0].number is True, not int"),
        (replace(PLAN, stop_grace=float("nan")), "stop_grace is nan, not float"),
        (replace(PLAN, stages=(STAGE, PROCESS)), "stages[1] is Process("),  # type: ignore[arg-type]
    ],
)
def test_a_plan_of_other_types(imported: pytest.MonkeyPatch, returned: Any, words: str) -> None:
    engine = registry.load(SETTINGS)
    imported.setattr(sys.modules["my_engines"].Mine, "plan", lambda *_: returned)
    with pytest.raises(PluginError) as caught:
        engine.plan(None, 0)  # type: ignore[arg-type]
    assert caught.value.message.startswith("engine mine: what plan() returned cannot be used: " + words)


def test_what_it_refuses_on_purpose_is_said_as_it_is(imported: pytest.MonkeyPatch) -> None:
    engine = registry.load(SETTINGS)

    def refuse(*_: object) -> None:
        raise ConfigError("--tp 3 is odd", "give an even number")

    imported.setattr(sys.modules["my_engines"].Mine, "check", refuse, raising=False)
    with pytest.raises(ConfigError) as caught:
        engine.check(SETTINGS, None, NodeFacts())  # type: ignore[arg-type]
    assert (caught.value.message, caught.value.fix) == ("--tp 3 is odd", "give an even number")
    assert not isinstance(caught.value, PluginError)
