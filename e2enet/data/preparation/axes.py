"""Cubic splines as one matrix per axis: they are separable, so a volume costs a matrix product per axis.

SciPy's 3D zoom reads 64 neighbours for every voxel. Along one axis it is a (new x old) matrix whose entries
vanish 14 voxels away from the diagonal. Multiplying blocks of it with blocks of the volume gives the same values from
some 60 products per voxel and axis, at the speed of matrix multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

BLOCK = 32  # new voxels per block: larger blocks multiply more zeros
NEGLIGIBLE = 1e-8  # entries below it change no float32 result


@dataclass(frozen=True, eq=False)
class Block:
    """Rows `new` of an axis' matrix, which need only the voxels `old`; `weights` is float32 (new, old)."""

    new: slice
    old: slice
    weights: torch.Tensor


@lru_cache(maxsize=64)
def cubic_blocks(old: int, new: int) -> tuple[Block, ...]:
    """The cubic-spline matrix from `old` to `new` voxels along one axis, in blocks of its rows.

    It is SciPy's zoom of the unit vectors: order 3, edges repeated, voxel i at (i + 1/2) * old / new - 1/2.
    """
    from scipy import ndimage

    matrix = ndimage.zoom(np.eye(old), (new / old, 1), order=3, mode="nearest", grid_mode=True)
    assert matrix.shape == (new, old), matrix.shape
    blocks = []
    for start in range(0, new, BLOCK):
        rows = matrix[start : start + BLOCK]
        columns = np.flatnonzero((np.abs(rows) > NEGLIGIBLE).any(axis=0))
        first, last = int(columns[0]), int(columns[-1]) + 1
        weights = torch.tensor(rows[:, first:last], dtype=torch.float32)
        blocks.append(Block(slice(start, start + len(rows)), slice(first, last), weights))
    return tuple(blocks)


def resample_volume(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample (D, H, W) to `shape` by cubic splines, float32.

    Depth is resampled first if it shrinks, last if it grows. So the one temporary volume is no larger than the larger
    of input and result.
    """
    depth, height, width = shape
    if depth < len(values):
        thinned = torch.empty(depth, *values.shape[1:])
        _resample_depth(_aligned(values), thinned)
        values = thinned.numpy()
    planes = torch.empty(len(values), height, width)
    _resample_planes(values, range(len(values)), planes)
    if depth == len(planes):
        return planes.numpy()
    result = torch.empty(depth, height, width)
    _resample_depth(planes, result)
    return result.numpy()


def resample_slices(values: np.ndarray, picked: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Resample slices `picked` (ascending) of (D, H, W), each to `shape` (H', W') by cubic splines, float32."""
    result = torch.empty(len(picked), *shape)
    _resample_planes(values, picked, result)
    return result.numpy()


def _resample_planes(values: np.ndarray, picked: Sequence[int], result: torch.Tensor) -> None:
    """Resample each picked plane along W, then along H: a plane is small enough to stay in the cache in between."""
    height, width = values.shape[1:]
    new_height, new_width = result.shape[1:]
    rows, columns = cubic_blocks(height, new_height), cubic_blocks(width, new_width)
    # torch aligns its buffers in the same way in every process, so that products are equal to the last bit.
    plane, wide = torch.empty(height, width), torch.empty(height, new_width)
    for index, source in enumerate(picked):
        if index and source == picked[index - 1]:
            result[index] = result[index - 1]
            continue
        plane.numpy()[...] = values[source]
        for block in columns:
            torch.mm(plane[:, block.old], block.weights.T, out=wide[:, block.new])
        for block in rows:
            torch.mm(block.weights, wide[block.old], out=result[index, block.new])


def _resample_depth(values: torch.Tensor, result: torch.Tensor) -> None:
    flat, target = values.view(len(values), -1), result.view(len(result), -1)
    for block in cubic_blocks(len(values), len(result)):
        torch.mm(block.weights, flat[block.old], out=target[block.new])


def _aligned(values: np.ndarray) -> torch.Tensor:
    copy = torch.empty(values.shape)
    copy.numpy()[...] = values
    return copy
