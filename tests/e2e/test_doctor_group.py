"""`launcher doctor --group` and the preflight of a start, as real processes on loopback addresses.

The ranks share one machine; what one of them shall see otherwise stands in a /proc of its own (LAUNCHER_PROC).
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.group import LAUNCHER, Group, until

SECONDS = 90.0


@dataclass
class Ended:
    """How one rank's doctor ended."""

    code: int
    output: str
    log: str


def doctors(group: Group, *args: str, env: dict[int, dict[str, str]] | None = None) -> list[Ended]:
    """Run a doctor on each rank of a group that was not started."""
    ports = ("--port", group.port, "--agent-port", group.agent_port, "--group-port", group.group_port)
    command = [
        str(LAUNCHER),
        "doctor",
        "--engine",
        "reference",
        *map(str, ports),
        "--master-port",
        str(group.peer_port),
    ]
    started = [
        subprocess.Popen(
            [*command, *args],
            env={**group.environ(rank), **(env or {}).get(rank, {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(group.size)
    ]
    spoken = [process.communicate(timeout=SECONDS) for process in started]
    return [Ended(p.returncode, *words) for p, words in zip(started, spoken, strict=True)]


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path, 2, start=False, group_id="e2e/doctor")


def driver(folder: Path, version: str) -> dict[str, str]:
    """A /proc with an NVIDIA driver."""
    (folder / "driver/nvidia").mkdir(parents=True)
    text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Thu Oct 19 2023\n"
    (folder / "driver/nvidia/version").write_text(text)
    return {"LAUNCHER_PROC": str(folder)}


def checked(ended: list[Ended]) -> dict[str, Any]:
    try:
        page = json.loads(ended[0].output)
    except ValueError:
        raise AssertionError("\n".join(f"--- rank {i}: {e}" for i, e in enumerate(ended))) from None
    assert isinstance(page, dict)
    return page


def test_a_group_that_is_fit(group: Group) -> None:
    ended = doctors(group, "--group", "--json")
    page = checked(ended)
    assert [e.code for e in ended] == [0, 0], (page, ended)
    assert page["ok"] and [r["address"] for r in page["ranks"]] == group.addresses
    levels = {f["check"]: f["level"] for f in page["ranks"][1]["findings"]}
    assert {levels[name] for name in ("to leader", "from leader", "clock", "ports")} == {"ok"}
    assert page["ranks"][1]["clock_ms"] is not None
    assert any(v["name"] == "GLOO_SOCKET_IFNAME" and v["set_by"] == "launcher" for v in page["ranks"][0]["variables"])
    assert ended[1].output == ""


def test_a_group_with_an_odd_one(group: Group, tmp_path: Path) -> None:
    """A warning about the driver, and a failure on one rank, which is every rank's exit code."""
    env = {
        0: driver(tmp_path / "a", "570.86.15"),
        1: driver(tmp_path / "b", "535.129.03") | {"LAUNCHER_GRACE": "1"},
    }
    ended = doctors(group, "--group", env=env)
    assert [e.code for e in ended] == [1, 1], ended
    screen = ended[0].output
    assert "driver: rank 1 has 535.129.03; the other has 570.86.15" in screen, screen
    assert "rank 1: LAUNCHER_GRACE=1" in screen.replace("\n", " "), screen
    assert "1 warning, 1 failed" in screen.splitlines()[-1], screen


def test_a_collective_without_torch_is_skipped(group: Group) -> None:
    ended = doctors(group, "--collective", "--json")
    page = checked(ended)
    assert [e.code for e in ended] == [0, 0], ended
    told = [f for f in page["ranks"][0]["findings"] if f["check"] == "collective"]
    assert [f["level"] for f in told] == ["skipped"] and "has no torch" in told[0]["what"]


def test_the_preflight_of_a_start_names_the_odd_one_out(tmp_path: Path) -> None:
    env = driver(tmp_path / "a", "570.86.15"), driver(tmp_path / "b", "535.129.03")
    group = Group(tmp_path, 2, start=False, group_id="e2e/preflight")
    for rank in range(2):
        group.start(rank, "--drain-settle", "0", env=env[rank])
    try:
        group.until_serving()
        group.until_said("the pods differ: driver: rank 1 has 535.129.03; the other has 570.86.15", 0)
        status = group.status(0)
        assert [m["facts"]["driver"] for m in status["members"]] == ["570.86.15", "535.129.03"]
        assert any("535.129.03" in f["what"] for f in status["findings"])
        assert any(f["check"] == "shm" for f in group.status(1)["findings"])
        for rank in range(2):
            asked = doctors(group, "--group")[rank]
            assert asked.code == 0 and "what the running launchers found" in asked.output, asked
            assert "driver: rank 1 has 535.129.03" in asked.output
    finally:
        group.close()


def test_a_start_without_preflight(tmp_path: Path) -> None:
    group = Group(tmp_path, 2, "--preflight", "off", "--drain-settle", "0")
    try:
        group.until_serving()
        status = group.status(0)
        assert status["findings"] == [] and not any("facts" in m for m in status["members"])
    finally:
        group.close()


def test_alone_the_engine_goes_first(tmp_path: Path) -> None:
    group = Group(tmp_path, 1, "--grace", "7", "--drain-settle", "5", "--stop-grace", "3")
    try:
        until("findings", lambda: group.status(0).get("findings"), SECONDS, lambda: group.output(0))
        group.until_said("preflight: grace: --grace 7", 0)
    finally:
        group.close()
