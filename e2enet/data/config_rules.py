"""What the config keys that concern data accept; configuration/rules.py holds the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e2enet.common.config_check import Conflict, Schema
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
from e2enet.common.files import unusable_folder
from e2enet.data.cases.splits import RULE_WORDS, fold_problem, is_group, rule_problem

LARGEST_SEED = 2**32 - 1  # NumPy's generators take no larger one
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
# The section `data` is built through `_target_`: its keys are the target's parameters, minus those that the code
# supplies. A rule for a key here holds wherever the key is given.
SUPPLIED: dict[str, set[str]] = {
    "data": {"root", "prepared_root", "fold", "seed", "plan", "accumulate", "score_test", "steps_per_epoch"}
    | {"validation_patches", "validate_every", "validate_full"}
}
TARGET_RULES: dict[str, Rule] = {
    "data.name": text,
    "data.layout": choice("msd", "cases"),
    "data.modality": choice("CT", "MRI", "both"),
    "data.split": Rule(lambda v: rule_problem(v) is None, RULE_WORDS),
    "data.group": optional(Rule(is_group, "a regular expression with a group, such as '(patient[0-9]+)'")),
    "data.exclude": optional(list_of(text)),
    "data.labels": optional(table_of(whole(0), text)),
    "data.label_map": table_of(whole(0), whole(0)),
    "data.regions": table_of(text, list_of(whole(1))),
    "data.mirror_axes": axes,
    "data.augmentation": choice("nnunet", "mirror", "none"),
    "data.augment_on": choice("worker", "device"),
    "data.transforms": list_of(Rule(lambda v: isinstance(v, Mapping), "an entry {_target_: .., parameter: ..}")),
    "data.foreground_share": number(0, 1),
    "data.num_workers": whole(0),
    "data.prepare_workers": optional(whole(0)),
    "data.num_train": whole(5),
    "data.num_test": whole(0),
    "data.shape": voxels,
    "data.spacing": list_of(positive, 3),
    "data.phantom_seed": whole(0, LARGEST_SEED),
    "data.limit_cases": optional(whole(1)),
}
# Keys of the section that are no parameters of the target.
EXTRAS: dict[str, dict[str, Rule]] = {"data": {"facts": table_of(text, anything), "paper_patch": voxels}}


def _transforms(entries: Sequence[Mapping[str, Any]] | None) -> str | None:
    if not entries:
        return None
    # Imported here: torch would take seconds and hundreds of megabytes from commands and workers that need none.
    from e2enet.data.augmentation.torchio_transforms import transform_problem

    return transform_problem(entries)


def folder_conflict(key: str, *, writable: bool) -> Conflict:
    """That the folder which a key names can be used: no file stands in its place or above it."""

    def find(path: str) -> str | None:
        problem = unusable_folder(Path(path).expanduser(), writable=writable)
        return None if problem is None else f"{key}={path}: {problem}"

    return Conflict((key,), find)


def _fold(split: Any, fold: Any) -> str | None:
    problem = fold_problem(split or "five_fold", fold)
    return None if problem is None else f"fold={fold}: expected {FOLD_WORDS}"


CONFLICTS = (
    Conflict(("data.transforms",), _transforms),
    folder_conflict("paths.data", writable=False),
    folder_conflict("paths.prepared", writable=False),  # the check writes nothing
    Conflict(("data.split", "fold"), _fold),
)

SCHEMA = Schema(RULES, SUPPLIED, TARGET_RULES, EXTRAS, CONFLICTS)
