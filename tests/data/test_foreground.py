"""Foreground coordinates: all of a small class, a fixed number of a large one, the same at every call."""

from __future__ import annotations

import numpy as np

from e2enet.data.preparation.foreground import num_coordinates, sample_coordinates


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
    rows = sample_coordinates(label, least=450)[1]
    assert rows.shape == (450, 3) and len(np.unique(rows, axis=0)) == 450
    assert (label[tuple(rows.T)] == 1).all()
    per_plane = np.bincount(rows[:, 0], minlength=10)
    assert per_plane[0] == 0 and per_plane[1:].min() > 30  # 50 of 100 expected in each plane
    np.testing.assert_array_equal(rows, sample_coordinates(label, least=450)[1])


def test_nnu_net_keeps_ten_thousand_or_a_hundredth_of_each_class() -> None:
    sizes = (1, 9_999, 10_000, 10_001, 1_000_000, 1_000_001, 1_234_567, 20_000_000)
    kept = [num_coordinates(size) for size in sizes]
    assert kept == [1, 9_999, 10_000, 10_000, 10_000, 10_001, 12_346, 200_000]


def test_of_a_class_of_millions_a_hundredth_is_kept() -> None:
    label = np.full((4, 700, 400), 2, np.uint8)
    label[0] = 1
    label[0, 0, :5] = 3
    found = sample_coordinates(label)
    assert {value: len(rows) for value, rows in found.items()} == {1: 10_000, 2: 10_000, 3: 5}
    assert len(sample_coordinates(np.ones((4, 700, 400), np.uint8))[1]) == 11_200


def test_empty_foreground() -> None:
    assert sample_coordinates(np.zeros((3, 3, 3), np.uint8)) == {}
