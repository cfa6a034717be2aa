"""Fixtures of the suite: the cluster or the reason why there is none, a namespace, the table of what was measured."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kubectl import Kubectl, has, why_not
from tests.cluster.options import Options, asked_for, here
from tests.cluster.space import Space

ROW = "row of the table of the cluster"

#: Called with what was measured, the value, and what it should be, where that is known.
Measured = Callable[..., None]


@pytest.fixture(scope="session")
def options() -> Options:
    return here()


@pytest.fixture(scope="session")
def reached() -> Kubectl:
    """kubectl, where it reaches a cluster; else the tests are skipped with the reason."""
    if not asked_for():
        pytest.skip("the cluster is used when asked for: ./run.sh cluster")
    kubectl = Kubectl("default")
    reason = why_not(kubectl)
    if reason:
        pytest.skip(reason)
    return kubectl


@pytest.fixture(scope="session")
def run_name() -> str:
    return f"launcher-cluster-{secrets.token_hex(3)}"


@pytest.fixture
def space(
    request: pytest.FixtureRequest, reached: Kubectl, options: Options, run_name: str, tmp_path: Path
) -> Iterator[Space]:
    """A namespace for this scenario, removed at its end."""
    scenario = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_")).strip("-")
    with Space(f"{run_name}-{scenario}"[:60].rstrip("-"), options, tmp_path / "k8s") as made:
        made.folder.mkdir()
        yield made


@pytest.fixture
def on_nodes(reached: Kubectl, options: Options, space: Space, tmp_path: Path) -> Iterator[Space]:
    """A second namespace whose pods may be privileged, for what only the node can do to a pod."""
    with Space(f"{space.name[:55]}-node", options, tmp_path / "node", level="privileged") as made:
        yield made


@pytest.fixture
def lws(reached: Kubectl) -> None:
    needs(reached, "leaderworkersets.leaderworkerset.x-k8s.io", "LeaderWorkerSet")


@pytest.fixture
def keda(reached: Kubectl) -> None:
    needs(reached, "scaledobjects.keda.sh", "KEDA")


def needs(kubectl: Kubectl, resource: str, name: str) -> None:
    if not has(kubectl, resource):
        pytest.skip(f"{name} is not installed: the cluster has no CRD {resource}")


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """Adds a row to the table at the end. A float is seconds."""

    def add(what: str, value: float | int | str, limit: str = "") -> None:
        record_property(ROW, [what, f"{value:.1f} s" if isinstance(value, float) else str(value), limit])

    return add


def rows(reports: list[Any]) -> list[tuple[str, str, str]]:
    found = (value for report in reports for name, value in report.user_properties if name == ROW)
    return [(str(what), str(value), str(limit)) for what, value, limit in found]


def lines(found: list[tuple[str, str, str]]) -> list[str]:
    wide = [max(len(row[column]) for row in found) for column in range(2)]
    return [f"{what.ljust(wide[0])}  {value.rjust(wide[1])}  {limit}".rstrip() for what, value, limit in found]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    kinds = ("passed", "failed")
    found = rows([r for kind in kinds for r in terminalreporter.getreports(kind) if r.when == "call"])
    if found:
        terminalreporter.section("what was measured on this cluster")
        for line in lines(found):
            terminalreporter.write_line(line)
