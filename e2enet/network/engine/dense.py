"""The engine's convolution by torch: it multiplies every kernel, active or not, in channels-last memory.

It wins if most kernels are active and volumes are small, as in deep encoder stages. It should win more often on
processors with matrix units for bfloat16 (AMX), which a loop over single kernels cannot use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e2enet.network.engine import checks
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm, empty_volume
from e2enet.network.engine.sparse_layers import moments
from e2enet.network.engine.tile_plan import run
from e2enet.network.layers import Triple

LARGEST_PART = 2**22  # input values that are laid out for torch at a time


def bfloat16_is_native() -> bool:
    """Return whether the processor has bfloat16 instructions. Without them torch is many times slower in it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class DenseConvolution:
    """`Convolution` by torch, in float32 or bfloat16. weights: (O, C, depth, height, width), inactive ones 0.

    It takes a few rows of the plane at a time, so the input is never laid out as a whole.
    """

    def __init__(
        self,
        weights: np.ndarray,
        shifts: np.ndarray,
        stride: Triple,
        norm: Norm | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.weights = torch.from_numpy(weights).to(dtype, memory_format=torch.channels_last_3d)
        self.shifts, self.stride, self.norm, self.dtype = shifts, stride, norm, dtype

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        outputs, channels, *kernel = self.weights.shape
        size = sources[0].size
        depth, height, width = (
            (edge + 2 * (taps // 2) - taps) // step + 1
            for edge, taps, step in zip(size, kernel, self.stride, strict=True)
        )
        values, totals = empty_volume((outputs, height, width, depth)), np.zeros((height, outputs, 2))
        step, taps = self.stride[1], kernel[1]
        rows = max(1, LARGEST_PART // (size[0] * size[2] * channels * step))
        for first in range(0, height, rows):
            last = min(first + rows, height)
            above, read = first * step - taps // 2, (last - 1 - first) * step + taps
            with torch.autocast("cpu", enabled=False):  # autocast would choose the precision itself
                self._write(self._convolve(self._read(sources, above, read)), first, values, totals)
        signal = LazyVolumes.of(values)
        if self.norm is not None:
            mean, variance = moments(values, totals)
            signal.normalise(mean, variance, *self.norm)
        return signal

    def _read(self, sources: Sequence[LazyVolumes], top: int, rows: int) -> Tensor:
        """Return the sources' rows, activated, concatenated and shifted: (D, rows, W, C); 0 outside the plane."""
        from e2enet.network.engine import dense_loops

        depth, _, width = sources[0].size
        x = np.empty((depth, rows, width, len(self.shifts)), np.float32)
        start = 0
        for source in sources:
            count = len(source.addresses)
            columns = max(1, min(width, dense_loops.BLOCK_VALUES // (count * depth)))
            shifts = self.shifts[start : start + count]
            where = source.memory[0], source.places(), source.affine, shifts, start
            lay_out = checks.watch(dense_loops.lay_out)
            run(partial(lay_out, columns, top, *where, x), rows * ceil(width / columns))
            start += count
        return torch.from_numpy(x).to(self.dtype)

    def _convolve(self, x: Tensor) -> Tensor:
        """Convolve (D, rows, W, C), which includes the halo above and below, to (D, rows, W, O)."""
        depth, _, width = (taps // 2 for taps in self.weights.shape[2:])
        if self.weights.shape[2] == 1:
            planes = x[:: self.stride[0]].permute(0, 3, 1, 2)
            return F.conv2d(planes, self.weights.squeeze(2), None, self.stride[1:], (0, width)).permute(0, 2, 3, 1)
        whole = F.conv3d(x.permute(3, 0, 1, 2)[None], self.weights, None, self.stride, (depth, 0, width))
        return whole[0].permute(1, 2, 3, 0)

    def _write(self, convolved: Tensor, top: int, values: np.ndarray, totals: np.ndarray) -> None:
        from e2enet.network.engine import dense_loops

        rows = convolved.float().contiguous().numpy()
        run(partial(checks.watch(dense_loops.take_over), rows, top, values, totals), rows.shape[1])
