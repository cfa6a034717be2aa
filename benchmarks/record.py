"""Measurements of one benchmark: kept one by one, saved as JSON, merged, and shown as a table with ratios and budgets.

Nothing is measured here. A figure is found by four words: case ("size 2"), measure ("start to engine exec"), unit and
contestant ("launcher"). Ratios are of medians within one case and measure.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import launcher

ROOT = Path(launcher.__file__).resolve().parent.parent
"""The checkout whose launcher is measured."""
Statistic = Literal["median", "p95", "max"]


@dataclass
class Series:
    """All values of one contestant for one measure in one case."""

    case: str
    measure: str
    unit: str
    contestant: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def quantile(self, q: float) -> float:
        """By rank, between neighbours; ``q`` from 0 to 1."""
        ordered = sorted(self.values)
        at = q * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (at - low)

    def statistic(self, name: Statistic) -> float:
        return {"median": self.median, "p95": self.quantile(0.95), "max": max(self.values)}[name]


@dataclass(frozen=True)
class Budget:
    """A promise of DESIGN: a statistic of a series, or its ratio to another contestant, is at most ``limit``."""

    words: str
    case: str
    measure: str
    contestant: str
    limit: float
    against: str | None = None
    statistic: Statistic = "median"


@dataclass(frozen=True)
class Verdict:
    budget: Budget
    value: float | None  #: None: not measured

    @property
    def kept(self) -> bool:
        return self.value is not None and self.value <= self.budget.limit

    def __str__(self) -> str:
        if self.value is None:
            return f"not measured  {self.budget.words}"
        sign = " x" if self.budget.against else ""
        word = "within" if self.kept else "MISSED"
        return f"{word}  {self.budget.words}: {shown(self.value)}{sign}, budget {shown(self.budget.limit)}{sign}"


@dataclass
class Run:
    """One call of a benchmark that added values."""

    date: str
    command: str
    revision: str
    machine: str


class Record:
    """Everything one benchmark has measured, in one or several runs."""

    def __init__(self, benchmark: str, runs: Iterable[Run] = (), series: Iterable[Series] = ()) -> None:
        self.benchmark = benchmark
        self.runs = list(runs)
        self._series = {(s.case, s.measure, s.contestant): s for s in series}

    @property
    def series(self) -> list[Series]:
        return [s for s in self._series.values() if s.values]

    def add(self, case: str, measure: str, unit: str, contestant: str, *values: float) -> None:
        """Keep one measurement, or several."""
        key = (case, measure, contestant)
        found = self._series.setdefault(key, Series(case, measure, unit, contestant))
        found.values += [float(f"{value:.6g}") for value in values]

    def find(self, case: str, measure: str, contestant: str) -> Series | None:
        found = self._series.get((case, measure, contestant))
        return found if found is not None and found.values else None

    def ratio(self, one: Series, floor: str) -> float | None:
        """A series' median over that of the contestant ``floor`` in the same case and measure."""
        other = self.find(one.case, one.measure, floor)
        return None if other is None or not other.median else one.median / other.median

    def judge(self, budgets: Sequence[Budget]) -> list[Verdict]:
        return [Verdict(b, self._value(b)) for b in budgets]

    def _value(self, budget: Budget) -> float | None:
        one = self.find(budget.case, budget.measure, budget.contestant)
        if one is None:
            return None
        if budget.against is not None:
            return self.ratio(one, budget.against)
        return one.statistic(budget.statistic)

    # ------------------------------------------------------------------------------------------------------ JSON

    def begin(self, command: str) -> None:
        """Note where and when the values come from that are added from now on."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.runs.append(Run(now, command, _revision(), machine()))

    def save(self, path: Path) -> None:
        body = {
            "benchmark": self.benchmark,
            "runs": [asdict(run) for run in self.runs],
            "series": [asdict(one) for one in self.series],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, path)

    @classmethod
    def load(cls, path: Path, benchmark: str) -> Record:
        """Raises ValueError for a file of another benchmark, OSError."""
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.get("benchmark") != benchmark:
            raise ValueError(f"{path} holds {body.get('benchmark')}, not {benchmark}")
        return cls(benchmark, [Run(**run) for run in body["runs"]], [Series(**one) for one in body["series"]])

    # ----------------------------------------------------------------------------------------------------- table

    def table(self, floor: str | None) -> str:
        """Rows by case and measure, contestants side by side; ``floor`` is what ratios are against."""
        head = ("case", "measure", "contestant", "n", "median", "min", "p25", "p75", "p95", "max", "ratio")
        rows: list[tuple[str, ...]] = [head]
        before: tuple[str, str] | None = None
        for one in self._ordered():
            place = (one.case, f"{one.measure} [{one.unit}]")
            ratio = self.ratio(one, floor) if floor else None
            figures = (one.median, min(one.values), *(one.quantile(q) for q in (0.25, 0.75, 0.95)), max(one.values))
            rows.append(
                (
                    *(place if place != before else ("", "")),
                    one.contestant,
                    str(len(one.values)),
                    *(shown(figure) for figure in figures),
                    "" if ratio is None else f"{ratio:.2f}",
                )
            )
            before = place
        return aligned(rows)

    def _ordered(self) -> list[Series]:
        """In the order of first measurement, but what belongs side by side together."""
        groups: dict[tuple[str, str], list[Series]] = {}
        for one in self.series:
            groups.setdefault((one.case, one.measure), []).append(one)
        return [one for group in groups.values() for one in group]


def shown(value: float) -> str:
    """Three digits that mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def aligned(rows: Sequence[Sequence[str]], left: int = 3) -> str:
    """Columns, the first ``left`` to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def machine() -> str:
    """Enough to know whether two figures may be compared; no names of machines."""
    model = "unknown CPU"
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{cores} cores of {model}, {gib:.0f} GiB, Linux {platform.release()}, "
        f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    )


def _revision() -> str:
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"
