"""The downward flow: max pooling with kernel = stride, returned together with its input, for channels-last memory.

A node's output goes on along its level and, pooled, down to the next. The number of a window's largest voxel takes one
byte here; torch keeps eight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2enet.network.compiled import as_array, run_parts, use_compiled_loops
from e2enet.network.layers import Triple
from e2enet.network.norm import channels_last
from e2enet.network.operations import below_autograd, empty_channels_last, plain_operations, register


class StrideMaxPool3d(nn.Module):
    """Max pooling with kernel = stride, returned after its input.

    Input: (B, C, D, H, W). Output: the input itself and (B, C, D / sd, H / sh, W / sw).
    """

    def __init__(self, stride: Triple) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        divides = not any(size % step for size, step in zip(x.shape[2:], self.stride, strict=True))
        bytes_tell = math.prod(self.stride) < 256  # the number of a window's voxel must fit in a byte
        if divides and bytes_tell and use_compiled_loops(x) and not plain_operations():
            pooled, _ = OPERATION(x, self.stride)
            return x, pooled
        return x, F.max_pool3d(x, self.stride)


class _MaxPool(torch.autograd.Function):
    """The pooled volume and the number of each window's largest voxel, uint8.

    Ties go to the first voxel of a window, NaN to the output, as with torch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
        pooled, largest = below_autograd(OPERATION, x, stride)
        ctx.save_for_backward(largest)
        ctx.mark_non_differentiable(largest)
        ctx.stride = stride
        return pooled, largest

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
        (largest,) = ctx.saved_tensors
        unpool = plain_unpool if torch.is_grad_enabled() else BACKWARD  # plain for a second derivative
        return unpool(grad, largest, ctx.stride), None


def plain_unpool(grad: Tensor, largest: Tensor, stride: Sequence[int]) -> Tensor:
    """`grad` at each window's largest voxel, else zero, in plain operations."""
    batch, channels, *coarse = grad.shape
    chosen = largest.unsqueeze(-1) == torch.arange(math.prod(stride), device=largest.device)
    windows = torch.where(chosen, grad.unsqueeze(-1), 0).view(batch, channels, *coarse, *stride)
    size = [edge * step for edge, step in zip(coarse, stride, strict=True)]
    return windows.permute(0, 1, 2, 5, 3, 6, 4, 7).reshape(batch, channels, *size)


def _max_pool(x: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    from e2enet.network import norm_pool_loops

    pooled, largest = _empty_max_pool(x, stride)
    for arrays in zip(*(as_array(channels_last(part)) for part in (x, pooled, largest)), strict=True):
        _run(norm_pool_loops.pool, stride, *arrays)
    return pooled, largest


def _empty_max_pool(x: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    batch, channels, *size = x.shape
    pooled = empty_channels_last(x, (batch, channels, *(edge // step for edge, step in zip(size, stride, strict=True))))
    return pooled, torch.empty_like(pooled, dtype=torch.uint8)


def _max_pool_backward(grad: Tensor, largest: Tensor, stride: Sequence[int]) -> Tensor:
    from e2enet.network import norm_pool_loops

    total = _empty_max_pool_backward(grad, largest, stride)
    for coarse, index, out in zip(*(as_array(channels_last(part)) for part in (grad, largest, total)), strict=True):
        _run(norm_pool_loops.unpool, stride, out, coarse, index)
    return total


def _empty_max_pool_backward(grad: Tensor, largest: Tensor, stride: Sequence[int]) -> Tensor:
    batch, channels, *coarse = grad.shape
    size = (edge * step for edge, step in zip(coarse, stride, strict=True))
    return empty_channels_last(grad, (batch, channels, *size))


OPERATION = register(
    "max_pool(Tensor x, int[] stride) -> (Tensor, Tensor)", _max_pool, _empty_max_pool, autograd=_MaxPool.apply
)
BACKWARD = register(
    "max_pool_backward(Tensor grad, Tensor largest, int[] stride) -> Tensor",
    _max_pool_backward,
    _empty_max_pool_backward,
)


def _run(loop: Any, stride: Sequence[int], whole: np.ndarray, coarse: np.ndarray, largest: np.ndarray) -> None:
    """Run a loop over the planes of one sample's coarse volume (D, H, W, C)."""
    work = partial(loop, whole, *stride, coarse, largest)
    run_parts(lambda _, start, stop: work(start, stop), len(coarse), coarse[0].size)
