"""Instance norm and LeakyReLU in one, for channels-last memory.

torch's instance norm leaves the channels-last layout, and its channels-last batch norm adds up a whole volume in
float32, voxel after voxel, which loses digits on large patches (errors of 2e-3 in the golden outputs, where 1e-4 is
allowed). On the CPU compiled loops do both passes here: x is read twice and y written once, where a chain of tensor
operations takes four times as long. On other devices, and in half precision, whose inputs carry three digits, torch's
batch norm of each sample serves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from e2enet.network.compiled import as_array, parts, run_parts, takes_loops


class InstanceNormAct(nn.Module):
    """InstanceNorm3d(eps, affine), then LeakyReLU(slope), of (B, C, D, H, W); statistics are float32 or wider."""

    def __init__(self, channels: int, eps: float = 1e-5, slope: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps, self.slope = eps, slope

    def forward(self, x: Tensor) -> Tensor:
        if takes_loops(x):
            return _LoopedNormAct.apply(x, self.weight, self.bias, self.eps, self.slope)
        return batch_norm_act(x, self.weight, self.bias, self.eps, self.slope)


def batch_norm_act(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
    """Instance norm as the batch norm of each sample, then LeakyReLU.

    A single voxel is its own mean, which leaves the bias; torch's batch norm refuses it.
    """
    if x.shape[2:].numel() == 1:
        channels = (1, -1, 1, 1, 1)
        return F.leaky_relu(((x - x) * weight.view(channels) + bias.view(channels)).to(x.dtype), slope)
    samples = [F.batch_norm(sample, None, None, weight, bias, True, 0.0, eps) for sample in x.split(1)]
    return F.leaky_relu(samples[0] if len(samples) == 1 else torch.cat(samples), slope, inplace=True)


class _LoopedNormAct(torch.autograd.Function):
    """leaky_relu((x - mean) * scale + bias), scale = weight / std, per sample and channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        rows = voxel_rows(x)
        y = torch.empty_like(rows)
        ctx.constants, ctx.rstds = [], []
        for sample, out in zip(as_array(rows), as_array(y), strict=True):
            mean, variance = channel_moments(sample)
            rstd = 1 / np.sqrt(variance + eps)
            values = mean, as_array(weight) * rstd, as_array(bias), np.float64(slope)
            constants = tuple(value.astype(sample.dtype) for value in values)
            _normalise(sample, constants, out)
            ctx.constants.append(constants)
            ctx.rstds.append(rstd)
        ctx.save_for_backward(rows)
        return _from_rows(y, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        grads = voxel_rows(grad)
        grad_x = torch.empty_like(rows)
        samples = zip(as_array(grads), as_array(rows), ctx.constants, ctx.rstds, as_array(grad_x), strict=True)
        sums = [_backward_sample(*sample) for sample in samples]
        grad_weight, grad_bias = (
            torch.from_numpy(np.sum(part, axis=0)).to(grad.dtype) for part in zip(*sums, strict=True)
        )
        return _from_rows(grad_x, grad.shape), grad_weight, grad_bias, None, None


def _normalise(x: np.ndarray, constants: tuple[np.ndarray, ...], y: np.ndarray) -> None:
    from e2enet.network import loops

    run_parts(lambda _, start, stop: loops.normalise(x, *constants, start, stop, y), *x.shape)


def _backward_sample(
    grad: np.ndarray, x: np.ndarray, constants: tuple[np.ndarray, ...], rstd: np.ndarray, grad_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fill `grad_x` of one sample, rows (voxels, C); return the gradients of weight and bias.

    With g the gradient before the activation and n = (x - mean) * rstd:
    grad_x = weight * rstd * (g - average(g) - n * average(g * n)).
    """
    from e2enet.network import loops

    sum_g, sum_gx = _sum_parts(lambda *part: loops.add_gradient_sums(grad, x, *constants, *part), x)
    sum_gn = sum_gx * rstd
    scale = constants[1]
    constant = (-scale * sum_g / len(x)).astype(x.dtype)
    by_x = (-scale * rstd * sum_gn / len(x)).astype(x.dtype)
    run_parts(
        lambda _, start, stop: loops.input_gradient(grad, x, *constants, constant, by_x, start, stop, grad_x),
        *x.shape,
    )
    return sum_gn, sum_g


def channel_moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and (biased) variance of each channel of rows (voxels, C), in float64.

    From every value an estimate of the mean is subtracted before it is squared, so that a large mean costs no digits.
    """
    from e2enet.network import loops

    centre = rows[: min(512, len(rows))].mean(axis=0)
    first, second = _sum_parts(lambda *part: loops.add_moments(rows, centre, *part), rows)
    first, second = first / len(rows), second / len(rows)
    return centre + first, np.maximum(second - first * first, 0)


def _sum_parts(add: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum `add(start, stop, first, second)` over the parts of rows (voxels, C): two float64 (C,)."""
    sums = np.zeros((len(parts(*rows.shape)), 2, rows.shape[1]))
    run_parts(lambda index, start, stop: add(start, stop, sums[index, 0], sums[index, 1]), *rows.shape)
    first, second = sums.sum(axis=0)
    return first, second


def voxel_rows(x: Tensor) -> Tensor:
    """Return (B, C, D, H, W) as (B, voxels, C): a view where `x` is channels-last."""
    return x.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1, x.shape[1])


def _from_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    batch, channels, *size = shape
    return rows.view(batch, *size, channels).permute(0, 4, 1, 2, 3)
