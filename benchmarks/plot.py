"""PNG plots. matplotlib is the only thing here that the launcher does not need, so it is imported as late as possible.

Most benchmarks are `boxes`: a panel for each case and measure, in which each contestant has a box over its values
(median, quartiles, whole range) and every single value as a dot. A picture carries the digest of what it shows
(`pictures.py`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pictures import DIGEST, digest
from benchmarks.record import Record, Series, shown
from launcher.errors import ConfigError

COLOURS = ("#3b6ea5", "#c8553d", "#6a994e", "#8d6a9f", "#d4a017", "#555555")
OURS = "launcher"  #: the contestant that has the first colour in every picture
DASHES = ("-", "--", ":")
ROOM = 1.18  #: an axis reaches so far beyond the largest value


def figure_of(rows: int, columns: int, width: float = 4.6, height: float = 3.3) -> tuple[Any, Any]:
    """A figure and its axes as a two-dimensional array. Raises ConfigError where matplotlib is missing."""
    figure, axes = _pyplot().subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    return figure, axes


def save(figure: Any, path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="white", metadata={DIGEST: digest(record), "Software": None})
    _pyplot().close(figure)


def boxes(
    record: Record,
    path: Path,
    wanted: Callable[[Series], bool] = lambda one: True,
    columns: int = 3,
    title: Callable[[Series], str] = lambda one: f"{one.case}: {one.measure}",
) -> None:
    """The plot that fits most benchmarks."""
    panels: dict[tuple[str, str, str], list[Series]] = {}
    for one in record.series:
        if wanted(one):
            panels.setdefault((one.case, one.measure, one.unit), []).append(one)
    columns = min(columns, len(panels))
    figure, axes = figure_of(-(-len(panels) // columns), columns)
    for index, group in enumerate(panels.values()):
        box(axes[index // columns][index % columns], group, title(group[0]))
    for index in range(len(panels), axes.size):
        axes[index // columns][index % columns].axis("off")
    save(figure, path, record)


def box(axis: Any, group: Sequence[Series], title: str) -> None:
    """One panel: a box for each contestant, a dot for each value, the median in figures above."""
    places = range(1, len(group) + 1)
    median = {"color": "black", "linewidth": 1.5}
    drawn = axis.boxplot(
        [one.values for one in group], whis=(0, 100), widths=0.5, patch_artist=True, medianprops=median
    )
    top = max(max(one.values) for one in group) or 1.0
    others = [one.contestant for one in group if one.contestant != OURS]
    for place, patch, one in zip(places, drawn["boxes"], group, strict=True):
        colour = COLOURS[0 if one.contestant == OURS else 1 + others.index(one.contestant) % (len(COLOURS) - 1)]
        patch.set(facecolor=colour, alpha=0.35, edgecolor=colour)
        axis.plot([place] * len(one.values), one.values, "o", color=colour, markersize=3, alpha=0.7)
        axis.text(place, max(one.values) + top * 0.03, shown(one.median), ha="center", va="bottom", fontsize=9)
    names = ["\n".join(textwrap.wrap(one.contestant, 13, break_on_hyphens=False)) for one in group]
    axis.set_xticks(list(places), names, fontsize=8)
    axis.set_xlim(0.4, len(group) + 0.6)
    _dress(axis, title, group[0].unit)
    axis.set_ylim(0, top * ROOM)


def steps(axis: Any, series: Sequence[Series], title: str, groups: Sequence[str]) -> None:
    """Distributions: which share of the values is at most so large. A colour for each contestant, a dash for each of
    ``groups`` (how a case begins)."""
    contestants = list(dict.fromkeys(one.contestant for one in series))
    for one in series:
        ordered = sorted(one.values)
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        group = next(name for name in groups if one.case.startswith(name))
        axis.step(
            [ordered[0], *ordered],
            [0.0, *shares],
            where="post",
            label=f"{group}, {one.contestant}",
            color=COLOURS[contestants.index(one.contestant)],
            linestyle=DASHES[groups.index(group)],
        )
    _dress(axis, title, "share of rounds")
    axis.set_xlabel(series[0].unit if series else "")
    axis.set_xlim(0, max((max(one.values) for one in series), default=1.0) * 1.05)
    axis.set_ylim(0, 1.03)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", alpha=0.3)


def legend_below(axis: Any) -> None:
    """Beneath the axis, where no line is."""
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)


def curve(axis: Any, points: Sequence[tuple[int, Series]], title: str) -> None:
    """A measure over a size; both axes logarithmic, so that a straight line is a power. The band is the whole range."""
    sizes = [size for size, _ in points]
    low, high = [min(one.values) for _, one in points], [max(one.values) for _, one in points]
    axis.fill_between(sizes, low, high, alpha=0.2, color=COLOURS[0])
    axis.plot(sizes, [one.median for _, one in points], "o-", color=COLOURS[0])
    for size, one in (points[0], points[-1]):
        axis.annotate(
            shown(one.median), (size, one.median), (0, 8), textcoords="offset points", ha="center", fontsize=9
        )
    _dress(axis, title, points[0][1].unit)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    axis.minorticks_off()
    axis.set_yticks(*_decades(min(low), max(high)), fontsize=8)
    axis.set_ylim(min(low) / 1.6, max(high) * 2.2)
    axis.set_xlim(sizes[0] / 2.2, sizes[-1] * 1.8)
    axis.set_xlabel("members")
    axis.grid(axis="x", alpha=0.3)


def _decades(low: float, high: float) -> tuple[list[float], list[str]]:
    """Ticks at 1, 2, 3 and 5 of each power of ten around the values, written as plain numbers."""
    ticks = [float(f"{digit}e{power}") for power in range(-4, 5) for digit in (1, 2, 3, 5)]
    inside = [tick for tick in ticks if low / 1.6 <= tick <= high * 2.2]
    return inside, [f"{tick:g}" for tick in inside]


def _dress(axis: Any, title: str, unit: str) -> None:
    axis.set_title("\n".join(textwrap.wrap(title, 44)), fontsize=10)
    axis.set_ylabel(unit, fontsize=9)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(
            "plots need matplotlib", "use ./run.sh bench, or install it: pip install -e '.[bench]'"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
