"""What a recipe of augmentation is made of: steps that are drawn where a patch is read and carried out where it lies.

A class of one's own is a part of `conf/augmentation/NAME.yaml` as the project's are (docs/extending.md).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from e2enet.common.errors import InputError

Triple = tuple[int, int, int]


class Patch(NamedTuple):
    """What a step gets and gives: `patch._replace(image=..)`, or the same with voxels changed in place.

    Attributes:
        image: float32 (C, d, h, w), on whatever device.
        label: integers (M, d, h, w): the label map and, where channels are normalised by it, the nonzero mask (1
            inside). What moves voxels moves both, by their nearest voxels.
        size: Voxels (D, H, W) that the step gives around the same centre: those of the image, unless its `box_size`
            asked for more.
        affine: Voxels (d, h, w) of the image -> mm to the right, to the front and upward, (4, 4), of the patch as it
            was read.
    """

    image: Tensor
    label: Tensor
    size: Triple
    affine: np.ndarray


class AugmentationStep:
    """One step of a recipe. A class of one's own overrides `draw` and `apply`.

    Its constructor takes plain values, which the config gives, and any of `patch_size` (D, H, W in voxels) and
    `mirror_axes` (along which a mirrored case is one of the dataset still: 0, 1, 2), which the data give.
    """

    def draw(self, channels: int) -> Any:
        """What happens to one patch of so many channels, in plain numbers and containers; None for nothing.

        In the worker that reads the patch. Everything random is drawn here, from torch's global generator (`uniform`),
        which is seeded for the patch: the device that carries the draw out may have other random numbers.
        """
        raise NotImplementedError

    def apply(self, patch: Patch, drawn: Any) -> Patch:
        """Carry out a draw that is not None, the same in a worker and on the training device."""
        raise NotImplementedError

    def box_size(self, drawn: Any, size: Triple) -> Triple:
        """Voxels (D, H, W) that `apply` needs for a patch of `size` around the same centre: `size` plus even numbers.

        Of steps that take voxels from elsewhere, such as a rotation. Steps before it get as many.
        """
        return size


def uniform(low: float = 0.0, high: float = 1.0) -> float:
    """A number between the two, from torch's global generator."""
    return low + (high - low) * float(torch.rand(1))


def is_anisotropic(patch_size: Triple, ratio: float) -> bool:
    """Whether a patch (D, H, W) is more than `ratio` times as wide as it is deep."""
    return max(patch_size) / patch_size[0] > ratio


def require_range(name: str, given: Any, *, around: float | None = None) -> tuple[float, float]:
    """A list of two numbers as a range; InputError where it is none, or `around` lies outside of it."""
    low, high = given if len(given) == 2 else (0.0, -1.0)
    if not low <= high or (around is not None and not low <= around <= high):
        more = "" if around is None else f", {around:g} between them"
        raise InputError(f"{name}={list(given)}: [low, high] expected{more}")
    return float(low), float(high)
