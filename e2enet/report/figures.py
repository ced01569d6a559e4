"""Draw pictures of one run from its metrics.csv: learning curves, and the course of DSFF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from e2enet.common.errors import InputError
from e2enet.report.pictures.style import RowStyle, house_style, new_figure, row_styles, save_figure, whole_epochs
from e2enet.report.results.run_files import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Panels of a figure, {title: {column: label}}. A mean is drawn in black.
Panels = Mapping[str, Mapping[str, str]]
DSFF_PANELS: Panels = {
    "share of kernels": {"dsff/density": "active", "dsff/ever_active": "ever active"},
    "update": {"dsff/fraction": "pruned fraction", "dsff/churn": "churn"},
    "share of active kernels by flow": {f"dsff/share_{flow}": flow for flow in ("forward", "up", "down")},
}
MEAN = "mean"
MARKED_UP_TO = 30  # points: short curves have markers, since a single point draws no line
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.3


def draw_figures(run_folder: Path) -> list[Path]:
    """Write figures/learning_curves.png, and figures/dsff.png for a run with masks; return the files written.

    Raises:
        InputError: the run folder has no metrics.csv.
    """
    path = run_folder / METRICS_FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the metrics of a run")
    curves = metric_curves(read_metrics(path))
    learning = {
        "training loss": {"train/loss": "loss"},
        "validation Dice of patches": _dice_columns(curves, "val/dice"),
        "validation Dice of whole cases": _dice_columns(curves, "val_full/dice"),
        "learning rate": {"train/lr": "learning rate"},
    }
    written = []
    for name, panels in {"learning_curves.png": learning, "dsff.png": DSFF_PANELS}.items():
        shown = {title: columns for title, columns in panels.items() if any(column in curves for column in columns)}
        if shown:
            written.append(_draw(run_folder / "figures" / name, shown, curves))
    return written


def metric_curves(metrics: pd.DataFrame) -> dict[str, pd.Series]:
    """Return {column: values by epoch, counted from 1} of a metrics.csv, without empty cells and NaN."""
    columns = [name for name in metrics if name not in ("epoch", "step")]
    curves = {name: metrics.set_index("epoch")[name].dropna() for name in columns}
    return {name: curve.set_axis(curve.index + 1) for name, curve in curves.items() if not curve.empty}


def _dice_columns(curves: Mapping[str, pd.Series], score: str) -> dict[str, str]:
    classes = sorted(name for name in curves if name.startswith(f"{score}_"))
    return {score: MEAN} | {name: name.removeprefix(f"{score}_") for name in classes}


def _draw(path: Path, panels: Panels, curves: Mapping[str, pd.Series]) -> Path:
    with house_style():
        figure = new_figure(PANEL_HEIGHT, PANEL_WIDTH * len(panels))
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, columns) in zip(grid, panels.items(), strict=True):
            labels = list(columns.values())
            styles = row_styles(len(labels), labels.index(MEAN) if MEAN in labels else None)
            for (column, label), style in zip(columns.items(), styles, strict=True):
                if column in curves:
                    _draw_curve(axes, curves[column], label, style)
            axes.set_title(title)
            whole_epochs(axes)
            if len(columns) > 1:
                # Handles are passed explicitly: by default a legend leaves out labels that begin with "_".
                axes.legend(handles=axes.get_lines(), fontsize="small", ncols=1 + len(columns) // 9)
        return save_figure(figure, path)


def _draw_curve(axes: Axes, curve: pd.Series, label: str, style: RowStyle) -> None:
    axes.plot(
        curve.index,
        curve,
        label=label,
        color=style.colour,
        ls=style.dashes,
        linewidth=2.0 if label == MEAN else 1.3,
        marker=style.marker if len(curve) <= MARKED_UP_TO else None,
        markersize=4,
        zorder=3 if label == MEAN else 2,
    )
