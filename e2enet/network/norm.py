"""Instance norm and LeakyReLU in one, for channels-last memory.

torch's instance norm leaves the channels-last layout, and its channels-last batch norm adds up a whole volume in
float32, voxel after voxel, which loses digits on large patches (errors of 2e-3 in the golden outputs, where 1e-4 is
allowed). On the CPU both passes run here over blocks of voxels that fit the cache: sums of blocks keep their digits,
and the activation finds its input still in the cache. On other devices, and in half precision, whose inputs carry
three digits, torch's batch norm of each sample serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK_VALUES = 2**18  # values per block: 1 MiB in float32, half of one core's second-level cache


class InstanceNormAct(nn.Module):
    """InstanceNorm3d(eps, affine), then LeakyReLU(slope), of (B, C, D, H, W); statistics are float32 or wider."""

    def __init__(self, channels: int, eps: float = 1e-5, slope: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps, self.slope = eps, slope

    def forward(self, x: Tensor) -> Tensor:
        blocked = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        if blocked and not torch.compiler.is_compiling():  # a compiler fuses by itself and would unroll the blocks
            return _BlockedNormAct.apply(x, self.weight, self.bias, self.eps, self.slope)
        return batch_norm_act(x, self.weight, self.bias, self.eps, self.slope)


def batch_norm_act(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
    """Instance norm as the batch norm of each sample, then LeakyReLU."""
    samples = [F.batch_norm(sample, None, None, weight, bias, True, 0.0, eps) for sample in x.split(1)]
    return F.leaky_relu(samples[0] if len(samples) == 1 else torch.cat(samples), slope, inplace=True)


class _BlockedNormAct(torch.autograd.Function):
    """leaky_relu(scale * x + offset), scale = weight / std, offset = bias - mean * scale, per sample and channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        rows = voxel_rows(x)
        y = torch.empty_like(rows)
        means, rstds = [], []
        for sample, out in zip(rows, y, strict=True):
            mean, variance = channel_moments(sample)
            rstd = torch.rsqrt(variance + eps)
            scale = weight * rstd
            offset = bias - mean * scale
            for part, target in _blocks(sample, out):
                F.leaky_relu_(torch.mul(part, scale, out=target).add_(offset), slope)
            means.append(mean)
            rstds.append(rstd)
        ctx.save_for_backward(rows, y, weight, torch.stack(means), torch.stack(rstds))
        ctx.slope = slope
        return _from_rows(y, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, y, weight, means, rstds = ctx.saved_tensors
        grads = voxel_rows(grad)
        grad_x = torch.empty_like(rows)
        sums = [
            _backward_sample(g, out, x, mean, rstd, into, weight, ctx.slope)
            for g, out, x, mean, rstd, into in zip(grads, y, rows, means, rstds, grad_x, strict=True)
        ]
        grad_weight, grad_bias = (torch.stack(part).sum(0) for part in zip(*sums, strict=True))
        return _from_rows(grad_x, grad.shape), grad_weight, grad_bias, None, None


def _backward_sample(
    grad: Tensor, y: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, grad_x: Tensor, weight: Tensor, slope: float
) -> tuple[Tensor, Tensor]:
    """Fill `grad_x` of one sample, rows (voxels, C); return the gradients of weight and bias.

    With g the gradient before the activation and n = (x - mean) * rstd:
    grad_x = weight * rstd * (g - average(g) - n * average(g * n)).
    """
    sum_g, sum_gn = torch.zeros_like(mean), torch.zeros_like(mean)
    for g, out, part, target in _blocks(grad, y, x, grad_x):
        torch.ops.aten.leaky_relu_backward.grad_input(g, out, slope, True, grad_input=target)
        normalised = (part - mean).mul_(rstd)
        sum_g += target.sum(0)
        sum_gn += normalised.mul_(target).sum(0)
    count = len(x)
    scale = weight * rstd
    by_x = -scale * rstd * sum_gn / count
    constant = -scale * sum_g / count - by_x * mean
    for part, target in _blocks(x, grad_x):
        target.mul_(scale).add_(constant).addcmul_(part, by_x)
    return sum_gn, sum_g


def channel_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and (biased) variance of each channel of rows (voxels, C).

    Sums run over blocks, of values from which an estimate of the mean has been subtracted, so that neither a large mean
    nor a large number of voxels costs digits.
    """
    blocks = [part for (part,) in _blocks(rows)]
    centre = blocks[0].mean(0)
    first, second = torch.zeros_like(centre), torch.zeros_like(centre)
    for part in blocks:
        centred = part - centre
        first += centred.sum(0)
        second += centred.mul_(centred).sum(0)
    first /= len(rows)
    return centre + first, (second / len(rows) - first * first).clamp_(min=0)


def voxel_rows(x: Tensor) -> Tensor:
    """Return (B, C, D, H, W) as (B, voxels, C): a view where `x` is channels-last."""
    return x.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1, x.shape[1])


def _from_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    batch, channels, *size = shape
    return rows.view(batch, *size, channels).permute(0, 4, 1, 2, 3)


def _blocks(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors (voxels, C) of one shape into the same blocks of about BLOCK_VALUES values."""
    size = max(1, BLOCK_VALUES // rows[0].shape[1])
    yield from zip(*(tensor.split(size) for tensor in rows), strict=True)
