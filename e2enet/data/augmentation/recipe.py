"""The augmentation recipe: nnU-Net's, mirroring alone, or nothing.

A spatial transform is drawn first, since it decides how large a patch to read; the rest works on the patch
as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torchio as tio

from e2enet.common.errors import InputError
from e2enet.data.augmentation.intensity import (
    RandomPerChannel,
    blur,
    change_gamma,
    change_gamma_inverted,
    lower_resolution,
    lower_resolution_in_plane,
    multiply,
    scale_contrast,
)
from e2enet.data.augmentation.spatial import RandomRotateScale

AUGMENTATIONS = ("nnunet", "mirror", "none")

# Beyond this ratio of in-plane to depth size, patches are augmented slice by slice (nnU-Net's "dummy 2D").
ANISOTROPIC_PATCH = 3


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training patch.

    `spatial` (or None) is drawn before reading, see `augment_spatial`; `patch` is a TorchIO transform of
    the patch.
    """

    spatial: RandomRotateScale | None
    patch: tio.Transform


def build_augmentation(patch_size: Sequence[int], mirror_axes: Sequence[int], recipe: str = "nnunet") -> Augmentation:
    """Build the augmentation of patches of `patch_size` voxels (D, H, W).

    Args:
        patch_size: Voxels (D, H, W).
        mirror_axes: Axes that may be mirrored: 0 = D, 1 = H, 2 = W.
        recipe: "nnunet" (rotation, scaling, noise, blur, brightness, contrast, low resolution, gamma and
            mirroring, with the probabilities of nnU-Net v1, as in the paper), "mirror" or "none".

    Raises:
        InputError: an unknown recipe or axis.
    """
    if recipe not in AUGMENTATIONS:
        raise InputError(f"augmentation={recipe!r} is unknown; choose one of {', '.join(AUGMENTATIONS)}")
    if not set(mirror_axes) <= {0, 1, 2}:
        raise InputError(f"mirror_axes={list(mirror_axes)} must be some of 0 (depth), 1 (height) and 2 (width)")
    mirror = _mirror(mirror_axes)
    if recipe == "none":
        return Augmentation(None, tio.Compose([], copy=False))
    if recipe == "mirror":
        return Augmentation(None, tio.Compose(mirror, copy=False))
    in_plane = max(patch_size) / patch_size[0] > ANISOTROPIC_PATCH
    spatial = RandomRotateScale(patch_size, in_plane=in_plane)
    return Augmentation(spatial, tio.Compose([*_intensity(in_plane), *mirror], copy=False))


def _intensity(in_plane: bool) -> list[tio.Transform]:
    coarsen = lower_resolution_in_plane if in_plane else lower_resolution
    return [
        # nnU-Net calls the range 0..0.1 a variance but draws the noise with it as standard deviation: so do
        # we.
        tio.RandomNoise(mean=0, std=(0, 0.1), p=0.1, copy=False),
        RandomPerChannel(blur, (0.5, 1.0), channel_p=0.5, p=0.2, copy=False),
        RandomPerChannel(multiply, (0.75, 1.25), p=0.15, copy=False),
        RandomPerChannel(scale_contrast, (0.75, 1.25), halves=True, p=0.15, copy=False),
        RandomPerChannel(coarsen, (0.5, 1.0), channel_p=0.5, p=0.25, copy=False),
        RandomPerChannel(change_gamma_inverted, (0.7, 1.5), halves=True, p=0.1, copy=False),
        RandomPerChannel(change_gamma, (0.7, 1.5), halves=True, p=0.3, copy=False),
    ]


def _mirror(axes: Sequence[int]) -> list[tio.Transform]:
    return [tio.RandomFlip(axes=tuple(axes), flip_probability=0.5, copy=False)] if axes else []
