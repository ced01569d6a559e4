"""Label values of a dataset: their names and how values in files are renumbered.

dataset.json gives some of this, the config the rest. Here both become one scheme.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.problems import Problem, dataset_error
from e2enet.data.formats.scheme import IGNORE, LabelScheme, lossy_labels, region_problems, scheme_problems

MAX_LABEL = 32767  # labels are kept as int16 at most
# How far a value may be from a whole number. Writers that keep float values in an integer header store 3 as 3.00005.
# A label that was resampled like an image has values anywhere between two labels.
WHOLE_TOLERANCE = 0.01


@dataclass(frozen=True)
class LabelTable:
    """A config's settings for a dataset's labels.

    Attributes:
        names: Label -> name, background (0) included, numbered as after `label_map`. None takes those of dataset.json.
        label_map: Value in the files -> label; values left out keep their number. BraTS: {4: 3}.
        regions: Name -> labels united, such as {"tumour core": (1, 3)}. They are scored in addition to the labels.
        order: The label that each region is written as. If given, the network learns the regions, in place of the
            labels and of the regions in dataset.json. None: regions are only scored.
    """

    names: Mapping[int, str] | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    order: Sequence[int] | None = None

    @classmethod
    def of_config(
        cls,
        names: Mapping[int, str] | None = None,
        label_map: Mapping[int, int] | None = None,
        regions: Mapping[str, Sequence[int]] | None = None,
        order: Sequence[int] | None = None,
    ) -> LabelTable:
        """Build a table from a config's sections, with numbers as integers."""
        return cls(
            None if names is None else {int(label): str(name) for label, name in names.items()},
            {int(value): int(label) for value, label in (label_map or {}).items()},
            {str(name): tuple(int(label) for label in labels) for name, labels in (regions or {}).items()},
            None if order is None else tuple(int(label) for label in order),
        )

    @property
    def scored_regions(self) -> dict[str, tuple[int, ...]]:
        """The regions that are scored in addition to what the network learns."""
        return {} if self.order is not None else {name: tuple(united) for name, united in self.regions.items()}


def name_problems(names: Mapping[int, str]) -> list[str]:
    """Return what is wrong with the names of classes. They identify scores and curves in files and on terminals."""
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


def apply_label_map(array: np.ndarray, label_map: Mapping[int, int]) -> np.ndarray:
    """Renumber every value that the map names, all at once (a swap {1: 2, 2: 1} works).

    Return the array itself if the map changes nothing, else a copy, of a wider dtype if a label needs it.
    """
    changed = {old: new for old, new in label_map.items() if old != new}
    if not changed or array.size == 0:
        return array
    result = array.astype(np.promote_types(array.dtype, np.min_scalar_type(max(changed.values()))))
    for old, new in changed.items():
        result[array == old] = new
    return result


def whole_labels(data: np.ndarray, path: Path) -> np.ndarray:
    """Return the values of a label file as uint8, or int16 if needed; raise InputError if not whole numbers 0, 1, .."""
    if data.dtype.kind not in "biuf":
        raise InputError(f"{path}: voxels of type {data.dtype}, whole numbers (labels) expected")
    if data.dtype.kind == "f":
        for plane in _planes(data):
            broken = plane[~_are_whole(plane)]
            if broken.size:
                raise InputError(f"{path}: holds the value {broken.flat[0]:g}, whole numbers (labels) expected")
    low, high = (np.rint(data.min()), np.rint(data.max())) if data.size else (0, 0)
    if low < 0 or high > MAX_LABEL:
        raise InputError(f"{path}: values from {low:g} to {high:g}, labels from 0 to {MAX_LABEL} expected")
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
    """View (X, Y, Z) as Z planes, (N,) as one. They are rounded one by one, since a voxel may take eight bytes."""
    return np.moveaxis(data, -1, 0) if data.ndim > 1 else data[None]


