"""plan.json: the plan of a dataset, written for people to read and to edit.

The file holds the plan's values, then `derived` (follows from them; never used) and `made_from` (the given options,
and a hash of the rules' plan with these options). If the values still have that hash, the file is unedited: it is
rewritten whenever the rules give another plan. Otherwise the file was edited. It then replaces the rules' plan as long
as data and options still give the plan that was edited.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from e2enet.common.console import say
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import atomic_path, content_key, read_json
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.planning.fingerprint import cached_fingerprint
from e2enet.data.planning.plan import Plan
from e2enet.data.planning.planner import DEFAULT_MEMORY_GB, make_plan
from e2enet.system.locks import locked_folder

PLAN_FILE = "plan.json"
MAX_COLUMNS = 100  # of a list or object that is written on one line


def plan_dataset(
    dataset: RawDataset,
    folder: str | Path,
    *,
    kind: str = "auto",
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    strides: Sequence[Sequence[int]] | None = None,
    batch_size: int | None = None,
    memory_gb: float | None = None,
    workers: int | None = None,
) -> Plan:
    """Plan for all training cases of a dataset; see make_plan for the values. None follows the rule.

    Writes the fingerprint and `plan.json` to the prepared folder. The scans are read, by `workers`, only once for
    the same raw files, labels and channels. A plan.json that was edited by hand is used instead of the rules' plan.
    Raises InputError if it holds a mistake, or if data or options changed since.
    """
    folder = Path(folder)
    options = {
        "kind": kind,
        "spacing": spacing,
        "patch_size": patch_size,
        "strides": strides,
        "batch_size": batch_size,
        "memory_gb": DEFAULT_MEMORY_GB if memory_gb is None else memory_gb,
    }
    options = {name: _plain(value) for name, value in options.items()}
    fingerprint = cached_fingerprint(dataset, folder, workers)
    planned = make_plan(fingerprint, dataset.channels, **options)  # type: ignore[arg-type]
    plan = settle_plan(folder / PLAN_FILE, planned, options)
    if kind == "auto" and patch_size is not None:
        own = make_plan(fingerprint, dataset.channels, spacing=spacing, memory_gb=memory_gb).patch_size
        if math.prod(plan.patch_size) < math.prod(own):
            _say_once(
                f"{dataset.name}: patches of {_spelled(plan.patch_size)} voxels, as plan.patch_size says; by the rules "
                f"{_spelled(own)} (plan.patch_size=null)"
            )
    wide = [
        name for name, edge, whole in zip("DHW", plan.patch_size, plan.median_shape, strict=True) if edge > 2 * whole
    ]
    if wide:
        _say_once(
            f"{dataset.name}: patches of {_spelled(plan.patch_size)} voxels, the median case has "
            f"{_spelled(plan.median_shape)}: along {', '.join(wide)} most of a patch is padding (plan=auto follows the "
            "data; or give plan.patch_size and plan.strides)"
        )
    return plan


def settle_plan(path: Path, planned: Plan, options: Mapping[str, Any]) -> Plan:
    """Return the plan to use: that of an edited file, else `planned`, which is then written to the file."""
    key = content_key([planned.to_dict(), dict(options)])
    found = _read(path)
    if found is None:
        return _write(path, planned, options, key)
    values = {name: value for name, value in found.items() if name not in ("derived", "made_from")}
    made_from = found.get("made_from")
    if made_from is None:
        # The user removed `made_from`: the values are meant for the present data and options.
        plan = _checked(path, values, planned)
        return _write(path, plan, options, key)
    if not isinstance(made_from, Mapping) or not isinstance(made_from.get("options"), Mapping):
        raise InputError(f"{path}: made_from is {made_from!r}: as it was written, or nothing, expected")
    was_planned = made_from.get("planned")
    if content_key([values, made_from["options"]]) == was_planned:  # as it was written
        return planned if was_planned == key else _write(path, planned, options, key)
    plan = _checked(path, values, planned)
    if was_planned != key:
        raise InputError(_outdated(path, plan, planned, made_from["options"], options))
    changes = ", ".join(_differences(planned.to_dict(), plan.to_dict()))
    say(f"{path} was edited, and is used: {changes or 'no value changed'}")
    if found.get("derived") != _derived(plan, options):
        _write(path, plan, options, key)
    return plan


def _checked(path: Path, values: Mapping[str, Any], planned: Plan) -> Plan:
    plan = Plan.from_dict(values, str(path))
    problems = []
    if plan.depth_axis != planned.depth_axis:
        problems.append(f"depth_axis is {plan.depth_axis}: {planned.depth_axis}, the data's, expected")
    if len(plan.normalisation) != len(planned.normalisation):
        problems.append(
            f"normalisation has {len(plan.normalisation)} entries: one for each of the "
            f"{len(planned.normalisation)} channels expected"
        )
    raise_problems(problems, f"{path}: does not fit the dataset")
    return plan


def _outdated(
    path: Path, edited: Plan, planned: Plan, old_options: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    changed = _differences(dict(old_options), dict(options))
    why = (
        f"it was made for other options ({', '.join(changed)})"
        if changed
        else "the data changed since, or the rules of planning"
    )
    differences = "; ".join(_differences(edited.to_dict(), planned.to_dict()))
    return (
        f"{path}: was edited, but {why}. Expected one of: delete the file, to plan anew ({differences}); remove "
        "`made_from` from it, to use its values for the data and options of now"
        + ("; the options that it was made for" if changed else "")
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {json.dumps(old.get(name))} -> {json.dumps(new[name])}" for name in new if old.get(name) != new[name]
    ]


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}, an object with a plan expected")
    return content


def _write(path: Path, plan: Plan, options: Mapping[str, Any], key: str) -> Plan:
    made_from = {"options": dict(options), "planned": key}
    text = json.dumps(plan.to_dict() | {"derived": _derived(plan, options), "made_from": made_from}, indent=2)
    with locked_folder(path.parent, "Writing plan.json"), atomic_path(path) as temporary:
        temporary.write_text(_on_one_line(text) + "\n", encoding="utf-8")
    return plan


def _derived(plan: Plan, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "levels": len(plan.strides) + 1,
        "anisotropy": round(max(plan.spacing) / min(plan.spacing), 3),
        "memory_gb": options["memory_gb"],
    }


def _on_one_line(text: str) -> str:
    """Return indented JSON with each short innermost list or object on one line: [2, 2, 2]."""

    def joined(match: re.Match[str]) -> str:
        line = re.sub(r"\s+", " ", match[0])
        line = line[0] + line[1:-1].strip() + line[-1]
        return line if len(line) <= MAX_COLUMNS else match[0]

    return re.sub(r"[\[{][^\[\]{}]*[\]}]", joined, text)


@cache
def _say_once(line: str) -> None:
    say(line)  # Lightning prepares the data a second time


def _spelled(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _plain(value: Any) -> Any:
    """Turn tuples and a config's own lists into plain lists, as JSON returns them."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
