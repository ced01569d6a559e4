"""Which connections a network kept: the share of active kernels per fusion node and flow, as a heat map.

The maps have the fusion grid's own geometry (levels downwards, columns to the right), one for each flow into the nodes,
as the paper's figure on learned connections. What is drawn is the first convolution of each node, whose input
channels are the three flows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2enet.common.errors import InputError
from e2enet.common.files import read_json
from e2enet.report.pictures.rows import Row
from e2enet.report.pictures.style import GREY, INK, house_style, new_figure, wrapped
from e2enet.report.runs import Runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONNECTIONS_FILE = "connections.json"
FLOWS = {
    "forward": "forward flow, from the same level",
    "up": "upward flow, from the level below",
    "down": "downward flow, from the level above",
}
COLUMNS = ("level", "column", "flow", "active", "kernels")
LEAST_SPAN = 0.1  # of a colour scale: a spread below 10 percentage points of the kernels is not blown up
ROW_HEIGHT = 2.35


def draw_connections(runs: Runs, rows: Sequence[Row]) -> Figure | None:
    """A line of three maps per row whose runs hold connections.json; None where none does.

    The runs of a row are summed: active kernels of all of them over kernels of all of them. Networks without masks
    (every kernel active) are left out.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    tables = {row.label: row_connections(runs, row) for row in rows}
    tables = {label: table for label, table in tables.items() if not table.empty and (table["share"] < 1).any()}
    if not tables:
        return None
    with house_style():
        figure = new_figure(ROW_HEIGHT * len(tables) + 0.75)
        grid = figure.subplots(len(tables), len(FLOWS), squeeze=False)
        for line, (label, table) in zip(grid, tables.items(), strict=True):
            low, high = _scale(table["share"])
            for axes, flow in zip(line, FLOWS, strict=True):
                image = _draw_map(axes, table[table["flow"] == flow], table, (low, high))
            line[0].set_ylabel(f"{wrapped(label, 26)}\n\nlevel" if len(tables) > 1 else "level")
            ticks = MaxNLocator(5, steps=[1, 2, 5, 10])
            bar = figure.colorbar(image, ax=line, fraction=0.025, pad=0.01, ticks=ticks, format=PercentFormatter(1, 0))
            bar.outline.set_visible(False)
            bar.set_label("active kernels", fontsize=9)
        for axes, title in zip(grid[0], FLOWS.values(), strict=True):
            axes.set_title(title)
        for axes in grid[-1]:
            axes.set_xlabel("column of the fusion grid")
        figure.draw_without_rendering()
    return figure


def row_connections(runs: Runs, row: Row) -> pd.DataFrame:
    """level, column, flow, active, kernels and share of each node and flow, summed over the row's finished runs."""
    paths = [Path(folder) / CONNECTIONS_FILE for folder in row.finished["folder"]]
    tables = [read_connections(path) for path in paths if path.is_file()]
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "share"])
    every = pd.concat(tables)
    sums = every.groupby(["level", "column", "flow"], as_index=False)[["active", "kernels"]].sum()
    return sums.assign(share=sums["active"] / sums["kernels"])


def read_connections(path: Path) -> pd.DataFrame:
    """The flows of a connections.json, a line per node and flow; entries of other parts of a node are left out.

    Raises:
        InputError: the file is no list of entries with level, column, flow, active and kernels.
    """
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, Mapping) for entry in content):
        raise InputError(f"{path}: expected a list of entries with {', '.join(COLUMNS)}")
    lacking = [name for name in COLUMNS if any(name not in entry for entry in content)]
    if lacking:
        raise InputError(f"{path}: entries lack {', '.join(lacking)}")
    table = pd.DataFrame([{name: entry[name] for name in COLUMNS} for entry in content], columns=list(COLUMNS))
    return table[table["flow"].isin(FLOWS) & (table["kernels"] > 0)]


def _scale(shares: pd.Series) -> tuple[float, float]:
    low, high = float(shares.min()), float(shares.max())
    widen = max(LEAST_SPAN - (high - low), 0) / 2
    return max(low - widen, 0.0), min(high + widen, 1.0)


def _draw_map(axes: Axes, flow: pd.DataFrame, every: pd.DataFrame, limits: tuple[float, float]) -> Any:
    """One flow's map, with its shares in percent; nodes that lack the flow are outlined."""
    levels, columns = int(every["level"].max()) + 1, int(every["column"].max())
    shares = np.full((levels, columns), np.nan)
    shares[flow["level"].to_numpy(int), flow["column"].to_numpy(int) - 1] = flow["share"]
    image = axes.imshow(shares, cmap="cividis", vmin=limits[0], vmax=limits[1], aspect="auto")
    nodes = {(int(level), int(column) - 1) for level, column in zip(every["level"], every["column"], strict=True)}
    for level, column in nodes:
        share = shares[level, column]
        if np.isnan(share):
            axes.text(column, level, "-", ha="center", va="center", color=GREY)
            continue
        dark = (share - limits[0]) / (limits[1] - limits[0]) < 0.55
        axes.text(column, level, f"{share * 100:.0f}", ha="center", va="center", color="white" if dark else INK)
    axes.set_xticks(range(columns), [str(column + 1) for column in range(columns)])
    axes.set_yticks(range(levels), [str(level) for level in range(levels)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # White seams between the nodes.
    axes.grid(visible=False)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(levels + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    return image
