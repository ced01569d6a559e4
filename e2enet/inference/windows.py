"""Sliding windows over a volume: their positions, the weights of their voxels, and their mirrored copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor
from torch.nn.functional import pad

# Sigma is an eighth of the window (spec section 4): weights fall to exp(-8) on its faces.
SIGMA_SCALE = 0.125
# MONAI's lower bound. Weights in the corners would fall to exp(-24), which is lost beside 1 in float32 sums.
MIN_WEIGHT = 1e-3

Corner = tuple[int, int, int]


@dataclass(frozen=True)
class WindowGrid:
    """Windows of `patch` voxels whose first voxels lie at every combination of `starts` along (D, H, W).

    The last window of an axis ends at the volume's end: along 100 voxels, with a patch of 32 and step 0.5, windows
    start at 0, 16, .., 64 and 68.
    """

    patch: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def over(cls, shape: Sequence[int], patch: Sequence[int], step: float) -> WindowGrid:
        """Cover a volume (D, H, W); axes shorter than the patch count as padded to its size.

        `step` in (0, 1] is the distance between neighbouring windows as a share of the patch.
        """
        starts = []
        for size, edge in zip(shape, patch, strict=True):
            # 1 - (1 - step) rounds as in MONAI: windows are where its sliding_window_inference places them.
            interval = max(int(edge * (1 - (1 - step))), 1)
            last = max(size - edge, 0)
            starts.append((*range(0, last, interval), last))
        return cls(tuple(patch), tuple(starts))

    def __len__(self) -> int:
        """Number of windows."""
        depth, height, width = map(len, self.starts)
        return depth * height * width

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, H, W) of the volume, padding included."""
        return tuple(starts[-1] + edge for starts, edge in zip(self.starts, self.patch, strict=True))

    def layer(self, depth: int) -> list[Corner]:
        """Return the first voxels of all windows that start at this depth."""
        return [(depth, row, column) for row, column in product(*self.starts[1:])]

    def box(self, corner: Corner) -> tuple[slice, ...]:
        """Return the window's slices in (D, H, W)."""
        return tuple(slice(first, first + edge) for first, edge in zip(corner, self.patch, strict=True))


def gaussian_weights(patch: Sequence[int]) -> Tensor:
    """Return Gaussian weights (D, H, W), float32, around the window's centre: sigma = patch / 8, at least 1e-3."""
    weights = torch.ones(())
    for edge in patch:
        offsets = torch.arange(edge, dtype=torch.float32) - (edge - 1) / 2
        weights = weights[..., None] * torch.exp(offsets.square() / (-2 * (SIGMA_SCALE * edge) ** 2))
    return weights.clamp(min=MIN_WEIGHT)


def pad_to_patch(volume: Tensor, patch: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad (C, D, H, W) with zeros on both sides of axes smaller than the patch; also return the volume's slices."""
    missing = [max(edge - size, 0) for edge, size in zip(patch, volume.shape[1:], strict=True)]
    margins = [(short // 2, short - short // 2) for short in missing]
    place = tuple(slice(before, before + size) for (before, _), size in zip(margins, volume.shape[1:], strict=True))
    if any(missing):
        volume = pad(volume, [margin for pair in reversed(margins) for margin in pair])  # torch: last axis first
    return volume, place


def mirror_subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return every subset of the mirror axes, which are among (0, 1, 2) = (D, H, W); the empty one first."""
    if any(axis not in (0, 1, 2) for axis in axes) or len(set(axes)) != len(axes):
        raise ValueError(f"mirror_axes must be distinct axes among 0, 1, 2, got {tuple(axes)}")
    return [subset for size in range(len(axes) + 1) for subset in combinations(axes, size)]


def in_batches(corners: Sequence[Corner], size: int) -> Iterator[Sequence[Corner]]:
    """Yield the corners in batches of `size`; the last may be smaller."""
    for first in range(0, len(corners), size):
        yield corners[first : first + size]
