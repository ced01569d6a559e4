"""The downward flow: max pooling with kernel = stride beside its input, for channels-last memory.

A node's output goes on along its level and, pooled, down to the next. torch would write the gradient of the pooling as
a volume of zeros with a few values in it and then add it to the gradient of the other path: four passes over a volume.
Here one compiled loop writes the sum, and which voxel of a window was largest takes a byte, where torch keeps eight.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from e2enet.network.compiled import as_array, run_parts, takes_loops
from e2enet.network.layers import Triple


class StrideMaxPool3d(nn.Module):
    """Max pooling with kernel = stride, beside its input.

    (B, C, D, H, W) to itself and (B, C, D / sd, H / sh, W / sw).
    """

    def __init__(self, stride: Triple) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        divides = not any(size % step for size, step in zip(x.shape[2:], self.stride, strict=True))
        if divides and math.prod(self.stride) < 256 and takes_loops(x):  # the number of a window's voxel takes a byte
            return _PoolBeside.apply(x, self.stride)
        return x, F.max_pool3d(x, self.stride)


class _PoolBeside(torch.autograd.Function):
    """x and its pooled volume. Ties go to the first voxel of a window, NaN to the output, as with torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: Triple) -> tuple[Tensor, Tensor]:
        from e2enet.network import loops

        volumes = _channels_last(x)
        batch, *size, channels = volumes.shape
        coarse = [edge // step for edge, step in zip(size, stride, strict=True)]
        pooled = volumes.new_empty(batch, *coarse, channels)
        largest = torch.empty(pooled.shape, dtype=torch.uint8)
        for sample, out, index in zip(as_array(volumes), as_array(pooled), as_array(largest), strict=True):
            _run(loops.pool, sample, stride, out, index)
        ctx.save_for_backward(largest)
        ctx.stride, ctx.shape = stride, volumes.shape
        return x.view_as(x), pooled.permute(0, 4, 1, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_pooled: Tensor) -> tuple[Tensor, None]:
        from e2enet.network import loops

        (largest,) = ctx.saved_tensors
        total = grad.new_empty(ctx.shape)
        arrays = (as_array(part) for part in (_channels_last(grad), _channels_last(grad_pooled), largest, total))
        for beside, coarse, index, out in zip(*arrays, strict=True):
            _run(loops.add_unpooled, coarse, ctx.stride, index, beside, out)
        return total.permute(0, 4, 1, 2, 3), None


def _run(loop: Any, source: np.ndarray, stride: Triple, *others: np.ndarray) -> None:
    """Run a loop over the coarse planes of one sample, which `others[0]` has as many of as depth slices."""
    planes, voxels = len(others[0]), others[0][0].size
    run_parts(lambda _, start, stop: loop(source, *stride, *others, start, stop), planes, voxels)


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, D, H, W) as contiguous (B, D, H, W, C): a view where `x` is channels-last."""
    return x.permute(0, 2, 3, 4, 1).contiguous()
