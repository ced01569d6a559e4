"""The interface of augmentation steps, which are drawn where a patch is read and applied on the patch's device.

A user's own class is used in `conf/augmentation/NAME.yaml` like the project's (docs/extending.md).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from e2enet.common.errors import InputError

Triple = tuple[int, int, int]


class Patch(NamedTuple):
    """Input and output of a step. A step returns `patch._replace(image=..)`, or the patch changed in place.

    Attributes:
        image: float32 (C, d, h, w), on any device.
        label: integers (M, d, h, w): the label map and, if channels are normalised by it, the nonzero mask (1 inside).
            A step that moves voxels moves both, by nearest neighbour.
        size: Voxels (D, H, W) of the step's output around the same centre. They are those of the image, unless its
            `box_size` asked for more.
        affine: Voxels (d, h, w) of the image -> mm to the right, to the front and upward, (4, 4), for the patch as it
            was read.
    """

    image: Tensor
    label: Tensor
    size: Triple
    affine: np.ndarray


class AugmentationStep:
    """One step of a recipe. A user's own class overrides `draw` and `apply`.

    Its constructor takes plain values from the config. It may also take `patch_size` (D, H, W in voxels) and
    `mirror_axes` (those of 0, 1, 2 along which a mirrored case is still plausible), which come from the data.
    """

    def draw(self, channels: int) -> Any:
        """Draw the change of one patch of `channels` channels, in plain numbers and containers; None for no change.

        Runs in the worker that reads the patch. Everything random is drawn here, from torch's global generator
        (`uniform`), which is seeded for the patch. The device that applies the draw may have other random numbers.
        """
        raise NotImplementedError

    def apply(self, patch: Patch, drawn: Any) -> Patch:
        """Apply a draw that is not None, in the same way in a worker and on the training device."""
        raise NotImplementedError

    def box_size(self, drawn: Any, size: Triple) -> Triple:
        """Voxels (D, H, W) that `apply` needs for a patch of `size` around the same centre: `size` plus even numbers.

        Override it in steps that move voxels, such as a rotation. The steps before it get the larger patch.
        """
        return size


def uniform(low: float = 0.0, high: float = 1.0) -> float:
    """Return a uniform random number from `low` to `high`, from torch's global generator."""
    return low + (high - low) * float(torch.rand(1))


def is_anisotropic(patch_size: Triple, ratio: float) -> bool:
    """Whether a patch (D, H, W) is more than `ratio` times as wide as it is deep."""
    return max(patch_size) / patch_size[0] > ratio


def require_range(name: str, given: Any, *, around: float | None = None) -> tuple[float, float]:
    """Return a list of two numbers as a range; InputError if it is no range, or `around` lies outside."""
    low, high = given if len(given) == 2 else (0.0, -1.0)
    if not low <= high or (around is not None and not low <= around <= high):
        more = "" if around is None else f", {around:g} between them"
        raise InputError(f"{name}={list(given)}: [low, high] expected{more}")
    return float(low), float(high)
