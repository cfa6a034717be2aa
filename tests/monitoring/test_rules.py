"""The alert rules through promtool, and each alert's entry in docs/runbook.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import K8S, ROOT
from tests.monitoring import prometheus

RULES = K8S / "components" / "monitoring" / "rules.yaml"
SCENES = Path(__file__).with_name("rules.test.yaml")

needs_promtool = pytest.mark.skipif(prometheus.why_not() is not None, reason=str(prometheus.why_not()))


def spec() -> dict[str, Any]:
    """What Prometheus itself reads of the PrometheusRule."""
    return dict(yaml.safe_load(RULES.read_text())["spec"])


def alerts() -> list[dict[str, Any]]:
    return [rule for group in spec()["groups"] for rule in group["rules"]]


@needs_promtool
def test_the_rules_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec()))
    shutil.copy(SCENES, tmp_path)
    said = prometheus.promtool("check", "rules", str(tmp_path / "rules.yaml"))
    assert f"{len(alerts())} rules found" in said
    prometheus.promtool("test", "rules", str(tmp_path / SCENES.name))


def test_every_alert_has_a_scene_that_fires_and_one_that_does_not() -> None:
    scenes = yaml.safe_load(SCENES.read_text())["tests"]
    tested = [(one["alertname"], bool(one.get("exp_alerts"))) for scene in scenes for one in scene["alert_rule_test"]]
    for alert in alerts():
        assert {fires for name, fires in tested if name == alert["alert"]} == {True, False}, alert["alert"]


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text()
    entries = re.findall(r"^## (Inference\w+)$", page, re.M)
    assert entries == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        entry = page.split(f"## {alert['alert']}\n")[1].split("\n## ")[0]
        assert {"summary", "description", "runbook"} == set(alert["annotations"])
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("warning", "critical")
        for part in ("**Means.**", "**Look.**", "**Do.**"):
            assert part in entry, f"{alert['alert']} lacks {part}"
