"""A picture of prediction and reference on an image: three orthogonal slices in true proportions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from e2enet.common.files import atomic_path
from e2enet.inference.contours import (
    SliceView,
    intensity_window,
    label_handles,
    label_styles,
    paint_labels,
    show_slice,
    slice_view,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES_PER_VIEW = 3.2


def save_overlay(
    path: str | Path,
    image: np.ndarray,
    segmentation: np.ndarray,
    *,
    labels: Mapping[int, str],
    spacing: Sequence[float],
    depth_axis: int,
    reference: np.ndarray | None = None,
) -> None:
    """Write a PNG with one row for the prediction and, if given, one for the reference.

    Each view shows the slice with the most foreground (of the reference if there is one).

    Args:
        path: the PNG file; written atomically.
        image: (D, H, W), any intensities; shown between its 0.5 and 99.5 percentiles.
        segmentation: (D, H, W) labels, 0 background.
        labels: label value -> name, for the legend; background is skipped.
        spacing: mm per voxel along (D, H, W), for the aspect of each view.
        depth_axis: the RAS axis of D, see `slice_view`.
        reference: (D, H, W) labels to compare with, drawn in the same slices and colours.

    Raises:
        ValueError: the shapes differ.
    """
    maps = {"prediction": segmentation} | ({} if reference is None else {"reference": reference})
    for name, labelling in maps.items():
        if labelling.shape != image.shape or image.ndim != 3:
            raise ValueError(f"{name} has shape {labelling.shape}, the image {image.shape}: both must be one (D, H, W)")
    from matplotlib import rc_context

    views = [slice_view(spacing, axis, depth_axis) for axis in range(3)]
    # Label names come from the user: a dollar sign in them is text, not mathematics.
    with rc_context({"text.parse_math": False}), atomic_path(path) as temporary:
        _draw(image, maps, labels, views).savefig(temporary, format="png", dpi=120, facecolor="white")


def fullest_slices(labelling: np.ndarray) -> tuple[int, int, int]:
    """Return the index of the slice with the most foreground voxels along each axis; the middle one without any."""
    foreground = labelling > 0
    middle = tuple(size // 2 for size in labelling.shape)
    if not foreground.any():
        return middle[0], middle[1], middle[2]
    counts = [foreground.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return int(counts[0].argmax()), int(counts[1].argmax()), int(counts[2].argmax())


def _draw(
    image: np.ndarray, maps: Mapping[str, np.ndarray], labels: Mapping[int, str], views: Sequence[SliceView]
) -> Figure:
    # The object API with its own canvas: pyplot's global state leaks figures when many cases are drawn.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    styles = label_styles(labels)
    slices = fullest_slices(maps.get("reference", maps["prediction"]))
    window = intensity_window(image)
    figure = Figure(figsize=(3 * INCHES_PER_VIEW, len(maps) * INCHES_PER_VIEW + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(maps), 3, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for row, (name, labelling) in zip(axes, maps.items(), strict=True):
        for axis, (panel, view) in enumerate(zip(row, views, strict=True)):
            show_slice(panel, image.take(slices[axis], axis), view, window)
            paint_labels(panel, labelling.take(slices[axis], axis), styles, view)
            panel.set_title(f"{name}, {view.name} {slices[axis]}", fontsize=9)
            panel.set_axis_off()
    shown = label_handles(styles)
    if shown:
        figure.legend(handles=shown, loc="outside lower center", ncols=min(len(shown), 6), fontsize=8, frameon=False)
    return figure
