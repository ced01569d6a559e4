"""Labels on a slice of an image: a light fill, a firm outline, and colours that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Okabe and Ito's colours (Color Universal Design, 2008) but black, which is lost on a dark scan.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
# Past the seventh class colours come again, with dashed and then dotted outlines.
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))
FILL_OPACITY = 0.35


@dataclass(frozen=True)
class LabelStyle:
    """Colour and outline of a class, and its name for the legend."""

    name: str
    colour: str
    dashes: Any


def label_styles(labels: Mapping[int, str]) -> dict[int, LabelStyle]:
    """A style for each label but background (0), in the order of their values."""
    values = [value for value in sorted(labels) if value != 0]
    return {
        value: LabelStyle(labels[value], COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, value in enumerate(values)
    }


def intensity_window(image: np.ndarray) -> tuple[float, float]:
    """The intensities to draw black and white: the image's 0.5 and 99.5 percentiles, never equal."""
    low, high = np.percentile(image, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def slice_view(spacing: Sequence[float], axis: int) -> dict[str, Any]:
    """How imshow draws a slice across `axis` of a (D, H, W) volume: in true proportions, upright.

    `spacing` is in mm along (D, H, W). Origin "lower": in the RAS frame the last rows are superior or anterior, which
    belongs on top.
    """
    down, across = (other for other in range(3) if other != axis)
    return {"origin": "lower", "aspect": spacing[down] / spacing[across], "interpolation": "nearest"}


def paint_labels(
    panel: Any,
    labels: np.ndarray,
    styles: Mapping[int, LabelStyle],
    view: Mapping[str, Any],
    *,
    fill: float = FILL_OPACITY,
    outline: str | None = None,
    width: float = 1.0,
) -> None:
    """Fill every label of a slice (H, W) with opacity `fill`, so that the image stays visible, and outline it firmly.

    `outline` is one colour for all outlines, which get a dark rim; None: each in its own.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patheffects import withStroke

    colours = np.zeros((*labels.shape, 4))
    for value, style in styles.items():
        inside = labels == value
        colours[inside] = (*to_rgb(style.colour), fill)
        if inside.any() and not inside.all() and min(labels.shape) >= 2:
            # No `origin` here: with one, contour takes voxel centres at halves, where imshow has whole numbers.
            lines = panel.contour(
                inside.astype(float),
                levels=[0.5],
                colors=[outline or style.colour],
                linewidths=width,
                linestyles=[style.dashes],
            )
            if outline is not None:
                # One colour for all would be lost where the image has it too.
                lines.set(path_effects=[withStroke(linewidth=width + 1.2, foreground="black", alpha=0.7)])
    if fill > 0:
        panel.imshow(colours, **view)


def label_handles(styles: Mapping[int, LabelStyle]) -> list[Any]:
    """A legend entry per class: fill and outline as in the picture."""
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=(style.colour, 0.6), edgecolor=style.colour, ls=style.dashes, lw=1.3, label=style.name)
        for style in styles.values()
    ]
