"""Pictures of one run from its metrics.csv: learning curves, and what DSFF did."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path

# Panels of each figure: title, and the columns drawn in it with their labels.
Panels = Mapping[str, Mapping[str, str]]
Curve = tuple[list[float], list[float]]
DSFF_PANELS: Panels = {
    "share of kernels": {"dsff/density": "active", "dsff/ever_active": "ever active"},
    "update": {"dsff/fraction": "pruned fraction", "dsff/churn": "churn"},
    "share of active kernels by flow": {f"dsff/share_{flow}": flow for flow in ("forward", "up", "down")},
}


def draw_figures(run_folder: Path) -> list[Path]:
    """Write figures/learning_curves.png, and figures/dsff.png for a run with masks; the files written.

    Raises:
        InputError: the run folder has no metrics.csv.
    """
    curves = read_curves(run_folder / "metrics.csv")
    learning = {
        "training loss": {"train/loss": "loss"},
        "validation Dice of patches": _dice_columns(curves, "val/dice"),
        "validation Dice of whole cases": _dice_columns(curves, "val_full/dice"),
        "learning rate": {"train/lr": "learning rate"},
    }
    learning = {title: columns for title, columns in learning.items() if any(name in curves for name in columns)}
    figures = {"learning_curves.png": learning, "dsff.png": DSFF_PANELS}
    written = []
    for name, panels in figures.items():
        if any(column in curves for columns in panels.values() for column in columns):
            path = run_folder / "figures" / name
            _draw(path, panels, curves)
            written.append(path)
    return written


def read_curves(path: Path) -> dict[str, Curve]:
    """{column: (epochs, values)} of a metrics.csv; empty cells and NaN are left out."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the metrics of a run")
    curves: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            for name, cell in row.items():
                if name in ("epoch", "step") or not cell or math.isnan(float(cell)):
                    continue
                epochs, values = curves.setdefault(name, ([], []))
                epochs.append(float(row["epoch"]) + 1)
                values.append(float(cell))
    return curves


def _dice_columns(curves: Mapping[str, Curve], score: str) -> dict[str, str]:
    classes = sorted(name for name in curves if name.startswith(f"{score}_"))
    return {score: "mean"} | {name: name.removeprefix(f"{score}_") for name in classes}


def _draw(path: Path, panels: Panels, curves: Mapping[str, Curve]) -> None:
    # The object API with its own canvas needs no display and leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, columns) in zip(_axes(figure, len(panels)), panels.items(), strict=True):
        for column, label in columns.items():
            if column in curves:
                mean = label == "mean"
                style = {"color": "black", "linewidth": 2.0} if mean else {"linewidth": 1.3}
                # A single point has no line: mark the points of short runs.
                marker = "." if len(curves[column][0]) < 30 else None
                axes.plot(*curves[column], label=label, marker=marker, **style)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(columns) > 1 and axes.has_data():
            axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _axes(figure: object, count: int) -> Sequence:
    return list(figure.subplots(1, count, squeeze=False)[0])  # type: ignore[attr-defined]
