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

from e2enet.engine.signals import Norm, Signal, empty_volume
from e2enet.network.layers import Triple
from e2enet.network.shift import overlap


class DenseConvolution:
    """As `Convolution`, by torch, in float32 or bfloat16. weights: (O, C, depth, height, width), inactive ones 0."""

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
        self.padding = [edge // 2 for edge in weights.shape[2:]]

    def __call__(self, sources: Sequence[Signal]) -> Signal:
        x = self._read(sources)
        if self.weights.shape[2] == 1:
            planes = x[:: self.stride[0]].permute(0, 3, 1, 2)
            out = F.conv2d(planes, self.weights.squeeze(2), None, self.stride[1:], self.padding[1:])
            out = out.permute(1, 2, 3, 0)
        else:
            whole = F.conv3d(x.permute(3, 0, 1, 2)[None], self.weights, None, self.stride, self.padding)
            out = whole[0].permute(0, 2, 3, 1)
        values = empty_volume(tuple(out.shape))
        torch.from_numpy(values).copy_(out)
        signal = Signal.of(values)
        if self.norm is not None:
            variance, mean = torch.var_mean(torch.from_numpy(values).double(), dim=(1, 2, 3), correction=0)
            signal.normalise(mean.numpy(), variance.numpy(), *self.norm)
        return signal

    def _read(self, sources: Sequence[Signal]) -> Tensor:
        """The sources' channels, activated, concatenated and shifted: (D, H, W, C)."""
        depth, height, width = sources[0].size
        x = torch.zeros(depth, height, width, len(self.shifts), dtype=self.dtype)
        place = 0
        for source in sources:
            for volume, (scale, offset, slope) in zip(source.volumes(), source.affine.tolist(), strict=True):
                value = torch.from_numpy(volume) * scale + offset
                value = torch.maximum(value, value * slope).permute(2, 0, 1)
                there, here = overlap(depth, int(self.shifts[place]))
                x[there, :, :, place] = value[here].to(self.dtype)
                place += 1
        return x
