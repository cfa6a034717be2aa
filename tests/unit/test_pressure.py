"""A machine that is starved of CPU: what is read of it, and what it does to deadlines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.node.pressure import MOST_STRETCH, Pressure

CPUS = len(os.sched_getaffinity(0))


def proc(folder: Path, load: float, waiting: float | None = None, running: int = 1) -> str:
    (folder / "loadavg").write_text(f"{load:.2f} 1.00 1.00 {running}/500 12345\n")
    (folder / "pressure").mkdir(exist_ok=True)
    if waiting is not None:
        (folder / "pressure" / "cpu").write_text(f"some avg10={waiting:.2f} avg60=0.00 avg300=0.00 total=1\n")
    return str(folder)


@pytest.mark.parametrize(
    ("load", "running", "waiting", "stretch"),
    [
        (0.5, 1, 0.0, 1.0),
        (2.0 * CPUS, 1, 90.0, 2.0),
        (1.0, 3 * CPUS, 90.0, 3.0),  # the average of a minute comes late
        (100.0 * CPUS, 1, 99.0, MOST_STRETCH),
        (3.0 * CPUS, 1, 5.0, 1.0),  # they wait for disks
        (3.0 * CPUS, 1, None, 3.0),  # a kernel that does not measure the pressure
    ],
)
def test_how_much_longer_deadlines_are(
    tmp_path: Path, load: float, running: int, waiting: float | None, stretch: float
) -> None:
    pressure = Pressure(100.0, proc(tmp_path, load, waiting, running))
    assert pressure.clock(100.0) == 100.0
    pressure.beat(100.25, 0.25)
    assert pressure.stretch == pytest.approx(stretch)
    assert bool(pressure.words) == (stretch > 1)
    for beat in range(2, 42):
        pressure.beat(100 + beat / 4, 0.25)
    assert pressure.clock(110.5) == pytest.approx(100.25 + 10.25 / stretch, abs=0.01)


@pytest.mark.parametrize("text", ["", "x", "1.0", "a b c d\n", "1.0 1.0 1.0 x/y 1"])
def test_a_sandbox_that_tells_nothing_or_nonsense(tmp_path: Path, text: str) -> None:
    (tmp_path / "loadavg").write_text(text)
    pressure = Pressure(0.0, str(tmp_path))
    pressure.beat(0.25, 0.25)
    assert pressure.stretch == 1 or text == "1.0 1.0 1.0 x/y 1"
    assert Pressure(0.0, str(tmp_path / "nothing")).beat(0.25, 0.25) == 0


def test_time_in_which_we_did_not_run_does_not_count(tmp_path: Path) -> None:
    pressure = Pressure(0.0, proc(tmp_path, 0.0))
    pressure.beat(0.0, 0.25)
    assert pressure.beat(0.25, 0.25) == 0
    assert pressure.beat(12.5, 0.25) == pytest.approx(12.25)
    assert pressure.clock(12.5) == pytest.approx(0.5)
    assert pressure.gaps == 1
    assert pressure.beat(12.75, 0.25) == 0


def test_the_clock_never_goes_back(tmp_path: Path) -> None:
    pressure = Pressure(0.0, proc(tmp_path, 9.0 * CPUS, 99.0))
    last, now = 0.0, 0.0
    for step in (0.25, 0.1, 3.0, 0.25, 0.0, 7.5, 0.25):
        for part in (0.3, 0.9, 1.0):
            assert pressure.clock(now + step * part) >= last - 1e-9
            last = pressure.clock(now + step * part)
        now += step
        pressure.beat(now, 0.25)
        assert pressure.clock(now) >= last - 1e-9
