"""TorchIO transforms beside the recipe, from the config key `data.transforms`.

They see each patch as it was read, before the recipe, in the worker: with `data.augment_on=device` the recipe comes
later, on another device, and both settings must give the same patches. The patch is a TorchIO subject of "image" and
"label", and of "inside" (the nonzero mask, 1 or 0) where normalisation went by one. Its affine lets transforms that ask
for spacing or anatomical directions get right answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchio as tio
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from e2enet.common.errors import InputError


def transform_problem(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with a config's list of `{_target_: .., parameter: ..}`, all of it, or None."""
    problems = []
    for number, entry in enumerate(entries):
        name = f"data.transforms[{number}]"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("_target_"), str):
            problems.append(f"{name}={entry}: expected an entry like {{_target_: torchio.RandomBiasField}}")
            continue
        try:
            built = instantiate(dict(entry), _convert_="all")
        except InstantiationException as error:
            cause = " ".join(str(error.__cause__ or error).split())  # what Hydra wraps: the transform's own complaint
            problems.append(f"{name}: {entry['_target_']} cannot be built: {cause}")
            continue
        if not isinstance(built, tio.Transform):
            problems.append(f"{name}: {entry['_target_']} is a {type(built).__name__}, a TorchIO transform expected")
    return "; ".join(problems) or None


def apply_transforms(subject: tio.Subject, transforms: Sequence[tio.Transform]) -> tio.Subject:
    """Apply the transforms one after the other, from torch's global generator.

    Images come back as float32, labels in the type they had. InputError where a transform changes the patch's
    shape: the recipe and the network count on it.
    """
    images = subject.get_images_dict(intensity_only=False)
    dtypes = {name: torch.float32 if name == "image" else image.data.dtype for name, image in images.items()}
    for transform in transforms:
        before = subject.spatial_shape
        subject = transform(subject)
        shapes = {image.spatial_shape for image in subject.get_images(intensity_only=False)}
        if shapes != {before}:
            raise InputError(
                f"data.transforms: {type(transform).__name__} changes patches from {before} voxels to "
                f"{sorted(shapes)}; transforms that keep the shape expected"
            )
    for name, dtype in dtypes.items():
        image = subject.get_image(name)
        image.set_data(image.data.to(dtype).contiguous())
    return subject
