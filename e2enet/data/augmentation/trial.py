"""Check a recipe before data are prepared: build its steps, and try those from outside the project on a patch."""

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

# The data are not known yet: a step passes if it works for one combination of these.
CHANNELS = (1, 2, 4)
PATCHES: tuple[Triple, ...] = ((32, 64, 64), (96, 96, 96))
TRIES = 3  # a step with a probability of its own may do nothing at first


def recipe_problem(
    section: Mapping[str, Any], patch_size: Sequence[int] | None, mirror_axes: Sequence[int] | None
) -> str | None:
    """Return all problems of the steps in the section `augmentation`, or None; its keys are checked already."""
    return _recipe_problem(json.dumps(section), tuple(patch_size or ()), tuple(mirror_axes or ()))


@cache  # called for every job of a sweep
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
    """Return why a step fails on every patch; None if it works on one."""
    problem = None
    for size, channels in product(patches, CHANNELS):
        try:
            with warnings.catch_warnings(), seeded(0):
                warnings.simplefilter("ignore")
                for _ in range(TRIES):
                    _try_step(Augmentation(size, {name: step}), channels)
        except Exception as error:  # a step may raise anything, and the user should see it
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
    label[size[0] // 4 :, size[1] // 4 :, size[2] // 4 :] = 3  # interpolated labels lie between 0 and 3
    augmentation.apply([torch.randn(channels, *size)], [label], [draw])
