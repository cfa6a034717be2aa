"""The queries of docs/scale-from-zero.md, evaluated by a real Prometheus over what gateways export: 0 asleep, above 0
from the first request until the model serves and while it works, 0 again when nobody asks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import K8S, ROOT
from tests.monitoring import prometheus
from tests.monitoring.prometheus import Prometheus

RECORDINGS = Path(__file__).with_name("recordings")
GATEWAYS = {
    "Envoy Gateway": "envoy-gateway",
    "kgateway": "kgateway",
    "Istio": "istio",
    "HAProxy's ingress controller": "haproxy",
}
WINDOW = 120  #: seconds that a request counts, in each query


def query_of(heading: str) -> str:
    """The query under a heading of the page, as YAML gives it to KEDA."""
    section = (ROOT / "docs" / "scale-from-zero.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    block = re.search(r"(?:^    .+\n)+", section, re.M)
    assert block is not None, heading
    return str(yaml.safe_load(re.sub(r"^    ", "", block[0], flags=re.M))["query"])


@dataclass(frozen=True)
class Recording:
    """Series of a gateway, one value for each scrape; None: the series was not there."""

    interval: int
    parts: Mapping[str, int]
    series: Mapping[str, Sequence[float | None]]

    @classmethod
    def load(cls, name: str) -> Recording:
        body: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text())
        return cls(body["interval"], body["parts"], body["series"])

    def times(self, part: str, since: float) -> list[float]:
        """When the scrapes of a part of the story were."""
        before = sum(list(self.parts.values())[: list(self.parts).index(part)])
        return [since + self.interval * (before + number) for number in range(self.parts[part])]


def open_metrics(series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Samples with their times, for promtool."""
    ordered = sorted(series, key=lambda name: (name.partition("{")[0], name))
    lines = [f"{name} {value} {at:.3f}" for name in ordered for at, value in series[name]]
    return "\n".join([*lines, "# EOF", ""])


def keep(series: Mapping[str, Sequence[tuple[float, float]]], folder: Path) -> None:
    """Write blocks that a Prometheus in this folder finds."""
    (folder / "series.txt").write_text(open_metrics(series))
    prometheus.promtool("tsdb", "create-blocks-from", "openmetrics", str(folder / "series.txt"), str(folder / "data"))


@pytest.fixture(scope="module")
def since() -> float:
    """When the recordings begin."""
    return float(round(time.time()) - 5400)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, since: float) -> Iterator[Prometheus]:
    """One Prometheus that has scraped all four gateways, and a fifth series through an outage of its own."""
    if reason := prometheus.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("prometheus")
    series: dict[str, list[tuple[float, float]]] = {}
    for name in GATEWAYS.values():
        recording = Recording.load(name)
        for key, values in recording.series.items():
            at = [since + recording.interval * number for number in range(len(values))]
            series[key] = [(t, value) for t, value in zip(at, values, strict=True) if value is not None]
    before = [since + 15 * number for number in range(20)]
    after = [since + 2400 + 15 * number for number in range(40)]
    series[OUTAGE] = [(t, 7.0) for t in [*before, *after]]
    keep(series, folder)
    with prometheus.serving(folder) as running:
        yield running


OUTAGE = (
    'istio_requests_total{destination_service_name="other-engine-api",destination_service_namespace="inference",'
    'reporter="source"}'
)


def values(server: Prometheus, query: str, times: Sequence[float]) -> list[float]:
    """The value at each of these times; an answer without a series is an error for KEDA, and one here."""
    found = []
    for at in times:
        samples = server.query(query, at)
        assert len(samples) == 1, f"{len(samples)} series at {at}"
        found.append(samples[0][1])
    return found


@pytest.mark.prometheus
@pytest.mark.parametrize("heading", GATEWAYS)
def test_a_group_is_woken_and_let_sleep(heading: str, server: Prometheus, since: float) -> None:
    recording, query = Recording.load(GATEWAYS[heading]), query_of(heading)
    enough = WINDOW // recording.interval
    asleep = values(server, query, recording.times("asleep", since)[enough:])
    assert asleep and set(asleep) == {0}
    first = recording.times("first request", since)
    awake = values(server, query, [at for at in first if at < first[0] + WINDOW - recording.interval])
    assert min(awake) > 0, "the first request does not wake the group"
    loading = values(server, query, recording.times("loading", since))
    assert min(loading) > 0, "the group would be let sleep while it loads"
    working = values(server, query, recording.times("in flight", since))
    assert min(working) >= 1, "a request in flight does not count"
    idle = recording.times("idle", since)
    over = values(server, query, [at for at in idle if at > idle[0] + WINDOW + recording.interval])
    assert over and set(over) == {0}


@pytest.mark.prometheus
def test_what_people_write_does_not_wake(server: Prometheus, since: float) -> None:
    """The recordings would show a query that stays asleep."""
    gateway, mesh = Recording.load("envoy-gateway"), Recording.load("istio")
    first = gateway.times("first request", since)
    cluster = 'envoy_cluster_upstream_rq_active{envoy_cluster_name=~"httproute/inference/llama-405b/.*"}'
    assert not any(server.query(cluster, at) for at in first)
    active = 'sum(envoy_http_downstream_rq_active{envoy_http_conn_manager_prefix="http-8081"})'
    assert set(values(server, active, first)) == {0}
    born = 'sum(increase(istio_requests_total{destination_service_name="llama-405b-engine-api"}[2m])) or vector(0)'
    assert set(values(server, born, mesh.times("first request", since))) == {0}


@pytest.mark.prometheus
def test_an_outage_of_prometheus_is_no_request(server: Prometheus, since: float) -> None:
    """A series that comes back after half an hour of nothing is not new."""
    query = query_of("Istio").replace("llama-405b-engine-api", "other-engine-api")
    back = [since + 2400 + 15 * number for number in range(40)]
    assert set(values(server, query, back)) == {0}


@pytest.mark.parametrize("heading", GATEWAYS)
def test_a_query_says_no_load_only_where_no_series_is_no_load(heading: str) -> None:
    """Where the series is there before the first request, an answer without one is a misspelt label: KEDA must see."""
    asleep = [values[0] for values in Recording.load(GATEWAYS[heading]).series.values()]
    born_later = all(value is None for value in asleep)
    assert ("vector(0)" in query_of(heading)) == born_later


@pytest.mark.parametrize("example", ["README.md", "examples/serverless-roce/kustomization.yaml"])
def test_an_example_folder_uses_the_query_of_the_page(example: str) -> None:
    patch = (K8S / example).read_text().split("path: /spec/triggers/0/metadata/query\n")[1].split("\n\n")[0]
    assert " ".join(patch.partition(">-")[2].split()) == query_of("Envoy Gateway")
