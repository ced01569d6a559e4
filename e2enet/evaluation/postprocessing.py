"""For which classes keeping the largest component helps: chosen on cases that the model was not trained on.

The rule: a class is kept to its largest component where that raises its mean Dice over the cases, be it by little.
Removed voxels become background, so that no class changes another's Dice, and each is decided by itself. On the cases
that decide, no class's mean is ever worse for it; that of a region (several classes united) can be. nnU-Net's idea
(Isensee et al. 2021); its first step, one component for all classes together, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from rich.table import Table

from e2enet.common.console import track
from e2enet.common.files import atomic_path
from e2enet.data.formats.nifti import without_history
from e2enet.evaluation.folder import Pairs
from e2enet.evaluation.images import read_label_image
from e2enet.inference.postprocess import CONNECTIVITY, keep_largest

RULE = (
    f"the largest {CONNECTIVITY}-connected component of a class is kept (all that are equally large) where that raised "
    "the class's mean Dice over the out-of-fold cases"
)


@dataclass(frozen=True)
class ClassChoice:
    """What keeping the largest component does to one class.

    `dice_before` and `dice_after` are means over the `n` cases in which the class is predicted or referenced (NaN where
    there is none), `n_changed` the cases that lose voxels.
    """

    label: int
    name: str
    dice_before: float
    dice_after: float
    n: int
    n_changed: int

    @property
    def keep_largest(self) -> bool:
        """Whether the rule chooses this class."""
        return self.dice_after > self.dice_before


def choose_classes(
    pairs: Pairs, names: Mapping[int, str], *, label_map: Mapping[int, int] | None = None
) -> list[ClassChoice]:
    """Compare every class but background (0) with and without its smaller components, over all cases.

    Args:
        pairs: {case: (prediction, reference)} on the same grid, as `score_files` checks them.
        names: The classes {label: name}.
        label_map: Value in the references -> label.
    """
    labels = [label for label in names if label != 0]
    before, after, changed = [], [], []
    for prediction_path, reference_path in track(pairs.values(), "Comparing components", total=len(pairs)):
        prediction = read_label_image(prediction_path).array
        reference = read_label_image(reference_path, label_map).array
        kept = keep_largest(prediction, labels)
        before.append(dice_of_classes(prediction, reference, labels))
        after.append(dice_of_classes(kept, reference, labels))
        changed.append(_counts(prediction, labels) != _counts(kept, labels))
    return [
        ClassChoice(
            label,
            names[label],
            _mean([dice[index] for dice in before]),
            _mean([dice[index] for dice in after]),
            n=sum(not np.isnan(dice[index]) for dice in before),
            n_changed=sum(bool(case[index]) for case in changed),
        )
        for index, label in enumerate(labels)
    ]


def dice_of_classes(prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Dice of each label, 0 where only one image has it, NaN where none has: the policy of `scores.py`."""
    sizes = _counts(prediction, labels) + _counts(reference, labels)
    overlap = _counts(prediction[prediction == reference], labels)
    with np.errstate(invalid="ignore"):
        return 2 * overlap / sizes


def write_postprocessed(source: Path, target: Path, classes: Sequence[int]) -> None:
    """Write a label image with the classes kept to their largest component; grid, units and type stay."""
    image = nib.load(source)
    assert isinstance(image, nib.Nifti1Image)
    labels = np.asanyarray(image.dataobj)
    with atomic_path(target) as temporary:
        nib.save(image.__class__(keep_largest(labels, classes), image.affine, without_history(image.header)), temporary)


def choice_content(choices: Sequence[ClassChoice]) -> dict[str, Any]:
    """The part of postprocessing.json that the choice decides, Dice before and after included."""
    chosen = [choice for choice in choices if choice.keep_largest]
    final = [choice.dice_after if choice.keep_largest else choice.dice_before for choice in choices]
    return {
        "rule": RULE,
        "keep_largest": [choice.label for choice in chosen],
        "mean_dice": {
            "before": _number(_mean([choice.dice_before for choice in choices])),
            "after": _number(_mean(final)),
        },
        "classes": {
            str(choice.label): {
                "name": choice.name,
                "keep_largest": choice.keep_largest,
                "dice_before": _number(choice.dice_before),
                "dice_after": _number(choice.dice_after),
                "n": choice.n,
                "n_changed": choice.n_changed,
            }
            for choice in choices
        },
    }


def choice_table(choices: Sequence[ClassChoice]) -> Table:
    """A row per class: Dice as predicted, with the largest component alone, and whether it is kept so."""
    table = Table(title="Largest component per class")
    table.add_column("class")
    for column in ("Dice", "largest only", "cases", "changed", "chosen"):
        table.add_column(column, justify="right")
    for choice in choices:
        dice = [f"{value:.5f}" for value in (choice.dice_before, choice.dice_after)]
        counts = [str(choice.n), str(choice.n_changed)]
        table.add_row(f"{choice.label} {choice.name}", *dice, *counts, "yes" if choice.keep_largest else "no")
    return table


def _counts(array: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Voxels of each label; predictions and references hold small whole numbers from 0."""
    return np.bincount(array.ravel(), minlength=max(labels) + 1)[list(labels)]


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
