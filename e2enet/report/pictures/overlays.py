"""Draw cases with their contours: the worst and best of a row, and two models side by side on the same slices.

Each line shows one slice across the depth axis, the one with most wrong voxels. It is cropped to the labelled region
and oriented as radiologists view it (`SliceView`). White lines on a prediction are the reference's contours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.scheme import scheme_difference
from e2enet.inference.contours import (
    LabelStyle,
    intensity_window,
    label_handles,
    label_styles,
    paint_labels,
    show_slice,
    slice_view,
)
from e2enet.report.pictures.cases import CasePair, CaseScore
from e2enet.report.pictures.scans import Scan, ScanReader
from e2enet.report.pictures.style import WIDTH, house_style, legend_below, new_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN = 0.2  # of the labelled region's size, on each side
MIN_SIZE = 24  # voxels across a view
Window = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Panel:
    """One view of a line: its title and the labels drawn on the image, None for the image alone."""

    title: str
    labels: np.ndarray | None = None
    with_reference: bool = False


def draw_worst_and_best(reader: ScanReader, chosen: Sequence[CaseScore]) -> Figure:
    """Draw a line per prediction: image, reference, prediction. InputError if a scan or a prediction is missing."""
    lines = []
    for score in chosen:
        scan = reader.scan(score.key, score.case)
        prediction = reader.prediction(score.key, scan)
        panels = [
            Panel("image"),
            Panel("reference", scan.reference),
            Panel(f"prediction, Dice {score.dice * 100:.1f} %", prediction, with_reference=True),
        ]
        lines.append((f"{score.title}\n{score.case}", scan, panels))
    return _draw_lines(lines)


def draw_side_by_side(reader: ScanReader, names: tuple[str, str], pairs: Sequence[CasePair]) -> Figure:
    """Draw a line per case: image, reference, and the predictions of two models.

    InputError as above, and if the labels of the two mean different things.
    """
    lines = []
    for pair in pairs:
        first, second = (reader.dataset(score.key).scheme for score in (pair.first, pair.second))
        if found := scheme_difference(first, second, names):
            raise InputError(f"{found}; expected rows whose labels mean the same")
        scan = reader.scan(pair.first.key, pair.first.case)
        panels = [Panel("image"), Panel("reference", scan.reference)]
        for name, score in zip(names, (pair.first, pair.second), strict=True):
            title = f"{wrapped(name, 28, 2)}\nDice {score.dice * 100:.1f} %"
            panels.append(Panel(title, reader.prediction(score.key, scan), with_reference=True))
        lines.append((f"{pair.title}\n{pair.first.case}", scan, panels))
    return _draw_lines(lines)


def telling_slice(reference: np.ndarray, maps: Sequence[np.ndarray]) -> int:
    """Return the index along D of the slice with most wrong voxels, summed over the maps; the fullest if none is."""
    wrong = sum((labels != reference).sum(axis=(1, 2)) for labels in maps)
    fullest = (reference > 0).sum(axis=(1, 2))
    # Fullness only decides among equally wrong slices, since it adds less than 1.
    return int(np.argmax(wrong + fullest / (fullest.max() + 1)))


def labelled_window(maps: Sequence[np.ndarray], spacing: tuple[float, float]) -> Window:
    """Return the part of a slice (H, W) to show: the labels of all maps and a margin, nearly square in mm."""
    labelled = np.any([labels > 0 for labels in maps], axis=0)
    height, width = labelled.shape
    if not labelled.any():
        return slice(0, height), slice(0, width)
    rows, columns = (np.flatnonzero(labelled.any(axis=axis)) for axis in (1, 0))
    millimetres = max((rows[-1] - rows[0] + 1) * spacing[0], (columns[-1] - columns[0] + 1) * spacing[1])
    return (
        _around(rows[0], rows[-1], millimetres / spacing[0], height),
        _around(columns[0], columns[-1], millimetres / spacing[1], width),
    )


def _around(first: int, last: int, size: float, limit: int) -> slice:
    """Return a slice of `size` voxels plus the margins, centred on first..last and within 0..limit."""
    wanted = min(max(round(size * (1 + 2 * MARGIN)), MIN_SIZE), limit)
    start = min(max(round((first + last + 1 - wanted) / 2), 0), limit - wanted)
    return slice(start, start + wanted)


def _draw_lines(lines: Sequence[tuple[str, Scan, Sequence[Panel]]]) -> Figure:
    columns = len(lines[0][2])
    shown: dict[int, LabelStyle] = {}
    with house_style():
        titles = max(panel.title.count("\n") + 1 for _, _, panels in lines for panel in panels)
        figure = new_figure(len(lines) * (WIDTH / columns + 0.17 * titles) + 0.45)
        grid = figure.subplots(len(lines), columns, squeeze=False)
        for axes_line, (heading, scan, panels) in zip(grid, lines, strict=True):
            styles = label_styles(scan.labels)
            shown |= styles
            _draw_line(axes_line, scan, panels, styles)
            axes_line[0].set_ylabel(heading, labelpad=6)
        legend_below(figure, label_handles(shown))
        figure.draw_without_rendering()
    return figure


def _draw_line(
    axes_line: Sequence[Axes], scan: Scan, panels: Sequence[Panel], styles: Mapping[int, LabelStyle]
) -> None:
    spacing = scan.geometry.spacing
    # Predictions in ignored voxels are neither right nor wrong.
    maps = [np.where(scan.ignored, 0, panel.labels) for panel in panels if panel.labels is not None]
    # The reference is one of the maps, but adds no wrong voxels.
    index = telling_slice(scan.reference, maps)
    window = labelled_window([labels[index] for labels in maps], spacing[1:])
    image, reference = scan.image[index][window], scan.reference[index][window]
    intensities = intensity_window(image)
    view = slice_view(spacing, 0, scan.geometry.depth_axis)
    for axes, panel in zip(axes_line, panels, strict=True):
        show_slice(axes, image, view, intensities)
        if panel.labels is not None:
            paint_labels(axes, panel.labels[index][window], styles, view, width=1.3)
        if panel.with_reference:
            paint_labels(axes, reference, styles, view, fill=0, outline="white", width=0.9)
        slices = f", slice {index + 1} of {len(scan.image)}" if panel.labels is None else ""
        axes.set_title(panel.title + slices, fontsize=9.5)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
