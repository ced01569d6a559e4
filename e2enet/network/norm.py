"""Instance norm and LeakyReLU in one, for channels-last memory.

torch's instance norm leaves the channels-last layout. Its channels-last batch norm sums a whole volume in float32,
voxel by voxel, and loses digits on large patches (errors of 2e-3 in the golden outputs, where 1e-4 is allowed). On the
CPU, compiled loops do both passes here: they read x twice and write y once. A chain of tensor operations takes four
times as long. Other devices use torch's batch norm of each sample, and so does half precision, whose inputs carry three
digits. Compilers and differentiating transforms get plain operations (`plain_norm_act`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2enet.network.compiled import as_array, parts, run_parts, use_compiled_loops
from e2enet.network.operations import below_autograd, empty_channels_last, plain_gradients, plain_operations, register


class InstanceNormAct(nn.Module):
    """InstanceNorm3d(eps, affine), then LeakyReLU(slope), of (B, C, D, H, W); statistics are float32 or wider."""

    def __init__(self, channels: int, eps: float = 1e-5, slope: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps, self.slope = eps, slope

    def forward(self, x: Tensor, subtracted: Tensor | None = None) -> Tensor:
        """Return the norm of x, activated. `subtracted` (C,) was added to x; the norm cancels it: its gradient is 0."""
        # Not 0 * subtracted: inductor folds that to a constant and then cannot tell what its gradient recomputes.
        weight = self.weight if subtracted is None else self.weight + (subtracted - subtracted)
        if plain_operations():
            return plain_norm_act(x, weight, self.bias, self.eps, self.slope)
        if use_compiled_loops(x):
            y, _, _ = OPERATION(x, weight, self.bias, self.eps, self.slope)
            return y
        return batch_norm_act(x, weight, self.bias, self.eps, self.slope)


def plain_norm_act(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
    """Instance norm and LeakyReLU in plain operations, which fit any number of samples and can be fused."""
    wide = x if x.dtype == torch.float64 else x.float()
    variance, mean = torch.var_mean(wide, (2, 3, 4), correction=0, keepdim=True)
    scale, offset = (value.view(-1, 1, 1, 1).to(wide.dtype) for value in (weight, bias))
    return F.leaky_relu((wide - mean) * (scale * torch.rsqrt(variance + eps)) + offset, slope).to(x.dtype)


def batch_norm_act(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
    """Instance norm as the batch norm of each sample, then LeakyReLU.

    A single voxel is its own mean, so only the bias remains; torch's batch norm refuses such a volume.
    """
    if x.shape[2:].numel() == 1:
        channels = (1, -1, 1, 1, 1)
        return F.leaky_relu(((x - x) * weight.view(channels) + bias.view(channels)).to(x.dtype), slope)
    samples = [F.batch_norm(sample, None, None, weight, bias, True, 0.0, eps) for sample in x.split(1)]
    return F.leaky_relu(samples[0] if len(samples) == 1 else torch.cat(samples), slope, inplace=True)


class _NormAct(torch.autograd.Function):
    """leaky_relu((x - mean) * scale + bias), scale = weight * rstd, per sample and channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, ...]:
        y, mean, rstd = below_autograd(OPERATION, x, weight, bias, eps, slope)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.eps, ctx.slope = eps, slope
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            plain = partial(plain_norm_act, eps=ctx.eps, slope=ctx.slope)
            return *plain_gradients(plain, (x, weight, bias), grad), None, None
        return *BACKWARD(grad, x, weight, bias, mean, rstd, ctx.slope), None, None


