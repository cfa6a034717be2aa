"""README's table of metrics is the /metrics page of rank 0; docs, dashboard and alert rules name no other metric."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.group.metrics import DrainEnd
from launcher.model import NO_FAILURE, PHASES, CauseKind
from tests.e2e.group import running

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "components" / "monitoring"
METRIC = r"\blauncher_(?!tiny)[a-z_]+"  # launcher_tiny is the package of docs/plugins.md


def documented() -> dict[str, str]:
    """README's table: the type by name. A summary is listed by its two samples."""
    table = (ROOT / "README.md").read_text().split("| metric | type | meaning |\n")[1].split("\n\n")[0]
    found: dict[str, str] = {}
    for names, kind in re.findall(r"^\| (.+?) \| (gauge|counter|summary) \| .+ \|$", table, re.M):
        found.update({name.removesuffix("_sum"): kind for name in re.findall(METRIC, names)})
    assert found
    return found


def labels() -> dict[str, str]:
    """The label that README's table gives a metric."""
    return dict(re.findall(rf"`({METRIC})\{{(\w+)\}}`", (ROOT / "README.md").read_text()))


def test_the_page_has_the_metrics_that_are_documented(tmp_path: Path) -> None:
    with running(tmp_path, 1) as group:
        group.until_serving()
        page = group.ask(0, "/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    assert documented() == kinds
    labelled = dict(re.findall(rf"^({METRIC})(?<!_count)\{{(\w+)=", page, re.M))
    assert labelled == labels()


def test_every_label_is_there_from_the_first_scrape_on(tmp_path: Path) -> None:
    """A series that begins at 1 has no increase: neither a rate nor an alert would show the first failure."""
    with running(tmp_path, 1) as group:
        group.until_serving()
        page = group.ask(0, "/metrics").text
    causes = dict(re.findall(r'^launcher_failures_total\{cause="(\w+)"\} (\S+)$', page, re.M))
    assert causes == {kind.value: "0" for kind in CauseKind if kind not in NO_FAILURE}
    drains = dict(re.findall(r'^launcher_drains_total\{outcome="(\w+)"\} (\S+)$', page, re.M))
    assert drains == {end.value: "0" for end in DrainEnd}
    assert set(re.findall(r'^launcher_phase_seconds_total\{phase="(\w+)"\}', page, re.M)) == set(PHASES)


def test_every_metric_that_is_used_is_documented() -> None:
    places = [*(ROOT / "docs").glob("*.md"), *(ROOT / "k8s").rglob("*.md"), *MONITORING.iterdir(), ROOT / "README.md"]
    known = {name for metric, kind in documented().items() for name in samples(metric, kind)}
    known |= {kind.value for kind in CauseKind}  # a label's value: launcher_died
    for place in places:
        unknown = set(re.findall(METRIC, place.read_text())) - known
        assert not unknown, f"{place.relative_to(ROOT)} names {sorted(unknown)}, which is not on the /metrics page"


def samples(metric: str, kind: str) -> set[str]:
    return {f"{metric}_sum", f"{metric}_count"} if kind == "summary" else {metric}
