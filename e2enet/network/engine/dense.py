"""The engine's convolution done by torch: every kernel multiplied, active or not, in channels-last memory.

It wins where nearly all kernels are active and the processor has matrix units for bfloat16 (AMX), which no loop over
single kernels can use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e2enet.network.engine.signals import Norm, Signal, empty_volume
from e2enet.network.layers import Triple
from e2enet.network.shift import overlap

LARGEST_PART = 2**21  # values of the input that are laid out for torch at a time


def bfloat16_is_native() -> bool:
    """Whether the processor has instructions for bfloat16, without which torch takes many times longer in it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class DenseConvolution:
    """As `Convolution`, by torch, in float32 or bfloat16. weights: (O, C, depth, height, width), inactive ones 0.

    Rows of the plane are taken some at a time, so that the input is never laid out as a whole.
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

    def __call__(self, sources: Sequence[Signal]) -> Signal:
        outputs, channels, *kernel = self.weights.shape
        size = sources[0].size
        depth, height, width = (
            (edge + 2 * (taps // 2) - taps) // step + 1
            for edge, taps, step in zip(size, kernel, self.stride, strict=True)
        )
        values = empty_volume((outputs, height, width, depth))
        step, taps = self.stride[1], kernel[1]
        rows = max(1, LARGEST_PART // (size[0] * size[2] * channels * step))
        for first in range(0, height, rows):
            last = min(first + rows, height)
            top = first * step - taps // 2
            x = self._read(sources, top, top + (last - 1 - first) * step + taps)
            with torch.autocast("cpu", enabled=False):  # which would choose the precision itself
                torch.from_numpy(values[:, first:last]).copy_(self._convolve(x))
        signal = Signal.of(values)
        if self.norm is not None:
            moments = [torch.var_mean(torch.from_numpy(volume).double(), correction=0) for volume in values]
            variance, mean = np.array(moments).T
            signal.normalise(mean, variance, *self.norm)
        return signal

    def _convolve(self, x: Tensor) -> Tensor:
        """(D, rows, W, C), with what lies above and below the rows, to (O, rows, W, D)."""
        depth, _, width = (taps // 2 for taps in self.weights.shape[2:])
        if self.weights.shape[2] == 1:
            planes = x[:: self.stride[0]].permute(0, 3, 1, 2)
            return F.conv2d(planes, self.weights.squeeze(2), None, self.stride[1:], (0, width)).permute(1, 2, 3, 0)
        whole = F.conv3d(x.permute(3, 0, 1, 2)[None], self.weights, None, self.stride, (depth, 0, width))
        return whole[0].permute(0, 2, 3, 1)

    def _read(self, sources: Sequence[Signal], top: int, bottom: int) -> Tensor:
        """The sources' channels, activated, concatenated and shifted: (D, bottom - top, W, C); 0 beyond the plane."""
        depth, height, width = sources[0].size
        x = torch.zeros(depth, bottom - top, width, len(self.shifts), dtype=self.dtype)
        first, last = max(top, 0), min(bottom, height)
        place = 0
        for source in sources:
            for volume, (scale, offset, slope) in zip(source.volumes(), source.affine.tolist(), strict=True):
                value = torch.from_numpy(volume[first:last]) * scale + offset
                value = torch.maximum(value, value * slope).permute(2, 0, 1)
                there, here = overlap(depth, int(self.shifts[place]))
                x[there, first - top : last - top, :, place] = value[here].to(self.dtype)
                place += 1
        return x