def _norm_act(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = voxel_rows(x)
    y, mean, rstd = _empty_norm_act(x, weight, bias, eps, slope)
    found = zip(as_array(rows), as_array(voxel_rows(y)), as_array(mean), as_array(rstd), strict=True)
    for sample, out, sample_mean, sample_rstd in found:
        sample_mean[:], variance = channel_moments(sample)
        sample_rstd[:] = 1 / np.sqrt(variance + eps)
        _normalise(sample, _constants(sample, weight, bias, sample_mean, sample_rstd, slope), out)
    return y, mean, rstd


def _empty_norm_act(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and mean and 1 / standard deviation of each channel, float64 (B, C), all uninitialised."""
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float64) for _ in range(2))
    return empty_channels_last(x, x.shape), mean, rstd


def _norm_act_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = empty_channels_last(x, x.shape)
    arrays = (as_array(part) for part in (voxel_rows(grad), voxel_rows(x), mean, rstd, voxel_rows(grad_x)))
    sums = np.zeros((2, len(x), x.shape[1]))
    for index, (given, sample, sample_mean, sample_rstd, out) in enumerate(zip(*arrays, strict=True)):
        constants = _constants(sample, weight, bias, sample_mean, sample_rstd, slope)
        sums[:, index] = _backward_sample(given, sample, constants, sample_rstd, out)
    grad_weight, grad_bias = sums.sum(axis=1)
    return grad_x, torch.from_numpy(grad_weight).to(weight.dtype), torch.from_numpy(grad_bias).to(bias.dtype)


def _empty_norm_act_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_channels_last(x, x.shape), torch.empty_like(weight), torch.empty_like(bias)


def _constants(
    x: np.ndarray, weight: Tensor, bias: Tensor, mean: np.ndarray, rstd: np.ndarray, slope: float
) -> tuple[np.ndarray, ...]:
    """Return a sample's constants for the loops, in the sample's dtype: mean, scale, bias and slope."""
    values = mean, as_array(weight) * rstd, as_array(bias), np.float64(slope)
    return tuple(value.astype(x.dtype) for value in values)


OPERATION = register(
    "norm_act(Tensor x, Tensor weight, Tensor bias, float eps, float slope) -> (Tensor, Tensor, Tensor)",
    _norm_act,
    _empty_norm_act,
    autograd=_NormAct.apply,
)
BACKWARD = register(
    "norm_act_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, float slope)"
    " -> (Tensor, Tensor, Tensor)",
    _norm_act_backward,
    _empty_norm_act_backward,
)


def _normalise(x: np.ndarray, constants: tuple[np.ndarray, ...], y: np.ndarray) -> None:
    from e2enet.network import norm_pool_loops

    run_parts(lambda _, start, stop: norm_pool_loops.normalise(x, *constants, start, stop, y), *x.shape)


def _backward_sample(
    grad: np.ndarray, x: np.ndarray, constants: tuple[np.ndarray, ...], rstd: np.ndarray, grad_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fill `grad_x` of one sample, rows (voxels, C); return the gradients of weight and bias.

    With g the gradient before the activation and n = (x - mean) * rstd:
    grad_x = weight * rstd * (g - average(g) - n * average(g * n)).
    """
    from e2enet.network import norm_pool_loops

    sum_g, sum_gx = _sum_parts(lambda *part: norm_pool_loops.add_gradient_sums(grad, x, *constants, *part), x)
    sum_gn = sum_gx * rstd
    scale = constants[1]
    constant = (-scale * sum_g / len(x)).astype(x.dtype)
    by_x = (-scale * rstd * sum_gn / len(x)).astype(x.dtype)
    run_parts(
        lambda _, start, stop: norm_pool_loops.input_gradient(grad, x, *constants, constant, by_x, start, stop, grad_x),
        *x.shape,
    )
    return sum_gn, sum_g


def channel_moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and (biased) variance of each channel of rows (voxels, C), in float64.

    An estimate of the mean is subtracted from every value before squaring, so a large mean costs no digits.
    """
    from e2enet.network import norm_pool_loops

    centre = rows[: min(512, len(rows))].mean(axis=0)
    first, second = _sum_parts(lambda *part: norm_pool_loops.add_moments(rows, centre, *part), rows)
    first, second = first / len(rows), second / len(rows)
    return centre + first, np.maximum(second - first * first, 0)


def _sum_parts(add: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum `add(start, stop, first, second)` over the parts of rows (voxels, C): two float64 (C,)."""
    sums = np.zeros((len(parts(*rows.shape)), 2, rows.shape[1]))
    run_parts(lambda index, start, stop: add(start, stop, sums[index, 0], sums[index, 1]), *rows.shape)
    first, second = sums.sum(axis=0)
    return first, second


def channels_last(x: Tensor) -> Tensor:
    """Return (B, C, D, H, W) as contiguous (B, D, H, W, C): a view if `x` is channels-last."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


def voxel_rows(x: Tensor) -> Tensor:
    """Return (B, C, D, H, W) as (B, voxels, C): a view if `x` is channels-last."""
    return x.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1, x.shape[1])
