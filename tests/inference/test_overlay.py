"""The overlay shows the right slices, in true proportions, with the segmentation's colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from e2enet.inference.overlay import fullest_slices, save_overlay


def test_fullest_slices_are_those_with_most_foreground() -> None:
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    labels[1, 2, :] = 1
    labels[1, :, 3] = 2
    assert fullest_slices(labels) == (1, 2, 3)


def test_without_foreground_the_middle_slices_are_shown() -> None:
    assert fullest_slices(np.zeros((4, 5, 6))) == (2, 2, 3)


def test_picture_is_coloured_only_where_there_is_a_segmentation(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(6, 8, 10)).astype(np.float32)
    labels = np.zeros(image.shape, dtype=np.uint8)
    save_overlay(tmp_path / "empty.png", image, labels, labels={0: "background"}, spacing=(3, 1, 1), depth_axis=2)
    labels[2:4, 2:6, 3:8] = 1
    save_overlay(
        tmp_path / "full.png",
        image,
        labels,
        labels={0: "background", 1: "liver"},
        spacing=(3, 1, 1),
        depth_axis=2,
        reference=labels,
    )
    assert _coloured(tmp_path / "empty.png") == 0
    assert _coloured(tmp_path / "full.png") > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.png", "full.png"]


def test_shapes_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prediction has shape \(2, 2, 2\)"):
        save_overlay(
            tmp_path / "x.png", np.zeros((3, 3, 3)), np.zeros((2, 2, 2)), labels={}, spacing=(1, 1, 1), depth_axis=2
        )
    assert not list(tmp_path.iterdir())


def _coloured(path: Path) -> int:
    """Return the pixels that are not grey."""
    rgb = imread(path)[..., :3]
    return int((rgb.max(axis=-1) - rgb.min(axis=-1) > 0.1).sum())


def test_class_names_are_no_mathematics(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    labels = np.ones(image.shape, np.uint8)
    names = {0: "background", 1: r"$\frac$ [/T1] _{", 2: "_$x^$"}
    save_overlay(tmp_path / "a$x_$.png", image, labels, labels=names, spacing=(1, 1, 1), depth_axis=2)
    assert (tmp_path / "a$x_$.png").stat().st_size > 1000
