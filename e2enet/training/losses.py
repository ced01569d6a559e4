"""Soft Dice plus cross-entropy, of classes or of regions, and its deep-supervision wrapper (spec section 4).

In data-parallel training the batch is that of all processes together, so the sums of batch Dice run over all of them.
Means over voxels and samples need no such sums unless voxels are ignored: every process has the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, distributed, nn

from e2enet.common.errors import InputError, first_line
from e2enet.data.formats.scheme import LabelScheme
from e2enet.system.ranks import in_process_group
from e2enet.training.step_parts import taking_labels


class DiceCrossEntropy(nn.Module):
    """Weighted sum of soft Dice loss and cross-entropy, computed in float32 or wider.

    The Dice term is nnU-Net's batch Dice: per class, sums run over the batch (of all processes) and all voxels,
    `dice = (2 * sum(p * t) + smooth) / (sum(p) + sum(t) + smooth)`. nnU-Net minimises `-mean(dice)`; here the
    term is `1 - mean(dice)`, the same gradient with a best value of 0.

    Args:
        smooth: added to numerator and denominator; a class absent from prediction and target has Dice 1.
        dice_weight: factor of the Dice term.
        cross_entropy_weight: factor of the cross-entropy, averaged over voxels.
        batch_dice: sum over the batch before dividing; False averages one Dice per sample.
        include_background: include class 0 in the Dice mean.
        ignore: target value of voxels left out of both terms. The cross-entropy is averaged over the other voxels of
            all processes, and 0 if there are none.
    """

    def __init__(
        self,
        smooth: float = 1e-5,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        batch_dice: bool = True,
        include_background: bool = False,
        ignore: int | None = None,
    ) -> None:
        super().__init__()
        self.smooth = smooth
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.batch_dice = batch_dice
        self.include_background = include_background
        self.ignore = ignore

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K, D, H, W) against class indices (B, D, H, W), int64."""
        # Half precision cannot hold sums over a patch: the largest float16 is 65504, a 64^3 patch has 262144 voxels.
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            probabilities = logits.softmax(dim=1)
            if self.ignore is None:
                known, classes = None, target
                cross_entropy = F.cross_entropy(logits, target)
            else:
                known = target != self.ignore
                classes = target.where(known, 0)
                terms = F.cross_entropy(logits, target, ignore_index=self.ignore, reduction="none")
                cross_entropy = mean_of_known(terms, known)
            one_hot = torch.zeros_like(probabilities).scatter_(1, classes[:, None], 1.0)
            dice = soft_dice(
                probabilities,
                one_hot,
                known=known,
                smooth=self.smooth,
                batch_dice=self.batch_dice,
                include_background=self.include_background,
            )
            return self.dice_weight * (1.0 - dice) + self.cross_entropy_weight * cross_entropy


class DiceBCE(nn.Module):
    """Weighted sum of soft Dice loss and binary cross-entropy of overlapping regions, in float32 or wider.

    This is nnU-Net's loss for region-based training: each output is one region, with a sigmoid. The Dice term is that
    of `DiceCrossEntropy`, over all regions.

    Args:
        regions: the labels of each region, in the order of the outputs.
        smooth, dice_weight, batch_dice: as in `DiceCrossEntropy`.
        cross_entropy_weight: factor of the binary cross-entropy, averaged over voxels and regions.
        ignore: as in `DiceCrossEntropy`. With an ignore label nnU-Net sums over regions; here the mean is kept.
    """

    members: Tensor

    def __init__(
        self,
        regions: Sequence[Sequence[int]],
        smooth: float = 1e-5,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        batch_dice: bool = True,
        ignore: int | None = None,
    ) -> None:
        super().__init__()
        highest = max([ignore or 0, *(label for region in regions for label in region)])
        members = torch.zeros(len(regions), highest + 1)
        for own, region in zip(members, regions, strict=True):
            own[list(region)] = 1.0
        self.register_buffer("members", members, persistent=False)
        self.smooth = smooth
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.batch_dice = batch_dice
        self.ignore = ignore

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K, D, H, W) of K regions against labels (B, D, H, W), int64."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            inside = self.members.to(logits.dtype)[:, target].transpose(0, 1)
            known = None if self.ignore is None else target != self.ignore
            terms = F.binary_cross_entropy_with_logits(logits, inside, reduction="none").mean(dim=1)
            dice = soft_dice(
                logits.sigmoid(),
                inside,
                known=known,
                smooth=self.smooth,
                batch_dice=self.batch_dice,
                include_background=True,
            )
            cross_entropy = terms.mean() if known is None else mean_of_known(terms, known)
            return self.dice_weight * (1.0 - dice) + self.cross_entropy_weight * cross_entropy


