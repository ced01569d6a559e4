"""Each augmentation operation: identities, constants, hand-worked values, SciPy and torch as references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from e2enet.data.augmentation import intensity
from e2enet.data.augmentation.intensity_steps import IntensityStep
from e2enet.data.augmentation.recipe import build_augmentation
from e2enet.data.augmentation.spatial import RotationScaling, box_size, rotate_scale, rotation_matrix

PATCH = (6, 8, 10)
CHANNEL = np.random.default_rng(0).normal(size=PATCH).astype(np.float32)
LABEL = np.random.default_rng(1).integers(0, 4, PATCH).astype(np.uint8)


Change = Callable[[torch.Tensor, Sequence[float]], None]


def rotation(patch: tuple[int, int, int]) -> RotationScaling:
    """Return a step that always rotates and scales."""
    return RotationScaling(1, 30.0, 1, (0.7, 1.4), degrees_in_plane=30.0, anisotropy=3, patch_size=patch)


def change(function: Change, channel: np.ndarray, strength: float) -> np.ndarray:
    """Return a channel (D, H, W) after a change of intensity."""
    rows = torch.from_numpy(channel.copy())[None]
    function(rows, [strength])
    return rows[0].numpy()


def turn(image: np.ndarray, label: np.ndarray, matrix: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Return image and label (D, H, W) after `rotate_scale`."""
    turned, nearest = rotate_scale(torch.from_numpy(image)[None], torch.from_numpy(label), matrix, size)
    return turned[0].numpy(), nearest.numpy()


# Intensity


@pytest.mark.parametrize(
    "function",
    [
        intensity.multiply,
        intensity.scale_contrast,
        intensity.change_gamma,
        intensity.change_gamma_inverted,
        intensity.lower_resolution,
        intensity.lower_resolution_in_plane,
    ],
)
def test_neutral_strength_changes_nothing(function: Change) -> None:
    np.testing.assert_allclose(change(function, CHANNEL, 1.0), CHANNEL, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        intensity.scale_contrast,
        intensity.change_gamma,
        intensity.change_gamma_inverted,
        intensity.lower_resolution,
        intensity.lower_resolution_in_plane,
        intensity.blur,
    ],
)
def test_constant_channel_stays_constant(function: Change) -> None:
    np.testing.assert_allclose(change(function, np.full(PATCH, -1.5, np.float32), 0.7), -1.5, atol=1e-6)


def test_contrast_by_hand() -> None:
    # The mean is 0. -1 and 1 would become -1.25 and 1.25 and are clipped to the old range; 0.5 becomes 0.625.
    channel = np.array([-1, 1, 0.5, -0.5], np.float32).reshape(1, 2, 2)
    np.testing.assert_allclose(
        change(intensity.scale_contrast, channel, 1.25).ravel(), [-1, 1, 0.625, -0.625], atol=1e-6
    )


def test_gamma_keeps_mean_and_deviation_and_bends_the_right_end() -> None:
    ramp = np.linspace(-2, 3, 101, dtype=np.float32).reshape(1, 1, 101)
    powered = change(intensity.change_gamma, ramp, 1.5).ravel()
    inverted = change(intensity.change_gamma_inverted, ramp, 1.5).ravel()
    for changed in (powered, inverted):
        assert changed.mean() == pytest.approx(ramp.mean(), abs=1e-4)
        assert changed.std() == pytest.approx(ramp.std(), abs=1e-4)
        assert np.all(np.diff(changed) > 0)
    assert powered[1] - powered[0] < powered[-1] - powered[-2]  # dark end flattened
    assert inverted[1] - inverted[0] > inverted[-1] - inverted[-2]  # bright end flattened


@pytest.mark.parametrize("sigma", [0.5, 0.77, 1.0])
def test_blur_is_scipys_gaussian(sigma: float) -> None:
    for channel in (CHANNEL, CHANNEL[:2, :1, :3]):  # the second is smaller than the Gaussian
        np.testing.assert_allclose(
            change(intensity.blur, channel, sigma), ndimage.gaussian_filter(channel, sigma), atol=1e-6
        )


