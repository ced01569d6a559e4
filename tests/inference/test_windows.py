"""Windows cover every voxel, have MONAI's positions and weights, and small volumes are padded on both sides."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices

from e2enet.inference.windows import WindowGrid, gaussian_weights, in_batches, mirror_subsets, pad_to_patch

SHAPES = st.tuples(*[st.integers(1, 40)] * 3)
PATCHES = st.tuples(*[st.integers(1, 16)] * 3)
STEPS = st.one_of(st.floats(0.05, 1.0), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


@EXAMPLES
@given(SHAPES, PATCHES, STEPS)
def test_every_voxel_is_covered_and_no_window_leaves_the_volume(shape, patch, step) -> None:
    grid = WindowGrid.over(shape, patch, step)
    assert grid.shape == tuple(map(max, zip(shape, patch, strict=True)))
    for starts, edge, size in zip(grid.starts, patch, grid.shape, strict=True):
        steps = [after - before for before, after in pairwise(starts)]
        # Windows reach from the first voxel to the last, without gaps.
        assert starts[0] == 0 and starts[-1] + edge == size
        assert all(0 < distance <= max(edge * step, 1) + 1e-6 for distance in steps)
    corners = [corner for depth in grid.starts[0] for corner in grid.layer(depth)]
    assert len(corners) == len(set(corners)) == len(grid)


@EXAMPLES
@given(SHAPES, PATCHES, STEPS)
def test_windows_lie_where_monai_puts_them(shape, patch, step) -> None:
    grid = WindowGrid.over(shape, patch, step)
    # The intervals of MONAI's sliding_window_inference for an overlap of 1 - step.
    intervals = [
        edge if edge == size else max(int(edge * (1 - (1 - step))), 1)
        for edge, size in zip(patch, grid.shape, strict=True)
    ]
    expected = dense_patch_slices(grid.shape, patch, intervals)
    assert [grid.box(corner) for depth in grid.starts[0] for corner in grid.layer(depth)] == expected


@pytest.mark.parametrize("patch", [(1, 1, 1), (4, 6, 8), (3, 16, 5), (32, 20, 7)])
def test_weights_are_monais(patch: tuple[int, int, int]) -> None:
    expected = compute_importance_map(patch, mode="gaussian", sigma_scale=0.125)
    torch.testing.assert_close(gaussian_weights(patch), expected, atol=1e-7, rtol=1e-5)


def test_the_documented_example() -> None:
    grid = WindowGrid.over((100, 100, 32), (32, 32, 32), 0.5)
    assert grid.starts == ((0, 16, 32, 48, 64, 68), (0, 16, 32, 48, 64, 68), (0,))
    assert len(grid) == 36


def test_padding_goes_to_both_sides() -> None:
    volume = torch.arange(1.0, 7.0).view(1, 1, 2, 3)
    padded, place = pad_to_patch(volume, (4, 2, 6))
    assert padded.shape == (1, 4, 2, 6)
    assert place == (slice(1, 2), slice(0, 2), slice(1, 4))
    assert torch.equal(padded[(slice(None), *place)], volume)
    assert padded.sum() == volume.sum()
    assert pad_to_patch(volume, (1, 2, 3))[0] is volume


def test_subsets_of_mirror_axes() -> None:
    assert mirror_subsets(()) == [()]
    assert mirror_subsets((0, 1, 2)) == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    for axes in ((3,), (0, 0), (-1,)):
        with pytest.raises(ValueError, match="distinct axes"):
            mirror_subsets(axes)


def test_batches() -> None:
    corners = [(0, 0, column) for column in range(5)]
    assert list(in_batches(corners, 2)) == [corners[:2], corners[2:4], corners[4:]]
