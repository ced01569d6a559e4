"""Kernels of one layer: their scores, and which of them are pruned and regrown. Plain functions on tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from e2enet.network.granularity import prune_units, regrow_units

Generator = torch.Generator | None


def kernel_scores(tensor: Tensor) -> Tensor:
    """Return the L1 norm of every kernel of a weight or a gradient, shape (dim 0, dim 1), in float32 or wider."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return wide.abs().flatten(2).sum(dim=2)


def prune_count(active: int, fraction: float) -> int:
    """Return n = ceil(fraction * active), the number of active kernels that an update replaces.

    A product that floating point puts just above a whole number (0.07 * 100 = 7.000000000000001) counts as whole.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in 0..1, got {fraction}")
    return min(active, math.ceil(round(fraction * active, 9)))


def prune_kernels(weight: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """Return `mask` without the `prune_count` active kernels of smallest L1 norm; ties fall to the lower index.

    weight: (dim0, dim1, ...), mask: bool (dim0, dim1). Neither is changed.

    Raises:
        ValueError: if fraction is outside 0..1 or the shapes disagree.
    """
    _check_mask(mask, weight.shape[:2])
    return prune_units(mask, prune_count(int(mask.sum()), fraction), kernel_scores(weight.detach()))


def regrow_kernels(mask: Tensor, count: int, *, scores: Tensor | None = None, generator: Generator = None) -> Tensor:
    """Return `mask` with `count` more kernels active: those of largest `scores`, or random ones without scores.

    mask: bool (dim0, dim1); scores: (dim0, dim1), usually `kernel_scores(weight.grad)`. Random choice is drawn on the
    CPU from `generator`, so it does not depend on the device.

    Raises:
        ValueError: if fewer than `count` kernels are inactive.
    """
    if scores is not None:
        _check_mask(mask, scores.shape)
        scores = scores.reshape(1, -1)
    return regrow_units(mask.reshape(1, -1), [count], scores=scores, generator=generator).view_as(mask)


def expand_mask(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a (dim0, dim1) mask shaped to broadcast over a weight (dim0, dim1, ...)."""
    return mask.view(*mask.shape, *[1] * (weight.ndim - 2))


def _check_mask(mask: Tensor, shape: torch.Size) -> None:
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(f"expected a bool mask of shape {tuple(shape)}, got {mask.dtype} {tuple(mask.shape)}")
