"""Rules of the config keys that concern data; configuration/rules.py holds the others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2enet.common.config_check import Conflict, Part, Schema
from e2enet.common.config_rules import (
    Rule,
    anything,
    axes,
    choice,
    is_whole,
    list_of,
    number,
    optional,
    positive,
    table_of,
    text,
    voxels,
    whole,
)
from e2enet.common.errors import InputError, first_line
from e2enet.common.files import unusable_folder
from e2enet.common.signatures import build_part
from e2enet.data.cases.splits import RULE_WORDS, fold_problem, is_group, rule_problem
from e2enet.data.formats.labels import learned_region_problems
from e2enet.data.layouts.layout import Layout

LARGEST_SEED = 2**32 - 1  # NumPy's generators accept no larger seed
FOLD_WORDS = "a whole number from 0 to 4, or all"
RULES: dict[str, Rule] = {
    "paths.data": text,
    "paths.prepared": text,
    "paths.runs": text,
    "seed": whole(0, LARGEST_SEED),
    "fold": Rule(lambda v: v == "all" or (is_whole(v) and v >= 0), FOLD_WORDS),
    "plan.kind": choice("auto", "paper"),
    "plan.spacing": optional(list_of(positive, 3)),
    "plan.patch_size": optional(voxels),
    "plan.strides": optional(list_of(voxels)),
    "plan.batch_size": optional(whole(1)),
    "plan.memory_gb": optional(positive),
}
# Parameters of a data module that the code supplies, not the section `data`.
SUPPLIED = frozenset(
    {"root", "prepared_root", "fold", "seed", "plan", "accumulate", "score_test", "steps_per_epoch", "augmentation"}
    | {"validation_patches", "validate_every", "validate_full"}
)
# Parameters of some layouts. They stand in `data`, and `data.layout` refers to them by `${data.KEY}`.
LAYOUT_KEYS = {
    "modality": choice("CT", "MRI", "both"),
    "num_train": whole(5),
    "num_test": whole(0),
    "shape": voxels,
    "spacing": list_of(positive, 3),
    "phantom_seed": whole(0, LARGEST_SEED),
}
EXTRAS = {"facts": table_of(text, anything), "paper_patch": voxels, "published_as": text, **LAYOUT_KEYS}
DATA_RULES: dict[str, Rule] = {
    "name": text,
    "split": Rule(lambda v: rule_problem(v) is None, RULE_WORDS),
    "group": optional(Rule(is_group, "a regular expression with a group, such as '(patient[0-9]+)'")),
    "exclude": optional(list_of(text)),
    "labels": optional(table_of(whole(0), text)),
    "label_map": table_of(whole(0), whole(0)),
    "spacing_unit": choice(None, "m", "mm", "um"),
    "regions": table_of(text, list_of(whole(1))),
    "regions_class_order": optional(list_of(whole(1))),
    "mirror_axes": axes,
    "augment_on": choice("worker", "device"),
    "num_workers": whole(0),
    "prepare_workers": optional(whole(0)),
    "limit_cases": optional(whole(1)),
}
NAME = Rule(lambda v: text.accepts(v) or whole(0).accepts(v), "a name or number")
SAMPLER = Part(
    base="e2enet.data.loaders.patch_sampler.PatchSampler",
    rules={
        "foreground_share": number(0, 1),
        "class_weights": optional(table_of(NAME, number(0))),
        "case_weights": optional(table_of(NAME, number(0))),
    },
    may_lack=True,
)
# Keys of earlier versions, which a user's own files may still have, and where they belong now.
MOVED = {
    "foreground_share": "is data.sampler.foreground_share now",
    "augmentation": "is a group of its own now: augmentation=NAME, or `- override /augmentation: NAME` in a file",
    "transforms": "each is a step of the group augmentation now, as augmentation.NAME={_target_: torchio.RandomBlur} "
    "(docs/augmentation.md)",
}
DATA = Part(supplied=SUPPLIED, reserved=MOVED, extras=EXTRAS, rules=DATA_RULES)
PARTS = {"data": DATA, "data.layout": Part(base=Layout, may_lack=True), "data.sampler": SAMPLER}


def _layout(layout: Mapping[str, Any] | None, *beside: Any) -> str | None:
    """Return why the layout cannot be built, and which of the LAYOUT_KEYS beside it it does not accept."""
    if not layout:
        return None
    unused = [key for key, value in zip(LAYOUT_KEYS, beside, strict=True) if value is not None and key not in layout]
    problems = [f"data.{key}: unknown to the layout of this dataset, {layout['_target_']}" for key in unused]
    try:
        build_part(layout)
    except InputError as error:
        problems.append(f"data.layout: {error}")
    except Exception as error:  # a user's class may raise anything
        problems.append(f"data.layout: {layout['_target_']} cannot be built of it ({first_line(error)})")
    return "\n  - ".join(problems) or None


def _regions(labels: Any, regions: Any, order: Any) -> str | None:
    problems = learned_region_problems(labels, regions or {}, order)
    return "\n  - ".join(f"data.regions: {problem}" for problem in problems) or None


def folder_conflict(key: str, *, writable: bool) -> Conflict:
    """Return a check of the folder named by `key`: neither it nor a parent is a file, and it is writable if asked."""

    def find(path: str) -> str | None:
        problem = unusable_folder(Path(path).expanduser(), writable=writable)
        return None if problem is None else f"{key}={path}: {problem}"

    return Conflict((key,), find)


def _fold(split: Any, fold: Any) -> str | None:
    problem = fold_problem(split or "five_fold", fold)
    return None if problem is None else f"fold={fold}: expected {FOLD_WORDS}"


CONFLICTS = (
    Conflict(("data.layout", *(f"data.{key}" for key in LAYOUT_KEYS)), _layout),
    Conflict(("data.labels", "data.regions", "data.regions_class_order"), _regions),
    folder_conflict("paths.data", writable=False),
    folder_conflict("paths.prepared", writable=False),  # the check command writes nothing there
    Conflict(("data.split", "fold"), _fold),
)

SCHEMA = Schema(RULES, PARTS, CONFLICTS)
