"""docs/timeouts.md against the code: every threshold that ends something is there, with its value."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest

from launcher.cli.options import Seconds
from launcher.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "timeouts.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")][
    1:
]
THRESHOLDS = {re.sub(r"[`]|\s*\(.*", "", row[0]): row for row in ROWS}

#: Settings that are times or counts and end nothing.
END_NOTHING = {
    *("rank", "size", "tp", "pp", "dp", "port", "gpus_per_pod", "ordinal_start"),
    *("group_port", "agent_port", "master_port", "ray_port"),
    *("max_restarts", "restart_window", "restart_backoff", "drain_settle", "health_interval"),
}


def numbers() -> dict[str, float | None]:
    """Every setting whose value is a number, with its default."""
    return {f.name: getattr(Settings(), f.name) for f in fields(Settings) if re.search(r"\b(int|float)\b", str(f.type))}


def test_every_setting_that_is_a_limit_is_in_the_table_with_its_default() -> None:
    for name, default in numbers().items():
        flag = "--" + name.replace("_", "-")
        if name in END_NOTHING:
            assert flag not in THRESHOLDS, f"{flag} is said to end nothing"
            continue
        assert flag in THRESHOLDS, f"{flag} is in no row of docs/timeouts.md: say what it ends, and on what evidence"
        value = THRESHOLDS[flag][1]
        assert (None if value == "none" else _number(value)) == default, flag


def test_a_limit_in_the_table_is_a_setting() -> None:
    known = {"--" + name.replace("_", "-") for name in numbers()}
    assert {name for name in THRESHOLDS if name.startswith("--")} <= known


@pytest.mark.parametrize("name", [name for name in THRESHOLDS if name.isupper()])
def test_a_constant_in_the_table_has_its_value_in_the_code(name: str) -> None:
    found = re.search(r"\(`([\w/]+)\.py`\)", THRESHOLDS[name][0])
    assert found is not None
    module = importlib.import_module(found[1].replace("/", "."))
    assert getattr(module, name) == _number(THRESHOLDS[name][1])


def test_every_row_has_its_evidence() -> None:
    assert len(THRESHOLDS) == len(ROWS) >= 19
    for row in ROWS:
        assert len(row) == 4 and len(row[2].split()) >= 4 and row[3] in ("yes", "no", ""), row


def test_what_the_text_says_of_other_numbers() -> None:
    from launcher.agent import health, verdict
    from launcher.group.lease import Terms
    from launcher.node import pressure

    assert f"{pressure.MOST_STRETCH:g} times at most" in TEXT and f"more than {pressure.WAITING:g} %" in TEXT
    assert f"for {pressure.GAP:g} s or more" in TEXT and f"within {verdict.MOVING_FOR:g} s)" in TEXT
    assert f"longer than {verdict.PROMPT:g} s counts" in TEXT and f"({health.CANARY_LIMIT:g} s where" in TEXT
    terms = Terms(1.0)
    assert f"after {terms.lost_after:g} of it" in TEXT and f"kills after {terms.kill_after:g}" in TEXT


def _number(text: str) -> float:
    return float(Seconds().convert(text.replace(" ", ""), None, None))
