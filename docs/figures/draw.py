"""Draw the figures of docs/concepts.md: python docs/figures/draw.py [FOLDER].

The project's own functions compute the masks and shifts, from fixed seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch, Rectangle

from e2enet.network.dsff import kernel_scores, prune_count, prune_fraction, prune_kernels, regrow_kernels
from e2enet.network.shift import DepthShift, group_shifts

LEVELS = 6
FEATURES = (48, 96, 192, 320, 320, 320)
# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#5f6670"
FLOWS = {"forward": BLUE, "up": GREEN, "down": ORANGE}
INK, PAPER, LIGHT = "#1d2530", "#ffffff", "#eef1f5"
DPI = 150


def main(folder: Path) -> list[Path]:
    """Write every figure into the folder and return their paths."""
    figures = {"fusion_grid": fusion_grid, "dsff_update": dsff_update, "depth_shift": depth_shift}
    paths = []
    for name, draw in figures.items():
        figure = draw()
        FigureCanvasAgg(figure)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    return paths


# ------------------------------------------------------------------------------------------------ fusion grid


def fusion_grid() -> Figure:
    """Draw the grid for six levels: column j = 0 is the encoder, the last diagonal feeds the heads."""
    figure = Figure(figsize=(9.6, 7.1))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    blank(axes, (-2.1, 7.15), (-5.85, 0.95))
    nodes = {(i, j): (1.15 * j, -float(i)) for j in range(LEVELS) for i in range(LEVELS - j)}
    for i, j in nodes:
        if j == 0 and i > 0:
            _arrow(axes, nodes[i - 1, 0], nodes[i, 0], GREY, 1.8)
        for source, flow in ((i, "forward"), (i + 1, "up"), (i - 1, "down")):
            if j > 0 and source >= 0:
                _arrow(axes, nodes[source, j - 1], nodes[i, j], FLOWS[flow], 1.5)
    for (i, j), (x, y) in nodes.items():
        last = i + j == LEVELS - 1 and j > 0
        _node(axes, x, y, f"$X_{{{i},{j}}}$", encoder=j == 0, blocks=2 if last or j == 0 else 1)
        if last and i < LEVELS - 2:
            _head(axes, x, y, i)
    for i, features in enumerate(FEATURES):
        scale = "full resolution" if i == 0 else f"level {i}"
        axes.text(-0.55, -i, f"{scale}\n{features} channels", ha="right", va="center", fontsize=9.5, color=INK)
    axes.text(0, 0.62, "encoder", ha="center", fontsize=11, color=GREY, weight="bold")
    axes.text(3.45, 0.62, "fusion grid, columns $j$ = 1 .. 5", ha="center", fontsize=11, color=INK, weight="bold")
    ring = Line2D([], [], ls="", marker="o", mfc="none", mec=INK, ms=12, label="one block")
    handles: list[Any] = [
        Line2D([], [], color=FLOWS["forward"], lw=2, label="forward flow: the node before"),
        Line2D([], [], color=FLOWS["up"], lw=2, label="upward flow: transposed conv, kernel = stride"),
        Line2D([], [], color=FLOWS["down"], lw=2, label="downward flow: max pooling"),
        Line2D([], [], color=GREY, lw=2, label="encoder: strided conv"),
        ring,
        (ring, Line2D([], [], ls="", marker="o", mfc="none", mec=INK, ms=8)),
    ]
    labels = [*(handle.get_label() for handle in handles[:-1]), "two blocks"]
    axes.legend(
        handles, labels, loc="lower right", bbox_to_anchor=(0.985, 0.03), frameon=False, fontsize=10,
        handler_map={tuple: HandlerTuple(ndivide=1)},
    )  # fmt: skip
    return figure


def _node(axes: Axes, x: float, y: float, text: str, *, encoder: bool, blocks: int) -> None:
    edge = GREY if encoder else INK
    axes.add_patch(Circle((x, y), 0.27, facecolor=LIGHT if encoder else PAPER, edgecolor=edge, lw=1.4, zorder=3))
    if blocks == 2:
        axes.add_patch(Circle((x, y), 0.225, fill=False, edgecolor=edge, lw=0.9, zorder=4))
    axes.text(x, y, text, ha="center", va="center", fontsize=10.5, color=INK, zorder=5)


def _head(axes: Axes, x: float, y: float, level: int) -> None:
    left, width, height = x + 0.52, 0.74, 0.36
    _arrow(axes, (x, y), (left + 0.27, y), INK, 1.2)
    box = FancyBboxPatch(
        (left, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.08", facecolor=INK, zorder=3
    )
    axes.add_patch(box)
    text = "head" if level == 0 else f"head {level}"
    axes.text(left + width / 2, y - 0.01, text, ha="center", va="center", fontsize=9.5, color=PAPER, zorder=4)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, width: float) -> None:
    """Draw an arrow between two circles of radius 0.27, with a gap at both ends."""
    direction = np.subtract(end, start)
    unit = direction / np.hypot(*direction)
    arrow = FancyArrowPatch(
        tuple(start + unit * 0.29), tuple(end - unit * 0.29), arrowstyle="-|>", mutation_scale=11, shrinkA=0,
        shrinkB=0, color=color, lw=width, zorder=2,
    )  # fmt: skip
    axes.add_patch(arrow)


# ------------------------------------------------------------------------------------------------ DSFF update


def dsff_update() -> Figure:
    """Draw one update of a small fusion layer (before, pruned, regrown) and the fraction over a run."""
    generator = torch.Generator().manual_seed(5)
    fraction, flows = 0.3, {"forward": 4, "up": 4, "down": 4}
    weight = torch.randn(8, 12, 1, 3, 3, generator=generator) * torch.rand(8, 12, 1, 1, 1, generator=generator)
    before = regrow_kernels(torch.zeros(8, 12, dtype=torch.bool), 29, generator=generator)
    kept = prune_kernels(weight, before, fraction)
    count = prune_count(int(before.sum()), fraction)
    after = regrow_kernels(kept, count, generator=generator)
    norms = kernel_scores(weight)

    figure = Figure(figsize=(12.6, 5.3))
    titles = (
        f"1  before: {int(before.sum())} of {before.numel()} kernels active",
        f"2  prune the {count} of smallest $L_1$ norm",
        f"3  regrow {count} at random, from zero",
    )
    colors = LinearSegmentedColormap.from_list("norm", ["#d3e5f3", BLUE])
    for index, title in enumerate(titles):
        axes = figure.add_axes((0.045 + 0.322 * index, 0.315, 0.295, 0.56))
        _kernel_matrix(axes, norms, before if index == 0 else kept, colors, flows)
        axes.set_title(title, fontsize=11.5, color=INK, loc="left", pad=25)
        marks = ((before & ~kept), RED, "x") if index == 1 else ((after & ~kept), GREEN, "+")
        if index > 0:
            _mark_kernels(axes, *marks)
    figure.axes[0].text(-0.35, 4, "output channels", rotation=90, ha="right", va="center", fontsize=10, color=INK)
    figure.axes[0].text(6, 8.3, "input channels of the three flows", ha="center", va="top", fontsize=10, color=INK)
    _fraction_curve(figure.add_axes((0.694, 0.075, 0.28, 0.145)))
    _dsff_legend(figure, colors)
    return figure


def _kernel_matrix(
    axes: Axes, norms: torch.Tensor, mask: torch.Tensor, colors: LinearSegmentedColormap, flows: dict[str, int]
) -> None:
    """Draw one cell per kernel (output, input channel); active kernels are shaded by their norm."""
    rows, columns = mask.shape
    largest = float(norms.max())
    for row in range(rows):
        for column in range(columns):
            shade = colors(float(norms[row, column]) / largest) if mask[row, column] else LIGHT
            axes.add_patch(Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, facecolor=shade))
    blank(axes, (-0.2, columns + 0.2), (rows + 0.15, -0.15))
    start = 0
    for flow, width in flows.items():
        axes.plot([start + 0.1, start + width - 0.1], [-0.3] * 2, color=FLOWS[flow], lw=3, clip_on=False)
        axes.text(start + width / 2, -0.5, flow, ha="center", va="bottom", fontsize=10, color=FLOWS[flow])
        start += width


def _mark_kernels(axes: Axes, kernels: torch.Tensor, color: str, sign: str) -> None:
    for row, column in torch.nonzero(kernels).tolist():
        cell = Rectangle((column + 0.09, row + 0.09), 0.82, 0.82, facecolor=PAPER, edgecolor=color, lw=1.6)
        axes.add_patch(cell)
        axes.plot(column + 0.5, row + 0.5, marker=sign, color=color, ms=7, mew=1.8)


def _fraction_curve(axes: Axes) -> None:
    share = np.linspace(0, 1, 200)
    curve = [prune_fraction(round(1000 * value), 1000) for value in share]
    axes.plot(share, curve, color=INK, lw=1.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 0.52)
    axes.set_xticks([0, 1], ["start", "end of the run"], fontsize=9)
    axes.get_xticklabels()[1].set_horizontalalignment("right")
    axes.set_yticks([0, 0.5])
    axes.tick_params(labelsize=9, colors=INK)
    axes.set_title("share of active kernels replaced per update", fontsize=10, color=INK, loc="left")


def _dsff_legend(figure: Figure, colors: LinearSegmentedColormap) -> None:
    handles: list[Any] = [
        Patch(facecolor=colors(0.85), label="active kernel, large $L_1$ norm"),
        Patch(facecolor=colors(0.1), label="active kernel, small $L_1$ norm"),
        Patch(facecolor=LIGHT, label="inactive: its weights are zero"),
        Line2D([], [], ls="", marker="x", color=RED, ms=8, mew=2, label="pruned now"),
        Line2D([], [], ls="", marker="+", color=GREEN, ms=9, mew=2, label="regrown now"),
    ]
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.04, 0.035), ncols=2, frameon=False, fontsize=10.5,
        columnspacing=4,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ depth-shift


def depth_shift() -> Figure:
    """Draw what the nine channels of each of five slices hold before and after the shift."""
    depth, channels, size = 5, 9, 3
    slices = torch.arange(1.0, depth + 1).view(1, 1, depth, 1, 1).expand(1, channels, depth, 1, 1)
    shifted = DepthShift(size)(slices.contiguous())
    figure = Figure(figsize=(9.6, 3.55))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    blank(axes, (-2.0, 23.2), (7.25, -2.1))
    groups = group_shifts(channels, size)
    _slice_table(axes, 0, slices, "before", [f"group {g}" for g in range(len(groups))], groups)
    _slice_table(
        axes, 12.6, shifted, "after", [f"moved by {shift:+d}" if shift else "stays" for _, _, shift in groups], groups
    )
    arrow = FancyArrowPatch((9.5, 2.5), (12.1, 2.5), arrowstyle="-|>", mutation_scale=18, color=INK, lw=2)
    axes.add_patch(arrow)
    axes.text(10.7, 2.05, "shift", ha="center", fontsize=10.5, color=INK)
    axes.add_patch(Rectangle((12.45, 1.93), 9.3, 1.14, fill=False, edgecolor=RED, lw=2))
    note = "a (1, 3, 3) kernel on slice 3\nnow sees slices 4, 3 and 2"
    axes.text(17.1, 5.45, note, ha="center", va="top", fontsize=10.5, color=RED)
    axes.text(
        4.5,
        5.45,
        "a column is a channel; a number says\nwhich slice the values are of, 0: zeros",
        ha="center",
        va="top",
        fontsize=10.5,
        color=INK,
    )
    return figure


def _slice_table(
    axes: Axes,
    left: float,
    volume: torch.Tensor,
    title: str,
    names: Sequence[str],
    groups: Sequence[tuple[int, int, int]],
) -> None:
    """Draw a row per slice and a column per channel; the number is the slice that the values came from."""
    shades = LinearSegmentedColormap.from_list("slices", ["#cfe3f2", BLUE])
    table = volume[0, :, :, 0, 0].T
    depth, channels = table.shape
    for row in range(depth):
        for column in range(channels):
            origin = int(table[row, column])
            face = shades((origin - 1) / (depth - 1)) if origin else PAPER
            cell = Rectangle((left + column + 0.05, row + 0.05), 0.9, 0.9, facecolor=face, edgecolor=GREY, lw=0.6)
            axes.add_patch(cell)
            ink = PAPER if origin > depth - 2 else INK
            axes.text(left + column + 0.5, row + 0.52, str(origin), ha="center", va="center", fontsize=9.5, color=ink)
        axes.text(-0.3, row + 0.5, f"slice {row + 1}", ha="right", va="center", fontsize=9.5, color=GREY)
    for name, (start, stop, _) in zip(names, groups, strict=True):
        axes.plot([left + start + 0.12, left + stop - 0.12], [-0.2] * 2, color=INK, lw=2)
        axes.text(left + (start + stop) / 2, -0.4, name, ha="center", va="bottom", fontsize=10, color=INK)
    axes.text(left + channels / 2, -1.25, title, ha="center", va="bottom", fontsize=11.5, weight="bold", color=INK)


def blank(axes: Axes, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
    """Give a drawing these ranges, equal units and no axes."""
    axes.set_xlim(*x_range)
    axes.set_ylim(*y_range)
    axes.set_aspect("equal")
    axes.set_axis_off()


if __name__ == "__main__":
    for path in main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(path)
