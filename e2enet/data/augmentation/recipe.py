"""An augmentation recipe: its steps in order, their draws for a patch, and their application to a batch.

The worker that reads a patch draws its augmentation first: a `Draw` of plain numbers. It determines how large a box is
read. `Augmentation.apply` then applies the draw, in the worker or, for a whole batch, on the training device. Both use
the same function and give the same patches, except for the values of noise on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from e2enet.common.configs import as_plain, compose_config, group_options
from e2enet.common.errors import InputError, first_line, raise_problems
from e2enet.common.signatures import build_part, resolve_target
from e2enet.common.steps import names_in_order, order_problem
from e2enet.data.augmentation.intensity_steps import IntensityStep, change_rows
from e2enet.data.augmentation.step import AugmentationStep, Patch, Triple
from e2enet.data.augmentation.transforms import as_step

GROUP = "augmentation"


class Draw(NamedTuple):
    """The augmentation drawn for one patch, in plain numbers that stay on the host.

    Attributes:
        drawn: Name of each step that is drawn -> its draw.
        affine: Voxels -> mm (4, 4) of the patch before any step, see `step.Patch`.
    """

    drawn: dict[str, Any]
    affine: Sequence[Sequence[float]] = np.eye(4).tolist()


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training patches.

    Attributes:
        patch_size: Voxels (D, H, W).
        steps: Name -> step, in the order in which they run.
        masked_channels: Channels that are 0 outside a patch's nonzero mask. They are set to 0 there again at the end.
    """

    patch_size: Triple
    steps: dict[str, AugmentationStep]
    masked_channels: tuple[int, ...] = ()

    def draw(self, channels: int) -> Draw:
        """Draw the augmentation of one patch of `channels` channels, from torch's global generator."""
        drawn = {name: step.draw(channels) for name, step in self.steps.items()}
        return Draw({name: found for name, found in drawn.items() if found is not None})

    def box_size(self, draw: Draw) -> Triple:
        """Return the voxels (D, H, W) of the box to read around the patch's centre."""
        return self._sizes(draw)[0]

    @torch.no_grad()
    def apply(
        self,
        images: Sequence[Tensor],
        labels: Sequence[Tensor],
        draws: Sequence[Draw],
        insides: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """Apply the draws of a batch, on the batch's device, without waiting for the device.

        Args:
            images: float32 (C, d, h, w) each, of the `box_size` of its draw; may be changed.
            labels: Label maps (d, h, w) of any integer type, one per image.
            draws: One per image.
            insides: Nonzero masks uint8 (d, h, w), 1 inside, one per image, or no masks at all. A mask is rotated and
                mirrored like a label. At the end the masked channels are set to 0 outside (nnU-Net's
                MaskImageTransform), since noise, blur, contrast and gamma change the zeros there.

        Returns:
            Images (B, C, D, H, W) and labels (B, D, H, W), in their original types.

        Raises:
            InputError: a step returns a wrong shape or type.
        """
        names, moving = list(self.steps), self._last_moving()
        with torch.autocast(images[0].device.type, enabled=False):  # half precision would round places and intensities
            boxes = list(zip(images, _with_masks(labels, insides), strict=True))
            for position, name in enumerate(names[:moving]):
                boxes = [
                    self._applied(position, name, draw, *box) if name in draw.drawn else box
                    for box, draw in zip(boxes, draws, strict=True)
                ]
            image, label = (_stack(part) for part in zip(*boxes, strict=True))
            for position, name in enumerate(names[moving:], moving):
                self._apply_to_batch(position, name, image, label, draws)
            if insides:
                for channel in self.masked_channels:
                    image[:, channel].mul_(label[:, 1])  # a fifth of masked_fill_'s time
        return image, label[:, 0]

    def _apply_to_batch(self, position: int, name: str, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> None:
        """Apply one step to patches (B, C, D, H, W) and labels (B, M, D, H, W), in place."""
        step = self.steps[name]
        if isinstance(step, IntensityStep):
            untouched = [None] * image.shape[1]
            strengths = [value for draw in draws for value in draw.drawn.get(name, untouched)]
            change_rows(image.flatten(0, 1), strengths, step)
            return
        for draw, *parts in zip(draws, image, label, strict=True):
            if name in draw.drawn:
                for part, given in zip(parts, self._applied(position, name, draw, *parts), strict=True):
                    if given is not part:
                        part.copy_(given)

    def _applied(self, position: int, name: str, draw: Draw, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (C, d, h, w) and label (M, d, h, w) of one patch after a step."""
        size, affine = self._sizes(draw)[position + 1], np.array(draw.affine)
        # The sizes differ by an even number: a box of 10 voxels around a patch of 6 starts 2 voxels before the patch.
        affine[:3, 3] -= affine[:3, :3] @ ((np.array(image.shape[1:]) - self.patch_size) // 2)
        try:
            given = self.steps[name].apply(Patch(image, label, size, affine), draw.drawn[name])
        except InputError as error:
            raise InputError(f"{GROUP}.{name}: {error}") from error
        except Exception as error:  # a user's own step may raise anything; the user knows it by this name
            raise RuntimeError(f"{GROUP}.{name}: {type(error).__name__}: {first_line(error)}") from error
        for part, had, what in ((given.image, image, "image"), (given.label, label, "label")):
            expected = (had.shape[0], *size)
            if tuple(part.shape) != expected or part.dtype != had.dtype:
                found = f"{GROUP}.{name}: its {what} is {part.dtype} of {tuple(part.shape)}"
                raise InputError(f"{found}; {had.dtype} of {expected} expected")
        return given.image, given.label

    def _sizes(self, draw: Draw) -> list[Triple]:
        """Return the voxels (D, H, W) before each step and, at the end, the patch size."""
        sizes = [self.patch_size]
        for name, step in reversed(self.steps.items()):
            sizes.append(step.box_size(draw.drawn[name], sizes[-1]) if name in draw.drawn else sizes[-1])
        return sizes[::-1]

    def _last_moving(self) -> int:
        """Return how many steps run until every patch has the patch size."""
        moves = [type(step).box_size is not AugmentationStep.box_size for step in self.steps.values()]
        return len(moves) - moves[::-1].index(True) if True in moves else 0


def build_augmentation(
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    recipe: str | Mapping[str, Any] = "nnunet",
    *,
    masked_channels: Sequence[int] = (),
) -> Augmentation:
    """Build the augmentation of patches of `patch_size` voxels (D, H, W).

    Args:
        patch_size: Voxels (D, H, W).
        mirror_axes: Axes that may be mirrored: 0 = D, 1 = H, 2 = W.
        recipe: The section `augmentation` of a config in plain containers, or the name of a file of that group:
            "nnunet" (the recipe of nnU-Net v1, as in the paper), "mirror", "none" or a user's own.
        masked_channels: See `Augmentation`.

    Raises:
        InputError: an unknown recipe or axis, or steps that cannot be built, all at once.
    """
    section = read_recipe(recipe) if isinstance(recipe, str) else recipe
    if not set(mirror_axes) <= {0, 1, 2}:
        raise InputError(f"mirror_axes={list(mirror_axes)} must be some of 0 (depth), 1 (height) and 2 (width)")
    d, h, w = (int(size) for size in patch_size)
    wrong_order = order_problem(GROUP, section)
    problems, steps = [wrong_order] if wrong_order else [], {}
    for name in names_in_order(section):
        try:
            steps[name] = build_step(section[name], (d, h, w), mirror_axes)
        except InputError as error:
            problems.append(f"{GROUP}.{name}: {error}")
    raise_problems(problems, "The augmentation cannot be used:")
    return Augmentation((d, h, w), steps, tuple(masked_channels))


def build_step(section: Mapping[str, Any], patch_size: Triple, mirror_axes: Sequence[int]) -> AugmentationStep:
    """Build the step that a section names; a transform of TorchIO or MONAI is wrapped as a step.

    Raises InputError if it is neither or cannot be built.
    """
    target = str(section["_target_"])
    try:
        is_step = issubclass(resolve_target(target), AugmentationStep)  # type: ignore[arg-type]
    except TypeError:  # a function
        is_step = True
    known = {"patch_size": patch_size, "mirror_axes": tuple(mirror_axes)} if is_step else {}
    try:
        built = build_part(section, **known)
    except Exception as error:  # a constructor may raise anything, and the user should see it
        cause = error.__cause__ or error  # Hydra wraps it
        raise InputError(f"{target} cannot be built: {' '.join(str(cause).split())}") from error
    return built if isinstance(built, AugmentationStep) else as_step(built, target)


@cache
def read_recipe(name: str) -> Mapping[str, Any]:
    """Return the section `augmentation` from a file of this group; InputError if there is no such file."""
    if name not in group_options(GROUP):
        raise InputError(f"augmentation={name!r} is unknown; choose one of {', '.join(group_options(GROUP))}")
    return as_plain(compose_config([f"{GROUP}={name}"])[GROUP])


def _with_masks(labels: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Each label (d, h, w) as (1, d, h, w), or with its mask as (2, d, h, w)."""
    if not masks:
        return [label[None] for label in labels]
    return [torch.stack([label, mask.to(label.dtype)]) for label, mask in zip(labels, masks, strict=True)]


def _stack(parts: Sequence[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(list(parts))
