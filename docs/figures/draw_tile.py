"""Draw the figure of docs/engine_internals.md: python docs/figures/draw_tile.py [FOLDER].

The engine's own functions cut the volume into tiles and choose the slices of the lanes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from draw import blank
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from e2enet.network.engine.inner_loops import COLUMNS, ROWS
from e2enet.network.engine.tiling import Tiling, slice_bits, tile_volume
from e2enet.network.engine.vector_code import LANES
from e2enet.network.shift import channel_shifts

DEPTH, HEIGHT, WIDTH = 6, 12, 20
KERNEL = 3
# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, RED, GREY = "#0072B2", "#D55E00", "#5f6670"
STRIPS = ("#cfe3f2", "#fbe3b3", "#c2e6da", "#e9d3e2", "#e3e7ec")
INK, PAPER, LIGHT = "#1d2530", "#ffffff", "#eef1f5"
DPI = 150


def main(folder: Path) -> list[Path]:
    """Write the figure into the folder and return its path."""
    figure = tile()
    FigureCanvasAgg(figure)
    path = folder / "tile.png"
    figure.savefig(path, dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    return [path]


def tile() -> Figure:
    """Draw a volume's plane cut into tiles, the channels of one tile, and the lanes of one pixel."""
    tiling = tile_volume((DEPTH, HEIGHT, WIDTH), 3, (KERNEL, KERNEL), (1, 1), 1)
    tiling = Tiling(DEPTH, HEIGHT, WIDTH, tiling.strips, 2 * ROWS, COLUMNS)  # smaller tiles than the engine would take
    figure = Figure(figsize=(12.6, 5.2))
    panels = (
        (_plane, (0.01, 0.34), f"1  the plane: {HEIGHT} x {WIDTH} pixels"),
        (_channels, (0.37, 0.23), "2  the tile: vectors in the cache"),
        (_lanes, (0.62, 0.37), "3  the lanes: source slices of a cell"),
    )
    for draw, (left, width), title in panels:
        axes = figure.add_axes((left, 0.01, width, 0.89), anchor="N")
        figure.text(left + width / 2, 0.93, title, ha="center", fontsize=11.5, weight="bold", color=INK)
        draw(axes, tiling)
    return figure


def _plane(axes: Axes, tiling: Tiling) -> None:
    """Draw the pixels of the output's plane: strips by colour, and the pixels that tile 0 writes and reads."""
    width = tiling.strip_width
    blank(axes, (-1.6, WIDTH + 1.6), (HEIGHT + 9, -2.8))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            _cell(axes, column, row, STRIPS[column // width])
    for strip in range(tiling.strips):
        axes.text((strip + 0.5) * width, -1.5, f"strip {strip}", ha="center", fontsize=9.5, color=INK)
    for left in (lane_run.strip * width for lane_run in tiling.lane_runs()[0]):
        height, columns = tiling.rows + KERNEL - 1, tiling.columns + KERNEL - 1
        axes.add_patch(Rectangle((left - 1, -1), columns, height, fill=False, edgecolor=RED, lw=1.6, ls="--"))
        axes.add_patch(Rectangle((left, 0), tiling.columns, tiling.rows, fill=False, edgecolor=INK, lw=2.4))
    note = (
        f"In memory, the {DEPTH} slices of a pixel are neighbours. They fill too\n"
        f"few of {LANES} lanes, so {tiling.strips} strips of the plane share the vectors.\n"
        f"Black: pixels that tile 0 writes, {tiling.rows} x {tiling.columns} in each strip of\n"
        "its vector. Red: pixels that it reads for a (1, 3, 3) kernel;\nthere are zeros outside of the plane."
    )
    axes.text(WIDTH / 2, HEIGHT + 1.2, note, ha="center", va="top", fontsize=9.5, color=INK, linespacing=1.45)


def _channels(axes: Axes, tiling: Tiling) -> None:
    """Draw the buffer of a tile: one plane of vectors for each pair of channel and slices."""
    rows, columns = tiling.rows + KERNEL - 1, tiling.columns + KERNEL - 1
    step = 1.1
    blank(axes, (-2.6, columns + 2 * step + 1.6), (rows + 8, -3))
    for number in reversed(range(3)):
        left, top = number * step, -number * step
        for row in range(rows):
            for column in range(columns):
                _cell(axes, left + column, top + row, LIGHT if number else PAPER)
        axes.text(left - 0.25, top + 0.5, f"read {number}", ha="right", va="center", fontsize=9.5, color=GREY)
    axes.add_patch(Rectangle((0, 0), COLUMNS + 2, ROWS + 2, fill=False, edgecolor=RED, lw=1.6, ls="--"))
    axes.add_patch(Rectangle((1, 1), COLUMNS, ROWS, facecolor=BLUE, alpha=0.35, edgecolor=INK, lw=2))
    axes.text(3, 3, f"{ROWS} x {COLUMNS}\nsums", ha="center", va="center", fontsize=10, color=INK)
    note = (
        f"A cell is a vector of {LANES} lanes. A read is\na channel and its shift in slices.\n"
        f"Blue: {ROWS * COLUMNS} sums of an output channel stay\nin registers while all its active kernels\n"
        "are added. Each takes the red cells\nof one read."
    )
    axes.text(columns / 2 + step, rows + 0.9, note, ha="center", va="top", fontsize=9.5, color=INK, linespacing=1.45)


def _lanes(axes: Axes, tiling: Tiling) -> None:
    """Draw which slice each lane of one pixel's vectors holds, for every shift."""
    runs = tiling.lane_runs()
    blank(axes, (-5, LANES + 0.2), (18, -0.6))
    top = 0.8
    for vector, lane_runs in enumerate(runs):
        axes.text(-4.9, top - 0.35, f"vector {vector}", fontsize=10, color=INK, weight="bold")
        for lane_run in lane_runs:
            middle = lane_run.lane + lane_run.count / 2
            axes.text(middle, top - 0.35, f"strip {lane_run.strip}", ha="center", fontsize=9, color=GREY)
        for number, shift in enumerate(channel_shifts(3, 3)):
            name = f"read {number}: {-shift:+d}" if shift else f"read {number}: 0"
            axes.text(-4.9, top + 0.55, name, va="center", fontsize=9.5, color=GREY)
            for lane in range(LANES):
                _cell(axes, lane, top, PAPER)
            for lane_run in lane_runs:
                bits = slice_bits(lane_run, -shift, 1, DEPTH)
                for index in range(lane_run.count):
                    lane = lane_run.lane + index
                    held = bits >> lane & 1
                    _cell(axes, lane, top, STRIPS[lane_run.strip] if held else PAPER)
                    text = str(lane_run.start + index - shift) if held else "0"
                    ink = INK if held else RED
                    axes.text(lane + 0.5, top + 0.52, text, ha="center", va="center", fontsize=9, color=ink)
            top += 1.1
        top += 1.6
    note = (
        "Consecutive lanes of a strip are a lane run. The depth-shift\n"
        "only changes which slices a lane run reads. Red: no slice is\n"
        "there, nothing is read and the lane is zero. The output gets\nnothing of the empty lanes."
    )
    axes.text(LANES / 2 - 2, top - 0.4, note, ha="center", va="top", fontsize=9.5, color=INK, linespacing=1.45)


def _cell(axes: Axes, x: float, y: float, color: str) -> None:
    axes.add_patch(Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, facecolor=color, edgecolor=GREY, lw=0.5))


if __name__ == "__main__":
    for path in main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(path)
