"""Resamples images to another shape by cubic splines, and chooses the axis that is resampled separately.

Voxel centres keep their place as in nnU-Net (scikit-image's resize): output voxel i lies at (i + 1/2) * old /
new - 1/2. If an axis is more than three times coarser than the finest, in-plane detail must not leak between slices.
Each slice is then resampled in its plane, and along the axis the nearest slice is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from e2enet.data.formats.grid import ANISOTROPY, SPACING_ROUNDING
from e2enet.data.preparation.axes import resample_slices, resample_volume


def separate_axis(old_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """Return the axis to resample separately; None if no axis is far coarser than the finest.

    It is the coarsest axis of the old spacing, else of the new one. Two equally coarse axes, such as (0.2, 1, 1) mm,
    are no stack of slices: None. Spacings that differ by the rounding of headers only are equal.
    """
    for spacing in (np.asarray(old_spacing, dtype=float), np.asarray(new_spacing, dtype=float)):
        if spacing.max() / spacing.min() > ANISOTROPY * (1 + SPACING_ROUNDING):
            coarsest = np.flatnonzero(spacing >= spacing.max() * (1 - SPACING_ROUNDING))
            return int(coarsest[0]) if len(coarsest) == 1 else None
    return None


def resample_image(channel: np.ndarray, shape: Sequence[int], axis: int | None) -> np.ndarray:
    """Resample one channel (D, H, W) to `shape` by cubic splines, float32, clipped to its range of values.

    Along `axis` the nearest slice is taken. Values are clipped because splines overshoot beside metal and air.
    """
    if channel.shape == tuple(shape):
        return channel.astype(np.float32, copy=True)
    if axis is None:
        result = resample_volume(channel, shape)
    else:
        plane = [edge for index, edge in enumerate(shape) if index != axis]
        picked = nearest_indices(channel.shape[axis], shape[axis])
        slices = resample_slices(np.moveaxis(channel, axis, 0), picked.tolist(), plane)
        result = np.ascontiguousarray(np.moveaxis(slices, 0, axis))
    return np.clip(result, channel.min(), channel.max(), out=result)


def nearest_indices(old: int, new: int) -> np.ndarray:
    """Index of the old voxel that holds the centre of each new one: 2 -> 4 gives 0, 0, 1, 1; 4 -> 2 gives 1, 3."""
    centres = (np.arange(new) + 0.5) * old / new
    return np.minimum(np.floor(centres).astype(int), old - 1)
