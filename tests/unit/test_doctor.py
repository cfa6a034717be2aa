"""`launcher doctor` and the variables of `launcher plan`, as a person runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.cli.commands import is_run
from launcher.preflight import doctor, show
from launcher.preflight.finding import Level, fail, ok, skipped, warn
from launcher.settings import Settings

LAUNCHER = Path(sys.executable).with_name("launcher")
PODS = {"POD_NAME": "llama-1", "POD_NAMESPACE": "ns", "POD_IP": "127.0.0.1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def run(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCHER_", "POD_", "NCCL_"))}
    command = [str(LAUNCHER), *args]
    return subprocess.run(
        command, capture_output=True, text=True, env={**clean, **(env or {})}, timeout=100, check=False
    )


def findings(page: dict[str, Any], check: str) -> list[dict[str, Any]]:
    return [f for f in page["findings"] if f["check"] == check]


def test_a_pod_that_is_fit() -> None:
    done = run("doctor", "--engine", "reference", "--agent-port", "29471", "--port", "28000", "--json")
    page = json.loads(done.stdout)
    failed = [f for f in page["findings"] if f["level"] == "fail"]
    assert (done.returncode, page["ok"]) == ((1, False) if failed else (0, True))
    assert not failed, failed
    assert page["identity"]["size"] == 1
    assert findings(page, "settings")[0]["level"] == "ok"


def test_a_wrong_setting_is_a_finding_and_no_end() -> None:
    done = run("doctor", "--engine", "vllm", "--model", "/no/such/model", "--tp", "3", "--size", "2", "--rank", "1")
    assert done.returncode == 1
    assert "FAIL  identity" in done.stdout and "--rank" in done.stdout
    assert "FAIL  model     /no/such/model does not exist in this pod" in done.stdout
    assert "shm" in done.stdout
    assert "failed" in done.stdout.splitlines()[-1]


def test_what_cannot_be_read_is_a_usage_error() -> None:
    done = run("doctor", "--tp", "many")
    assert done.returncode == 64 and done.stdout == "" and "--tp" in done.stderr


def test_a_worker_whose_leader_is_not_there() -> None:
    done = run("doctor", "--engine", "reference", "--size", "2", "--service", "peers", "--json", env=PODS)
    page = json.loads(done.stdout)
    assert page["identity"] == {
        "group": "ns/llama-0.peers.ns.svc.cluster.local",
        "rank": 1,
        "size": 2,
        "name": "llama-1",
        "source": "statefulset",
    }
    assert findings(page, "leader")[0]["level"] == "fail"
    assert findings(page, "grace")[0]["level"] == "warn"
    set_by = {v["name"]: v["set_by"] for v in page["variables"]}
    assert set_by["POD_IP"] == "user"


def test_without_options_only_the_pod_is_looked_at() -> None:
    page = json.loads(run("doctor", "--json").stdout)
    assert findings(page, "settings")[0]["level"] == "skipped"
    assert findings(page, "nofile")


def test_without_options_those_of_the_launcher_that_runs_here_are_taken(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/comm").write_text("launcher")
    (tmp_path / "1/cmdline").write_bytes(b"/opt/launcher/launcher\0--engine\0reference\0--grace\0005s\0")
    page = json.loads(run("doctor", "--json", env={"LAUNCHER_PROC": str(tmp_path)}).stdout)
    assert findings(page, "grace")[0]["what"].startswith("--grace 5")
    assert findings(page, "settings")[0]["level"] == "ok"


def test_plan_lists_every_variable_with_its_setter() -> None:
    args = ("plan", "--engine", "vllm", "--model", "m", "--size", "2", "--tp", "2", "--gpus-per-pod", "1", "--json")
    done = run(*args, "--backend", "mp", "--engine-version", "0.33.0", env={"NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_1"})
    by_name = {v["name"]: v for v in json.loads(done.stdout)["variables"]}
    assert by_name["NCCL_DEBUG"]["set_by"] == "user"
    assert by_name["HF_TOKEN"]["value"] == "***" and "hf_1" not in done.stdout
    assert by_name["NCCL_SOCKET_IFNAME"]["set_by"] == "launcher"
    assert all(v["why"] for v in by_name.values())


def test_plan_in_a_pod_shows_the_real_values() -> None:
    who = ("--size", "2", "--rank", "1", "--leader", "127.0.9.1", "--address", "127.0.9.2")
    done = run("plan", "--engine", "reference", *who, "--json")
    by_name = {v["name"]: v for v in json.loads(done.stdout)["variables"]}
    assert by_name["GLOO_SOCKET_IFNAME"]["value"] == "lo"
    assert by_name["VLLM_HOST_IP"]["value"] == "127.0.9.2"


@pytest.mark.parametrize(
    ("args", "run"),
    [
        (["doctor"], False),
        (["doctor", "--group"], True),
        (["doctor", "--engine", "vllm", "--collective"], True),
        (["doctor", "--", "--group"], False),
        (["doctor", "--group", "--help"], False),
        (["plan", "--group"], False),
    ],
)
def test_the_groups_checks_are_started_by_the_guard(args: list[str], run: bool) -> None:
    assert is_run(args) is run


def test_the_doctors_engine_is_not_for_people() -> None:
    done = run("plan", "--engine", "doctor")
    assert done.returncode == 64 and "launcher doctor --group" in done.stderr
    assert "doctor" not in run("engines").stdout


def test_the_screen() -> None:
    found = [
        ok("one", "fine"),
        warn("two", "so so", "because", "do"),
        fail("three", "x " * 80, "y", "z"),
        skipped("f", "n"),
    ]
    lines = show.lines(found, 100)
    assert lines[0] == "  ok    one    fine"
    assert lines[1] == "  WARN  two    so so" and lines[2].strip() == "why: because" and lines[3].strip() == "fix: do"
    assert all(len(line) <= 100 for line in lines)
    assert show.verdict(found) == "1 ok, 1 warning, 1 failed, 1 not checked"
    assert show.as_object(found)["ok"] is False
    assert "\x1b[31m" in "".join(show.lines(found, 100, paint=True))


def test_service_links_are_told_once() -> None:
    raw = {"VLLM_PORT": "tcp://1.2.3.4:80", "PATH": os.environ["PATH"]}
    from launcher.identity.service_links import strip

    clean, warnings = strip(raw)
    report = doctor.examine(Settings(engine="reference"), clean, warnings, raw)
    told = [f for f in report.findings if "VLLM_PORT" in f.what]
    assert [(f.check, f.level) for f in told] == [("links", Level.WARN)]
