"""Draw the Dice of each class, row by row: the mean over cases, their quartiles and every case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2enet.report.pictures.rows import Row
from e2enet.report.pictures.style import GREY, INK, house_style, legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_HEIGHT = 0.21  # inches per row of a class, less if there are many
MAX_HEIGHT, MIN_LINE_HEIGHT = 12.0, 0.12
SHOWN_SHARE = 0.02  # the axis starts where this share of the cases lies to the left


def draw_class_dice(rows: Sequence[Row], cases: pd.DataFrame) -> Figure | None:
    """Draw Dice per class in percent, a line of points per row; None if nothing is scored.

    `cases` are `Runs.cases`. A case counts once, with the mean over the runs that scored it. Classes absent in both
    images are left out, a missed one counts 0. To keep the classes readable, the axis starts near the 2 % quantile of
    the cases, or at the lowest mean if that is lower. The number of cases left of the axis is printed at its start.
    """
    scores = {row.label: _case_means(cases[cases["key"].isin(row.finished["key"])]) for row in rows}
    drawn = [row for row in rows if not scores[row.label].empty]
    if not drawn:
        return None
    every = pd.concat([scores[row.label] for row in drawn])
    names = list(dict.fromkeys(cases.loc[~cases["region"].astype(bool), "name"]))
    names = [name for name in names if name in set(every["name"])]
    lowest = axis_start(every["dice"], min(_class_means(scores[row.label]).min() for row in drawn))
    with house_style():
        lines = len(names) * (len(drawn) + 1)
        line_height = max(min(LINE_HEIGHT, MAX_HEIGHT / lines), MIN_LINE_HEIGHT)
        figure = new_figure(1.25 + line_height * lines)
        axes = figure.subplots()
        for index, name in enumerate(names):
            for place, row in enumerate(drawn):
                table = scores[row.label]
                values = table.loc[table["name"] == name, "dice"].to_numpy()
                _draw_line(axes, index * (len(drawn) + 1) + place, values, row, lowest)
            if index:
                axes.axhline(index * (len(drawn) + 1) - 1, color="#d9dde3", lw=0.7, zorder=0)
        _finish(axes, names, len(drawn), lowest)
        legend_below(figure, [_handle(row) for row in drawn])
        figure.draw_without_rendering()
    return figure


def _case_means(cases: pd.DataFrame) -> pd.DataFrame:
    """Return a line per class and case: name, case, mean dice in percent over the runs that scored it."""
    scored = cases[(~cases["region"].astype(bool)) & cases["dice"].notna()]
    means = scored.groupby(["name", "case"], sort=False)["dice"].mean().reset_index()
    return means.assign(dice=means["dice"].astype(float) * 100)


def _class_means(scores: pd.DataFrame) -> pd.Series:
    return scores.groupby("name")["dice"].mean()


def axis_start(dice: pd.Series, lowest_mean: float) -> float:
    """Return a multiple of 5 percent, at most the lowest mean of a class and 90; 0 instead of less than 30."""
    start = min(math.floor(float(np.quantile(dice, SHOWN_SHARE)) / 5) * 5 - 5, math.floor(lowest_mean / 5) * 5)
    return 0.0 if start < 30 else float(min(start, 90))


def _draw_line(axes: Axes, height: float, values: np.ndarray, row: Row, lowest: float) -> None:
    """Draw cases as faint ticks, quartiles as a bar, the mean as a marker, and the number of cases left of the axis."""
    if not len(values):
        return
    colour = row.style.colour
    inside = values[values >= lowest]
    axes.plot(inside, np.full(len(inside), height), ls="", marker="|", color=colour, alpha=0.45, markersize=6, zorder=2)
    if len(values) > 2:
        low, high = np.quantile(values, (0.25, 0.75))
        axes.plot([max(low, lowest), max(high, lowest)], [height] * 2, color=colour, lw=3.2, alpha=0.55, zorder=3,
                  solid_capstyle="butt")  # fmt: skip
    axes.plot(
        float(values.mean()),
        height,
        marker=row.style.marker,
        color=colour,
        markersize=6.5,
        mec="white",
        mew=0.5,
        zorder=4,
    )
    if len(values) > len(inside):
        text = f"◂ {len(values) - len(inside)}"
        axes.annotate(text, (0, height), xycoords=axes.get_yaxis_transform(), xytext=(3, 0), color=colour,
                      textcoords="offset points", va="center", ha="left", fontsize=8.5)  # fmt: skip


def _finish(axes: Axes, names: Sequence[str], rows: int, lowest: float) -> None:
    axes.set_yticks([index * (rows + 1) + (rows - 1) / 2 for index in range(len(names))], list(names), color=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(names) * (rows + 1) - 1, -1)
    axes.set_xlim(lowest - 0.01 * (100 - lowest), 100 + 0.01 * (100 - lowest))
    axes.spines["left"].set_color(GREY)
    axes.set_xlabel("Dice, %")
    axes.set_title("Dice by class: mean (marker), middle half of the cases (bar), each case (tick)")


def _handle(row: Row) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=row.style.colour, marker=row.style.marker, lw=3.2, markersize=6.5, mec="white",
                  mew=0.5, label=row.label)  # fmt: skip
