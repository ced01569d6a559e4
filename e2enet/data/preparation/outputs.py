"""Turns a network's output into labels: the class of largest value, or regions written over one another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def segment_logits(logits: Tensor, order: Sequence[int] = ()) -> Tensor:
    """Labels (B, D, H, W) of logits (B, K, D, H, W); `order` as in `segment_plane`."""
    return write_regions((logits > 0).movedim(1, 0), order) if order else logits.argmax(dim=1)


def segment_plane(probabilities: Tensor, order: Sequence[int] = ()) -> Tensor:
    """Labels (H, W) of probabilities (K, H, W), uint8 or int16.

    For a network trained on regions, `order` is `LabelScheme.order`, and each region has its own probability. If it is
    empty, the class of largest probability is taken.
    """
    return write_regions(probabilities > 0.5, order) if order else largest_class(probabilities)


def write_regions(inside: Tensor, order: Sequence[int]) -> Tensor:
    """Write boolean regions (K, ..) into one label map (..), uint8 or int16 (nnU-Net's regions_class_order).

    Each region is written as its label in `order`, later ones over earlier ones. Voxels of no region are 0.
    """
    labels = torch.zeros(inside.shape[1:], dtype=_label_type(max(order)), device=inside.device)
    for region, label in zip(inside, order, strict=True):
        labels.masked_fill_(region, label)
    return labels


def largest_class(plane: Tensor) -> Tensor:
    """The class of largest value: (K, H, W) -> (H, W) uint8, int16 for more than 256 classes. Ties: the first one."""
    dtype = _label_type(len(plane) - 1)
    if plane.device.type != "cpu":
        return plane.argmax(dim=0).to(dtype)
    # Class by class: torch's argmax goes voxel by voxel across the planes, ten times slower. A class that beats all
    # earlier ones has a larger number than they, so the winner is the largest number that ever led.
    best = plane[0].clone()
    winner = torch.zeros(best.shape, dtype=dtype)
    leads, number = torch.empty(best.shape, dtype=torch.bool), torch.empty_like(winner)
    for value, scores in enumerate(plane[1:], start=1):
        torch.gt(scores, best, out=leads)
        torch.maximum(winner, number.copy_(leads).mul_(value), out=winner)
        torch.maximum(best, scores, out=best)
    return winner


def _label_type(highest: int) -> torch.dtype:
    return torch.uint8 if highest <= 255 else torch.int16
