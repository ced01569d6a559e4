"""What an experiment compares: rows of overrides, their published numbers, and the scale at which costs are counted.

The section `ablation` of a config, which the files in experiments/ set (docs/experiments.md):

    title: Sparsity level
    published_on: AMOS-CT     # the dataset of the published numbers; null if there are none
    setting: {in_channels: 1, num_classes: 16, patch_size: [128, 128, 128], strides: [[2, 2, 2], ..]}
    reference: s80            # the row that others are tested against; null: the first
    pretraining: [..]         # only if rows refer to it: overrides of the training that comes first
    rows:                     # in the paper's order; null: only a sweep, of folds or seeds
      s90:
        label: S = 0.9
        overrides: [dsff.density=0.1]
        published: {params: 7.64, gflops: 492.29, dice: 89.6}   # M, GFLOP by the paper's convention, %
        published_on: BTCV    # only if it differs from the table's
        setting: {..}         # only if it differs from the table's
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from e2enet.common.config_check import unknown_key
from e2enet.common.config_rules import Rule, is_number, list_of, optional, text, voxels, whole

# A row's name becomes part of folder names and of `row=a,b`.
ROW_NAME = re.compile(r"[a-z][a-z0-9_]*")
# A range as its source gives it, "90.1-90.2".
RANGE = re.compile(r"\d+(\.\d+)?-\d+(\.\d+)?")

_published = Rule(
    lambda v: (is_number(v) and v > 0) or (isinstance(v, str) and RANGE.fullmatch(v) is not None),
    'a number > 0 or a range such as "90.1-90.2"',
)
_mapping = Rule(lambda v: isinstance(v, Mapping), "a mapping")
SETTING_RULES = {
    "in_channels": whole(1),
    "num_classes": whole(1),
    "patch_size": voxels,
    "strides": list_of(voxels),
}
PUBLISHED_RULES = dict.fromkeys(("params", "gflops", "dice", "nsd"), _published)
ROW_RULES = {
    "label": text,
    "overrides": list_of(text),
    "published": _mapping,
    "published_on": text,
    "setting": _mapping,
}
RULES = {
    "title": text,
    "published_on": optional(text),
    "setting": optional(_mapping),
    "reference": optional(text),
    "pretraining": list_of(text),
    "rows": optional(_mapping),
}
# Checks the type of the section; `ablation_problems` checks its content.
ABLATION_RULE = optional(_mapping)


def ablation_problems(ablation: Mapping[str, Any], row: str | None = None) -> list[str]:
    """List the problems of the section and of the choice of `row` in it, a line each."""
    problems = list(_section_problems("ablation", ablation, RULES, needed=("title",)))
    if problems:
        return problems
    rows = ablation.get("rows") or {}
    for name, content in rows.items():
        problems += _row_problems(f"ablation.rows.{name}", name, content)
    if ablation.get("setting"):
        problems += _section_problems("ablation.setting", ablation["setting"], SETTING_RULES, needed=SETTING_RULES)
    reference = ablation.get("reference")
    if reference is not None and reference not in rows:
        problems.append(f"ablation.reference={reference}: expected one of its rows: {_listed(rows)}")
    if row is not None and row not in rows:
        problems.append(f"row={row}: the experiment has no such row; expected {_listed(rows)}")
    return problems


def row_setting(ablation: Mapping[str, Any], row: str) -> dict[str, Any]:
    """Return the scale at which a row's cost is counted: the table's setting, updated by the row's; {} if neither."""
    return {**(ablation.get("setting") or {}), **(ablation["rows"][row].get("setting") or {})}


def _row_problems(path: str, name: Any, content: Any) -> Iterator[str]:
    if not isinstance(name, str) or not ROW_NAME.fullmatch(name):
        yield f"{path}: a row's name has lower-case letters, digits and _, a letter first"
    if not isinstance(content, Mapping):
        yield f"{path}: expected a mapping with label and overrides"
        return
    yield from _section_problems(path, content, ROW_RULES, needed=("label", "overrides"))
    for key, rules in (("published", PUBLISHED_RULES), ("setting", SETTING_RULES)):
        section = content.get(key)
        if isinstance(section, Mapping):
            yield from _section_problems(f"{path}.{key}", section, rules)


def _section_problems(
    path: str, section: Mapping[str, Any], rules: Mapping[str, Rule], needed: Any = ()
) -> Iterator[str]:
    for key, value in section.items():
        if key not in rules:
            yield unknown_key(f"{path}.{key}", str(key), f"{path}.", rules)
        elif not rules[key].accepts(value):
            yield f"{path}.{key}={value}: expected {rules[key].expected}"
    for key in needed:
        if key not in section:
            yield f"{path}.{key}: is missing"


def _listed(rows: Mapping[str, Any]) -> str:
    return " | ".join(map(str, rows)) or "none (the experiment has no rows)"
