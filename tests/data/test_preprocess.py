"""Preprocessing: crop, resampling and normalisation give the expected values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from e2enet.common.errors import InputError
from e2enet.data.formats.volume import Geometry, Volume, crop_to_nonzero, nonzero_mask
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.preprocess import normalise, preprocess, preprocess_label

RNG = np.random.default_rng(0)
ZSCORE = {"scheme": "zscore", "nonzero": False}
PLAN = Plan(2, (2.0, 1.0, 1.0), (8, 8, 8), ((2, 2, 2),), 2, (ZSCORE,), (8, 8, 8))


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> Volume:
    depth, height, width = array.shape[1:]
    native = np.diag((spacing[1], spacing[2], spacing[0], 1.0))
    return Volume(array.astype(np.float32), spacing, Geometry((height, width, depth), native, 2))


def boxed() -> np.ndarray:
    """Return (1, 10, 12, 14), nonzero in [2:8, 3:9, 4:12] only."""
    array = np.zeros((1, 10, 12, 14), dtype=np.float32)
    array[0, 2:8, 3:9, 4:12] = RNG.uniform(1, 2, (6, 6, 8))
    return array


def test_crop_is_the_box_of_all_channels() -> None:
    array = np.zeros((2, 6, 6, 6))
    array[0, 1, 2, 3] = array[1, 4, 2, 5] = 1
    assert crop_to_nonzero(array) == (slice(1, 5), slice(2, 3), slice(3, 6))
    with pytest.raises(InputError, match="zero everywhere"):
        crop_to_nonzero(np.zeros((1, 3, 3, 3)))


def test_mask_includes_enclosed_holes() -> None:
    array = np.ones((1, 5, 5, 5))
    array[0, 2, 2, 2] = 0
    assert nonzero_mask(array).all()


def test_without_resampling_the_image_is_cropped_and_standardised() -> None:
    array = boxed()
    prepared = preprocess(volume(array), PLAN)
    inner = array[:, 2:8, 3:9, 4:12]
    np.testing.assert_allclose(prepared.image, (inner - inner.mean()) / inner.std(), atol=1e-5)
    assert prepared.crop == (slice(2, 8), slice(3, 9), slice(4, 12)) and prepared.cropped_shape == (6, 6, 8)


def test_input_volume_is_not_changed() -> None:
    original = volume(boxed())
    before = original.array.copy()
    preprocess(original, PLAN)
    np.testing.assert_array_equal(original.array, before)


def test_ct_is_clipped_then_scaled_by_the_dataset() -> None:
    channel = np.array([-1000.0, 0.0, 100.0, 3000.0], dtype=np.float32).reshape(1, 2, 2)
    normalise(channel, {"scheme": "ct", "lower": -50, "upper": 150, "mean": 50.0, "std": 50.0})
    np.testing.assert_allclose(channel.ravel(), (-2, -1, 1, 2))


def test_zscore_of_the_nonzero_leaves_zero_outside() -> None:
    channel = np.array([0.0, 0.0, 1.0, 3.0], dtype=np.float32).reshape(1, 2, 2)
    normalise(channel, {"scheme": "zscore", "nonzero": True}, channel > 0)
    np.testing.assert_allclose(channel.ravel(), (0, 0, -1, 1))


def test_constant_image_does_not_divide_by_zero() -> None:
    channel = np.full((2, 2, 2), 7.0, dtype=np.float32)
    normalise(channel, ZSCORE)
    np.testing.assert_array_equal(channel, 0)


def test_image_that_is_not_the_plans_is_refused() -> None:
    with pytest.raises(InputError, match="2 channels, the plan 1"):
        preprocess(volume(np.ones((2, 4, 4, 4))), PLAN)
    with pytest.raises(InputError, match="depth axis 2, the plan has 0"):
        preprocess(volume(np.ones((1, 4, 4, 4))), replace(PLAN, depth_axis=0))
    with pytest.raises(InputError, match="one of ct, zscore, none"):
        normalise(np.ones((1, 1, 1), np.float32), {"scheme": "minmax"})


def interpolate(label: np.ndarray, shape: tuple[int, ...], apart: int | None) -> np.ndarray:
    """Independent reference: resample each label's mask linearly by SciPy and take the label of largest share.

    Along the axis `apart` the nearest slice is taken. Of equal shares the first label wins.
    """
    shares = []
    for value in range(3):
        share = (label == value).astype(float)
        if apart is not None:
            old, new = label.shape[apart], shape[apart]
            share = share.take([int((index + 0.5) * old / new) for index in range(new)], axis=apart)
        factors = [new / old for new, old in zip(shape, share.shape, strict=True)]
        shares.append(zoom(share, factors, order=1, mode="nearest", grid_mode=True))
    return np.argmax(np.round(shares, 6), axis=0)


@pytest.mark.parametrize(
    ("old", "new", "apart"),
    [
        ((5.0, 1.0, 1.0), (2.3, 0.8, 1.3), 0),
        ((1.0, 5.0, 1.0), (0.8, 2.3, 1.3), 1),
        ((1.0, 1.0, 5.0), (0.8, 1.3, 2.3), 2),
        ((5.0, 1.0, 1.0), (0.9, 0.8, 3.7), 0),  # the old spacing decides before the new one
        ((1.0, 1.1, 1.2), (0.6, 2.7, 0.8), 1),
        ((2.5, 1.0, 1.0), (1.3, 0.8, 1.3), None),
    ],
)
def test_label_and_image_are_resampled_apart_along_one_axis(old, new, apart: int | None) -> None:
    shape = (11, 12, 13)
    noise = gaussian_filter(RNG.normal(size=shape), 1.2)
    label = np.digitize(noise, np.quantile(noise, (0.4, 0.7))).astype(np.uint8)
    steps = np.indices(shape)[apart or 0] + 1
    prepared = preprocess(volume(steps[None], old), replace(PLAN, spacing=new, normalisation=({"scheme": "none"},)))
    found = preprocess_label(label, prepared)
    assert found.shape == prepared.image.shape[1:] and found.dtype == np.uint8
    np.testing.assert_array_equal(found, interpolate(label, found.shape, apart))
    others = {None, 0, 1, 2} - {apart}
    assert all((found != interpolate(label, found.shape, other)).any() for other in others)
    # The image has one value per slice. The values survive if slices are resampled separately, and are mixed if not.
    assert np.allclose(prepared.image, np.round(prepared.image), atol=1e-3) is (apart is not None)
