"""Labels are told apart by colour and outline, and drawn where they are."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from e2enet.common.contours import COLOURS, intensity_window, label_handles, label_styles, paint_labels, slice_view


def test_no_two_of_twenty_classes_look_the_same() -> None:
    styles = label_styles({value: f"organ {value}" for value in range(21)})
    assert list(styles) == list(range(1, 21))  # background has none
    assert len({(style.colour, str(style.dashes)) for style in styles.values()}) == 20
    assert [style.colour for style in styles.values()][:7] == list(COLOURS)
    assert next(handle.get_label() for handle in label_handles(styles)) == "organ 1"


def test_the_window_is_never_empty() -> None:
    assert intensity_window(np.arange(1001.0)) == pytest.approx((5, 995))
    low, high = intensity_window(np.full((4, 4), 3.0))
    assert low == 3 and high > low


def test_slices_are_drawn_in_true_proportions() -> None:
    assert slice_view((3.0, 1.0, 0.5), 0)["aspect"] == 2
    assert slice_view((3.0, 1.0, 0.5), 1)["aspect"] == 6
    assert slice_view((3.0, 1.0, 0.5), 2)["aspect"] == 3


def test_a_label_is_filled_and_outlined_where_it_is() -> None:
    labels = np.zeros((6, 6), dtype=np.uint8)
    labels[2:4, 1:5] = 2
    styles = label_styles({0: "background", 1: "liver", 2: "spleen"})
    axes = Figure().subplots()
    paint_labels(axes, labels, styles, slice_view((1, 1, 1), 0), fill=0.5)
    fill = axes.images[0].get_array()
    assert fill is not None
    np.testing.assert_allclose(fill[2, 1], (*to_rgb(COLOURS[1]), 0.5))
    assert fill[..., 3].sum() == 0.5 * 8
    (outline,) = axes.collections
    ((x0, y0), (x1, y1)) = outline.get_datalim(axes.transData).get_points()
    assert (x0, y0, x1, y1) == (0.5, 1.5, 4.5, 3.5)
    paint_labels(axes, labels, styles, slice_view((1, 1, 1), 0), fill=0, outline="white")
    assert len(axes.images) == 1 and axes.collections[1].get_path_effects()
