"""The augmentation recipe: nnU-Net's, mirroring alone, or nothing.

What happens to a patch is drawn where the patch is read, in a worker: a `Draw` of plain numbers, from which follows how
large a box to read. It is carried out by `Augmentation.apply`, in the worker or, for a whole batch, on the training
device: the same function, so that both give the same patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from e2enet.common.errors import InputError
from e2enet.data.augmentation.intensity import (
    Change,
    blur,
    change_gamma,
    change_gamma_inverted,
    lower_resolution,
    lower_resolution_in_plane,
    multiply,
    scale_contrast,
)
from e2enet.data.augmentation.spatial import Matrix, RandomRotateScale, Triple, box_size, rotate_scale

AUGMENTATIONS = ("nnunet", "mirror", "none")

# Beyond this ratio of in-plane to depth size, patches are augmented slice by slice (nnU-Net's "dummy 2D").
ANISOTROPIC_PATCH = 3

# Largest rotation to either side: of patches about each axis, of slices about the depth axis alone.
DEGREES = 30.0
DEGREES_IN_PLANE = 180.0

NOISE_P = 0.1
# nnU-Net calls this a range of variances but draws the noise with it as standard deviation: so do we.
NOISE_DEVIATIONS = (0.0, 0.1)
MIRROR_P = 0.5


class Draw(NamedTuple):
    """What happens to one patch. Plain numbers: they stay with the host wherever the voxels go.

    Attributes:
        matrix: Of rotation and scaling, or None.
        noise: Standard deviation of the noise in every channel; 0 for none.
        noise_seed: What the noise follows from.
        strengths: Name of each intensity step that is drawn -> each channel's strength, None where it is left alone.
        mirrored: Axes along which the patch is mirrored.
    """

    matrix: Matrix | None
    noise: float
    noise_seed: int
    strengths: dict[str, list[float | None]]
    mirrored: tuple[int, ...]


@dataclass(frozen=True)
class IntensityStep:
    """A change of intensity and how it is drawn.

    Attributes:
        change: The function, see `intensity`.
        strength: Range that each channel's strength is drawn from.
        p: Probability that the step is drawn for a patch.
        channel_p: Probability for each channel then.
        halves: Draw below and above 1 equally often, as nnU-Net does for factors whose range is not
            symmetric around 1.
    """

    change: Change
    strength: tuple[float, float]
    p: float
    channel_p: float = 1.0
    halves: bool = False

    def draw(self, channels: int) -> list[float | None] | None:
        """Each channel's strength, None for one that is left alone; None where the step is not drawn."""
        if _uniform() >= self.p:
            return None
        return [self._draw_strength() if _uniform() < self.channel_p else None for _ in range(channels)]

    def _draw_strength(self) -> float:
        low, high = self.strength
        if self.halves:
            low, high = (low, 1.0) if _uniform() < 0.5 else (1.0, high)
        return _uniform(low, high)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training patch of `patch_size` voxels (D, H, W), in this order.

    Attributes:
        patch_size: Voxels (D, H, W).
        spatial: Rotation and scaling, or None.
        noise_p: Probability of noise.
        steps: Name -> change of intensity.
        mirror_axes: Axes of which each is mirrored in every second patch.
        masked_channels: Channels that are 0 outside of a patch's nonzero mask, afterwards again.
    """

    patch_size: Triple
    spatial: RandomRotateScale | None
    noise_p: float
    steps: dict[str, IntensityStep]
    mirror_axes: tuple[int, ...]
    masked_channels: tuple[int, ...] = ()

    def draw(self, channels: int) -> Draw:
        """What happens to one patch, from torch's global generator."""
        matrix = self.spatial.draw() if self.spatial else None
        noise = _uniform(*NOISE_DEVIATIONS) if _uniform() < self.noise_p else 0.0
        noise_seed = int(torch.randint(2**62, (1,)))
        drawn = {name: step.draw(channels) for name, step in self.steps.items()}
        strengths = {name: values for name, values in drawn.items() if values is not None}
        mirrored = tuple(axis for axis in self.mirror_axes if _uniform() < MIRROR_P)
        return Draw(matrix, noise, noise_seed, strengths, mirrored)

    def box_size(self, draw: Draw) -> Triple:
        """Voxels (D, H, W) to read around the patch's centre."""
        return box_size(draw.matrix, self.patch_size)

    @torch.no_grad()
    def apply(
        self,
        images: Sequence[Tensor],
        labels: Sequence[Tensor],
        draws: Sequence[Draw],
        insides: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """Carry out the draws of a batch, on the device that it lies on, without waiting for the device.

        Args:
            images: float32 (C, d, h, w) each, of the size that its draw asks for; may be changed.
            labels: any integers (d, h, w) each.
            draws: One for each.
            insides: Nonzero masks uint8 (d, h, w), 1 inside, one for each or none at all: outside, where noise, blur
                or a change of contrast or gamma leaves something, the masked channels are set to 0 (nnU-Net's
                MaskImageTransform). A mask is turned and mirrored as a label is.

        Returns:
            Images (B, C, D, H, W) and labels (B, D, H, W), in the types they had.
        """
        with torch.autocast(images[0].device.type, enabled=False):  # half precision would round places and intensities
            image, label = self._turn(images, _with_masks(labels, insides) if insides else labels, draws)
            self._change_intensity(image, draws)
            for patch_image, patch_label, draw in zip(image, label, draws, strict=True):
                if draw.mirrored:
                    patch_image.copy_(patch_image.flip([axis + 1 for axis in draw.mirrored]))
                    patch_label.copy_(patch_label.flip([axis - 3 for axis in draw.mirrored]))
            if insides:
                label, inside = label.unbind(1)
                for channel in self.masked_channels:
                    image[:, channel].mul_(inside)  # a fifth of masked_fill_'s time
        return image, label

    def _turn(self, images: Sequence[Tensor], labels: Sequence[Tensor], draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        patches = [
            (image, label) if draw.matrix is None else rotate_scale(image, label, draw.matrix, self.patch_size)
            for image, label, draw in zip(images, labels, draws, strict=True)
        ]
        image, label = (_stack(part) for part in zip(*patches, strict=True))
        return image, label

    def _change_intensity(self, image: Tensor, draws: Sequence[Draw]) -> None:
        for patch, draw in zip(image, draws, strict=True):
            if draw.noise:
                generator = torch.Generator(patch.device).manual_seed(draw.noise_seed)
                patch.add_(torch.empty_like(patch).normal_(0, draw.noise, generator=generator))
        rows, untouched = image.flatten(0, 1), [None] * image.shape[1]
        for name, step in self.steps.items():
            strengths = [value for draw in draws for value in draw.strengths.get(name, untouched)]
            _change_rows(rows, strengths, step.change)


def build_augmentation(
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    recipe: str = "nnunet",
    *,
    masked_channels: Sequence[int] = (),
) -> Augmentation:
    """Build the augmentation of patches of `patch_size` voxels (D, H, W).

    Args:
        patch_size: Voxels (D, H, W).
        mirror_axes: Axes that may be mirrored: 0 = D, 1 = H, 2 = W.
        recipe: "nnunet" (rotation, scaling, noise, blur, brightness, contrast, low resolution, gamma and
            mirroring, with the probabilities of nnU-Net v1, as in the paper), "mirror" or "none".
        masked_channels: See `Augmentation`.

    Raises:
        InputError: an unknown recipe or axis.
    """
    if recipe not in AUGMENTATIONS:
        raise InputError(f"augmentation={recipe!r} is unknown; choose one of {', '.join(AUGMENTATIONS)}")
    if not set(mirror_axes) <= {0, 1, 2}:
        raise InputError(f"mirror_axes={list(mirror_axes)} must be some of 0 (depth), 1 (height) and 2 (width)")
    d, h, w = (int(size) for size in patch_size)
    build = partial(Augmentation, patch_size=(d, h, w), masked_channels=tuple(masked_channels))
    if recipe == "none":
        return build(spatial=None, noise_p=0.0, steps={}, mirror_axes=())
    if recipe == "mirror":
        return build(spatial=None, noise_p=0.0, steps={}, mirror_axes=tuple(mirror_axes))
    in_plane = max(d, h, w) / d > ANISOTROPIC_PATCH
    spatial = RandomRotateScale(degrees=DEGREES_IN_PLANE if in_plane else DEGREES, in_plane=in_plane)
    return build(spatial=spatial, noise_p=NOISE_P, steps=_intensity_steps(in_plane), mirror_axes=tuple(mirror_axes))


def _intensity_steps(in_plane: bool) -> dict[str, IntensityStep]:
    coarsen = lower_resolution_in_plane if in_plane else lower_resolution
    return {
        "blur": IntensityStep(blur, (0.5, 1.0), p=0.2, channel_p=0.5),
        "brightness": IntensityStep(multiply, (0.75, 1.25), p=0.15),
        "contrast": IntensityStep(scale_contrast, (0.75, 1.25), p=0.15, halves=True),
        "low_resolution": IntensityStep(coarsen, (0.5, 1.0), p=0.25, channel_p=0.5),
        "gamma_inverted": IntensityStep(change_gamma_inverted, (0.7, 1.5), p=0.1, halves=True),
        "gamma": IntensityStep(change_gamma, (0.7, 1.5), p=0.3, halves=True),
    }


def _uniform(low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand(1))


def _with_masks(labels: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Each label (d, h, w) and its mask as one tensor (2, d, h, w)."""
    return [torch.stack([label, mask.to(label.dtype)]) for label, mask in zip(labels, masks, strict=True)]


def _stack(parts: Sequence[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(list(parts))


def _change_rows(rows: Tensor, strengths: Sequence[float | None], change: Change) -> None:
    """Change those rows (N, D, H, W) that have a strength."""
    chosen = [(number, value) for number, value in enumerate(strengths) if value is not None]
    if not chosen:
        return
    numbers, values = zip(*chosen, strict=True)
    if numbers[-1] - numbers[0] + 1 == len(numbers):  # neighbours are changed where they lie
        change(rows[numbers[0] : numbers[-1] + 1], values)
        return
    index = torch.tensor(numbers).to(rows.device, non_blocking=True)
    selected = rows.index_select(0, index)
    change(selected, values)
    rows.index_copy_(0, index, selected)
