"""Metrics against an independent SciPy implementation and values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial import cKDTree

from e2enet.evaluation import dice, hd95, metrics, nsd
from e2enet.evaluation.metrics import TOLERANCE_SLACK_MM, crop_to_union
from e2enet.evaluation.scores import score_case


def surface_points(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    return np.argwhere(mask & ~binary_erosion(mask)) * np.array(spacing)


def independent_scores(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...], tolerance: float):
    """Return Dice, NSD, HD95 by definition: surfaces by erosion, nearest neighbours in mm by KD-tree."""
    points_a, points_b = surface_points(a, spacing), surface_points(b, spacing)
    a_to_b, _ = cKDTree(points_b).query(points_a)
    b_to_a, _ = cKDTree(points_a).query(points_b)
    within = np.count_nonzero(a_to_b <= tolerance) + np.count_nonzero(b_to_a <= tolerance)
    return (
        2 * (a & b).sum() / (a.sum() + b.sum()),
        within / (len(a_to_b) + len(b_to_a)),
        max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)),
    )


def random_blob(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    smooth = gaussian_filter(generator.standard_normal(shape), 1.5)
    return smooth > np.quantile(smooth, 0.8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 3.1), (4.0, 0.55, 1.3)])
def test_equal_to_an_independent_implementation(seed, spacing):
    generator = np.random.default_rng(seed)
    shape = (11, 14, 9)  # blobs touch the borders of the image
    a, b = random_blob(generator, shape), random_blob(generator, shape)
    for tolerance in (0.3, 1.05, 2.5):
        expected = independent_scores(a, b, spacing, tolerance)
        assert dice(a, b) == pytest.approx(expected[0], abs=1e-9)
        assert nsd(a, b, spacing, tolerance) == pytest.approx(expected[1], abs=1e-6)
        assert hd95(a, b, spacing) == pytest.approx(expected[2], abs=1e-4)


@pytest.mark.parametrize("corner", [(0, 0, 0), (20, 16, 12)])
def test_place_in_a_large_image_does_not_matter(corner):
    generator = np.random.default_rng(7)
    a, b = random_blob(generator, (9, 9, 9)), random_blob(generator, (9, 9, 9))
    spacing = (1.5, 0.8, 2.0)
    large_a, large_b = np.zeros((40, 30, 30), bool), np.zeros((40, 30, 30), bool)
    window = tuple(slice(start, start + 9) for start in corner)
    large_a[window], large_b[window] = a, b
    expected = independent_scores(large_a, large_b, spacing, 1.9)
    assert nsd(large_a, large_b, spacing, 1.9) == pytest.approx(expected[1], abs=1e-6)
    assert hd95(large_a, large_b, spacing) == pytest.approx(expected[2], abs=1e-4)


def test_cube_shifted_by_one_voxel_of_two_mm():
    a, b = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    a[2:6, 2:6, 2:6] = True
    b[3:7, 2:6, 2:6] = True
    spacing = (2.0, 1.0, 1.0)
    assert dice(a, b) == pytest.approx(2 * 48 / 128)
    # A cube has 56 surface voxels: two end faces of 16, and rims of 12 in the two layers between. The end face
    # that the other cube does not reach lies 2 mm from it. Of the opposite face, the rim of 12 agrees and the 4
    # inner voxels lie 1 mm inside the other cube's surface. So 36 are within 0 mm, 40 within 1 mm, 56 within 2 mm.
    assert nsd(a, b, spacing, tolerance=0.0) == pytest.approx(36 / 56)
    assert nsd(a, b, spacing, tolerance=1.0) == pytest.approx(40 / 56)
    assert nsd(a, b, spacing, tolerance=2.0) == 1.0
    assert hd95(a, b, spacing) == pytest.approx(2.0)


def test_same_mask_is_perfect():
    mask = random_blob(np.random.default_rng(0), (8, 8, 8))
    assert (dice(mask, mask), nsd(mask, mask, (1, 2, 3)), hd95(mask, mask, (1, 2, 3))) == (1.0, 1.0, 0.0)


def test_float32_noise_in_the_spacing_does_not_decide():
    a, b = np.zeros((8, 5, 5), bool), np.zeros((8, 5, 5), bool)
    a[3], b[4] = True, True
    noisy = math.nextafter(1.0, 2.0) + 1e-7
    assert nsd(a, b, (noisy, 1, 1), tolerance=1.0) == 1.0
    assert nsd(a, b, (1.01, 1, 1), tolerance=1.0) == 0.0


def test_crop_to_union_keeps_every_voxel():
    a, b = np.zeros((6, 6, 6), bool), np.zeros((6, 6, 6), bool)
    a[1, 2, 3] = b[4, 2, 5] = True
    small_a, small_b = crop_to_union(a, b)
    assert small_a.shape == (4, 1, 3)
    assert np.argwhere(small_a).tolist() == [[0, 0, 0]]
    assert np.argwhere(small_b).tolist() == [[3, 0, 2]]


@pytest.mark.parametrize("metric", [dice, lambda a, b: nsd(a, b, (1, 1, 1)), lambda a, b: hd95(a, b, (1, 1, 1))])
def test_unusable_masks_are_refused(metric):
    full, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    with pytest.raises(ValueError, match="empty mask"):
        metric(full, empty)
    with pytest.raises(ValueError, match="differ in shape"):
        metric(full, full[:2])
    with pytest.raises(ValueError, match="must be bool"):
        metric(full, full.astype(int))


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_a_case_are_those_of_monai_to_the_last_bit(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape, spacing = tuple(generator.integers(2, 14, 3)), tuple(generator.uniform(0.4, 4, 3))
    a, b = random_blob(generator, shape), random_blob(generator, shape)
    masks = [torch.from_numpy(mask)[None, None] for mask in (a, b)]
    for tolerance in (0.0, 0.7, 1.9):
        (score,) = score_case("x", a.astype(np.uint8), b.astype(np.uint8), spacing, [1], nsd_tolerance=tolerance)
        threshold = [tolerance + TOLERANCE_SLACK_MM]
        theirs = compute_surface_dice(*masks, class_thresholds=threshold, include_background=True, spacing=spacing)
        assert score.nsd == nsd(a, b, spacing, tolerance) == float(theirs)
        theirs = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
        assert score.hd95 == hd95(a, b, spacing) == float(theirs)
        assert score.dice == dice(a, b)


def test_a_class_is_cropped_and_its_surfaces_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("crop_to_union", "surface_distances"):
        original = getattr(metrics, name)

        def counted(*arguments, name=name, original=original):
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(metrics, name, counted)
    a, b = (random_blob(np.random.default_rng(seed), (9, 9, 9)).astype(np.uint8) for seed in (0, 1))
    score_case("x", a, b, (1.0, 1.0, 1.0), [1])
    assert calls == ["crop_to_union", "surface_distances"]
