"""Draw the connections that a network kept: the density of kernels per fusion node and flow, as heat maps.

There is one map per flow into the nodes, laid out like the fusion grid (levels downwards, columns to the right), as in
the paper's figure on learned connections. A map shows the first convolution of each node, whose input channels are the
three flows. Its values are the flow's density over the row's own density: at 1 a flow kept the same share of its
kernels as the whole row. All rows share one scale, so sparse and denser networks can be compared.
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
from e2enet.report.results.runs import Runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

CONNECTIONS_FILE = "connections.json"
FLOWS = {
    "forward": "forward flow, from the same level",
    "up": "upward flow, from the level below",
    "down": "downward flow, from the level above",
}
COLUMNS = ("level", "column", "flow", "active", "kernels")
MIN_SPAN = 0.25  # least span of the colours below and above 1, so that a small spread is not exaggerated
ROW_HEIGHT = 2.35


def draw_connections(runs: Runs, rows: Sequence[Row]) -> Figure | None:
    """Draw a line of three maps per row whose runs hold connections.json, on one scale; None if none does.

    The runs of a row are summed: all their active kernels over all their kernels. Networks without masks (every kernel
    active) are left out.
    """
    tables = {row.label: row_connections(runs, row) for row in rows}
    tables = {label: table for label, table in tables.items() if not table.empty and (table["share"] < 1).any()}
    if not tables:
        return None
    scale = _scale(pd.concat([table["ratio"] for table in tables.values()]))
    with house_style():
        figure = new_figure(ROW_HEIGHT * len(tables) + 0.75)
        grid = figure.subplots(len(tables), len(FLOWS), squeeze=False)
        for line, (label, table) in zip(grid, tables.items(), strict=True):
            for axes, flow in zip(line, FLOWS, strict=True):
                image = _draw_map(axes, table[table["flow"] == flow], table, scale)
            line[0].set_ylabel(f"{wrapped(label, 26)}\n{_own_density(table):.1%} active\n\nlevel")
        bar = figure.colorbar(
            image, ax=grid, fraction=0.025, pad=0.01, ticks=[scale.vmin, 1, scale.vmax], format="%.2f"
        )
        bar.outline.set_visible(False)
        bar.set_label("density over the row's own", fontsize=9)
        for axes, title in zip(grid[0], FLOWS.values(), strict=True):
            axes.set_title(title)
        for axes in grid[-1]:
            axes.set_xlabel("column of the fusion grid")
        figure.draw_without_rendering()
    return figure


def row_connections(runs: Runs, row: Row) -> pd.DataFrame:
    """Return level, column, flow, active, kernels, share and ratio of each node and flow.

    Counts are summed over the row's finished runs. `share` is active over kernels, `ratio` the share over that of all.
    """
    paths = [Path(folder) / CONNECTIONS_FILE for folder in row.finished["folder"]]
    tables = [read_connections(path) for path in paths if path.is_file()]
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "share", "ratio"])
    every = pd.concat(tables)
    sums = every.groupby(["level", "column", "flow"], as_index=False)[["active", "kernels"]].sum()
    share = sums["active"] / sums["kernels"]
    return sums.assign(share=share, ratio=share / _own_density(sums))


def read_connections(path: Path) -> pd.DataFrame:
    """Read the flows of a connections.json, a line per node and flow; entries of other parts of a node are left out.

    Raises:
        InputError: the file is not a list of entries with level, column, flow, active and kernels.
    """
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, Mapping) for entry in content):
        raise InputError(f"{path}: expected a list of entries with {', '.join(COLUMNS)}")
    lacking = [name for name in COLUMNS if any(name not in entry for entry in content)]
    if lacking:
        raise InputError(f"{path}: entries lack {', '.join(lacking)}")
    table = pd.DataFrame([{name: entry[name] for name in COLUMNS} for entry in content], columns=list(COLUMNS))
    return table[table["flow"].isin(FLOWS) & (table["kernels"] > 0)]


def _own_density(table: pd.DataFrame) -> float:
    """Return the active kernels of all flows over all their kernels."""
    return max(float(table["active"].sum()), 1.0) / float(table["kernels"].sum())


def _scale(ratios: pd.Series) -> TwoSlopeNorm:
    """Return the colour scale for all rows: white at 1, with the extreme ratios at its ends."""
    from matplotlib.colors import TwoSlopeNorm

    return TwoSlopeNorm(1, min(float(ratios.min()), 1 - MIN_SPAN), max(float(ratios.max()), 1 + MIN_SPAN))


def _draw_map(axes: Axes, flow: pd.DataFrame, every: pd.DataFrame, scale: TwoSlopeNorm) -> Any:
    """Draw one flow's map, with its ratios; nodes that lack the flow have a dash."""
    levels, columns = int(every["level"].max()) + 1, int(every["column"].max())
    ratios = np.full((levels, columns), np.nan)
    ratios[flow["level"].to_numpy(int), flow["column"].to_numpy(int) - 1] = flow["ratio"]
    image = axes.imshow(ratios, cmap="PuOr_r", norm=scale, aspect="auto")
    nodes = {(int(level), int(column) - 1) for level, column in zip(every["level"], every["column"], strict=True)}
    for level, column in nodes:
        ratio = ratios[level, column]
        if np.isnan(ratio):
            axes.text(column, level, "-", ha="center", va="center", color=GREY)
            continue
        dark = abs(float(scale(ratio)) - 0.5) > 0.3  # both ends of the colours
        axes.text(column, level, f"{ratio:.2f}", ha="center", va="center", color="white" if dark else INK, fontsize=9)
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
