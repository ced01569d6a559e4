"""Label values of a dataset: their names, how values in files are renumbered, and regions united of several.

The files of a dataset say some of it (dataset.json), its config the rest. Here both become one table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.problems import Problem, dataset_error

MOST_LABEL = 32767  # labels are kept as int16 at most
# How far a value may be from a whole number. Writers that keep float values in an integer header store 3 as 3.00005;
# what was resampled like an image has values all the way between two labels.
WHOLE_TOLERANCE = 0.01


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


def read_label_names(section: Any) -> tuple[dict[int, str] | None, list[str]]:
    """Value -> name of a `labels` section of dataset.json, sorted, and what is wrong with it.

    Read are {"1": "liver"} (Decathlon) and {"liver": 1} (nnU-Net). None, and then something wrong, where they cannot be
    used: the check, training and evaluation all ask here.
    """
    if not isinstance(section, Mapping) or not section:
        return None, [f"labels is {section!r}: an object of names and values expected"]
    value_first = all(map(_is_label, section))
    pairs = [(key, name) if value_first else (name, key) for key, name in section.items()]
    special = [str(name) for value, name in pairs if isinstance(value, list | tuple) or _is_ignore(name)]
    if special:
        return None, [
            f"labels {', '.join(map(repr, special))}: regions and nnU-Net's ignore label are not read yet; one integer "
            f"per label expected, from 0 to {MOST_LABEL}"
        ]
    wrong = [f"{name!r}: {value!r}" for value, name in pairs if not _is_label(value)]
    if wrong:
        return None, [f"labels {', '.join(wrong)}: one integer per label expected, from 0 to {MOST_LABEL}"]
    repeated = [value for value, count in Counter(int(value) for value, _ in pairs).items() if count > 1]
    if repeated:
        return None, [f"labels give the values {repeated} to more than one name"]
    names = {int(value): str(name) for value, name in sorted(pairs, key=lambda pair: int(pair[0]))}
    return names, name_problems(names)


def name_problems(names: Mapping[int, str]) -> list[str]:
    """What is wrong with the names of classes: scores and curves are told apart by them, in files and on terminals."""
    problems = [
        f"label {value} is called {name!r}: a name of printable signs expected"
        for value, name in names.items()
        if not name.strip() or not name.isprintable()
    ]
    seen = {value: _as_seen(name) for value, name in names.items()}
    for name, count in Counter(seen.values()).items():
        if count > 1:
            values = [value for value, other in seen.items() if other == name]
            problems.append(f"labels {values} are all called {name!r}: a name of its own for each expected")
    return problems


def are_consecutive(labels: Collection[int]) -> bool:
    """Whether labels are 0, 1, .. without a gap."""
    return sorted(labels) == list(range(len(labels)))


def region_problems(regions: Mapping[str, Sequence[int]], classes: Collection[int]) -> list[str]:
    """What is wrong with regions of these classes, of which the background is none."""
    return [
        f"region {region!r} unites {list(united)}: labels out of {sorted(classes)} expected"
        for region, united in regions.items()
        if not united or not set(united) <= set(classes)
    ]


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
    if data.dtype.kind not in "biuf":
        raise InputError(f"{path}: voxels of type {data.dtype}, whole numbers (labels) expected")
    if data.dtype.kind == "f":
        for plane in _planes(data):
            broken = plane[~_are_whole(plane)]
            if broken.size:
                raise InputError(f"{path}: holds the value {broken.flat[0]:g}, whole numbers (labels) expected")
    low, high = (np.rint(data.min()), np.rint(data.max())) if data.size else (0, 0)
    if low < 0 or high > MOST_LABEL:
        raise InputError(f"{path}: values from {low:g} to {high:g}, labels from 0 to {MOST_LABEL} expected")
    dtype = np.uint8 if high <= 255 else np.int16
    if data.dtype.kind != "f":
        return data.astype(dtype, copy=False)
    labels = np.empty_like(data, dtype=dtype, subok=False)
    for target, plane in zip(_planes(labels), _planes(data), strict=True):
        target[...] = np.rint(plane)
    return labels


def _are_whole(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is not below the tolerance either
        return np.abs(values - np.rint(values)) <= WHOLE_TOLERANCE


def _planes(data: np.ndarray) -> np.ndarray:
    """(X, Y, Z) as Z planes, (N,) as one: rounded one by one, since a voxel may take eight bytes."""
    return np.moveaxis(data, -1, 0) if data.ndim > 1 else data[None]


def resolve_labels(found: Mapping[int, str] | None, table: LabelTable, problems: list[Problem]) -> dict[int, str]:
    """Label -> name after the table's map, sorted; adds to `problems` what keeps the labels from being used.

    `found` are the values that the files name (dataset.json), None where they name none. The table's names win.
    """
    problems += [dataset_error(text) for text in _map_problems(table)]
    problems += [dataset_error(f"data.labels: {text}") for text in _table_problems(table)]
    mapped = None if found is None else map_names(found, table.label_map)
    names = mapped if table.names is None else table.names
    labels = dict(sorted((names or {}).items()))
    if mapped is not None and table.names is not None and sorted(mapped) != sorted(table.names):
        problems.append(
            dataset_error(f"dataset.json has the label values {sorted(mapped)}, the config names {sorted(table.names)}")
        )
    if labels and not are_consecutive(labels):
        missing = sorted(set(range(max(labels) + 1)) - set(labels))
        some = f"{missing[:10]}{' and more' if len(missing) > 10 else ''}"
        problems.append(
            dataset_error(f"label values are {list(labels)}: consecutive integers from 0 expected, {some} missing")
        )
    if len(labels) < 2:
        problems.append(dataset_error("labels name no foreground class: background and at least one other expected"))
    problems += [dataset_error(text) for text in region_problems(table.regions, set(labels) - {0})]
    return labels or {0: "background"}


def _is_label(value: Any) -> bool:
    """Whether a JSON value spells a label: 3 or "3". The digits of other scripts, and powers, are none ("\u00b2")."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return text.isascii() and text.isdigit() and len(text) <= len(str(MOST_LABEL)) and int(text) <= MOST_LABEL


def _as_seen(name: str) -> str:
    """A name as one reads it: blanks more or less do not tell."""
    return " ".join(name.split())


def _is_ignore(name: Any) -> bool:
    """Whether a name is that by which nnU-Net marks voxels that nobody has labelled."""
    return isinstance(name, str) and name.strip().lower() == "ignore"


def _table_problems(table: LabelTable) -> list[str]:
    if table.names is None:
        return []
    ignored = [value for value, name in table.names.items() if _is_ignore(name)]
    problem = f"label {ignored} is called 'ignore': nnU-Net's ignore label is not read yet; classes expected"
    return [*([problem] if ignored else []), *name_problems(table.names)]


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
