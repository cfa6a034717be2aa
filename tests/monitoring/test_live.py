"""A real Prometheus scrapes a real group through a failure and a drain: no query of the dashboard is empty, and every
series that an alert asks for exists."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.model import PHASES
from tests.e2e.group import Group, running, until
from tests.manifests import K8S
from tests.monitoring import prometheus
from tests.monitoring.prometheus import Prometheus
from tests.monitoring.test_rules import alerts

DASHBOARD = json.loads((K8S / "components" / "monitoring" / "dashboard.json").read_text())
VARIABLES = {"$namespace": "inference", "$group": "llama|sglang"}
#: what the engines' own pages have (vLLM 0.32, SGLang 0.5.23), for the panels that show it
ENGINES = """\
vllm:num_requests_running{model_name="m"} 1
vllm:num_requests_waiting{model_name="m"} 0
vllm:kv_cache_usage_perc{model_name="m"} 0.25
sglang:num_running_reqs{model_name="m"} 1
sglang:num_queue_reqs{model_name="m"} 0
sglang:token_usage{model_name="m"} 0.5
"""


def queries() -> dict[str, list[str]]:
    """The dashboard's expressions by panel, with its variables replaced as Grafana would."""
    found = {}
    for panel in DASHBOARD["panels"]:
        expressions = [target["expr"] for target in panel.get("targets", [])]
        for name, value in VARIABLES.items():
            expressions = [expression.replace(name, value) for expression in expressions]
        if expressions:
            found[panel["title"]] = expressions
    return found


def test_every_panel_says_what_it_shows() -> None:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert len(panel["description"]) > 20, panel["title"]
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_the_timeline_names_every_phase() -> None:
    panel = next(panel for panel in DASHBOARD["panels"] if panel["title"] == "Phase")
    numbers = dict(re.findall(r'(\d+) \* \(launcher_phase\{phase="(\w+)"', panel["targets"][0]["expr"]))
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    assert numbers == {number: shown["text"] for number, shown in mapping["options"].items()}
    assert sorted(numbers.values()) == sorted(PHASES)


def test_groups_that_serve_are_counted_down_to_0(tmp_path: Path) -> None:
    if reason := prometheus.why_not():
        pytest.skip(reason)
    series = []
    for name, ready in (("llama", "0x5 1x5 0x5"), ("sglang", "1x5 1x5 0x5")):
        for rank in range(2):
            labels = f'{{namespace="inference",inference_group="{name}",pod="{name}-{rank}"}}'
            series.append({"series": f"launcher_ready{labels}", "values": ready})
            series.append({"series": f"launcher_rank{labels}", "values": f"{rank}x20"})
    expected = {"2m": (1, 1), "8m": (2, 0), "14m": (0, 2)}
    panels = ("Groups that serve", "Groups that do not serve")
    asked = [
        {"expr": queries()[panel][0], "eval_time": at, "exp_samples": [{"labels": "{}", "value": counts[number]}]}
        for at, counts in expected.items()
        for number, panel in enumerate(panels)
    ]
    scene = {
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}],
    }
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(scene))
    prometheus.promtool("test", "rules", str(tmp_path / "scene.yaml"))


@pytest.mark.prometheus
def test_no_query_is_empty_and_no_alert_asks_in_vain(tmp_path: Path) -> None:
    if reason := prometheus.why_not():
        pytest.skip(reason)
    with running(tmp_path, 2) as group, engine_page() as page:
        launchers = [
            {
                "targets": [f"{group.addresses[rank]}:{group.agent_port}"],
                "labels": {
                    "namespace": "inference",
                    "inference_group": "llama",
                    "pod": f"llama-{rank}",
                    "endpoint": "agent",
                },
            }
            for rank in range(2)
        ]
        engines = [
            {"targets": [page], "labels": {"namespace": "inference", "inference_group": "sglang", "pod": "sglang-0"}}
        ]
        with prometheus.serving(tmp_path, {"launcher": launchers, "engine": engines}, interval="2s") as server:
            live_through_a_failure_and_a_drain(group, server)
            empty = until_all_answer(server)
            assert not empty, f"no series for {empty}\n{group.words()}"
            for selector in sorted(selectors()):
                assert server.query(selector), f"an alert asks for {selector}, which nothing exports"
            assert [value for _, value in server.query(queries()["Groups that serve"][0])] == [1]


def live_through_a_failure_and_a_drain(group: Group, server: Prometheus) -> None:
    group.until_serving()
    scraped(server, 'launcher_failures_total{cause="signalled"} == 0')
    before = group.epoch()
    os.kill(group.root(1), signal.SIGKILL)
    group.until_serving(after=before)
    scraped(server, 'sum(launcher_failures_total{pod="llama-0"}) == 1')
    before = group.epoch()
    group.terminate(1)
    assert group.code(1) == 0
    scraped(server, 'sum(launcher_drains_total{pod="llama-0"}) == 1')
    group.restart(1)
    group.until_serving(after=before)
    scraped(server, "sum(launcher_ready) == 2")


def scraped(server: Prometheus, condition: str) -> None:
    until(f"Prometheus has scraped {condition}", lambda: server.query(condition))


def until_all_answer(server: Prometheus) -> list[str]:
    """The expressions that stay without a series; a rate needs two scrapes."""
    expressions = [expression for panel in queries().values() for expression in panel]

    def none_is_empty() -> bool:
        return all(server.query(expression) for expression in expressions)

    try:
        until("every query has a series", none_is_empty)
    except AssertionError:
        return [expression for expression in expressions if not server.query(expression)]
    return []


def selectors() -> set[str]:
    """The series that the alerts name, with their labels."""
    expressions = " ".join(str(alert["expr"]) for alert in alerts())
    return set(re.findall(r"\b(?:launcher_\w+|up)(?:\{[^}]+\})?", expressions))


@contextmanager
def engine_page() -> Iterator[str]:
    """An address that serves ENGINES."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ENGINES.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
