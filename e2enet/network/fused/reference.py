"""The operations around convolutions in plain torch, for every device and dtype: what loops and kernels must equal.

Each function takes the arguments of the operation of the same name (`operations`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from e2enet.network.fused.volumes import MEAN, OFFSET, PLACE, RSTD, SCALE, channels_of, size_of, voxels
from e2enet.network.layers import to_channels_last
from e2enet.network.pooling import plain_unpool
from e2enet.network.shift import group_shifts, shift_depth


def prepare(
    sources: Sequence[Tensor],
    affines: Sequence[Tensor | None],
    slopes: Sequence[float],
    shift_size: int,
    depth_stride: int,
    dtype: torch.dtype,
    columns: Tensor | None,
) -> Tensor:
    """Return a convolution's input (B, C, D / depth_stride, H, W): sources normalised, activated, joined, shifted.

    With `columns`, these channels of it.
    """
    whole = torch.cat([activate(*one) for one in zip(sources, affines, slopes, strict=True)], dim=1)
    groups = group_shifts(whole.shape[1], shift_size)
    moved = torch.cat([shift_depth(whole[:, start:stop], shift) for start, stop, shift in groups], dim=1)
    chosen = moved if columns is None else moved.index_select(1, columns)
    return to_channels_last(chosen[:, :, ::depth_stride].to(dtype))


def activate(values: Tensor, affine: Tensor | None, slope: float) -> Tensor:
    """Return (B, C, D, H, W) as readers see it, in the dtype of `affine`."""
    if values.ndim == 8:  # (B, D, H, W, sd, sh, sw, C) -> (B, C, D, sd, H, sh, W, sw)
        values = values.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(len(values), channels_of(values), *size_of(values))
    if affine is None:
        return values
    return F.leaky_relu(values.to(affine.dtype) * _row(affine, SCALE) + _row(affine, OFFSET), slope)


def statistics(values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return (B, 4, C): scale, offset, mean and 1 / standard deviation of an instance norm."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, (2, 3, 4), correction=0)
    rstd = torch.rsqrt(variance + eps)
    scale = weight.to(wide.dtype) * rstd
    return torch.stack([scale, bias.to(wide.dtype) - mean * scale, mean, rstd], dim=1)


def pool(values: Tensor, affine: Tensor | None, slope: float, window: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows as readers see them, and the number of each window's largest voxel, uint8."""
    whole = activate(values, affine, slope)
    batch, channels, *size = whole.shape
    (depth, height, width), (sd, sh, sw) = (edge // step for edge, step in zip(size, window, strict=True)), window
    split = whole.reshape(batch, channels, depth, sd, height, sh, width, sw).permute(0, 1, 2, 4, 6, 3, 5, 7)
    pooled, largest = split.flatten(5).max(dim=-1)
    return to_channels_last(pooled.to(values.dtype)), to_channels_last(largest.to(torch.uint8))


def gather_gradient(
    values: Tensor,
    affine: Tensor,
    slope: float,
    grads: Sequence[Tensor],
    largest: Sequence[Tensor | None],
    places: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the gradient before the activation, (B, C, D, H, W), and sums for the norm's gradient, (B, 2, C).

    It adds what all readers of the values hold (`Reader`; `places` holds `Reader.place` of each). The sums are those of
    the gradient, and of the gradient times the normalised value.
    """
    total = torch.zeros((), dtype=affine.dtype, device=values.device)
    for index, (grad, chosen) in enumerate(zip(grads, largest, strict=True)):
        place = places[PLACE * index : PLACE * (index + 1)]
        total = total + _read_back(grad.to(affine.dtype), values, chosen, place)
    wide = values.to(affine.dtype)
    before = wide * _row(affine, SCALE) + _row(affine, OFFSET)
    total = torch.where(before > 0, total, total * slope)
    normal = (wide - _row(affine, MEAN)) * _row(affine, RSTD)
    sums = torch.stack([total.sum((2, 3, 4)), (total * normal).sum((2, 3, 4))], dim=1)
    return to_channels_last(total.to(values.dtype)), sums


def norm_gradient(grad: Tensor, values: Tensor, affine: Tensor, sums: Tensor) -> Tensor:
    """Return the gradient of what the convolution wrote, from that of `gather_gradient`."""
    wide, means = grad.to(affine.dtype), sums / voxels(values)
    normal = (values.to(affine.dtype) - _row(affine, MEAN)) * _row(affine, RSTD)
    found = _row(affine, SCALE) * (wide - _row(means, 0) - normal * _row(means, 1))
    return to_channels_last(found.to(values.dtype))


def block_gradient(grad: Tensor, place: Sequence[int], products: Sequence[int]) -> Tensor:
    """Return the gradient of an expansion's products, whose shape is (B, D / sd, H / sh, W / sw, sd, sh, sw, C)."""
    batch, depth, height, width, sd, sh, sw, channels = products
    whole = grad.new_empty((batch, channels, depth * sd, height * sh, width * sw), device="meta")
    found = _read_back(grad, whole, None, place).view(batch, channels, depth, sd, height, sh, width, sw)
    return found.permute(0, 2, 4, 6, 3, 5, 7, 1).contiguous()


def active_weights(weights: Sequence[Tensor], masks: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Return every weight (dim 0, dim 1, ..) as (dim 0, taps, dim 1), zero where its mask (dim 0, dim 1) is False."""
    found = []
    for weight, mask in zip(weights, masks, strict=True):
        rows = weight.flatten(2)
        if mask is not None:
            rows = rows.masked_fill(~mask.unsqueeze(2), 0)
        found.append(rows.transpose(1, 2).to(dtype).contiguous())
    return found


def weight_gradients(grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients (dim 0, taps, dim 1) in the shapes and dtypes of their weights.

    Strides are those of a contiguous tensor, of axes of length 1 too: data-parallel training compares them.
    """
    return [
        torch.empty_like(weight, memory_format=torch.contiguous_format).copy_(
            grad.transpose(1, 2).reshape(weight.shape)
        )
        for grad, weight in zip(grads, weights, strict=True)
    ]


def _read_back(grad: Tensor, values: Tensor, largest: Tensor | None, place: Sequence[int]) -> Tensor:
    """Return one reader's gradient of `values`, (B, C, D, H, W) in the dtype of `grad`."""
    start, shift_size, depth_stride, *window = place
    coarse = values if largest is None else largest
    batch, channels, *size = coarse.shape
    whole = grad.new_zeros((batch, grad.shape[1], *size))
    whole[:, :, ::depth_stride] = grad
    groups = group_shifts(grad.shape[1], shift_size)
    moved = torch.cat([shift_depth(whole[:, first:stop], -shift) for first, stop, shift in groups], dim=1)
    part = moved[:, start : start + channels]
    return part if largest is None else plain_unpool(part, largest, window)


def _row(table: Tensor, row: int) -> Tensor:
    """Return a row of (B, rows, C) as (B, C, 1, 1, 1)."""
    return table[:, row, :, None, None, None]
