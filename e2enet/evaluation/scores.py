"""Score a case per class and region, with a policy for missing structures, and summarise all cases.

A mean that drops undefined scores improves when a network misses organs. Hence this policy:

| prediction | reference | Dice | NSD | HD95                 | counted as           |
|------------|-----------|------|-----|----------------------|----------------------|
| present    | present   | as computed              ||| scored               |
| empty      | present   | 0    | 0   | image diagonal in mm | scored, and missed   |
| present    | empty     | 0    | 0   | image diagonal in mm | scored, and invented |
| empty      | empty     | NaN  | NaN | NaN                  | absent: left out     |

A region is several classes united, such as BraTS' whole tumour. Regions are scored like classes, in addition to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.table import Table

from e2enet.data.formats.scheme import class_key
from e2enet.evaluation import metrics

Outcome = Literal["scored", "missed", "invented", "absent"]
METRICS = ("dice", "nsd", "hd95")


@dataclass(frozen=True)
class Score:
    """Scores of a class in a case: Dice and NSD in [0, 1], HD95 in mm; all NaN if `outcome` is absent.

    `label` is the class's value, or the name of a region.
    """

    case: str
    label: int | str
    dice: float
    nsd: float
    hd95: float
    outcome: Outcome


def score_case(
    case: str,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    labels: Iterable[int],
    *,
    regions: Mapping[str, Sequence[int]] | None = None,
    nsd_tolerance: float = 1.0,
    ignore: int | None = None,
) -> list[Score]:
    """Score each class but background (0), then each region, of two label maps (D, H, W) of one shape.

    `spacing` is in mm in the order of the arrays' axes, `nsd_tolerance` in mm; `regions` are {name: labels}. Voxels
    whose reference is `ignore` are background in both (`drop_ignored`).
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"{case}: label maps differ in shape: prediction {prediction.shape}, reference {reference.shape}"
        )
    prediction, reference = drop_ignored(prediction, reference, ignore)
    scores = []
    for label in labels:
        if label != 0:
            values = _score_masks(prediction == label, reference == label, spacing, nsd_tolerance)
            scores.append(Score(case, label, *values))
    for name, united in (regions or {}).items():
        masks = np.isin(prediction, list(united)), np.isin(reference, list(united))
        scores.append(Score(case, name, *_score_masks(*masks, spacing, nsd_tolerance)))
    return scores


def drop_ignored(prediction: np.ndarray, reference: np.ndarray, ignore: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return both label maps with 0 wherever the reference is `ignore`; the same arrays if no voxel is.

    Predictions in ignored voxels then count neither for nor against. A structure that reaches into them is cut off
    there in both maps. If both maps hold it at the cut, their surfaces agree there.
    """
    ignored = reference == ignore if ignore is not None else np.zeros((), bool)
    if not ignored.any():
        return prediction, reference
    return np.where(ignored, prediction.dtype.type(0), prediction), np.where(
        ignored, reference.dtype.type(0), reference
    )


def summarise(
    scores: Sequence[Score],
    labels: Mapping[int, str],
    regions: Mapping[str, Sequence[int]] | None = None,
    *,
    trained: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the content of summary.json: mean, standard deviation and counts per class and region, overall means.

    `n` is the number of cases in which the class counts (scored, missed or invented). Undefined numbers are None. The
    overall mean is over classes only, since regions repeat their voxels. Without `regions` that key is absent.
    Regions that a network was trained on (`trained`) replace the classes; their keys are their labels, "1+2".
    """
    classes = {str(label): {"name": name, **_statistics(scores, label)} for label, name in labels.items() if label != 0}
    if trained:
        classes = {
            class_key(united): {"name": name, "labels": list(united), **_statistics(scores, name)}
            for name, united in trained.items()
        }
    means = {metric: [entry[metric] for entry in classes.values()] for metric in METRICS}
    summary = {
        "n_cases": len({score.case for score in scores}),
        "mean": {metric: _mean([mean for mean in means[metric] if mean is not None]) for metric in METRICS},
        "classes": classes,
    }
    if regions:
        summary["regions"] = {
            name: {"labels": list(united), **_statistics(scores, name)} for name, united in regions.items()
        }
    return summary


def scores_table(summary: Mapping[str, Any], *, title: str = "Scores") -> Table:
    """Return a rich table of a summary (as in summary.json): a row per class, their mean, a row per region."""
    classes = list(summary["classes"].values())
    table = Table(title=f"{title} ({summary['n_cases']} cases)")
    table.add_column("class")
    for column in ("Dice", "NSD", "HD95 (mm)", "cases", "missed", "invented"):
        table.add_column(column, justify="right")
    for label, entry in summary["classes"].items():
        table.add_row(f"{label} {entry['name']}", *_scores(entry), *_counts(entry))
    table.add_section()
    missed, invented = (str(sum(entry.get(key, 0) for entry in classes)) for key in ("missed", "invented"))
    table.add_row("mean of classes", *_scores(summary["mean"]), "", missed, invented, style="bold")
    table.add_section()
    for name, entry in summary.get("regions", {}).items():
        united = ", ".join(str(label) for label in entry["labels"])
        table.add_row(f"{name} ({united})", *_scores(entry), *_counts(entry))
    return table


def _score_masks(
    predicted: np.ndarray, true: np.ndarray, spacing: Sequence[float], nsd_tolerance: float
) -> tuple[float, float, float, Outcome]:
    """Dice, NSD, HD95 and outcome of two bool masks, by the policy above."""
    outcome = _outcome(bool(predicted.any()), bool(true.any()))
    if outcome == "absent":
        return math.nan, math.nan, math.nan, outcome
    if outcome != "scored":
        diagonal = math.hypot(*(size * step for size, step in zip(true.shape, spacing, strict=True)))
        return 0.0, 0.0, diagonal, outcome
    predicted, true = metrics.crop_to_union(predicted, true)
    distances = metrics.surface_distances(predicted, true, spacing)
    return metrics.dice(predicted, true), distances.nsd(nsd_tolerance), distances.hd95(), outcome


def _statistics(scores: Sequence[Score], label: int | str) -> dict[str, Any]:
    """Means, counts and standard deviations of one class or region over the cases."""
    own = [score for score in scores if score.label == label]
    counted = [score for score in own if score.outcome != "absent"]
    columns = {metric: [getattr(score, metric) for score in counted] for metric in METRICS}
    return {
        **{metric: _mean(values) for metric, values in columns.items()},
        "n": len(counted),
        "absent": len(own) - len(counted),
        "missed": sum(score.outcome == "missed" for score in own),
        "invented": sum(score.outcome == "invented" for score in own),
        "sd": {metric: _standard_deviation(values) for metric, values in columns.items()},
    }


def _outcome(predicted: bool, true: bool) -> Outcome:
    if predicted and true:
        return "scored"
    if true:
        return "missed"
    return "invented" if predicted else "absent"


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _standard_deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _counts(entry: Mapping[str, Any]) -> list[str]:
    return [str(entry.get(key, "-")) for key in ("n", "missed", "invented")]


def _scores(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return _number(entry["dice"], 4), _number(entry["nsd"], 4), _number(entry["hd95"], 2)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
