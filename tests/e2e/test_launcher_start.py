"""A start that is watched: real processes that read real files, and where the time went when the group serves."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.group import Group, running

FILES, SIZE = 4, 1 << 20
STEPS = ("peers", "preparing", "imports", "weights", "compile", "graphs", "rest")


def model(folder: Path) -> str:
    folder.mkdir()
    for number in range(1, FILES + 1):
        (folder / f"model-{number:05}-of-{FILES:05}.safetensors").write_bytes(bytes(SIZE))
    return str(folder)


def rows(group: Group, rank: int = 0) -> list[dict[str, Any]]:
    """The progress of every rank that has one."""
    return [row["progress"] for row in group.status(rank).get("members", []) if row["progress"] is not None]


def check(row: dict[str, Any]) -> None:
    assert row["stage"] == "engine" and row["step"] in STEPS
    assert row["ratio"] is None or 0 <= row["ratio"] <= 1
    assert row["bytes_read"] is None or 0 < row["bytes_read"] <= FILES * SIZE == row["bytes_total"]
    assert row["seconds"] >= 0 and (row["eta_s"] is None or row["eta_s"] >= 0)


@pytest.mark.parametrize(("by", "quiet"), [("read", "false"), ("mmap", "true")])
def test_a_start_that_takes_its_time(tmp_path: Path, by: str, quiet: str) -> None:
    """With the engine's lines and without them: the kernel's account is enough to see weights being read."""
    slow = ("--load-rate", str(FILES * SIZE // 8), "--load-by", by, "--startup-quiet", quiet)
    folder = model(tmp_path / "model")
    with running(
        tmp_path, 2, "--model", folder, "--", *slow, "--compile-seconds", "1", "--graph-seconds", "1"
    ) as group:
        group.until("both ranks load", lambda: all_load(group))
        own = [row for row in rows(group, 1) if row["step"] == "weights"]
        for row in (*rows(group), *own):
            check(row)
        waiting = [row for row in rows(group) if row["gate"].startswith("GET http://")]
        assert not waiting or waiting[0]["gate_answer"] in ("HTTP 503", "connection refused")
        group.until_serving()
        assert rows(group) == []
        (start,) = group.status(0)["starts"]
        assert group.status(1)["starts"] == []
        check_ledger(start, quiet == "false")
        page = group.ask(0, "/metrics").text
        assert "launcher_start_progress_ratio 1" in page
        slowest = next(one for one in start["ranks"] if one["slowest"])
        for step in STEPS:
            (line,) = [
                at for at in page.splitlines() if at.startswith(f'launcher_start_step_seconds_sum{{step="{step}"}}')
            ]
            assert abs(float(line.split()[-1]) - slowest["steps"][step]) < 0.01
        assert "the start took" in group.output(0) and "slowest rank" in group.output(0)


def all_load(group: Group) -> bool:
    found = rows(group)
    return len(found) == 2 and all(row["step"] == "weights" and row["bytes_read"] and row["ratio"] for row in found)


def check_ledger(start: dict[str, Any], lines: bool) -> None:
    assert start["epoch"] == 1
    assert start["ranks"][0]["rank"] == 0 and sum(one["slowest"] for one in start["ranks"]) == 1
    for one in start["ranks"]:
        assert tuple(one["steps"]) == STEPS
        assert abs(sum(one["steps"].values()) - start["seconds"]) <= 0.02 * start["seconds"]
        assert one["steps"]["weights"] >= 1, "it reads for 8 s"
        assert 0 < one["bytes"] <= FILES * SIZE and one["bytes_per_second"] > 0
        if lines:
            assert one["steps"]["compile"] > 0 and one["steps"]["graphs"] > 0


def test_an_engine_that_reads_nothing_has_no_percent(tmp_path: Path) -> None:
    with running(tmp_path, 1, "--", "--startup-seconds", "3") as group:
        group.until("it starts", lambda: any(row["seconds"] >= 1 for row in rows(group)))
        (row,) = rows(group)
        assert (row["step"], row["ratio"], row["bytes_read"], row["bytes_total"]) == ("imports", None, None, None)
        assert row["line"].startswith("reference rank 0: ")
        group.until_serving()
        (start,) = group.status(0)["starts"]
        (only,) = start["ranks"]
        assert (only["rank"], only["slowest"], only["bytes"], only["bytes_per_second"]) == (0, True, None, None)


def test_every_start_has_a_ledger(tmp_path: Path) -> None:
    with running(tmp_path, 2, "--restart-backoff", "0.3") as group:
        group.until_serving()
        os.kill(group.root(1), signal.SIGKILL)
        group.until_serving(after=1)
        starts = group.status(0)["starts"]
        assert [start["epoch"] for start in starts] == [1, 2]
        assert all(
            abs(sum(one["steps"].values()) - s["seconds"]) <= 0.02 * s["seconds"] for s in starts for one in s["ranks"]
        )
