"""Choose the classes for which keeping the largest component helps, on cases that the model was not trained on.

The rule: a class keeps only its largest component if that raises its mean Dice over the cases, however little. Removed
voxels become background, so no class changes another's Dice, and each class is decided separately. On these cases the
rule never lowers the mean of a class; it can lower the mean of a region (several classes united). Trained regions are
also tried one at a time. A voxel removed from one region is lost to the regions within and around it too. The idea is
nnU-Net's (Isensee et al. 2021); its first step, one component for all classes together, is left out.
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
from e2enet.data.formats.itk import write_itk
from e2enet.data.formats.listing import ITK_ENDINGS
from e2enet.data.formats.nifti import without_history
from e2enet.data.formats.opening import open_image
from e2enet.data.formats.scheme import LabelScheme
from e2enet.evaluation.folder import Pairs
from e2enet.evaluation.images import read_label_image
from e2enet.inference.largest_component import CONNECTIVITY, ClassLabels, as_stored, classes_of, keep_largest

RULE = (
    f"the largest {CONNECTIVITY}-connected component of a class is kept (all that are equally large) where that raised "
    "the class's mean Dice over the out-of-fold cases"
)


@dataclass(frozen=True)
class ComponentDecision:
    """The effect of keeping the largest component of one class.

    `dice_before` and `dice_after` are means over the `n` cases in which the class is predicted or referenced (NaN if
    there is none). `n_changed` counts the cases that lose voxels.
    """

    label: ClassLabels
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
    pairs: Pairs, names: Mapping[int, str] | LabelScheme, *, label_map: Mapping[int, int] | None = None
) -> list[ComponentDecision]:
    """Compare each class but background (0), or each trained region, with and without its smaller components.

    Components are those of the whole prediction, but ignored voxels do not count in the Dice.

    Args:
        pairs: {case: (prediction, reference)} on the same grid, as `score_files` checks them.
        names: The classes {label: name}, or a `LabelScheme`.
        label_map: Value in the references -> label.
    """
    scheme = names if isinstance(names, LabelScheme) else LabelScheme(dict(names))
    classes = classes_of(scheme)
    rows = []
    for prediction_path, reference_path in track(pairs.values(), "Comparing components", total=len(pairs)):
        prediction = read_label_image(prediction_path).array
        reference = read_label_image(reference_path, label_map).array
        # Regions overlap and may lose voxels of each other, so each is tried separately.
        alone = [[label] for label in classes] if scheme.regions else [list(classes)]
        rows.append(np.concatenate([_compare(prediction, reference, tried, scheme.ignore) for tried in alone], axis=1))
    before, after, changed = np.stack(rows, axis=1) if rows else np.empty((3, 0, len(classes)))
    return [
        ComponentDecision(
            label,
            name,
            _mean(before[:, index]),
            _mean(after[:, index]),
            n=int(np.count_nonzero(~np.isnan(before[:, index]))),
            n_changed=int(changed[:, index].sum()),
        )
        for index, (label, name) in enumerate(classes.items())
    ]


def _compare(
    prediction: np.ndarray, reference: np.ndarray, classes: Sequence[ClassLabels], ignore: int | None
) -> np.ndarray:
    """Return (3, classes): Dice as predicted, Dice of the largest components, and whether voxels were removed."""
    kept = keep_largest(prediction, classes)
    changed = _counts(prediction, classes) != _counts(kept, classes)
    if ignore is not None:
        known = reference != ignore
        prediction, kept, reference = prediction[known], kept[known], reference[known]
    dice = [dice_of_classes(labels, reference, classes) for labels in (prediction, kept)]
    return np.stack([*dice, changed])


def dice_of_classes(prediction: np.ndarray, reference: np.ndarray, classes: Sequence[ClassLabels]) -> np.ndarray:
    """Return Dice of each label or region: 0 if only one image has it, NaN if neither has (see `scores.py`)."""
    sizes = _counts(prediction, classes) + _counts(reference, classes)
    overlap = _counts(prediction[prediction == reference], classes)
    for index, region in enumerate(classes):
        if not isinstance(region, int):  # labels within a region may be confused
            overlap[index] = np.count_nonzero(np.isin(prediction, region) & np.isin(reference, region))
    with np.errstate(invalid="ignore"):
        return 2 * overlap / sizes


def write_postprocessed(source: Path, target: Path, classes: Sequence[ClassLabels]) -> None:
    """Write a label image with only the largest component of the classes; grid, units and type stay the same."""
    if source.name.endswith(ITK_ENDINGS):
        stored = open_image(source)
        write_itk(target, keep_largest(stored.read_values(), classes), stored.affine)
        return
    image = nib.load(source)
    assert isinstance(image, nib.Nifti1Image)
    labels = np.asanyarray(image.dataobj)
    with atomic_path(target) as temporary:
        nib.save(image.__class__(keep_largest(labels, classes), image.affine, without_history(image.header)), temporary)


def choice_content(choices: Sequence[ComponentDecision]) -> dict[str, Any]:
    """Return the part of postprocessing.json that depends on the choice, with Dice before and after."""
    chosen = [choice for choice in choices if choice.keep_largest]
    final = [choice.dice_after if choice.keep_largest else choice.dice_before for choice in choices]
    return {
        "rule": RULE,
        "keep_largest": [as_stored(choice.label) for choice in chosen],
        "mean_dice": {
            "before": _number(_mean([choice.dice_before for choice in choices])),
            "after": _number(_mean(final)),
        },
        "classes": {
            str(as_stored(choice.label)): {
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


def choice_table(choices: Sequence[ComponentDecision]) -> Table:
    """Return a table with a row per class: Dice as predicted, Dice of the largest component alone, the choice."""
    table = Table(title="Largest component per class")
    table.add_column("class")
    for column in ("Dice", "largest only", "cases", "changed", "chosen"):
        table.add_column(column, justify="right")
    for choice in choices:
        dice = [f"{value:.5f}" for value in (choice.dice_before, choice.dice_after)]
        counts = [str(choice.n), str(choice.n_changed)]
        table.add_row(
            f"{as_stored(choice.label)} {choice.name}", *dice, *counts, "yes" if choice.keep_largest else "no"
        )
    return table


def _counts(array: np.ndarray, classes: Sequence[ClassLabels]) -> np.ndarray:
    """Count the voxels of each label or region. Predictions and references hold small whole numbers from 0."""
    united = [[region] if isinstance(region, int) else list(region) for region in classes]
    counts = np.bincount(array.ravel(), minlength=max(map(max, united)) + 1)
    return np.array([counts[region].sum() for region in united])


def _mean(values: Sequence[float] | np.ndarray) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
