"""What benchmarks make of their measurements; and that they say in words what cannot be done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pictures
from benchmarks.overhead import by_package
from benchmarks.record import ROOT, Budget, Record
from benchmarks.rounds import alternate


def _record() -> Record:
    record = Record("overhead")
    record.add("start", "time", "ms", "python", 10, 20, 30)
    record.add("start", "time", "ms", "launcher", 100, 130, 120)
    return record


def test_contestants_alternate_and_nobody_is_always_first() -> None:
    assert list(alternate(["a", "b", "c"], 3)) == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_ratios_are_of_medians() -> None:
    record = _record()
    launcher = record.find("start", "time", "launcher")
    assert launcher is not None
    assert record.ratio(launcher, "python") == 6.0
    assert "6.00" in record.table("python").splitlines()[-1]


def test_quantiles() -> None:
    record = Record("x")
    record.add("c", "m", "s", "w", *range(1, 102))
    one = record.find("c", "m", "w")
    assert one is not None
    assert (one.median, one.quantile(0.25), one.quantile(0.95), one.statistic("max")) == (51, 26, 96, 101)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget("start", "start", "time", "launcher", 10, against="python"), "within  start: 6.00 x, budget 10.0 x"),
        (Budget("start", "start", "time", "launcher", 5, against="python"), "MISSED  start: 6.00 x, budget 5.00 x"),
        (Budget("start", "start", "time", "launcher", 125, statistic="max"), "MISSED  start: 130, budget 125"),
        (Budget("start", "other", "time", "launcher", 1), "not measured  start"),
    ],
)
def test_verdicts(budget: Budget, words: str) -> None:
    assert str(_record().judge([budget])[0]) == words


def test_rounds_of_two_runs_are_merged(tmp_path: Path) -> None:
    file = tmp_path / "o.json"
    first = _record()
    first.begin("first")
    first.save(file)
    again = Record.load(file, "overhead")
    again.begin("second")
    again.add("start", "time", "ms", "python", 40)
    again.save(file)
    merged = Record.load(file, "overhead")
    assert [run.command for run in merged.runs] == ["first", "second"]
    python = merged.find("start", "time", "python")
    assert python is not None
    assert python.values == [10, 20, 30, 40]
    with pytest.raises(ValueError, match="holds overhead, not scale"):
        Record.load(file, "scale")


def test_import_times_by_package() -> None:
    text = (
        "import time: self [us] | cumulative | imported package\nimport time:  5 |  9 |   a.b\nimport time: 7 | 7 | a\n"
    )
    assert by_package(text) == {"a": 12}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["overhead", "--only", "nonsense"], "--only nonsense is no case of this benchmark"),
        (["overhead", "--append"], "--append and --show need --json"),
        (["overhead", "--show", "--json", "/nowhere"], "--json /nowhere cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 64
    assert words in done.stderr


def test_every_result_that_is_committed_can_be_shown() -> None:
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        record = Record.load(file, file.stem)
        assert record.runs
        assert record.series, file


def test_every_picture_shows_the_result_that_is_committed() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    results = pictures.results()
    for record in results:
        picture = pictures.PICTURES / f"{record.benchmark}.png"
        assert pictures.shown_by(picture) == pictures.digest(record), f"{picture.name}: ./run.sh bench draw"
        assert f"](pictures/{picture.name})" in readme
    assert {p.stem for p in pictures.PICTURES.iterdir()} == {record.benchmark for record in results}


def test_a_picture_of_other_values_is_told_apart(tmp_path: Path) -> None:
    record = _record()
    before = pictures.digest(record)
    record.add("start", "time", "ms", "launcher", 140)
    assert pictures.digest(record) != before
    (tmp_path / "none.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xaeB`\x82")
    assert pictures.shown_by(tmp_path / "none.png") == pictures.shown_by(tmp_path / "missing.png") == ""
