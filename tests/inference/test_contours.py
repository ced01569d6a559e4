"""Labels differ in colour and outline, and are drawn in the right place."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from e2enet.inference.contours import (
    COLOURS,
    intensity_window,
    label_handles,
    label_styles,
    paint_labels,
    show_slice,
    slice_view,
)


def test_no_two_of_twenty_classes_look_the_same() -> None:
    styles = label_styles({value: f"organ {value}" for value in range(21)})
    assert list(styles) == list(range(1, 21))  # background has no style
    assert len({(style.colour, str(style.dashes)) for style in styles.values()}) == 20
    assert [style.colour for style in styles.values()][:7] == list(COLOURS)
    assert next(handle.get_label() for handle in label_handles(styles)) == "organ 1"


def test_the_window_is_never_empty() -> None:
    assert intensity_window(np.arange(1001.0)) == pytest.approx((5, 995))
    low, high = intensity_window(np.full((4, 4), 3.0))
    assert low == 3 and high > low


# Frame axes for each depth axis: (S, R, A), (A, R, S), (R, A, S).
@pytest.mark.parametrize(
    ("depth_axis", "axis", "name", "up", "left"),
    [
        (2, 0, "axial", "A", "R"),
        (2, 1, "sagittal", "S", "A"),
        (2, 2, "coronal", "S", "R"),
        (1, 0, "coronal", "S", "R"),
        (1, 1, "sagittal", "S", "A"),
        (1, 2, "axial", "A", "R"),
        (0, 0, "sagittal", "S", "A"),
        (0, 1, "coronal", "S", "R"),
        (0, 2, "axial", "A", "R"),
    ],
)
def test_slices_are_turned_as_radiologists_look_at_them(
    depth_axis: int, axis: int, name: str, up: str, left: str
) -> None:
    sizes, shape = (0.5, 1.0, 3.0), (4, 5, 6)  # mm and voxels along R, A, S
    places = dict(zip("RAS", np.meshgrid(*map(np.arange, shape), indexing="ij"), strict=True))
    frame = {letter: np.moveaxis(values, depth_axis, 0) for letter, values in places.items()}
    order = [depth_axis, *(other for other in range(3) if other != depth_axis)]
    view = slice_view([sizes[ras] for ras in order], axis, depth_axis)
    assert (view.name, view.left) == (name, left)
    assert view.aspect == sizes["RAS".index(up)] / sizes["RAS".index(left)]
    # Each row lies one voxel further from `up` than the row above it, each column one further from `left`.
    assert (np.diff(view.turn(frame[up].take(1, axis)), axis=0) == -1).all()
    assert (np.diff(view.turn(frame[left].take(1, axis)), axis=1) == -1).all()


def test_image_and_labels_are_drawn_alike() -> None:
    """In an axial slice (right, anterior), the rightmost and foremost voxel is drawn at the top left."""
    labels = np.zeros((8, 6), dtype=np.uint8)
    labels[-1, -1] = 1
    styles, view = label_styles({0: "background", 1: "liver"}), slice_view((3, 1, 1), 0, 2)
    axes = Figure().subplots()
    show_slice(axes, labels.astype(float), view, (0, 1))
    paint_labels(axes, labels, styles, view)
    paint_labels(axes, labels, styles, view, fill=0, outline="white")
    image, fill = (picture.get_array() for picture in axes.images)
    assert image is not None and fill is not None and image.shape == (6, 8)
    assert np.argwhere(image == 1).tolist() == np.argwhere(fill[..., 3] > 0).tolist() == [[0, 0]]
    assert axes.yaxis_inverted() and not axes.xaxis_inverted()
    assert axes.get_xlim() == (-0.5, 7.5) and axes.get_ylim() == (5.5, -0.5)
    for outline in axes.collections:
        np.testing.assert_allclose(outline.get_datalim(axes.transData).get_points(), [(0, 0), (0.5, 0.5)])
    assert [text.get_text() for text in axes.texts] == ["R"]


def test_a_label_is_filled_and_outlined_where_it_is() -> None:
    labels = np.zeros((6, 6), dtype=np.uint8)
    labels[2:4, 1:5] = 2
    styles, view = label_styles({0: "background", 1: "liver", 2: "spleen"}), slice_view((1, 1, 1), 0, 2)
    axes = Figure().subplots()
    paint_labels(axes, labels, styles, view, fill=0.5)
    fill = axes.images[0].get_array()
    assert fill is not None
    np.testing.assert_allclose(fill[1, 3], (*to_rgb(COLOURS[1]), 0.5))
    assert fill[..., 3].sum() == 0.5 * 8
    (outline,) = axes.collections
    ((x0, y0), (x1, y1)) = outline.get_datalim(axes.transData).get_points()
    assert (x0, y0, x1, y1) == (1.5, 0.5, 3.5, 4.5)
    paint_labels(axes, labels, styles, view, fill=0, outline="white")
    assert len(axes.images) == 1 and axes.collections[1].get_path_effects()
