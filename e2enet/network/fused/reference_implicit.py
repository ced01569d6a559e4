"""Convolutions that prepare what they read, in plain torch: what their Triton kernels must equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from e2enet.network.fused.reference import prepare, statistics
from e2enet.network.layers import from_planes, to_channels_last, to_planes


def convolve(
    sources: Sequence[Tensor],
    affines: Sequence[Tensor | None],
    slopes: Sequence[float],
    shift_size: int,
    weight: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return a convolution of planes, (B, O, D, H, W), and the table of `statistics` of it.

    Sources are read as `prepare` reads them, in the dtype of the weight. weight: (O, taps, C). kernel: its (height,
    width). stride: (depth, height, width). padding: (height, width).
    """
    x = prepare(sources, affines, slopes, shift_size, stride[0], weight.dtype, None)
    planes = torch.conv2d(to_planes(x), plane_weight(weight, kernel), None, stride[1:], padding)
    values = to_channels_last(from_planes(planes, len(x)))
    return values, statistics(values, norm_weight, norm_bias, eps)


def product(
    sources: Sequence[Tensor], affines: Sequence[Tensor | None], slopes: Sequence[float], weight: Tensor
) -> Tensor:
    """Return the voxels of the joined sources times a weight (C, O): (B, O, D, H, W)."""
    x = prepare(sources, affines, slopes, 1, 1, weight.dtype, None)
    return (x.movedim(1, -1) @ weight).movedim(-1, 1)


def correlate(
    sources: Sequence[Tensor],
    affines: Sequence[Tensor | None],
    slopes: Sequence[float],
    shift_size: int,
    grad: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Return the gradient of a weight, (O, taps, C), from that of what the convolution wrote, (B, O, D, H, W)."""
    x = to_planes(prepare(sources, affines, slopes, shift_size, stride[0], grad.dtype, None))
    weight = x.new_empty((grad.shape[1], x.shape[1], *kernel))
    _, found, _ = torch.ops.aten.convolution_backward(
        to_planes(grad), x, weight, None, stride[1:], padding, (1, 1), False, [0, 0], 1, [False, True, False]
    )
    return found.flatten(2).transpose(1, 2).contiguous()


def plane_weight(weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """Return a weight (O, taps, C) as (O, C, height, width), in channels-last memory."""
    return weight.unflatten(1, tuple(kernel)).movedim(-1, 1)
