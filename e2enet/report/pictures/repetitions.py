"""Draw every run's distance from the reference's run of the same fold and seed, in a panel per length of training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from e2enet.report.pictures.rows import Row
from e2enet.report.pictures.style import GREY, INK, RowStyle, house_style, new_figure, wrapped
from e2enet.report.results.row_labels import row_label
from e2enet.report.results.runs import Runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERCENT = 100.0
ROW_HEIGHT, MARGINS = 0.27, 1.0  # inches
LETTERS = 34  # of a row's name
FAR = 6.0  # a row that is so many times as far from the reference as the middle one is not to scale


@dataclass(frozen=True)
class Differences:
    """The runs of one line of the table against its reference's.

    Attributes:
        label: Name of the row.
        style: Its colour and marker.
        steps: Optimizer steps of the training.
        against: Label of the reference's line.
        points: Differences in mean Dice, in points of percent, one per fold and seed that both have.
        spread: Largest difference between seeds of one fold of the reference, in the same unit; NaN with one seed.
    """

    label: str
    style: RowStyle
    steps: int
    against: str
    points: tuple[float, ...]
    spread: float

    @property
    def mean(self) -> float:
        """Mean over the points."""
        return sum(self.points) / len(self.points)


def draw_repetitions(runs: Runs, rows: Sequence[Row], experiment: str | None) -> Figure | None:
    """Draw a line per row and a panel per length and reference, with a point per run; None if nothing was repeated.

    The band is as wide as seeds of the reference differ. Within it a row is no better and no worse than the reference
    might be with another seed. All panels have one scale. A row far outside of it has its mean beside an arrow.
    """
    found = run_differences(runs, rows, experiment)
    panels = sorted(dict.fromkeys((line.steps, line.against) for line in found), key=lambda panel: panel[0])
    if len({steps for steps, _ in panels}) < 2 and all(len(line.points) < 2 for line in found):
        return None
    labels = list(dict.fromkeys(line.label for line in found))
    with house_style():
        figure = new_figure(MARGINS + ROW_HEIGHT * len(labels))
        grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
        grid[0].set_xlim(_scale(found))
        several = len(panels) > len({steps for steps, _ in panels})
        for axes, (steps, against) in zip(grid, panels, strict=True):
            _draw_panel(axes, [line for line in found if (line.steps, line.against) == (steps, against)], labels)
            axes.set_title(f"{steps:,} steps" + (f"\n{wrapped(against, LETTERS, 2)}" if several else ""))
        figure.supxlabel("difference in mean Dice, points", fontsize=10)
        figure.draw_without_rendering()
    return figure


def run_differences(runs: Runs, rows: Sequence[Row], experiment: str | None) -> list[Differences]:
    """Return the lines of the table that share folds and seeds with their reference's, in the table's order.

    A line is called by its row. If the lines of a row differ in more than the length of training, it keeps its label.
    """
    by_label = {row.label: row for row in rows}
    pairs = [(row, by_label.get(row.line.get("against") or "")) for row in rows]
    compared = [(row, other, _steps(runs, row)) for row, other in pairs if other is not None]
    places = [(row.line["row"], steps) for row, _, steps in compared]
    named = len(set(places)) == len(places) and all(name is not None for name, _ in places)
    ablation = runs.ablations.get(experiment or "", {})
    styles: dict[str, RowStyle] = {}
    found = []
    for row, other, steps in compared:
        label = row_label(ablation, row.line["row"]) if named else row.label
        points = _scores(row).sub(_scores(other)).dropna()
        if len(points):
            style = styles.setdefault(label, row.style)
            spread = float(other.line["seed_spread"])
            found.append(Differences(label, style, steps, other.label, tuple(points), spread))
    return found


def _scores(row: Row) -> pd.Series:
    """Return mean Dice in percent by fold and seed. Of runs that repeat a fold and seed the last counts."""
    scored = row.finished.dropna(subset=["dice"]).drop_duplicates(["fold", "seed"], keep="last")
    return PERCENT * scored.set_index(["fold", "seed"])["dice"]


def _steps(runs: Runs, row: Row) -> int:
    """Return the optimizer steps of a row's training; 0 if no run of it has finished."""
    for key in row.finished["key"]:
        training = runs.configs[key]["training"]
        return int(training["epochs"]) * math.ceil(training["steps_per_epoch"] / training["accumulate"])
    return 0


def _scale(found: Sequence[Differences]) -> tuple[float, float]:
    """Return the ends of the axis: all points of the rows that are not far away, the reference and its band."""
    limit = FAR * statistics.median(abs(line.mean) for line in found)
    spreads = [line.spread for line in found if pd.notna(line.spread)]
    near = [point for line in found if abs(line.mean) <= limit for point in line.points]
    shown = [0.0, *near, *spreads, *(-spread for spread in spreads)]
    margin = 0.08 * (max(shown) - min(shown)) or 1.0
    return min(shown) - margin, max(shown) + margin


def _draw_panel(axes: Axes, lines: Sequence[Differences], labels: Sequence[str]) -> None:
    spread = lines[0].spread
    if pd.notna(spread):
        axes.axvspan(-spread, spread, color=GREY, alpha=0.15, lw=0, zorder=0)
    axes.axvline(0, color=INK, lw=1.2, zorder=1)
    low, high = axes.get_xlim()
    for line in lines:
        place, colour = labels.index(line.label), line.style.colour
        if low <= line.mean <= high:
            axes.plot(line.points, [place] * len(line.points), ls="", marker="o", markersize=4, mfc="none", mec=colour)
            axes.plot(line.mean, place, ls="", marker="|", markersize=13, mew=2.4, color=colour, zorder=3)
        else:
            is_left, number = line.mean < low, f"{abs(line.mean):.1f}"
            text = f" ← −{number}" if is_left else f"{number} → "  # noqa: RUF001 - a minus, as on the axis
            edge, side = (low, "left") if is_left else (high, "right")
            axes.text(edge, place, text, ha=side, va="center_baseline", color=colour, fontsize=9.5)
    axes.set_yticks(range(len(labels)), [wrapped(label, LETTERS, 1) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
