"""The instance norm that the readers of a convolution's output apply: its statistics and what follows from them."""

from __future__ import annotations

from math import prod

import numpy as np

from e2enet.network.engine import checks, loops
from e2enet.network.engine.hand_out import run_samples
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm

FEW_VOXELS = 2**13


class PendingNorm:
    """Sets what the readers of `out` apply, when its values are there.

    Args:
        out: what a convolution writes.
        values: (B, K, H, W, D), its channels that are not zero everywhere.
        totals: float64 (B, parts, K, 2), the sums of each part of the volumes, and of their squares.
        norm: it sets the affine and moments of `out`, which are undefined until `finish` is called.
        places: (K,), the channels that `values` holds.
    """

    def __init__(
        self, out: LazyVolumes, values: np.ndarray, totals: np.ndarray, norm: Norm, places: np.ndarray
    ) -> None:
        (weight, bias), eps, slope = norm
        batch, channels = out.addresses.shape
        out.moments = np.empty((batch, channels, 2))
        if len(places) < channels:  # a volume of zeros: mean and variance are 0
            rstd = 1 / np.sqrt(eps)
            out.moments[:] = 0, rstd
            out.affine[..., 0], out.affine[..., 1], out.affine[..., 2] = weight * rstd, bias, slope
        voxels = prod(values.shape[2:])
        self.few = voxels <= FEW_VOXELS  # sums of squares are too rough if voxels hardly differ
        rows = values.reshape(batch, len(places), voxels)
        self._loop = checks.watch(loops.normalise)
        self._given = rows, totals, self.few, places, norm[0], eps, slope, out.affine, out.moments
        self.values = 2 * values.size // batch if self.few else totals.size // batch  # read for a sample

    def finish(self, sample: int, begin: int, end: int) -> None:
        """Set the outputs begin .. end - 1 of a sample, whose values are there."""
        self._loop(sample, begin, end, *self._given)

    def finish_from(self, first: int) -> None:
        """Set all outputs of the samples from `first` on, by as many threads as torch uses."""
        values = self._given[0]
        left = len(values) - first
        if left:
            run_samples(
                lambda sample, begin, end: self.finish(first + sample, begin, end),
                left,
                values.shape[1],
                left * self.values,
            )
