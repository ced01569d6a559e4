"""Draw labels on a slice of an image: light fill, solid outline, colours that colour-blind readers can distinguish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Okabe and Ito's colours (Color Universal Design, 2008) without black, which is invisible on a dark scan.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
# After the seventh class the colours repeat, with dashed and then dotted outlines.
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))
FILL_OPACITY = 0.35


@dataclass(frozen=True)
class LabelStyle:
    """Colour and outline of a class, and its name for the legend."""

    name: str
    colour: str
    dashes: Any


def label_styles(labels: Mapping[int, str]) -> dict[int, LabelStyle]:
    """Return a style for each label except background (0), in the order of their values."""
    values = [value for value in sorted(labels) if value != 0]
    return {
        value: LabelStyle(labels[value], COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, value in enumerate(values)
    }


def intensity_window(image: np.ndarray) -> tuple[float, float]:
    """Return the intensities drawn black and white: the image's 0.5 and 99.5 percentiles, never equal."""
    low, high = np.percentile(image, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


@dataclass(frozen=True)
class SliceView:
    """Orientation of a displayed slice, in the radiological convention.

    In axial and coronal slices the patient's right is on the left of the picture, in sagittal slices the front. The
    head is up; in axial slices the front is up.

    Attributes:
        name: axial, coronal or sagittal.
        left: The direction on the left of the picture, R(ight) or A(nterior).
        aspect: Height of a voxel divided by its width.
        transposed: Whether the slice's first axis is the horizontal one.
    """

    name: str
    left: str
    aspect: float
    transposed: bool

    def turn(self, part: np.ndarray) -> np.ndarray:
        """Turn a slice of the frame for display: rows from top to bottom, columns from left to right.

        Both axes are reversed: RAS axes end at the right, the front and the head, which belong on the left or on top.
        """
        return (part.T if self.transposed else part)[::-1, ::-1]


def slice_view(spacing: Sequence[float], axis: int, depth_axis: int) -> SliceView:
    """Return the view of a slice across `axis` of a (D, H, W) volume, whose D is the RAS axis `depth_axis`.

    `spacing` is in mm along (D, H, W).
    """
    ras = [depth_axis, *(other for other in range(3) if other != depth_axis)]
    first, second = (other for other in range(3) if other != axis)
    # The later of the two RAS axes is vertical: S beside R or A, and A beside R.
    transposed = ras[first] < ras[second]
    down, across = (second, first) if transposed else (first, second)
    name = ("sagittal", "coronal", "axial")[ras[axis]]
    return SliceView(name, "RAS"[ras[across]], spacing[down] / spacing[across], transposed)


def show_slice(panel: Any, part: np.ndarray, view: SliceView, window: tuple[float, float]) -> None:
    """Draw a slice of an image in grey between the intensities of `window`, with a letter for its left side."""
    low, high = window
    panel.imshow(view.turn(part), cmap="gray", vmin=low, vmax=high, **_placement(view))
    # White on the black border of most scans; the dark rim keeps it readable on others.
    text = panel.text(0.02, 0.5, view.left, transform=panel.transAxes, color="white", fontsize=8, va="center")
    text.set_path_effects(_dark_rim(1.5))


def paint_labels(
    panel: Any,
    labels: np.ndarray,
    styles: Mapping[int, LabelStyle],
    view: SliceView,
    *,
    fill: float = FILL_OPACITY,
    outline: str | None = None,
    width: float = 1.0,
) -> None:
    """Fill every label of a slice of the frame with opacity `fill`, so that the image stays visible, and outline it.

    `outline` is one colour for all outlines, which then get a dark rim. None draws each in its label's colour.
    """
    from matplotlib.colors import to_rgb

    labels = view.turn(labels)
    colours = np.zeros((*labels.shape, 4))
    for value, style in styles.items():
        inside = labels == value
        colours[inside] = (*to_rgb(style.colour), fill)
        if inside.any() and not inside.all() and min(labels.shape) >= 2:
            # No `origin` here: with one, contour places voxel centres at half numbers, but imshow at whole numbers.
            lines = panel.contour(
                inside.astype(float),
                levels=[0.5],
                colors=[outline or style.colour],
                linewidths=width,
                linestyles=[style.dashes],
            )
            if outline is not None:
                # Without a rim, one colour for all would be invisible where the image has the same colour.
                lines.set(path_effects=_dark_rim(width + 1.2))
    if fill > 0:
        panel.imshow(colours, **_placement(view))


def label_handles(styles: Mapping[int, LabelStyle]) -> list[Any]:
    """Return a legend entry per class, with fill and outline as in the picture."""
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=(style.colour, 0.6), edgecolor=style.colour, ls=style.dashes, lw=1.3, label=style.name)
        for style in styles.values()
    ]


def _placement(view: SliceView) -> dict[str, Any]:
    return {"origin": "upper", "aspect": view.aspect, "interpolation": "nearest"}


def _dark_rim(width: float) -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="black", alpha=0.7)]
