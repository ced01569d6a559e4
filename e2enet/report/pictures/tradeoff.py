"""Draw accuracy against cost: mean Dice over parameters and over FLOPs, both obtained and published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2enet.report.pictures.rows import Row
from e2enet.report.pictures.style import GREY, RowStyle, house_style, legend_below, new_figure
from e2enet.report.tables.table import published_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"params": "active parameters, M", "gflops": "GFLOP per patch, the paper's count"}
WIDE = 6.0  # a cost axis is logarithmic if the ratio of its ends is at least this
HEIGHT, MIN_HEIGHT = 3.35, 2.4  # inches of a pair of axes, less if there are many
Interval = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """One row in one picture: costs by name (M parameters, GFLOP), mean Dice and an interval in percent.

    Points of one `group` share axes and a Pareto front; `title` is above them.
    """

    label: str
    style: RowStyle
    costs: dict[str, float]
    dice: float
    interval: Interval
    hollow: bool = False
    group: str = ""
    title: str = ""


def draw_tradeoff(rows: Sequence[Row]) -> Figure | None:
    """Draw Dice against parameters (left) and FLOPs (right); None if there are neither obtained nor published points.

    Obtained points are filled, with the table's bootstrap interval over cases. Published points are hollow and further
    down, with the range if the source gives one. Each dataset, each set of classes and cases, and obtained and
    published points, have their own axes, since they cannot be compared.
    """
    groups: dict[str, list[Point]] = {}
    for point in [*obtained_points(rows), *published_points(rows)]:
        groups.setdefault(point.group, []).append(point)
    if not groups:
        return None
    with house_style():
        figure = new_figure((HEIGHT if len(groups) < 4 else MIN_HEIGHT) * len(groups) + 0.5)
        figure.set_layout_engine("constrained", hspace=0.08)
        grid = figure.subplots(len(groups), 2, squeeze=False, sharey="row")
        for line, points in zip(grid, groups.values(), strict=True):
            for axes, (cost, text) in zip(line, COSTS.items(), strict=True):
                _draw_points(axes, [point for point in points if np.isfinite(point.costs[cost])], cost)
                axes.set_xlabel(text)
            line[0].set_ylabel("mean Dice, %")
            line[0].set_title(points[0].title)
        shown = {point.label for points in groups.values() for point in points}
        legend_below(figure, [_handle(row) for row in rows if row.label in shown])
        figure.draw_without_rendering()
    return figure


def obtained_points(rows: Sequence[Row]) -> list[Point]:
    """Return points of the rows with finished and scored runs: the table's mean over runs and interval over cases."""
    scored = [row for row in rows if pd.notna(row.line["dice"])]
    tasks = {(row.line["data"], row.line["competes_on"]) for row in scored}
    several = Counter(data for data, _ in tasks)
    points = []
    for row in scored:
        line = row.line
        costs = {"params": float(line["params"]), "gflops": float(line["gflops_paper"])}
        interval = line["dice_low"], line["dice_high"]
        own = f", {line['cases']} cases" if several[line["data"]] > 1 else ""
        title = f"obtained on {line['data']}{own}"
        points.append(
            Point(row.label, row.style, costs, line["dice"], interval, group=line["competes_on"], title=title)
        )
    return points


def published_points(rows: Sequence[Row]) -> list[Point]:
    """Return points of the rows whose accuracy and at least one cost are published."""
    points = []
    for row in rows:
        low, high = published_range(row.line["published_dice"])
        costs = {name: _published_cost(row.line[f"published_{name}"]) for name in COSTS}
        if low is not None and high is not None and np.isfinite(list(costs.values())).any():
            published_on = row.line["published_on"]
            group = f"published, on {published_on}" if published_on else "published"
            points.append(
                Point(row.label, row.style, costs, (low + high) / 2, (low, high), hollow=True, group=group, title=group)
            )
    return points


def pareto_front(points: Sequence[Point], cost: str) -> list[Point]:
    """Return the points that no other point beats (costs at most as much and is more accurate), by rising cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.costs[cost], -point.dice)):
        if not front or point.dice > front[-1].dice:
            front.append(point)
    return front


def _published_cost(value: Any) -> float:
    low, high = published_range(value)
    return np.nan if low is None or high is None else (low + high) / 2


def _draw_points(axes: Axes, points: Sequence[Point], cost: str) -> None:
    if not points:
        return
    front = pareto_front(points, cost)
    if len(front) > 1:
        steps = [point.costs[cost] for point in front], [point.dice for point in front]
        axes.plot(*steps, drawstyle="steps-post", color=GREY, lw=1, ls=(0, (3, 2)), zorder=1)
    for point in points:
        x, style = point.costs[cost], point.style
        low, high = point.interval
        if np.isfinite([low, high]).all() and high > low:
            axes.errorbar(
                x, point.dice, yerr=[[max(point.dice - low, 0)], [max(high - point.dice, 0)]], color=style.colour,
                lw=1.3, capsize=3, zorder=2,
            )  # fmt: skip
        face = "white" if point.hollow else style.colour
        axes.plot(
            x, point.dice, ls="", marker=style.marker, markersize=8, mfc=face, mec=style.colour, mew=1.6, zorder=3
        )
    _cost_scale(axes, [point.costs[cost] for point in points])
    axes.margins(x=0.12, y=0.15)


def _cost_scale(axes: Axes, costs: Sequence[float]) -> None:
    """Make the cost axis logarithmic if costs differ much, with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if min(costs) > 0 and max(costs) / min(costs) >= WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _handle(row: Row) -> Any:
    from matplotlib.lines import Line2D

    # Filled for every row: the caption explains hollow markers.
    style = row.style
    return Line2D([], [], ls="", marker=style.marker, markersize=8, color=style.colour, mew=1.6, label=row.label)
