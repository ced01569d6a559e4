"""Results restored to the scan's grid plane by plane equal those of the whole volume at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from e2enet.data.formats.volume import Geometry, Volume
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.outputs import largest_class
from e2enet.data.preparation.preprocess import Preprocessed, preprocess, preprocess_label
from e2enet.data.preparation.resample import nearest_indices, separate_axis
from e2enet.data.preparation.restore import resample_planes, restore_labels

RNG = np.random.default_rng(0)
ZSCORE = {"scheme": "zscore", "nonzero": False}
PLAN = Plan(2, (2.0, 1.0, 1.0), (8, 8, 8), ((2, 2, 2),), 2, (ZSCORE,), (8, 8, 8))
SHAPES = st.tuples(*[st.integers(1, 12)] * 3)
# Spacings for which no axis is resampled separately, or each of the three.
SPACINGS = st.sampled_from([(1.0, 1.0, 1.0), (9.0, 1.0, 1.0), (1.0, 9.0, 1.0), (1.0, 1.0, 9.0)])
EXAMPLES = settings(max_examples=80, deadline=None, derandomize=True)


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> Volume:
    depth, height, width = array.shape[1:]
    native = np.diag((spacing[1], spacing[2], spacing[0], 1.0))
    return Volume(array.astype(np.float32), spacing, Geometry((height, width, depth), native, 2))


def boxed() -> np.ndarray:
    """Return (1, 10, 12, 14), nonzero in [2:8, 3:9, 4:12] only."""
    array = np.zeros((1, 10, 12, 14), dtype=np.float32)
    array[0, 2:8, 3:9, 4:12] = RNG.uniform(1, 2, (6, 6, 8))
    return array


def on_the_way(old: tuple, new: tuple, spacing: tuple) -> Preprocessed:
    """Return a case whose crop has `new` voxels and a margin of one voxel; the network sees it as `old` voxels."""
    box = tuple(slice(1, 1 + size) for size in new)
    return Preprocessed(np.zeros((1, *old), np.float32), box, tuple(size + 2 for size in new), spacing, spacing)


def plainly(probabilities: Tensor, shape: tuple, axis: int | None) -> Tensor:
    """Resample (K, d, h, w) to (K, *shape) at once: trilinear, or bilinear in the nearest slices along `axis`."""
    if axis is None:
        return interpolate(probabilities[None], size=shape, mode="trilinear", align_corners=False)[0]
    slices = probabilities.movedim(axis + 1, 1)
    plane = [size for index, size in enumerate(shape) if index != axis]
    flat = interpolate(slices.flatten(0, 1)[None], size=plane, mode="bilinear", align_corners=False)[0]
    picked = nearest_indices(slices.shape[1], shape[axis])
    return flat.unflatten(0, slices.shape[:2])[:, picked].movedim(1, axis + 1)


@EXAMPLES
@given(SHAPES, SHAPES, SPACINGS, st.integers(0, 99))
def test_planes_are_those_of_the_whole_volume_at_once(old, new, spacing, seed) -> None:
    probabilities = torch.rand(3, *old, generator=torch.Generator().manual_seed(seed))
    prepared = on_the_way(old, new, spacing)
    expected = plainly(probabilities, new, separate_axis(spacing, spacing))
    found = torch.stack(list(resample_planes(probabilities.unbind(dim=1), prepared)), dim=1)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    labels = restore_labels(iter(probabilities.unbind(dim=1)), prepared)
    assert labels.shape == prepared.original_shape
    inside = torch.from_numpy(labels[prepared.crop]).long()
    chosen = expected.gather(0, inside[None])[0]
    assert (expected.amax(dim=0) - chosen).max() < 4e-6  # rounding decides between equal classes
    labels[prepared.crop] = 0
    assert not labels.any()


@EXAMPLES
@given(SHAPES, SHAPES, SPACINGS)
def test_constant_in_constant_out(old, new, spacing) -> None:
    constant = torch.tensor([0.125, 0.625, 0.25]).view(3, 1, 1)
    planes = list(resample_planes([constant.expand(3, *old[1:])] * old[0], on_the_way(old, new, spacing)))
    assert len(planes) == new[0]
    for plane in planes:
        torch.testing.assert_close(plane, constant.expand(3, *new[1:]), atol=1e-6, rtol=0)


def test_two_planes_are_asked_for_before_the_first_is_given() -> None:
    asked: list[int] = []

    def source() -> Iterator[Tensor]:
        for index in range(6):
            asked.append(index)
            yield torch.full((2, 3, 3), float(index))

    restored = resample_planes(source(), on_the_way((6, 3, 3), (12, 3, 3), (1.0, 1.0, 1.0)))
    means, counts = zip(*((float(plane.mean()), len(asked)) for plane in restored), strict=True)
    np.testing.assert_allclose(means, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.25, 4.75, 5], atol=1e-6)
    assert counts == (1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6)


@pytest.mark.parametrize(("classes", "dtype"), [(2, torch.uint8), (256, torch.uint8), (300, torch.int16)])
def test_largest_class_is_argmax_the_first_of_equals(classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for plane in (
        torch.randint(0, 3, (classes, 7, 9), generator=generator).float(),  # with ties
        torch.rand(classes, 7, 9, generator=generator),
    ):
        winner = largest_class(plane)
        assert winner.dtype == dtype
        np.testing.assert_array_equal(winner.numpy(), plane.numpy().argmax(axis=0))


def test_labels_restored_are_the_labels_prepared() -> None:
    array = boxed()
    label = np.zeros(array.shape[1:], dtype=np.uint8)
    label[3:6, 4:7, 5:9] = 2
    label[6, 5, 5] = 1
    prepared = preprocess(volume(array), PLAN)
    small = torch.from_numpy(preprocess_label(label, prepared))
    restored = restore_labels(torch.stack([small == value for value in range(3)]).float().unbind(dim=1), prepared)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, label)


@pytest.mark.parametrize("spacing", [(1.0, 2.0, 2.0), (3.0, 0.8, 1.2), (9.0, 1.0, 1.0)])
def test_round_trip_through_another_spacing(spacing: tuple[float, float, float]) -> None:
    array = np.ones((1, 12, 20, 20))
    label = np.zeros((12, 20, 20), dtype=np.uint8)
    label[3:9, 4:16, 5:15] = 1
    prepared = preprocess(volume(array, spacing), replace(PLAN, spacing=(1.5, 1.0, 1.0)))
    small = preprocess_label(label, prepared)
    assert small.shape == prepared.image.shape[1:]
    assert small.mean() == pytest.approx(label.mean(), rel=0.2)
    inside = torch.from_numpy(small).float()
    restored = restore_labels(torch.stack([1 - inside, inside]).unbind(dim=1), prepared)
    assert restored.shape == label.shape
    dice = 2 * (restored & label).sum() / (restored.sum() + label.sum())
    assert dice > 0.93


def test_probabilities_sum_to_one_and_are_background_outside_the_crop() -> None:
    prepared = preprocess(volume(boxed(), (4.0, 1.5, 1.0)), PLAN)
    scores = torch.rand(3, *prepared.image.shape[1:], generator=torch.Generator().manual_seed(0)).softmax(dim=0)
    planes: list[np.ndarray] = []
    labels = restore_labels(scores.unbind(dim=1), prepared, planes.append)
    restored = np.stack(planes, axis=1)
    assert restored.shape == (3, 10, 12, 14) and restored.dtype == np.float32
    np.testing.assert_allclose(restored.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(restored[:, 0, 0, 0], (1, 0, 0))
    np.testing.assert_array_equal(restored[:, 5, 2, 5], (1, 0, 0))
    np.testing.assert_array_equal(restored.argmax(0), labels)
