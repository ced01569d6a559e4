"""Label values of a dataset: their names, how values in files are renumbered, and regions united of several.

The files of a dataset say some of it (dataset.json), its config the rest. Here both become one table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.problems import Problem, dataset_error


@dataclass(frozen=True)
class LabelTable:
    """What a config says of a dataset's labels.

    Attributes:
        names: Label -> name, background (0) included, numbered as after `label_map`; None: as in dataset.json.
        label_map: Value in the files -> label; values left out keep their number. BraTS: {4: 3}.
        regions: Name -> labels united, scored beside the labels. {"tumour core": (1, 3)}.
    """

    names: Mapping[int, str] | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)


def apply_label_map(array: np.ndarray, label_map: Mapping[int, int]) -> np.ndarray:
    """The array with every value that the map names renumbered, all at once (a swap {1: 2, 2: 1} works).

    Without a map the array itself, else a copy of the same dtype, or of a wider one where a label needs it.
    """
    changed = {old: new for old, new in label_map.items() if old != new}
    if not changed or array.size == 0:
        return array
    result = array.astype(np.promote_types(array.dtype, np.min_scalar_type(max(changed.values()))))
    for old, new in changed.items():
        result[array == old] = new
    return result


def whole_labels(data: np.ndarray, path: Path) -> np.ndarray:
    """The values of a label file as uint8 or where needed int16; InputError where they are no labels 0, 1, .."""
    if data.dtype.kind == "f":
        for plane in _planes(data):
            broken = plane[~_are_whole(plane)]
            if broken.size:
                raise InputError(f"{path}: holds the value {broken.flat[0]:g}, whole numbers (labels) expected")
    low, high = (np.rint(data.min()), np.rint(data.max())) if data.size else (0, 0)
    if low < 0 or high > np.iinfo(np.int16).max:
        raise InputError(f"{path}: values from {low:g} to {high:g}, labels from 0 to {np.iinfo(np.int16).max} expected")
    dtype = np.uint8 if high <= 255 else np.int16
    if data.dtype.kind != "f":
        return data.astype(dtype, copy=False)
    labels = np.empty_like(data, dtype=dtype, subok=False)
    for target, plane in zip(_planes(labels), _planes(data), strict=True):
        target[...] = np.rint(plane)
    return labels


def _are_whole(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is not below the tolerance either
        return np.abs(values - np.rint(values)) < 1e-3


def _planes(data: np.ndarray) -> np.ndarray:
    """(X, Y, Z) as Z planes, (N,) as one: rounded one by one, since a voxel may take eight bytes."""
    return np.moveaxis(data, -1, 0) if data.ndim > 1 else data[None]


def resolve_labels(found: Mapping[int, str] | None, table: LabelTable, problems: list[Problem]) -> dict[int, str]:
    """Label -> name after the table's map, sorted; adds to `problems` what keeps the labels from being used.

    `found` are the values that the files name (dataset.json), None where they name none. The table's names win.
    """
    problems += [dataset_error(text) for text in _map_problems(table)]
    mapped = None if found is None else map_names(found, table.label_map)
    names = mapped if table.names is None else table.names
    labels = dict(sorted((names or {}).items()))
    if mapped is not None and table.names is not None and sorted(mapped) != sorted(table.names):
        problems.append(
            dataset_error(f"dataset.json has the label values {sorted(mapped)}, the config names {sorted(table.names)}")
        )
    if labels and list(labels) != list(range(len(labels))):
        missing = sorted(set(range(max(labels) + 1)) - set(labels))
        some = f"{missing[:10]}{' and more' if len(missing) > 10 else ''}"
        problems.append(
            dataset_error(f"label values are {list(labels)}: consecutive integers from 0 expected, {some} missing")
        )
    if len(labels) < 2:
        problems.append(dataset_error("labels name no foreground class: background and at least one other expected"))
    for name, values in table.regions.items():
        if not values or 0 in values or not set(values) <= set(labels):
            problems.append(
                dataset_error(f"region {name!r} unites {list(values)}: labels out of {list(labels)[1:]} expected")
            )
    return labels or {0: "background"}


def _map_problems(table: LabelTable) -> list[str]:
    wrong = {old: new for old, new in table.label_map.items() if old < 0 or new < 0}
    return [f"label_map has {wrong}: values and labels from 0 expected"] if wrong else []


def map_names(found: Mapping[int, str], label_map: Mapping[int, int]) -> dict[int, str]:
    """Names by label after the map; values that become one label share the name "a + b"."""
    targets = {value: label_map.get(value, value) for value in found}
    shared = Counter(targets.values())
    names: dict[int, str] = {}
    for value, name in found.items():
        label = targets[value]
        if label == 0 and shared[0] > 1:
            names[0] = found.get(0, "background")  # what is mapped away is background
        else:
            names[label] = f"{names[label]} + {name}" if label in names else name
    return names
