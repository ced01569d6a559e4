"""Checks the values of a data module's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from e2enet.common.configs import group_options
from e2enet.common.steps import order_problem
from e2enet.data.augmentation.recipe import GROUP
from e2enet.data.loaders.patch_sampler import PatchSampler

PLAN_KEYS = ("kind", "spacing", "patch_size", "strides", "batch_size", "memory_gb")

MIN_VALUES = {
    "seed": 0,
    "accumulate": 1,
    "steps_per_epoch": 1,
    "validation_patches": 1,
    "validate_every": 1,
    "validate_full": 0,
    "num_workers": 0,
    "prepare_workers": 0,
}


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Return why a data module cannot be built with these options.

    Keys are the module's attributes: `plan` is called `plan_options`, and `choice` is a `CaseChoice`.
    """
    problems: list[str] = options["choice"].problems()
    mirror_axes, sampler = options["mirror_axes"], options["sampler"]
    augmentation, augment_on = options["augmentation"], options["augment_on"]
    if unknown := sorted(set(options["plan_options"]) - set(PLAN_KEYS)):
        problems.append(f"plan has unknown keys {unknown}; known are {list(PLAN_KEYS)}")
    if isinstance(augmentation, Mapping):
        problems += [problem] if (problem := order_problem(GROUP, augmentation)) else []
    elif augmentation not in group_options(GROUP):
        problems.append(f"augmentation={augmentation!r} must be one of {', '.join(group_options(GROUP))}")
    if augment_on not in ("worker", "device"):
        problems.append(f"augment_on={augment_on!r} must be 'worker' or 'device'")
    if not set(mirror_axes) <= {0, 1, 2} or len(set(mirror_axes)) < len(mirror_axes):
        problems.append(f"mirror_axes={list(mirror_axes)} must be different axes out of 0, 1, 2 (D, H, W)")
    if not isinstance(sampler, PatchSampler):
        problems.append(f"sampler={sampler!r} must be a PatchSampler")
    for name, least in MIN_VALUES.items():
        value = options[name]
        if value is not None and value < least:
            problems.append(f"{name}={value} must be at least {least}")
    return problems
