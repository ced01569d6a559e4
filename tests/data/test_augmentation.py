"""Augmentation: identities, constants, hand-worked values and SciPy as reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchio as tio
from scipy import ndimage

from e2enet.common.errors import InputError
from e2enet.data.augmentation import intensity as intensity
from e2enet.data.augmentation.recipe import build_augmentation
from e2enet.data.augmentation.spatial import RandomRotateScale, RotateScale, rotation_matrix

PATCH = (6, 8, 10)
CHANNEL = np.random.default_rng(0).normal(size=PATCH).astype(np.float32)


def make_subject(image: np.ndarray, label: np.ndarray | None = None) -> tio.Subject:
    """Subject of one channel (D, H, W) and a label; the label is where the image is positive unless given."""
    label = (image > 0).astype(np.uint8) if label is None else label
    return tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(image.copy())[None]),
        label=tio.LabelMap(tensor=torch.from_numpy(label.copy())[None]),
    )


# Intensity


@pytest.mark.parametrize(
    ("function", "identity"),
    [
        (intensity.multiply, 1.0),
        (intensity.scale_contrast, 1.0),
        (intensity.change_gamma, 1.0),
        (intensity.change_gamma_inverted, 1.0),
        (intensity.lower_resolution, 1.0),
        (intensity.lower_resolution_in_plane, 1.0),
        (intensity.blur, 0.0),
    ],
)
def test_neutral_strength_changes_nothing(function: intensity.ChannelFunction, identity: float) -> None:
    np.testing.assert_allclose(function(CHANNEL, identity), CHANNEL, atol=1e-5)


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
def test_constant_channel_stays_constant(function: intensity.ChannelFunction) -> None:
    np.testing.assert_allclose(function(np.full(PATCH, -1.5, np.float32), 0.7), -1.5, atol=1e-6)


def test_contrast_by_hand() -> None:
    # Mean 0; -1 and 1 would go to -1.25 and 1.25 and are clipped to the old range, 0.5 goes to 0.625.
    channel = np.array([-1, 1, 0.5, -0.5], np.float32).reshape(1, 2, 2)
    np.testing.assert_allclose(intensity.scale_contrast(channel, 1.25).ravel(), [-1, 1, 0.625, -0.625], atol=1e-6)


def test_gamma_keeps_mean_and_deviation_and_bends_the_right_end() -> None:
    ramp = np.linspace(-2, 3, 101, dtype=np.float32).reshape(1, 1, 101)
    powered, inverted = (
        intensity.change_gamma(ramp, 1.5).ravel(),
        intensity.change_gamma_inverted(ramp, 1.5).ravel(),
    )
    for changed in (powered, inverted):
        assert changed.mean() == pytest.approx(ramp.mean(), abs=1e-4)
        assert changed.std() == pytest.approx(ramp.std(), abs=1e-4)
        assert np.all(np.diff(changed) > 0)
    assert powered[1] - powered[0] < powered[-1] - powered[-2]  # dark end flattened
    assert inverted[1] - inverted[0] > inverted[-1] - inverted[-2]  # bright end flattened


def test_low_resolution_smooths_and_in_plane_leaves_slices_apart() -> None:
    assert intensity.lower_resolution(CHANNEL, 0.5).std() < CHANNEL.std()
    slices = np.zeros((4, 6, 6), np.float32) + np.arange(4, dtype=np.float32)[:, None, None]
    np.testing.assert_allclose(intensity.lower_resolution_in_plane(slices, 0.5), slices, atol=1e-6)
    assert not np.allclose(intensity.lower_resolution(slices, 0.5), slices)


def test_channels_are_drawn_apart_and_labels_left_alone() -> None:
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.ones(8, 2, 2, 2)),
        label=tio.LabelMap(tensor=torch.ones(1, 2, 2, 2)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        changed = intensity.RandomPerChannel(intensity.multiply, (2.0, 3.0), channel_p=0.5)(subject)
    factors = changed["image"].data[:, 0, 0, 0]
    assert 0 < (factors == 1).sum() < 8
    assert torch.all((factors == 1) | ((factors >= 2) & (factors <= 3)))
    assert len(set(factors.tolist())) > 2
    assert torch.all(changed["label"].data == 1)


# Rotation and scale


def test_identity_matrix_returns_the_patch() -> None:
    subject = make_subject(CHANNEL)
    turned = RotateScale(np.eye(3), PATCH)(subject)
    np.testing.assert_allclose(turned["image"].numpy()[0], CHANNEL, atol=1e-4)
    np.testing.assert_array_equal(turned["label"].numpy(), subject["label"].numpy())


def test_quarter_turn_is_rot90() -> None:
    cube = np.random.default_rng(1).normal(size=(4, 7, 7)).astype(np.float32)
    turned = RotateScale(rotation_matrix(np.array([np.pi / 2, 0, 0])), cube.shape)(make_subject(cube))
    assert any(
        np.allclose(turned["image"].numpy()[0], np.rot90(cube, turns, axes=(1, 2)), atol=1e-4) for turns in (1, 3)
    )


def test_agrees_with_scipy_affine_transform() -> None:
    matrix = rotation_matrix(np.deg2rad([20, -15, 30])) * 1.2
    transform = RotateScale(matrix, PATCH)
    image = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=transform.input_size), 1).astype(np.float32)
    centre_in, centre_out = (np.array(image.shape) - 1) / 2, (np.array(PATCH) - 1) / 2
    expected = ndimage.affine_transform(image, matrix, centre_in - matrix @ centre_out, PATCH, order=1)
    turned = transform(make_subject(image))
    np.testing.assert_allclose(turned["image"].numpy()[0], expected, atol=1e-4)
    assert turned["label"].shape == (1, *PATCH)


def test_enlarged_input_leaves_no_black_corners() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = [RandomRotateScale(PATCH, rotation_p=1, scale_p=1).draw() for _ in range(20)]
    for transform in draws:
        assert transform is not None
        assert all(
            (more - size) % 2 == 0 and more >= size for more, size in zip(transform.input_size, PATCH, strict=True)
        )
        turned = transform(make_subject(np.ones(transform.input_size, np.float32)))
        np.testing.assert_allclose(turned["image"].numpy(), 1, atol=1e-5)


def test_input_size_by_hand() -> None:
    # 39 / 2 * 1.4 = 27.3 from the centre: 56 voxels reach 27.5.
    assert RotateScale(1.4 * np.eye(3), (40, 40, 40)).input_size == (56, 56, 56)
    assert RotateScale(0.7 * np.eye(3), (40, 40, 40)).input_size == (40, 40, 40)


def test_in_plane_draws_never_mix_slices() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(10):
            transform = RandomRotateScale(PATCH, rotation_p=1, scale_p=1, in_plane=True).draw()
            assert transform is not None
            np.testing.assert_allclose(transform.matrix[0], [1, 0, 0])
            np.testing.assert_allclose(transform.matrix[:, 0], [1, 0, 0])
            assert transform.input_size[0] == PATCH[0]


def test_share_of_rotated_or_scaled_samples() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = sum(RandomRotateScale(PATCH).draw() is not None for _ in range(2000)) / 2000
    assert drawn == pytest.approx(1 - 0.8 * 0.8, abs=0.04)


# Recipes


def test_none_changes_nothing() -> None:
    augmentation = build_augmentation(PATCH, (0, 1, 2), "none")
    assert augmentation.spatial is None
    np.testing.assert_array_equal(augmentation.patch(make_subject(CHANNEL))["image"].numpy()[0], CHANNEL)


def test_mirror_flips_image_and_label_on_the_given_axes_only() -> None:
    augmentation = build_augmentation(PATCH, (1,), "mirror")
    seen = set()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(20):
            patch = augmentation.patch(make_subject(CHANNEL))
            flipped = not np.array_equal(patch["image"].numpy()[0], CHANNEL)
            expected = CHANNEL[:, ::-1] if flipped else CHANNEL
            np.testing.assert_array_equal(patch["image"].numpy()[0], expected)
            np.testing.assert_array_equal(patch["label"].numpy()[0], expected > 0)
            seen.add(flipped)
    assert seen == {True, False}


def test_whole_recipe_gives_finite_patches_with_old_labels() -> None:
    augmentation = build_augmentation(PATCH, (0, 1, 2))
    label = np.random.default_rng(0).integers(0, 4, PATCH).astype(np.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(30):
            patch = augmentation.patch(make_subject(CHANNEL, label))
            assert patch["image"].data.dtype == torch.float32 and patch["image"].shape == (1, *PATCH)
            assert torch.isfinite(patch["image"].data).all()
            np.testing.assert_array_equal(np.bincount(patch["label"].numpy().ravel()), np.bincount(label.ravel()))


def test_very_anisotropic_patches_are_augmented_in_plane() -> None:
    assert build_augmentation((8, 25, 25), ()).spatial.in_plane  # type: ignore[union-attr]
    assert not build_augmentation((8, 24, 24), ()).spatial.in_plane  # type: ignore[union-attr]


def test_unknown_recipe_or_axis_is_an_input_error() -> None:
    with pytest.raises(InputError, match="nnunet, mirror, none"):
        build_augmentation(PATCH, (), "heavy")
    with pytest.raises(InputError, match="mirror_axes"):
        build_augmentation(PATCH, (3,))
