"""The steps of a recipe built before any data are prepared, and those that are not the project's tried on a patch: what
they refuse is told at once."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import torch

from e2enet.common.errors import InputError
from e2enet.common.steps import names_in_order
from e2enet.data.augmentation.recipe import GROUP, Augmentation, build_step
from e2enet.data.augmentation.step import AugmentationStep, Triple
from e2enet.data.augmentation.transforms import TransformStep, seeded

# Of data that are not known yet: a step passes that can be used with one of these.
CHANNELS = (1, 2, 4)
PATCHES: tuple[Triple, ...] = ((32, 64, 64), (96, 96, 96))
TRIES = 3  # a step with a probability of its own may do nothing at first


def recipe_problem(
    section: Mapping[str, Any], patch_size: Sequence[int] | None, mirror_axes: Sequence[int] | None
) -> str | None:
    """What is wrong with the steps of the section `augmentation`, all of it, or None; its keys are checked."""
    return _recipe_problem(json.dumps(section), tuple(patch_size or ()), tuple(mirror_axes or ()))


@cache  # asked for every job of a sweep
def _recipe_problem(section: str, patch_size: tuple[int, ...], mirror_axes: tuple[int, ...]) -> str | None:
    content = json.loads(section)
    d, h, w = patch_size or PATCHES[0]
    problems = []
    for name in names_in_order(content):
        try:
            step = build_step(content[name], (d, h, w), mirror_axes)
        except InputError as error:
            problems.append(f"{GROUP}.{name}: {error}")
            continue
        if isinstance(step, TransformStep) or not type(step).__module__.startswith("e2enet."):
            problem = _step_problem(name, step, ((d, h, w),) if patch_size else PATCHES)
            problems += [problem] if problem else []
    return "\n  - ".join(problems) or None


def _step_problem(name: str, step: AugmentationStep, patches: Sequence[Triple]) -> str | None:
    """Why a step can change no patch; None where it can."""
    problem = None
    for size, channels in product(patches, CHANNELS):
        try:
            with warnings.catch_warnings(), seeded(0):
                warnings.simplefilter("ignore")
                for _ in range(TRIES):
                    _try_step(Augmentation(size, {name: step}), channels)
        except Exception as error:  # whatever a step raises is the user's to see
            told = (
                str(error) if str(error).startswith(f"{GROUP}.") else f"{GROUP}.{name}: {type(error).__name__}: {error}"
            )
            problem = problem or f"{told} (on a patch of {list(size)} voxels)"
        else:
            return None
    return problem


def _try_step(augmentation: Augmentation, channels: int) -> None:
    draw = pickle.loads(pickle.dumps(augmentation.draw(channels)))  # as it comes out of a worker
    size = augmentation.box_size(draw)
    label = torch.zeros(size, dtype=torch.uint8)
    label[size[0] // 4 :, size[1] // 4 :, size[2] // 4 :] = 3  # between which and 0 an interpolated label lies
    augmentation.apply([torch.randn(channels, *size)], [label], [draw])
