"""Soft Dice plus cross-entropy, and its deep-supervision wrapper (spec section 4).

In data-parallel training the batch is that of all processes together: batch Dice is of sums over all of them. Means
over voxels and samples need nothing of the kind, since every process has as many.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from e2enet.system.ranks import in_process_group


class DiceCrossEntropy(nn.Module):
    """Weighted sum of soft Dice loss and cross-entropy, computed in float32 or wider.

    The Dice term is nnU-Net's batch Dice: per class, sums run over the batch (of all processes) and all voxels,
    `dice = (2 * sum(p * t) + smooth) / (sum(p) + sum(t) + smooth)`. nnU-Net minimises `-mean(dice)`; here the
    term is `1 - mean(dice)`, the same gradient with a best value of 0.

    Args:
        smooth: added to numerator and denominator; a class absent from prediction and target counts as dice
            1.
        dice_weight: factor of the Dice term.
        cross_entropy_weight: factor of the cross-entropy, averaged over voxels.
        batch_dice: sum over the batch before dividing; False gives one Dice per sample, averaged.
        include_background: let class 0 take part in the Dice mean.
    """

    def __init__(
        self,
        smooth: float = 1e-5,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        batch_dice: bool = True,
        include_background: bool = False,
    ) -> None:
        super().__init__()
        self.smooth = smooth
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.batch_dice = batch_dice
        self.include_background = include_background

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (B, K, D, H, W) against class indices (B, D, H, W), int64."""
        # Half precision cannot hold sums over a patch: float16 ends at 65504, a 64^3 patch has 262144 voxels.
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            dice = soft_dice(
                logits.softmax(dim=1),
                target,
                smooth=self.smooth,
                batch_dice=self.batch_dice,
                include_background=self.include_background,
            )
            cross_entropy = F.cross_entropy(logits, target)
            return self.dice_weight * (1.0 - dice) + self.cross_entropy_weight * cross_entropy


class DeepSupervisionLoss(nn.Module):
    """Weighted sum of one loss over all heads: weights 1, 1/2, 1/4, .. normalised to sum 1.

    Targets are brought to each head's resolution by nearest sampling, so they stay class indices.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, heads: Sequence[Tensor], target: Tensor) -> Tensor:
        """Loss of head logits (B, K, d, h, w), full resolution first, against the target (B, D, H, W)."""
        weights = head_weights(len(heads))
        terms = [
            weight * self.loss(logits, reduce_target(target, logits.shape[2:]))
            for weight, logits in zip(weights, heads, strict=True)
        ]
        return torch.stack(terms).sum()


def head_weights(num_heads: int) -> list[float]:
    """Weights of the heads, full resolution first: 3 heads give 4/7, 2/7, 1/7."""
    raw = [0.5**head for head in range(num_heads)]
    return [weight / sum(raw) for weight in raw]


def reduce_target(target: Tensor, size: Sequence[int]) -> Tensor:
    """Class indices (B, D, H, W) at a coarser `size` (d, h, w): the first voxel of each cell (docs/results.md)."""
    if tuple(target.shape[1:]) == tuple(size):
        return target
    # Class numbers stay below 2048, where float32 (and any half type's integers) are exact.
    return F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest")[:, 0].long()


def soft_dice(
    probabilities: Tensor, target: Tensor, *, smooth: float, batch_dice: bool, include_background: bool
) -> Tensor:
    """Mean soft Dice of (B, K, D, H, W) against (B, D, H, W), over classes (and samples one by one)."""
    one_hot = torch.zeros_like(probabilities).scatter_(1, target[:, None], 1.0)
    axes = [2, 3, 4] if not batch_dice else [0, 2, 3, 4]
    overlap = (probabilities * one_hot).sum(axes)
    total = probabilities.sum(axes) + one_hot.sum(axes)
    if batch_dice:
        overlap, total = sum_over_processes(torch.stack([overlap, total]))
    dice = (2.0 * overlap + smooth) / (total + smooth)
    return (dice if include_background else dice[..., 1:]).mean()


def sum_over_processes(sums: Tensor) -> Tensor:
    """Sum a tensor over all processes of a data-parallel training; a process alone keeps it as it is.

    The gradient is that of the sum times the number of processes. A loss of this sum is the same number on each, but a
    process's backward pass reaches its own samples only, and the gradients of all are then averaged: of two processes
    each would give half of its part. Times two, the average is the gradient of the loss with respect to the weights.
    """
    if not in_process_group():
        return sums
    total = sums.detach().clone()
    distributed.all_reduce(total)
    return total + distributed.get_world_size() * (sums - sums.detach())
