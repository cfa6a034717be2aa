"""PNG plots. matplotlib is the only thing here that the launcher does not need, so it is imported as late as possible.

One picture a benchmark: a panel for each case and measure, in which each contestant has a box over its values (median,
quartiles, whole range) and every single value as a dot.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import Record, Series
from launcher.errors import ConfigError

COLOURS = ("#3b6ea5", "#c8553d", "#6a994e", "#8d6a9f", "#d4a017", "#555555")


def figure_of(rows: int, columns: int, width: float = 5.0, height: float = 3.4) -> tuple[Any, Any]:
    """A figure and its axes as a two-dimensional array. Raises ConfigError where matplotlib is missing."""
    figure, axes = _pyplot().subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    _pyplot().close(figure)


def boxes(record: Record, path: Path, wanted: Callable[[Series], bool] = lambda one: True, columns: int = 3) -> None:
    """The plot that fits most benchmarks."""
    panels: dict[tuple[str, str, str], list[Series]] = {}
    for one in record.series:
        if wanted(one):
            panels.setdefault((one.case, one.measure, one.unit), []).append(one)
    columns = min(columns, len(panels))
    figure, axes = figure_of(-(-len(panels) // columns), columns)
    for index, ((case, measure, unit), group) in enumerate(panels.items()):
        box(axes[index // columns][index % columns], group, f"{case}: {measure}", unit)
    for index in range(len(panels), axes.size):
        axes[index // columns][index % columns].axis("off")
    save(figure, path)


def box(axis: Any, group: list[Series], title: str, unit: str) -> None:
    """One panel: a box for each contestant, a dot for each value."""
    drawn = axis.boxplot([one.values for one in group], whis=(0, 100), widths=0.5, patch_artist=True)
    for index, (patch, one) in enumerate(zip(drawn["boxes"], group, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        patch.set(facecolor=colour, alpha=0.35, edgecolor=colour)
        axis.plot([index + 1] * len(one.values), one.values, "o", color=colour, markersize=3, alpha=0.7)
    axis.set_xticks(range(1, len(group) + 1), [one.contestant for one in group], rotation=12, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.set_ylabel(unit)
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", alpha=0.3)


def steps(axis: Any, series: list[Series], title: str, unit: str, labels: list[str]) -> None:
    """Distributions: which share of the values is at most so large."""
    for index, (one, label) in enumerate(zip(series, labels, strict=True)):
        ordered = sorted(one.values)
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        axis.step(
            [ordered[0], *ordered], [0.0, *shares], where="post", label=label, color=COLOURS[index % len(COLOURS)]
        )
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(unit)
    axis.set_ylabel("share of rounds")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("--plot needs matplotlib", "pip install matplotlib, or `pip install -e '.[bench]'`") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
