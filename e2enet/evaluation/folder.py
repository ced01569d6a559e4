"""Score a folder of predictions against a folder of references; write scores.csv and summary.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e2enet.common.console import track
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import write_csv, write_json
from e2enet.evaluation.images import find_label_images, grid_problems, read_label_map, voxel_spacing
from e2enet.evaluation.labels import read_class_names
from e2enet.evaluation.scores import METRICS, Score, score_case, summarise

Pairs = Mapping[str, tuple[Path, Path]]


def score_folder(
    predictions: str | Path,
    labels: str | Path,
    *,
    names: Mapping[int, str] | None = None,
    nsd_tolerance: float = 1.0,
) -> tuple[list[Score], dict[str, Any], list[str]]:
    """Scores per case and class, their summary (as in summary.json), and warnings.

    Files are paired by name. `names` are the classes {value: name}; without them they come from the
    dataset.json in or above `labels`, else from the values in the references. A prediction without a reference
    is a warning, a reference without a prediction an InputError; for the rest see `score_files`.
    """
    predictions, labels = Path(predictions), Path(labels)
    heading = f"the predictions in {predictions} cannot be scored against {labels}:"
    pairs, problems, warnings = _pair_files(predictions, labels)
    raise_problems([*problems, *_grid_problems(pairs)], heading)
    if names is None:
        names = read_class_names(labels)
    if names is None:
        names = _names_found(labels, [reference for _, reference in pairs.values()])
        warnings.append(f"no dataset.json names the classes: scored are the references' values {list(names)}")
    if not set(names) - {0}:
        raise InputError(f"{labels}: no class to score, only background (0)")
    scores, summary = _score_pairs(pairs, names, nsd_tolerance, heading)
    return scores, summary, warnings


def score_files(
    pairs: Pairs, names: Mapping[int, str], *, nsd_tolerance: float = 1.0
) -> tuple[list[Score], dict[str, Any]]:
    """Scores per case and class of {case: (prediction, reference)}, and their summary (as in summary.json).

    `names` are the classes {value: name}; 0 is left out. `nsd_tolerance` is in mm.

    Raises:
        InputError: listing every pair whose grids (shape, affine) differ, every unreadable file and every value that
            is no class.
    """
    heading = "these predictions cannot be scored:"
    raise_problems(_grid_problems(pairs), heading)
    return _score_pairs(pairs, names, nsd_tolerance, heading)


def write_scores(folder: str | Path, scores: Sequence[Score], summary: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write scores.csv (a row per case and class, undefined scores empty) and summary.json; their paths."""
    folder = Path(folder)
    names = {int(label): entry["name"] for label, entry in summary["classes"].items()}
    rows = []
    for score in scores:
        row = asdict(score)
        values = {metric: "" if math.isnan(row[metric]) else row[metric] for metric in METRICS}
        rows.append(
            {
                "case": score.case,
                "class": score.label,
                "name": names[score.label],
                **values,
                "outcome": score.outcome,
            }
        )
    scores_path, summary_path = folder / "scores.csv", folder / "summary.json"
    write_csv(scores_path, rows, ("case", "class", "name", *METRICS, "outcome"))
    write_json(summary_path, summary)
    return scores_path, summary_path


def _score_pairs(
    pairs: Pairs, names: Mapping[int, str], nsd_tolerance: float, heading: str
) -> tuple[list[Score], dict[str, Any]]:
    if not (math.isfinite(nsd_tolerance) and nsd_tolerance >= 0):
        raise InputError(f"NSD tolerance {nsd_tolerance}: expected a number of mm >= 0")
    names = {label: name for label, name in names.items() if label != 0}
    scores: list[Score] = []
    problems: list[str] = []
    for case, (prediction_path, reference_path) in track(pairs.items(), "Scoring cases", total=len(pairs)):
        try:
            prediction, reference = read_label_map(prediction_path), read_label_map(reference_path)
        except InputError as error:
            problems.append(str(error))
            continue
        for path, label_map in ((prediction_path, prediction), (reference_path, reference)):
            strange = sorted(label_map.values - {0, *names})
            if strange:
                expected = [0, *names]
                problems.append(f"{path}: holds the values {strange}, which are no classes; expected {expected}")
        # Once the result is lost, the other files are still checked, but nothing slow is computed.
        if not problems:
            spacing = voxel_spacing(reference_path)
            scores += score_case(case, prediction.array, reference.array, spacing, names, nsd_tolerance=nsd_tolerance)
    raise_problems(problems, heading)
    summary = summarise(scores, names)
    summary["nsd_tolerance_mm"] = nsd_tolerance
    return scores, summary


def _grid_problems(pairs: Pairs) -> list[str]:
    return [problem for case, pair in pairs.items() for problem in grid_problems(case, *pair)]


def _pair_files(predictions: Path, labels: Path) -> tuple[dict[str, tuple[Path, Path]], list[str], list[str]]:
    """{case: (prediction, reference)} of all references, problems, and warnings."""
    problems: list[str] = []
    predicted = find_label_images(predictions, problems)
    references = find_label_images(labels, problems)
    if not references and not problems:
        problems.append(f"{labels}: holds no label image")
    pairs = {}
    for case, reference in references.items():
        if case not in predicted:
            problems.append(f"{case}: no prediction for {reference}")
            continue
        pairs[case] = (predicted[case], reference)
    extra = sorted(predicted.keys() - references.keys())
    return pairs, problems, [f"{predicted[case]}: has no reference and is not scored" for case in extra]


def _names_found(labels: Path, references: Sequence[Path]) -> dict[int, str]:
    """The values other than 0 in all references, named by themselves."""
    problems: list[str] = []
    values: set[int] = set()
    for path in track(references, "Looking for classes in the references"):
        try:
            values |= read_label_map(path).values
        except InputError as error:
            problems.append(str(error))
    raise_problems(problems, f"the references in {labels} cannot be used:")
    return {value: str(value) for value in sorted(values - {0})}
