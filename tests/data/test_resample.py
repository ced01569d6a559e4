"""Resampling keeps constants, agrees with SciPy and does not mix slices of thick stacks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from e2enet.data.preparation.axes import resample_slices, resample_volume
from e2enet.data.preparation.resample import nearest_indices, resample_image, separate_axis
from e2enet.data.preparation.resample_labels import resample_label

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((3, 1, 1), (1, 1, 1), None),  # three times is not yet anisotropic
        ((3.1, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (1, 5, 1), 1),
        ((1, 1, 9), (5, 1, 1), 2),  # the old spacing decides first
        ((0.2, 1, 1), (1, 1, 1), None),  # two coarse axes are no stack
        ((3.00000007, 1.00000003, 1), (1, 1, 1), None),  # as headers round 3 x 1 x 1 mm and 0.2 x 1 x 1 mm
        ((0.2, 1.00000006, 1), (1, 1, 1), None),
        ((3.00001, 1, 1), (1, 1, 1), 0),
    ],
)
def test_separate_axis(old: tuple, new: tuple, axis: int | None) -> None:
    assert separate_axis(old, new) == axis


def test_nearest_indices_by_hand() -> None:
    assert nearest_indices(2, 4).tolist() == [0, 0, 1, 1]
    assert nearest_indices(3, 3).tolist() == [0, 1, 2]
    assert nearest_indices(4, 2).tolist() == [1, 3]
    assert nearest_indices(1, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("shape", [(7, 4, 9), (5, 6, 7), (2, 3, 3)])
def test_constant_in_constant_out(axis: int | None, shape: tuple[int, int, int]) -> None:
    constant = np.full((5, 6, 7), 3.25, dtype=np.float32)
    result = resample_image(constant, shape, axis)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.full(shape, 3.25), rtol=1e-6)


def test_agrees_with_coordinates_written_out() -> None:
    image = RNG.normal(size=(6, 5, 7)).astype(np.float32)
    shape = (9, 4, 11)
    axes = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(image.shape, shape, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    expected = ndimage.map_coordinates(image, grid, order=3, mode="nearest").clip(image.min(), image.max())
    np.testing.assert_allclose(resample_image(image, shape, None), expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_separate_axis_only_repeats_slices(axis: int) -> None:
    image = RNG.normal(size=(3, 3, 3)).astype(np.float32)
    shape = tuple(6 if index == axis else 3 for index in range(3))
    np.testing.assert_allclose(resample_image(image, shape, axis), np.repeat(image, 2, axis), atol=1e-6)


def test_image_stays_in_its_range() -> None:
    step = np.zeros((8, 8, 8), dtype=np.float32)
    step[4:] = 1
    result = resample_image(step, (19, 8, 8), None)
    assert result.min() >= 0 and result.max() <= 1


def test_label_keeps_values_and_volume() -> None:
    label = np.zeros((8, 8, 8), dtype=np.uint8)
    label[2:6, 2:6, 2:6] = 2
    label[0] = 7
    result = resample_label(label, (16, 16, 16), None)
    assert result.dtype == np.uint8 and set(np.unique(result)) == {0, 2, 7}
    # Linear interpolation rounds the corners of the cube only.
    assert 0.9 * 8 * 64 <= (result == 2).sum() <= 8 * 64
    np.testing.assert_array_equal(resample_label(label, (8, 8, 8), None), label)


@pytest.mark.parametrize("shape", [(9, 70, 40), (3, 40, 90), (5, 61, 53)])
def test_splines_are_those_of_scipy_at_sizes_of_several_blocks(shape: tuple[int, int, int]) -> None:
    image = RNG.normal(size=(5, 61, 53)).astype(np.float32) * 1000
    factors = [new / old for new, old in zip(shape, image.shape, strict=True)]
    expected = ndimage.zoom(image.astype(np.float64), factors, order=3, mode="nearest", grid_mode=True)
    scale = np.abs(image).max()
    np.testing.assert_allclose(resample_volume(image, shape), expected, atol=1e-5 * scale)
    planes = resample_slices(image, [0, 0, 3], shape[1:])
    for plane, index in zip(planes, (0, 0, 3), strict=True):
        expected = ndimage.zoom(image[index].astype(np.float64), factors[1:], order=3, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(plane, expected, atol=1e-5 * scale)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("shape", [(11, 13, 14), (5, 4, 20), (12, 18, 14), (1, 9, 7)])
@pytest.mark.parametrize("blobs", [True, False])
def test_votes_are_those_of_every_label_resampled_by_itself(
    shape: tuple[int, int, int], axis: int | None, blobs: bool
) -> None:
    maps = RNG.normal(size=(5, 6, 9, 7))
    label = (ndimage.gaussian_filter(maps, (0, 1.5, 1.5, 1.5)) if blobs else maps).argmax(0).astype(np.int16) * 3
    values = np.unique(label)
    expected = values[np.stack([linear_shares(label == value, shape, axis) for value in values]).argmax(axis=0)]
    found = resample_label(label, shape, axis)
    assert found.dtype == np.int16
    # If shares tie, rounding in float32 may decide either way. The reference takes the smaller label.
    assert np.count_nonzero(found != expected) <= 0.01 * found.size


def linear_shares(inside: np.ndarray, shape: tuple[int, int, int], axis: int | None) -> np.ndarray:
    """Return a label's mask (D, H, W) at the new voxels: SciPy's linear interpolation, nearest slice along `axis`."""
    places = [
        nearest_indices(old, new) if index == axis else (np.arange(new) + 0.5) * old / new - 0.5
        for index, (old, new) in enumerate(zip(inside.shape, shape, strict=True))
    ]
    grid = np.meshgrid(*places, indexing="ij")
    return ndimage.map_coordinates(inside.astype(np.float32), grid, order=1, mode="nearest")


def test_equal_shares_go_to_the_smallest_label() -> None:
    label = np.array([5, 2], dtype=np.uint8).reshape(1, 1, 2)
    np.testing.assert_array_equal(resample_label(label, (1, 1, 3), None), np.array([[[5, 2, 2]]]))
    np.testing.assert_array_equal(resample_label(label[..., ::-1], (1, 1, 1), None), np.array([[[2]]]))