@pytest.mark.parametrize("zoom", [0.5, 0.63, 0.9])
def test_low_resolution_is_nearest_sampling_and_linearly_back(zoom: float) -> None:
    channel = torch.from_numpy(CHANNEL)
    small = functional.interpolate(channel[None, None], size=[round(zoom * n) for n in PATCH], mode="nearest-exact")
    expected = functional.interpolate(small, size=PATCH, mode="trilinear")[0, 0]
    np.testing.assert_allclose(change(intensity.lower_resolution, CHANNEL, zoom), expected, atol=1e-5)
    planes = functional.interpolate(channel[:, None], size=[round(zoom * n) for n in PATCH[1:]], mode="nearest-exact")
    expected = functional.interpolate(planes, size=PATCH[1:], mode="bilinear")[:, 0]
    np.testing.assert_allclose(change(intensity.lower_resolution_in_plane, CHANNEL, zoom), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma"])
def test_rows_of_different_strength_are_changed_as_one_by_one(name: str) -> None:
    step = build_augmentation(PATCH, ()).steps[name]
    assert isinstance(step, IntensityStep)
    function = step.change
    channels = np.random.default_rng(3).normal(size=(3, *PATCH)).astype(np.float32)
    rows = torch.from_numpy(channels.copy())
    function(rows, [0.7, 0.9, 0.8])
    for row, channel, strength in zip(rows, channels, (0.7, 0.9, 0.8), strict=True):
        np.testing.assert_allclose(row, change(function, channel, strength), atol=1e-5)


# Rotation and scale


def test_identity_matrix_returns_the_patch() -> None:
    image, label = turn(CHANNEL, LABEL, np.eye(3), PATCH)
    np.testing.assert_allclose(image, CHANNEL, atol=1e-4)
    np.testing.assert_array_equal(label, LABEL)
    assert label.dtype == np.uint8


def test_quarter_turn_is_rot90() -> None:
    cube = np.random.default_rng(1).normal(size=(4, 7, 7)).astype(np.float32)
    marks = np.random.default_rng(1).integers(0, 300, cube.shape).astype(np.int16)
    image, label = turn(cube, marks, rotation_matrix([np.pi / 2, 0, 0]), cube.shape)
    for turns in (1, 3):
        if np.allclose(image, np.rot90(cube, turns, axes=(1, 2)), atol=1e-4):
            np.testing.assert_array_equal(label, np.rot90(marks, turns, axes=(1, 2)))
            return
    raise AssertionError("neither a quarter turn to the left nor to the right")


def test_agrees_with_scipy_affine_transform() -> None:
    matrix = rotation_matrix(np.deg2rad([20, -15, 30])) * 1.2
    image = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=box_size(matrix, PATCH)), 1).astype(np.float32)
    marks = np.random.default_rng(2).integers(0, 9, image.shape).astype(np.uint8)
    centre_in, centre_out = (np.array(image.shape) - 1) / 2, (np.array(PATCH) - 1) / 2
    offset = centre_in - matrix @ centre_out
    turned, label = turn(image, marks, matrix, PATCH)
    np.testing.assert_allclose(turned, ndimage.affine_transform(image, matrix, offset, PATCH, order=1), atol=1e-4)
    np.testing.assert_array_equal(label, ndimage.affine_transform(marks, matrix, offset, PATCH, order=0))


def test_enlarged_box_leaves_no_black_corners() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        matrices = [rotation(PATCH).draw(1) for _ in range(20)]
    for matrix in matrices:
        assert matrix is not None
        size = box_size(matrix, PATCH)
        assert all((more - least) % 2 == 0 and more >= least for more, least in zip(size, PATCH, strict=True))
        image, label = turn(np.ones(size, np.float32), np.ones(size, np.uint8), np.array(matrix), PATCH)
        np.testing.assert_allclose(image, 1, atol=1e-5)
        assert np.all(label == 1)


def test_box_size_by_hand() -> None:
    # 39 / 2 * 1.4 = 27.3 from the centre: 56 voxels reach 27.5.
    assert box_size(1.4 * np.eye(3), (40, 40, 40)) == (56, 56, 56)
    assert box_size(0.7 * np.eye(3), (40, 40, 40)) == (40, 40, 40)
    assert box_size(None, (40, 41, 42)) == (40, 41, 42)


def test_in_plane_draws_never_mix_slices() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(10):
            matrix = rotation((6, 30, 30)).draw(1)
            assert matrix is not None
            np.testing.assert_allclose(matrix[0], [1, 0, 0])
            np.testing.assert_allclose(np.array(matrix)[:, 0], [1, 0, 0])
            assert box_size(matrix, PATCH)[0] == PATCH[0]
