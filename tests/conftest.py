"""What several suites share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

from tests.pods import Cluster, why_not

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job of a shell's background: commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["COLUMNS"] = "120"  # what people see is wrapped to their terminal; in CI there is none

# A busy machine is no failure: what an example does is judged, not how long it waited for a core.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROW = "row of the table of faults"
COLUMNS = ("engine", "fault", "noticed", "old epoch dead", "serving again", "first failure")

#: Called with a cell for each of COLUMNS.
Table = Callable[..., None]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A network of pods; the test is skipped where none can be made."""
    reason = why_not()
    if reason:
        pytest.skip(f"pods cannot be made here: {reason}")
    with Cluster() as made:
        yield made


@pytest.fixture
def table(record_property: Callable[[str, object], None]) -> Table:
    """Adds a row to the table of faults at the end of the session. It goes with the test's report, as xdist's do."""

    def add(*cells: str) -> None:
        assert len(cells) == len(COLUMNS)
        record_property(ROW, list(cells))

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind) if r.when == "call"]
    rows = [tuple(cells) for report in reports for name, cells in report.user_properties if name == ROW]
    if rows:
        terminalreporter.section("what the group survived")
        for line in table_lines(rows):
            terminalreporter.write_line(line)


def table_lines(rows: list[tuple[str, ...]]) -> list[str]:
    """As wide as it must be; the last column as it comes."""
    wide = [max(len(row[column]) for row in [COLUMNS, *rows]) for column in range(len(COLUMNS) - 1)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, wide, strict=False)), row[-1]]) for row in [COLUMNS, *rows]
    ]
