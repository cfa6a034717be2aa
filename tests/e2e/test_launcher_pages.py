"""/livez /readyz /metrics /status on every pod, from the first second to the last, and `launcher status`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.model import PHASES
from tests.e2e.group import LAUNCHER, Group, fetch, running

PAGE = Path(__file__).parents[2] / "docs" / "status.md"
NAME, LABEL = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\n"])*"'
SAMPLE = re.compile(rf"^({NAME})(?:\{{(?:{LABEL},?)*\}})? (-?[0-9.e+-]+|NaN|[+-]Inf)$")


def check_metrics(text: str) -> dict[str, float]:
    """Hold a page to the text format 0.0.4 and to the naming rules; values by sample."""
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in helped, f"{name} twice"
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name in helped and name not in kinds
            assert kind in ("gauge", "counter", "summary")
            assert name.endswith("_total") is (kind == "counter"), name
            kinds[name] = kind
        else:
            match = SAMPLE.match(line)
            assert match, line
            assert match[1] in kinds or kinds.get(re.sub("_(sum|count)$", "", match[1])) == "summary", line
            sample = line.rpartition(" ")[0]
            assert sample not in found, f"{sample} twice"
            found[sample] = float(match[2])
    assert all(name.startswith("launcher_") for name in kinds)
    return found


def documented(heading: str) -> tuple[set[str], set[str]]:
    """The fields that docs/status.md lists under a heading: those that are there always, and those only sometimes."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    always: set[str] = set()
    sometimes: set[str] = set()
    for names, meaning in re.findall(r"^\| (`[^|]*`) \| ?(.*?) ?\|$", section, re.M):
        (sometimes if meaning.startswith("only ") else always).update(re.findall(r"`(\w+)`", names))
    assert always, heading
    return always, sometimes


def hold_to_its_page(status: dict[str, Any]) -> None:
    """A field that was added or lost is one that docs/status.md does not know, or knows alone."""
    shown = {
        "The pod and its group": [status],
        "`first_failure`, `latest_cause`, and each of `failures`": [
            f for f in (status["first_failure"], status["latest_cause"]) if f
        ]
        + status.get("failures", []),
        "Each of `members`": status["members"],
        "`progress` of a member": [row["progress"] for row in status["members"] if row["progress"] is not None],
        "Each of `starts`": status["starts"],
        "Each of `ranks` of a start": [one for start in status["starts"] for one in start["ranks"]],
        "Each of `timeline`": status["timeline"],
        "Each of `findings`": status["findings"],
    }
    for heading, objects in shown.items():
        always, sometimes = documented(heading)
        for one in objects:
            assert always <= one.keys() <= always | sometimes, (heading, one.keys() ^ (always | sometimes))
    assert ("failures" in status) == (status["rank"] == 0)
    assert all("served_s" in f for f in status.get("failures", []))
    assert {entry["phase"] for entry in status["timeline"]} <= documented("Phases")[0]
    assert documented("Phases")[0] == set(PHASES)


def check_status(group: Group, rank: int) -> None:
    status = group.status(rank)
    hold_to_its_page(status)
    assert (status["rank"], status["size"]) == (rank, group.size)
    assert status["timeline"][-1]["phase"] == status["phase"]


def look(group: Group, phase: str, ready: bool, *ranks: int) -> None:
    """All pages of these ranks in a phase that lasts."""
    for rank in ranks or range(group.size):
        group.until_phase(phase, rank)
        assert group.ask(rank, "/livez").status == 200
        page = group.ask(rank, "/readyz")
        assert (page.status == 200) is ready, page
        metrics = check_metrics(group.ask(rank, "/metrics").text)
        assert metrics[f'launcher_phase{{phase="{phase}"}}'] == 1
        assert sum(v for k, v in metrics.items() if k.startswith("launcher_phase{")) == 1
        assert metrics["launcher_ready"] == ready
        assert metrics["launcher_rank"] == rank
        check_status(group, rank)


def test_every_page_in_every_phase(tmp_path: Path) -> None:
    slow = ("--startup-seconds", "3", "--token-seconds", "0.5")
    args = ("--drain-settle", "60", "--lease", "3", "--restart-backoff", "0.3", "--stop-grace", "60")
    with running(tmp_path, 2, *args, "--", *slow, start=False) as group:
        group.start(1)
        look(group, "seeking", False, 1)
        group.start(0)
        group.until("engines start", lambda: len(group.engines()) == 4)
        look(group, "starting", False, 1)
        group.until_serving()
        look(group, "running", True)
        metrics = check_metrics(group.ask(0, "/metrics").text)
        assert metrics["launcher_members_present"] == metrics["launcher_group_size"] == 2
        assert metrics["launcher_epoch"] == 1
        os.kill(group.root(0), signal.SIGKILL)
        group.until_serving(after=1)
        for rank in range(2):
            status = group.status(rank)
            hold_to_its_page(status)
            failure = status["first_failure"]
            assert (failure["epoch"], failure["rank"], status["members_present"]) == (1, 0, 2)
            at = datetime.fromisoformat(failure["at"].replace("Z", "+00:00"))
            assert 0 <= failure["age_s"] < 60 and abs((datetime.now(timezone.utc) - at).total_seconds()) < 60
        metrics = check_metrics(group.ask(1, "/metrics").text)
        assert metrics["launcher_restarts_total"] == 1
        metrics = check_metrics(group.ask(0, "/metrics").text)
        assert metrics['launcher_failures_total{cause="signalled"}'] == 1
        assert metrics["launcher_detection_seconds_count"] == metrics["launcher_stop_seconds_count"] == 1
        group.terminate(1)
        look(group, "draining", False)
        group.terminate(1)
        assert group.code(1) == 0
        look(group, "gathering", False, 0)
        metrics = check_metrics(group.ask(0, "/metrics").text)
        assert metrics['launcher_drains_total{outcome="hurried"}'] == metrics["launcher_drain_seconds_count"] == 1
        assert metrics["launcher_detection_seconds_count"] == 1  # a drain is no failure


def test_the_engines_health_is_the_leaders_readiness(tmp_path: Path) -> None:
    args = ("--health-interval", "0.1", "--health-failures", "1000")
    with running(tmp_path, 2, *args, "--", "--unhealthy-after", "1") as group:
        group.until_phase("running")
        group.until("not ready", lambda: group.ask(0, "/readyz").status == 503)
        assert "HTTP 503" in group.ask(0, "/readyz").text
        assert group.ask(1, "/readyz").status == 200
        assert group.phase(0) == "running"


def test_workers_that_are_never_ready(tmp_path: Path) -> None:
    with running(tmp_path, 2, "--worker-ready", "never") as group:
        group.until_phase("running")
        group.until("ready", lambda: group.ask(0, "/readyz").status == 200)
        assert group.ask(1, "/readyz").status == 503


def test_what_is_not_there(tmp_path: Path) -> None:
    with running(tmp_path, 1) as group:
        group.until_serving()
        assert group.ask(0, "/nothing").status == 404
        assert group.ask(0, "/status?x=1").status == 200
        assert fetch(group.addresses[0], group.agent_port, "/livez", timeout=5, **{"X-Long": "x" * 5000}).status == 200
        shown = subprocess.run(
            [str(LAUNCHER), "status", "--url", f"http://{group.addresses[0]}:{group.agent_port}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        assert "running" in shown
        as_json = subprocess.run(
            [str(LAUNCHER), "status", "--json", "--url", f"http://{group.addresses[0]}:{group.agent_port}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        assert json.loads(as_json)["phase"] == "running"
