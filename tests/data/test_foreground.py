"""Coordinates of the foreground: all of a small class, so many of a large one, the same at every call."""

from __future__ import annotations

import numpy as np

from e2enet.data.preparation.foreground import sample_coordinates


def test_every_voxel_of_a_small_class_is_listed() -> None:
    label = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    label[label == 2] = 9
    found = sample_coordinates(label)
    assert found.keys() == {1, 3, 9}
    for value, rows in found.items():
        assert rows.dtype == np.int32
        np.testing.assert_array_equal(rows, np.argwhere(label == value))


def test_large_classes_are_drawn_from_evenly_and_repeatably() -> None:
    label = np.ones((10, 10, 10), dtype=np.int16)
    label[0] = 0
    rows = sample_coordinates(label, limit=450)[1]
    assert rows.shape == (450, 3) and len(np.unique(rows, axis=0)) == 450
    assert (label[tuple(rows.T)] == 1).all()
    per_plane = np.bincount(rows[:, 0], minlength=10)
    assert per_plane[0] == 0 and per_plane[1:].min() > 30  # 50 of 100 each
    np.testing.assert_array_equal(rows, sample_coordinates(label, limit=450)[1])


def test_empty_foreground() -> None:
    assert sample_coordinates(np.zeros((3, 3, 3), np.uint8)) == {}
