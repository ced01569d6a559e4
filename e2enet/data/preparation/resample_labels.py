"""Resamples label maps: neighbours vote on the value of a voxel, and values are never mixed.

Each value has a binary map: 1 where the label has it, 0 elsewhere. The maps are resampled linearly, and every new voxel
takes the value whose map is largest there. Within an organ all eight neighbours agree. So the vote is computed only at
surfaces, some percent of the voxels, whatever the number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e2enet.data.preparation.resample import nearest_indices

TIE = 1e-6  # shares that differ by less are equal: rounding must not decide


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For each new voxel of an axis its two old neighbours and the share (0 to 1) of the second."""

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray

    @classmethod
    def along(cls, old: int, new: int) -> Neighbours:
        """Linear interpolation with voxel i at (i + 1/2) * old / new - 1/2; beyond the outer centres the edge voxel."""
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        first = np.floor(place).astype(int)
        return cls(first, np.minimum(first + 1, old - 1), place - first)


def resample_label(label: np.ndarray, shape: Sequence[int], axis: int | None) -> np.ndarray:
    """Resample a label map (D, H, W) to `shape`; the dtype stays. Along `axis` the nearest slice is taken.

    If values have equal shares, the smallest wins.
    """
    if label.shape == tuple(shape):
        return label.copy()
    front = 0 if axis is None else axis
    slices = np.moveaxis(label, front, 0)
    result = np.empty(tuple(shape), dtype=label.dtype)
    target = np.moveaxis(result, front, 0)
    if axis is None:
        depth = Neighbours.along(len(slices), len(target))
    else:
        picked = nearest_indices(len(slices), len(target))
        depth = Neighbours(picked, picked, np.zeros(len(picked)))
    rows, columns = (Neighbours.along(*edges) for edges in zip(slices.shape[1:], target.shape[1:], strict=True))
    boundary, pair = None, None
    for index, (first, second, share) in enumerate(zip(depth.first, depth.second, depth.share, strict=True)):
        if boundary is None or pair != (first, second):
            pair = (first, second)
            boundary = LabelBoundary(slices[first], slices[second], rows, columns)
        target[index] = boundary.interpolate(share)
    return result


class LabelBoundary:
    """The voxels of new planes (H', W') at label boundaries between two neighbouring planes (H, W)."""

    def __init__(self, first: np.ndarray, second: np.ndarray, rows: Neighbours, columns: Neighbours) -> None:
        self.clear = first[rows.first][:, columns.first]
        row, column = np.nonzero(_cells_of_several_values(first, second)[rows.first][:, columns.first])
        self.places = row, column
        corners = [
            (down[row], right[column])
            for down in (rows.first, rows.second)
            for right in (columns.first, columns.second)
        ]
        self.values = np.stack([plane[corner] for plane in (first, second) for corner in corners])
        below, beside = rows.share[row], columns.share[column]
        self.shares = np.stack([down * right for down in (1 - below, below) for right in (1 - beside, beside)])

    def interpolate(self, share: float) -> np.ndarray:
        """The plane (H', W') at `share` of the way from the first plane to the second."""
        result = self.clear.copy()
        if share == 0:
            result[self.places] = largest_share(self.values[:4], self.shares)
        else:
            shares = np.concatenate([self.shares * (1 - share), self.shares * share])
            result[self.places] = largest_share(self.values, shares)
        return result


def largest_share(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return, for m voxels, the value with the largest sum of shares over n neighbours. Ties: the smallest value.

    `values` and `shares` are (n, m).
    """
    total = shares.copy()
    for one in range(len(values)):
        for other in range(one):
            same = values[one] == values[other]
            total[one] += shares[other] * same
            total[other] += shares[one] * same
    beaten = total < total.max(axis=0) - TIE
    return np.where(beaten, np.iinfo(values.dtype).max, values).min(axis=0)


def _cells_of_several_values(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a mask (H, W): whether the voxel, its next ones along both axes and those of the other plane differ."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    for axis in range(2):
        following = np.minimum(np.arange(low.shape[axis]) + 1, low.shape[axis] - 1)
        low = np.minimum(low, low.take(following, axis))
        high = np.maximum(high, high.take(following, axis))
    return low != high
