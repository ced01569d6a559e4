"""Where a prediction differs from its reference, and the Dice of classes and regions, from one pass over the voxels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from e2enet.data.formats.scheme import LabelScheme, class_key

# Values of a difference map; 0 is agreement.
MISSED, EXTRA, CONFUSED = 1, 2, 3
DIFFERENCES = {MISSED: "missed", EXTRA: "extra", CONFUSED: "another class"}


@dataclass(frozen=True, eq=False)
class Agreement:
    """A prediction compared with its reference.

    Attributes:
        difference: uint8, of the shape of the label maps. MISSED: labelled in the reference alone. EXTRA: in the
            prediction alone. CONFUSED: in both, as different classes. Where regions are learned, labels of the same
            regions are no difference. Ignored voxels are none either.
        dice: Key -> Dice, None for what is in neither map; keys are labels ("1") or those of a region ("1+2").
        mean: The mean of what was learned (classes, or regions if there are any); None if all is absent. A missed or
            an invented class counts 0, as in all scores.
    """

    difference: np.ndarray
    dice: dict[str, float | None]
    mean: float | None


def compare_labels(
    prediction: np.ndarray,
    reference: np.ndarray,
    scheme: LabelScheme,
    regions: Mapping[str, Sequence[int]] | None = None,
) -> Agreement:
    """Compare two label maps of one shape (any number of axes); `regions` are scored beside the classes."""
    values = np.union1d(np.unique(prediction), np.unique(reference))
    index = np.zeros(int(values[-1]) + 1, dtype=np.intp)
    index[values] = np.arange(len(values))
    codes = _difference_codes(values, scheme)
    counts = np.zeros(len(values) ** 2, dtype=np.int64)
    difference = np.empty(prediction.shape, dtype=np.uint8)
    # Plane by plane: the pairs of a whole CT would take eight bytes per voxel.
    for plane, predicted, true in zip(difference, prediction, reference, strict=True):
        pairs = index[predicted] * len(values) + index[true]
        counts += np.bincount(pairs.ravel(), minlength=len(counts))
        plane[...] = codes[pairs]
    table = counts.reshape(len(values), len(values))
    if scheme.ignore is not None:
        table = table[:, values != scheme.ignore]
    predicted_values, true_values = values, values[values != (-1 if scheme.ignore is None else scheme.ignore)]
    learned = {class_key(united): united for united in scheme.regions.values()} or {
        str(label): (label,) for label in sorted(scheme.names) if label != 0
    }
    further = {class_key(united): united for united in (regions or {}).values()}
    dice = {
        key: _dice(table, np.isin(predicted_values, united), np.isin(true_values, united))
        for key, united in {**learned, **further}.items()
    }
    counted = [score for key in learned if (score := dice[key]) is not None]
    return Agreement(difference, dice, math.fsum(counted) / len(counted) if counted else None)


def _difference_codes(values: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """Return the value of the difference map for each pair, at index (predicted * len(values) + true)."""
    meanings = [_meaning(int(value), scheme) for value in values]
    codes = np.zeros((len(values), len(values)), dtype=np.uint8)
    for row, predicted in enumerate(meanings):
        for column, true in enumerate(meanings):
            if values[column] == scheme.ignore or predicted == true:
                continue
            codes[row, column] = MISSED if not predicted else EXTRA if not true else CONFUSED
    return codes.ravel()


def _meaning(label: int, scheme: LabelScheme) -> frozenset[str | int]:
    """Return what a label says about a voxel: its regions, or itself; nothing for background."""
    if label in (0, scheme.ignore):
        return frozenset()
    if scheme.regions and label in scheme.names:
        return frozenset(name for name, united in scheme.regions.items() if label in united)
    return frozenset({label})


def _dice(table: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> float | None:
    """Return the Dice of united labels from counts of voxels (predicted value, true value); None if both are empty."""
    total = int(table[predicted].sum() + table[:, true].sum())
    return None if total == 0 else 2 * int(table[np.ix_(predicted, true)].sum()) / total
