"""The labels of a dataset as a network learns them: classes or overlapping regions, and unlabelled voxels.

This follows nnU-Net's dataset.json. A label called "ignore" marks unlabelled voxels. A label whose value is a list,
such as `"whole tumour": [1, 2, 3]`, makes every label a region. A network then has one sigmoid per region.
`regions_class_order` gives the label that each region is written as; later regions overwrite earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IGNORE = "ignore"


@dataclass(frozen=True)
class LabelScheme:
    """Labels of files, and the outputs of a network that learns them.

    Attributes:
        names: Label -> name, 0 is background; without the ignore label.
        ignore: The label of unlabelled voxels: no loss, no score, no patch around them. None if there is none.
        regions: Name -> labels united, in the order of the network's outputs; empty: one output per label.
        order: The label that each region is written as (nnU-Net's regions_class_order).
    """

    names: dict[int, str]
    ignore: int | None = None
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    order: tuple[int, ...] = ()

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> LabelScheme:
        """Inverse of `to_plain`. It also reads older checkpoints, which have no ignore label and no regions."""
        ignore = content.get("ignore")
        return cls(
            {int(label): str(name) for label, name in content["labels"].items()},
            None if ignore is None else int(ignore),
            {str(name): tuple(map(int, united)) for name, united in content.get("trained_regions", {}).items()},
            tuple(int(label) for label in content.get("regions_class_order", ())),
        )

    def to_plain(self) -> dict[str, Any]:
        """Return plain containers for checkpoints. An absent ignore label and absent regions are left out."""
        content: dict[str, Any] = {"labels": dict(self.names)}
        if self.ignore is not None:
            content["ignore"] = self.ignore
        if self.regions:
            content["trained_regions"] = {name: list(united) for name, united in self.regions.items()}
            content["regions_class_order"] = list(self.order)
        return content

    @property
    def special(self) -> dict[str, Any]:
        """`to_plain` without the labels; empty for a dataset of plain classes."""
        return {key: value for key, value in self.to_plain().items() if key != "labels"}

    @property
    def num_outputs(self) -> int:
        """Number of a network's output channels: its regions, or its labels with background."""
        return len(self.regions) or len(self.names)

    @property
    def class_names(self) -> dict[int, str]:
        """Number -> name of what is scored: the labels, or background and the regions 1, 2, .. in their order."""
        if not self.regions:
            return self.names
        return dict(enumerate([self.names.get(0, "background"), *self.regions]))

    @property
    def file_names(self) -> dict[int, str]:
        """Value in label files -> its name or those of its regions. The ignore label is included."""
        within = {
            label: " + ".join(name for name, united in self.regions.items() if label in united) or name
            for label, name in self.names.items()
        }
        return within if self.ignore is None else {**within, self.ignore: IGNORE}

    def foreground(self, label: np.ndarray) -> np.ndarray:
        """Return a boolean mask that is true where a label map is neither background nor ignored."""
        return label > 0 if self.ignore is None else (label > 0) & (label != self.ignore)

    def without_ignored(self, label: np.ndarray) -> np.ndarray:
        """Return the label map with ignored voxels as background, for pictures; a copy if there is an ignore label."""
        return label if self.ignore is None else np.where(label == self.ignore, label.dtype.type(0), label)


def class_key(united: Sequence[int]) -> str:
    """Return the key of a region in score files: its labels, "1+2+3"."""
    return "+".join(map(str, united))


def scheme_difference(first: LabelScheme, second: LabelScheme, names: tuple[str, str]) -> str | None:
    """Return the first thing that two schemes tell otherwise, with the names of their owners; None if they agree."""
    called = first.file_names, second.file_names
    for label in sorted(called[0].keys() | called[1].keys()):
        one, other = (repr(own[label]) if label in own else "no class" for own in called)
        if one != other:
            return f"label {label} is {one} in {names[0]} and {other} in {names[1]}"
    if first.special != second.special:  # such as two orders of the same regions
        return f"regions are {first.special} in {names[0]} and {second.special} in {names[1]}"
    return None


def scheme_problems(scheme: LabelScheme) -> list[str]:
    """Return what is wrong with a scheme's ignore label, regions and order. Labels are numbered as in training."""
    problems = []
    if scheme.ignore is not None and scheme.ignore < max(scheme.names, default=0):
        labels = sorted(scheme.file_names)
        problems.append(f"label {scheme.ignore} is called {IGNORE!r}: the highest of {labels} expected, as in nnU-Net")
    if not scheme.regions:
        unused = f"regions_class_order is {list(scheme.order)}: none expected where no label is a region"
        return problems + [unused] * bool(scheme.order)
    foreground = sorted(set(scheme.names) - {0})
    problems += region_problems(scheme.regions, foreground)
    first: dict[frozenset[int], str] = {}
    for name, united in scheme.regions.items():
        if first.setdefault(frozenset(united), name) != name:
            problems.append(f"region {name!r} unites the same labels as {first[frozenset(united)]!r}: others expected")
    if len(scheme.order) != len(scheme.regions):
        problems.append(
            f"regions_class_order is {list(scheme.order)}: one label for each region expected, in the order of "
            f"{list(scheme.regions)}"
        )
        return problems
    return problems + [
        f"regions_class_order writes region {name!r} as label {label}: one of its own, {list(united)}, expected"
        for (name, united), label in zip(scheme.regions.items(), scheme.order, strict=True)
        if label not in united
    ]


def region_problems(regions: Mapping[str, Sequence[int]], classes: Sequence[int]) -> list[str]:
    """Return what is wrong with regions of these classes, which exclude the background."""
    return [
        f"region {region!r} unites {list(united)}: labels out of {sorted(classes)} expected"
        for region, united in regions.items()
        if not united or not set(united) <= set(classes)
    ]


def lossy_labels(scheme: LabelScheme) -> dict[int, int]:
    """Return label -> label that it is written as, if the two lie in different regions.

    A perfect network would be scored wrong there.
    """
    found = {}
    for label in scheme.names:
        written = 0
        for united, target in zip(scheme.regions.values(), scheme.order, strict=True):
            written = target if label in united else written
        if any((label in united) != (written in united) for united in scheme.regions.values()):
            found[label] = written
    return found
