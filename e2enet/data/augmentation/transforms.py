"""Transforms of TorchIO and MONAI as steps of a recipe.

Such a step draws only a seed. The transform runs with this seed on a copy of the patch in host memory, wherever the
patch lies. So a worker and the training device give the same patches, and the process's generators keep their states.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torchio as tio
from torch import Tensor

from e2enet.common.errors import InputError
from e2enet.data.augmentation.step import AugmentationStep, Patch

SEEDS = 2**32  # NumPy's generators accept no larger seed
Run = Callable[[Any, Patch, int], tuple[Any, Any]]


class TransformStep(AugmentationStep):
    """A transform, with its own random numbers, as a step.

    Args:
        transform: A transform of TorchIO or MONAI.
        run: Applies the transform to a patch with a seed; returns image and label.
    """

    def __init__(self, transform: Any, run: Run) -> None:
        self.transform = transform
        self.run = run

    def draw(self, channels: int) -> int:
        """Draw a seed, always: the transform applies its own probability."""
        return int(torch.randint(SEEDS, (1,)))

    def apply(self, patch: Patch, drawn: int) -> Patch:
        """Apply the transform and keep the types; InputError if the shape changes or new labels appear."""
        own = patch._replace(image=patch.image.cpu(), label=patch.label.cpu().clone())
        with seeded(drawn):
            image, label = (_plain(part) for part in self.run(self.transform, own, drawn))
        for part, had, what in ((image, patch.image, "image"), (label, patch.label, "label")):
            if part.shape != had.shape:
                raise InputError(
                    f"{type(self.transform).__name__} changes the {what} from {tuple(had.shape)} to "
                    f"{tuple(part.shape)}; a transform that keeps the shape expected"
                )
        _require_labels(own.label, label, type(self.transform).__name__)
        device, kind = patch.image.device, patch.label.dtype
        return patch._replace(image=image.float().contiguous().to(device), label=label.to(kind).contiguous().to(device))


def as_step(transform: Any, target: str) -> TransformStep:
    """Return a transform as a step; InputError if `target` built something else."""
    if isinstance(transform, tio.Transform):
        return TransformStep(transform, run_torchio)
    if not _is_of_monai(transform, "Transform"):
        kinds = "an AugmentationStep, or a transform of TorchIO or MONAI"
        raise InputError(f"{target} is a {type(transform).__name__}; {kinds} expected")
    return TransformStep(transform, run_monai_dictionary if _takes_dictionary(transform) else run_monai)


def run_torchio(transform: tio.Transform, patch: Patch, seed: int) -> tuple[Tensor, Tensor]:
    """Run it on a subject of "image", "label" and, if there is a nonzero mask, "inside"."""
    images: dict[str, tio.Image] = {"image": tio.ScalarImage(tensor=patch.image, affine=patch.affine)}
    for name, part in zip(("label", "inside"), patch.label, strict=False):
        images[name] = tio.LabelMap(tensor=part[None], affine=patch.affine)
    subject = transform(tio.Subject(**images))
    labels = [subject.get_image(name).data for name in images if name != "image"]
    if len({part.shape for part in labels}) > 1:
        raise InputError(f"{type(transform).__name__} changes label and nonzero mask to shapes that differ")
    return subject.get_image("image").data, torch.cat(labels)


def run_monai(transform: Any, patch: Patch, seed: int) -> tuple[Any, Tensor]:
    """Run it on the image alone, channels first."""
    _seed_monai(transform, seed)
    return transform(_with_affine(patch.image, patch.affine)), patch.label


def run_monai_dictionary(transform: Any, patch: Patch, seed: int) -> tuple[Any, Any]:
    """Run it on a dictionary of "image" and "label", channels first; a nonzero mask is the label's second channel."""
    _seed_monai(transform, seed)
    parts = {"image": patch.image, "label": patch.label}
    given = transform({name: _with_affine(part, patch.affine) for name, part in parts.items()})
    if not isinstance(given, dict):
        raise InputError(f"{type(transform).__name__} gives a {type(given).__name__}; one patch of each expected")
    return given["image"], given["label"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the host's generators of torch, NumPy and Python within the block; restore their states after it."""
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU's generators too
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


def _seed_monai(transform: Any, seed: int) -> None:
    if _is_of_monai(transform, "Randomizable"):
        transform.set_random_state(seed=seed)  # a Compose passes the seed on to its transforms


def _with_affine(part: Tensor, affine: np.ndarray) -> Tensor:
    from monai.data import MetaTensor  # takes seconds; already imported if a transform is MONAI's

    return MetaTensor(part, affine=torch.from_numpy(affine.copy()))


def _is_of_monai(transform: Any, name: str) -> bool:
    """Whether it is an instance of the class `name` of monai.transforms, without importing MONAI for others."""
    return any(
        kind.__name__ == name and kind.__module__.startswith("monai.transforms") for kind in type(transform).__mro__
    )


def _takes_dictionary(transform: Any) -> bool:
    nested = getattr(transform, "transforms", ())
    return _is_of_monai(transform, "MapTransform") or any(_takes_dictionary(part) for part in nested)


def _plain(part: Any) -> Tensor:
    if not isinstance(part, Tensor | np.ndarray):
        raise InputError(f"it gives a {type(part).__name__}; one tensor for each patch expected")
    if isinstance(part, np.ndarray):
        return torch.from_numpy(part)
    return part.as_subclass(Tensor)


def _require_labels(had: Tensor, given: Tensor, name: str) -> None:
    """Raise InputError if a label map holds new values other than background, which may be filled in."""
    if torch.equal(had, given):
        return
    for before, after in zip(had, given, strict=True):
        whole = after.long()
        fractions = after[whole != after].tolist()[:3] if after.is_floating_point() else []
        if not fractions and int(whole.min()) >= 0:
            counts = torch.bincount(whole.flatten())
            known = torch.bincount(before.flatten().long(), minlength=len(counts))[: len(counts)]
            fractions = [value for value in (counts.bool() & ~known.bool()).nonzero().flatten().tolist() if value]
        if fractions or int(whole.min()) < 0:
            values = fractions or [int(whole.min())]
            raise InputError(
                f"{name} makes labels {values} that the patch did not hold; labels of nearest voxels expected (mode: "
                "[bilinear, nearest] of MONAI's)"
            )
