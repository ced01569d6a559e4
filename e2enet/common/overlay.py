"""A picture of a segmentation on its image: three orthogonal slices in their true proportions, prediction and
reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from e2enet.common.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXIS_NAMES = ("depth", "height", "width")
Colour = tuple[float, float, float, float]
FILL_OPACITY = 0.35
INCHES_PER_VIEW = 3.2


def save_overlay(
    path: str | Path,
    image: np.ndarray,
    segmentation: np.ndarray,
    *,
    labels: Mapping[int, str],
    spacing: Sequence[float],
    reference: np.ndarray | None = None,
) -> None:
    """Write a PNG with one row for the prediction and, where given, one for the reference.

    Args:
        path: the PNG file; written atomically.
        image: (D, H, W), any intensities; shown between its 0.5 and 99.5 percentiles.
        segmentation: (D, H, W) labels, 0 background.
        labels: label value -> name, for the legend; background is skipped.
        spacing: mm per voxel along (D, H, W), for the aspect of each view.
        reference: (D, H, W) labels to compare with, drawn in the same slices and colours.

    Each view shows the slice with most foreground (of the reference where there is one).
    Raises ValueError where the shapes differ.
    """
    maps = {"prediction": segmentation} | ({} if reference is None else {"reference": reference})
    for name, labelling in maps.items():
        if labelling.shape != image.shape or image.ndim != 3:
            raise ValueError(f"{name} has shape {labelling.shape}, the image {image.shape}: both must be one (D, H, W)")
    figure = _draw(image, maps, labels, np.asarray(spacing, dtype=float))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, facecolor="white")


def fullest_slices(labelling: np.ndarray) -> tuple[int, int, int]:
    """Index along each axis of the slice with most foreground voxels; the middle one where there is no
    foreground."""
    foreground = labelling > 0
    middle = tuple(size // 2 for size in labelling.shape)
    if not foreground.any():
        return middle[0], middle[1], middle[2]
    counts = [foreground.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return int(counts[0].argmax()), int(counts[1].argmax()), int(counts[2].argmax())


def _draw(image: np.ndarray, maps: Mapping[str, np.ndarray], labels: Mapping[int, str], spacing: np.ndarray) -> Figure:
    # The object API with its own canvas: pyplot's global state leaks figures when many cases are drawn.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = _colours(labels)
    slices = fullest_slices(maps.get("reference", maps["prediction"]))
    low, high = np.percentile(image, (0.5, 99.5))
    figure = Figure(figsize=(3 * INCHES_PER_VIEW, len(maps) * INCHES_PER_VIEW + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(maps), 3, squeeze=False)
    for row, (name, labelling) in zip(axes, maps.items(), strict=True):
        for axis, panel in enumerate(row):
            # origin "lower": in the RAS frame the last rows are superior or anterior, which belongs on top.
            down, across = (other for other in range(3) if other != axis)
            view = {
                "origin": "lower",
                "aspect": float(spacing[down] / spacing[across]),
                "interpolation": "nearest",
            }
            panel.imshow(image.take(slices[axis], axis), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), **view)
            _paint(panel, labelling.take(slices[axis], axis), colours, view)
            panel.set_title(f"{name}, {AXIS_NAMES[axis]} {slices[axis]}", fontsize=9)
            panel.set_axis_off()
    shown = [Patch(color=colours[value], label=labels[value]) for value in colours]
    if shown:
        figure.legend(handles=shown, loc="outside lower center", ncols=min(len(shown), 6), fontsize=8, frameon=False)
    return figure


def _paint(panel: Any, labels: np.ndarray, colours: Mapping[int, Colour], view: dict[str, Any]) -> None:
    """Fill every label lightly, so that the image stays visible, and outline it firmly."""
    fill = np.zeros((*labels.shape, 4))
    for value, colour in colours.items():
        inside = labels == value
        fill[inside] = (*colour[:3], FILL_OPACITY)
        if inside.any() and not inside.all() and min(labels.shape) >= 2:
            # No `origin` here: with one, contour takes voxel centres at halves, where imshow has whole numbers.
            panel.contour(inside.astype(float), levels=[0.5], colors=[colour], linewidths=1.0)
    panel.imshow(fill, **view)


def _colours(labels: Mapping[int, str]) -> dict[int, Colour]:
    from matplotlib import colormaps

    values = [value for value in sorted(labels) if value != 0]
    if len(values) <= 20:
        palette = colormaps["tab10" if len(values) <= 10 else "tab20"]
        return {value: palette(index) for index, value in enumerate(values)}
    wheel = colormaps["gist_rainbow"]
    return {value: wheel(index / (len(values) - 1)) for index, value in enumerate(values)}