def build_loss(config: Mapping[str, Any], scheme: LabelScheme) -> DeepSupervisionLoss:
    """Build the loss of a `loss` section for a dataset's labels, over all heads.

    The loss gets the keywords `ignore` and `regions` if the dataset has them. If the labels are regions,
    DiceCrossEntropy, the default, is replaced by DiceBCE, as in nnU-Net.

    Raises:
        InputError: the loss does not accept such a keyword, or one of the settings.
    """
    settings, target = dict(config), str(config["_target_"])
    special: dict[str, Any] = {} if scheme.ignore is None else {"ignore": scheme.ignore}
    if scheme.regions:
        special["regions"] = [list(united) for united in scheme.regions.values()]
        if target == _path(DiceCrossEntropy):
            settings["_target_"] = target = _path(DiceBCE)
    try:
        return DeepSupervisionLoss(taking_labels(instantiate(settings, **special)))
    except InstantiationException as error:
        if not special:
            raise
        raise InputError(
            f"loss._target_={target}: cannot be built for this dataset, whose labels give it "
            f"{' and '.join(special)}: {first_line(error.__cause__ or error)}"
        ) from error


class DeepSupervisionLoss(nn.Module):
    """Weighted sum of one loss over all heads: weights 1, 1/2, 1/4, .. normalised to sum 1.

    Targets are brought to each head's resolution by nearest sampling, so they stay labels, ignored voxels included.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, heads: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss of head logits (B, K, d, h, w), full resolution first, against the target (B, D, H, W)."""
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
    """Sample class indices (B, D, H, W) at a coarser `size` (d, h, w): each cell's first voxel (docs/results.md)."""
    if tuple(target.shape[1:]) == tuple(size):
        return target
    # Class values stay below 2048, which float32 (and float16) represents exactly.
    return F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest")[:, 0].long()


def soft_dice(
    probabilities: Tensor,
    target: Tensor,
    *,
    smooth: float,
    batch_dice: bool,
    include_background: bool,
    known: Tensor | None = None,
) -> Tensor:
    """Return the mean soft Dice over classes (and over samples, without `batch_dice`).

    `probabilities` and the one-hot `target` are (B, K, D, H, W). `known` (B, D, H, W) marks the voxels that count;
    None for all.
    """
    if known is not None:
        mask = known[:, None].to(probabilities.dtype)
        probabilities, target = probabilities * mask, target * mask
    axes = [2, 3, 4] if not batch_dice else [0, 2, 3, 4]
    overlap = (probabilities * target).sum(axes)
    total = probabilities.sum(axes) + target.sum(axes)
    if batch_dice:
        overlap, total = sum_over_processes(torch.stack([overlap, total]))
    dice = (2.0 * overlap + smooth) / (total + smooth)
    return (dice if include_background else dice[..., 1:]).mean()


def mean_of_known(terms: Tensor, known: Tensor) -> Tensor:
    """Return the mean of (B, D, H, W) over the known voxels of all processes; 0 without any.

    Processes have different numbers of known voxels, so sums and counts are added up first.
    """
    total, count = sum_over_processes(torch.stack([(terms * known).sum(), known.sum().to(terms.dtype)]))
    return total / count.clamp(min=1.0)


def sum_over_processes(sums: Tensor) -> Tensor:
    """Sum a tensor over all processes of a data-parallel training; a single process returns it unchanged.

    The gradient is multiplied by the number of processes. The loss of this sum is the same on each process, but its
    backward pass only reaches that process's own samples. DDP then averages the gradients: with two processes each
    part would count half. Times two, the average is the gradient of the loss with respect to the weights.
    """
    if not in_process_group():
        return sums
    total = sums.detach().clone()
    distributed.all_reduce(total)
    return total + distributed.get_world_size() * (sums - sums.detach())


def _path(loss: type[nn.Module]) -> str:
    return f"{loss.__module__}.{loss.__qualname__}"
