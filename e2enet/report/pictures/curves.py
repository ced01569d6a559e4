"""Draw learning curves and how masks change in training: mean and range over the runs of each row, by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from e2enet.report.pictures.rows import Row
from e2enet.report.pictures.style import house_style, legend_below, new_figure, whole_epochs
from e2enet.report.results.runs import Runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Column of metrics.csv -> title of its panel.
LEARNING = {
    "train/loss": "training loss",
    "val/dice": "validation Dice of patches, %",
    "val_full/dice": "validation Dice of whole cases, %",
}
TOPOLOGY = {
    "dsff/density": "density: share of active kernels",
    "dsff/churn": "churn: share replaced per update",
    "dsff/ever_active": "share of kernels ever active",
}
PERCENT = 100.0
MARKED_UP_TO = 30  # points; on longer curves only some have a marker


def draw_learning_curves(runs: Runs, rows: Sequence[Row]) -> Figure | None:
    """Draw training loss and validation Dice over epochs; None if no run has written any."""
    return draw_panels(epoch_curves(runs, rows, LEARNING), rows, LEARNING)


def draw_topology(runs: Runs, rows: Sequence[Row]) -> Figure | None:
    """Draw density, churn and share ever active over epochs, of rows with masks; None if there are none."""
    return draw_panels(epoch_curves(runs, rows, TOPOLOGY), rows, TOPOLOGY)


def epoch_curves(runs: Runs, rows: Sequence[Row], columns: Mapping[str, str]) -> dict[tuple[str, str], pd.DataFrame]:
    """Return {(label, column): table} of the logged values: a line per epoch (counted from 1), a column per run.

    If an epoch has several values, the last one counts. A row's runs are cut at the last epoch that all of them have:
    beyond it the mean would jump where a run ends. Curves that no run of a row has are left out. Dice is in percent, as
    everywhere in the report.
    """
    found: dict[tuple[str, str], pd.DataFrame] = {}
    for row in rows:
        metrics = {key: runs.curves(key) for key in row.with_curves["key"]}
        for column in columns:
            series = {
                key: table.dropna(subset=[column]).groupby("epoch")[column].last()
                for key, table in metrics.items()
                if column in table
            }
            series = {key: values for key, values in series.items() if not values.empty}
            if series:
                common = min(values.index.max() for values in series.values())
                curve = pd.DataFrame(series).loc[:common] * (PERCENT if column.endswith("/dice") else 1)
                found[row.label, column] = curve.set_axis(curve.index + 1)
    return found


def draw_panels(
    curves: Mapping[tuple[str, str], pd.DataFrame], rows: Sequence[Row], titles: Mapping[str, str]
) -> Figure | None:
    """Draw a panel per column that has curves, with a line and its range per row; None if no column has any.

    Rows without a finished run are marked in the legend. If no row has a finished run, the titles say so too.
    """
    shown = {column: title for column, title in titles.items() if any(found == column for _, found in curves)}
    if not shown:
        return None
    drawn = [row for row in rows if any(label == row.label for label, _ in curves)]
    unfinished = "" if any(len(row.finished) for row in drawn) else ", unfinished"
    with house_style():
        figure = new_figure(3.1 + 0.22 * (len(drawn) // 4))
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (column, title) in zip(panels, shown.items(), strict=True):
            for place, row in enumerate(drawn):
                if (row.label, column) in curves:
                    _draw_curve(axes, curves[row.label, column], row, place / len(drawn))
            axes.set_title(title + unfinished)
            axes.margins(x=0.02)
            whole_epochs(axes)
        legend_below(figure, [_line_handle(row) for row in drawn])
        # The layout must be computed while the style's settings apply.
        figure.draw_without_rendering()
    return figure


def _draw_curve(axes: Axes, curve: pd.DataFrame, row: Row, place: float) -> None:
    """Draw a curve; `place` (0..1) shifts the markers of a long one, so that those of overlapping curves alternate."""
    style, mean = row.style, curve.mean(axis=1)
    if curve.shape[1] > 1:
        low, high = curve.min(axis=1), curve.max(axis=1)
        axes.fill_between(curve.index, low, high, color=style.colour, alpha=0.15, lw=0, zorder=1)
    step = 1 if len(mean) <= MARKED_UP_TO else len(mean) // 6
    axes.plot(
        curve.index,
        mean,
        color=style.colour,
        ls=style.dashes,
        marker=style.marker,
        markersize=3.5 if step == 1 else 5,
        markevery=(int(place * step), step),
        zorder=3 if row.is_reference else 2,
    )


def _line_handle(row: Row) -> Any:
    from matplotlib.lines import Line2D

    style = row.style
    label = f"{row.label} (unfinished)" if row.finished.empty else row.label
    return Line2D([], [], color=style.colour, ls=style.dashes, marker=style.marker, markersize=5, label=label)