def resolve_labels(found: LabelScheme | None, table: LabelTable, problems: list[Problem]) -> LabelScheme:
    """Return the scheme after the table's map. Problems of the labels are appended to `problems`.

    `found` is the scheme of dataset.json. It is None if there is none, or none that can be used; then that is
    reported already. The table's names take precedence.
    """
    problems += [dataset_error(text) for text in _map_problems(table)]
    if table.names is not None:
        problems += [dataset_error(f"data.labels: {text}") for text in name_problems(table.names)]
    if found is None and table.names is None:
        return LabelScheme({0: "background"})
    mapped = None if found is None else map_scheme(found, table.label_map)
    scheme = mapped or LabelScheme({})
    if table.names is not None:
        scheme = replace(scheme, **_named(table.names))
        if mapped is not None and sorted(mapped.file_names) != sorted(table.names):
            values = f"{sorted(mapped.file_names)}, the config names {sorted(table.names)}"
            problems.append(dataset_error(f"dataset.json has the label values {values}"))
    if table.order is not None:
        regions = {name: tuple(united) for name, united in table.regions.items()}
        scheme = replace(scheme, regions=regions, order=tuple(table.order))
    labels = sorted(scheme.file_names)
    if labels and not are_consecutive(labels):
        missing = sorted(set(range(max(labels) + 1)) - set(labels))
        some = f"{missing[:10]}{' and more' if len(missing) > 10 else ''}"
        problems.append(
            dataset_error(f"label values are {labels}: consecutive integers from 0 expected, {some} missing")
        )
    if len(scheme.names) < 2:
        problems.append(dataset_error("labels name no foreground class: background and at least one other expected"))
    unsound = scheme_problems(scheme)
    problems += [dataset_error(text) for text in unsound]
    classes = sorted(set(scheme.names) - {0})
    problems += [dataset_error(text) for text in region_problems(table.scored_regions, classes)]
    problems += [
        dataset_error(f"data.regions: {name!r} is a region of dataset.json, scored anyway; another name expected")
        for name in table.scored_regions.keys() & scheme.regions.keys()
    ]
    if not unsound and (lossy := lossy_labels(scheme)):
        text = ", ".join(f"{label} as {written}" for label, written in lossy.items())
        expected = "what is predicted right is scored wrong there; list a region before those within it"
        problems.append(Problem(None, "warning", f"regions_class_order writes label {text}: {expected}"))
    return replace(scheme, names=dict(sorted(scheme.names.items())) or {0: "background"})


def learned_region_problems(
    names: Mapping[int, str] | None, regions: Mapping[str, Sequence[int]], order: Sequence[int] | None
) -> list[str]:
    """Return the errors in `data.regions` and their order before a dataset is read; `names` may be unknown."""
    if order is None:
        return []
    united = {label for labels in regions.values() for label in labels}
    known = dict.fromkeys({0, *united}, "") if names is None else names
    classes = {label: name for label, name in known.items() if not is_ignore(name)}
    return scheme_problems(
        LabelScheme(classes, None, {name: tuple(one) for name, one in regions.items()}, tuple(order))
    )


def is_ignore(name: Any) -> bool:
    """Whether a name is the one that nnU-Net gives to unlabelled voxels."""
    return isinstance(name, str) and name.strip().lower() == IGNORE


def _as_seen(name: str) -> str:
    """Return a name with single blanks: readers do not notice further ones."""
    return " ".join(name.split())


def _named(names: Mapping[int, str]) -> dict[str, Any]:
    """Return a config's names as fields of a scheme. One of them may be the ignore label's."""
    ignored = [label for label, name in names.items() if is_ignore(name)]
    return {
        "names": {label: name for label, name in names.items() if label not in ignored},
        "ignore": ignored[0] if ignored else None,
    }


def _map_problems(table: LabelTable) -> list[str]:
    wrong = {old: new for old, new in table.label_map.items() if old < 0 or new < 0}
    return [f"label_map has {wrong}: values and labels from 0 expected"] if wrong else []


def map_scheme(found: LabelScheme, label_map: Mapping[int, int]) -> LabelScheme:
    """Return the scheme after the map. Classes mapped to the ignore label are ignored; 0 makes them background."""

    ignore = None if found.ignore is None else label_map.get(found.ignore, found.ignore) or None
    gone = {old for old, new in label_map.items() if old != new and new in (0, ignore)}
    kept = {value: name for value, name in found.names.items() if label_map.get(value, value) != ignore}
    return LabelScheme(
        map_names(kept, label_map),
        ignore,
        {
            name: tuple(sorted({label_map.get(value, value) for value in united if value not in gone}))
            for name, united in found.regions.items()
        },
        tuple(label_map.get(label, label) for label in found.order),
    )


def map_names(found: Mapping[int, str], label_map: Mapping[int, int]) -> dict[int, str]:
    """Return label -> name after the map. Values that become one label share the name "a + b"."""
    targets = {value: label_map.get(value, value) for value in found}
    shared = Counter(targets.values())
    names: dict[int, str] = {}
    for value, name in found.items():
        label = targets[value]
        if label == 0 and shared[0] > 1:
            names[0] = found.get(0, "background")  # values mapped to 0 are background
        else:
            names[label] = f"{names[label]} + {name}" if label in names else name
    return names
