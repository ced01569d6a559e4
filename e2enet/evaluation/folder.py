"""Score a folder of predictions against a folder of references; write scores.csv and summary.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from e2enet.common.console import track
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import write_csv, write_json
from e2enet.data.formats.description import read_class_names
from e2enet.data.formats.grid import Unit
from e2enet.data.formats.labels import map_scheme
from e2enet.data.formats.problems import few_of_each
from e2enet.data.formats.scheme import LabelScheme, class_key, region_problems, scheme_problems
from e2enet.evaluation.images import LabelImage, grid_problems, read_label_image, voxel_spacing, warn_of_spacings
from e2enet.evaluation.pairing import DEFAULT_NAMES, pair_files
from e2enet.evaluation.scores import METRICS, Score, drop_ignored, score_case, summarise

Pairs = Mapping[str, tuple[Path, Path]]
Regions = Mapping[str, Sequence[int]]


def score_folder(
    predictions: str | Path,
    labels: str | Path,
    *,
    names: Mapping[int, str] | LabelScheme | None = None,
    nsd_tolerance: float = 1.0,
    label_map: Mapping[int, int] | None = None,
    regions: Regions | None = None,
    ignore: int | None = None,
    unit: Unit | None = None,
    prediction_names: str = DEFAULT_NAMES,
    label_names: str = DEFAULT_NAMES,
) -> tuple[list[Score], dict[str, Any], list[str]]:
    """Score a folder; return scores per case and class, their summary (as in summary.json), and warnings.

    Files are paired by name (see `pairing`). `names` are the classes {label: name}, or a `LabelScheme`. Without `names`
    the classes come from the dataset.json in or above `labels`, else from the values in the references, in both cases
    renumbered by `label_map`. `ignore` is the label of voxels left out of every score, if no dataset.json names one.
    `unit` is the length unit of the references' files; None: as each header says. A prediction without a reference is
    a warning. A reference without a prediction raises InputError, as does another label in `ignore` than the one that
    is called ignore in dataset.json. For the rest see `score_files`.
    """
    predictions, labels = Path(predictions), Path(labels)
    heading = f"the predictions in {predictions} cannot be scored against {labels}:"
    pairs, problems, warnings = pair_files(
        predictions, labels, prediction_names=prediction_names, label_names=label_names
    )
    raise_problems(few_of_each([*problems, *_grid_problems(pairs, unit)]), heading)
    warnings += warn_of_spacings(pairs, unit)
    label_map = label_map or {}
    if names is None:
        named = read_class_names(labels)
        names = None if named is None else map_scheme(named, label_map)
    if names is None:
        names = _names_found(labels, [reference for _, reference in pairs.values()], label_map)
        warnings.append(f"no dataset.json names the classes: scored are the references' values {list(names)}")
    scheme = _as_scheme(names)
    if ignore is not None:
        if scheme.ignore not in (None, ignore):
            raise InputError(
                f"{labels}: dataset.json calls {scheme.ignore} ignore, and --ignore is {ignore}: the same label, or no "
                "--ignore, expected"
            )
        kept = {label: name for label, name in scheme.names.items() if label != ignore}
        scheme = replace(scheme, names=kept, ignore=ignore)
    if not set(scheme.names) - {0}:
        raise InputError(f"{labels}: no class to score, only background (0)")
    scores, summary = _score_pairs(pairs, scheme, _Options(nsd_tolerance, label_map, regions or {}, unit), heading)
    return scores, summary, warnings


def score_files(
    pairs: Pairs,
    names: Mapping[int, str] | LabelScheme,
    *,
    nsd_tolerance: float = 1.0,
    label_map: Mapping[int, int] | None = None,
    regions: Regions | None = None,
    unit: Unit | None = None,
) -> tuple[list[Score], dict[str, Any]]:
    """Score {case: (prediction, reference)}; return scores per case and class, and their summary (summary.json).

    Args:
        pairs: Files by case; predictions use the label numbers of training.
        names: The classes {label: name}; 0 is left out. Or a `LabelScheme`: then voxels with the ignore label in the
            reference are left out of every score, and trained regions replace the classes.
        nsd_tolerance: In mm.
        label_map: Value in the references -> label; predictions are not renumbered.
        regions: {name: labels}, scored beside the classes.
        unit: Length unit of the references' files: "m", "mm" or "um"; None: as each header says.

    Raises:
        InputError: lists every pair whose grids (shape, affine) differ, every unreadable file, every value that is
            not a class, and every region with a label that is not a class.
    """
    heading = "these predictions cannot be scored:"
    raise_problems(few_of_each(_grid_problems(pairs, unit)), heading)
    options = _Options(nsd_tolerance, label_map or {}, regions or {}, unit)
    return _score_pairs(pairs, _as_scheme(names), options, heading)


def write_scores(folder: str | Path, scores: Sequence[Score], summary: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write scores.csv (a row per case and class or region, undefined scores empty) and summary.json; return paths.

    The class in a region's row is the region's labels, such as "1+2+3".
    """
    folder = Path(folder)
    named: dict[int | str, tuple[str, str]] = {
        entry["name"] if "labels" in entry else int(label): (label, entry["name"])
        for label, entry in summary["classes"].items()
    }
    named |= {name: (class_key(entry["labels"]), name) for name, entry in summary.get("regions", {}).items()}
    rows = []
    for score in scores:
        row = asdict(score)
        values = {metric: "" if math.isnan(row[metric]) else row[metric] for metric in METRICS}
        label, name = named[score.label]
        rows.append({"case": score.case, "class": label, "name": name, **values, "outcome": score.outcome})
    scores_path, summary_path = folder / "scores.csv", folder / "summary.json"
    write_csv(scores_path, rows, ("case", "class", "name", *METRICS, "outcome"))
    write_json(summary_path, summary)
    return scores_path, summary_path


def _score_pairs(
    pairs: Pairs, scheme: LabelScheme, options: _Options, heading: str
) -> tuple[list[Score], dict[str, Any]]:
    names = {label: name for label, name in scheme.names.items() if label != 0}
    raise_problems([*scheme_problems(scheme), *options.problems(names)], heading)
    scores: list[Score] = []
    problems: list[str] = []
    for case, (prediction_path, reference_path) in track(pairs.items(), "Scoring cases", total=len(pairs)):
        try:
            prediction, reference = _read_pair(prediction_path, reference_path, options.label_map, scheme)
        except InputError as error:
            problems.append(str(error))
            continue
        for path, image in ((prediction_path, prediction), (reference_path, reference)):
            strange = sorted(image.values - {0, *names})
            if strange:
                expected = [0, *names]
                problems.append(f"{path}: holds the values {strange}, which are no classes; expected {expected}")
        # After the first problem the other files are still checked, but nothing slow is computed.
        if not problems:
            scores += score_case(
                case,
                prediction.array,
                reference.array,
                voxel_spacing(reference_path, options.unit),
                () if scheme.regions else names,
                regions={**scheme.regions, **options.regions},
                nsd_tolerance=options.nsd_tolerance,
            )
    raise_problems(few_of_each(problems), heading)
    summary = summarise(scores, names, options.regions, trained=scheme.regions)
    summary["nsd_tolerance_mm"] = options.nsd_tolerance
    return scores, summary


def _read_pair(
    prediction_path: Path, reference_path: Path, label_map: Mapping[int, int], scheme: LabelScheme
) -> tuple[LabelImage, LabelImage]:
    """Read prediction and reference; ignored voxels become background in both, whatever was predicted there."""
    images = read_label_image(prediction_path), read_label_image(reference_path, label_map)
    if scheme.ignore not in images[1].values:
        return images
    prediction, reference = drop_ignored(images[0].array, images[1].array, scheme.ignore)
    return LabelImage.of(prediction), LabelImage.of(reference)


def _as_scheme(names: Mapping[int, str] | LabelScheme) -> LabelScheme:
    return names if isinstance(names, LabelScheme) else LabelScheme(dict(names))


@dataclass(frozen=True)
class _Options:
    """The options of `score_files` beside files and names."""

    nsd_tolerance: float
    label_map: Mapping[int, int]
    regions: Regions
    unit: Unit | None

    def problems(self, names: Mapping[int, str]) -> list[str]:
        found = []
        if not (math.isfinite(self.nsd_tolerance) and self.nsd_tolerance >= 0):
            found.append(f"NSD tolerance {self.nsd_tolerance}: expected a number of mm >= 0")
        return found + region_problems(self.regions, sorted(names))


def _grid_problems(pairs: Pairs, unit: Unit | None) -> list[str]:
    return [problem for case, pair in pairs.items() for problem in grid_problems(case, *pair, unit)]


def _names_found(labels: Path, references: Sequence[Path], label_map: Mapping[int, int]) -> dict[int, str]:
    """Return the labels other than 0 in all references; each number is also the name."""
    problems: list[str] = []
    values: set[int] = set()
    for path in track(references, "Looking for classes in the references"):
        try:
            values |= read_label_image(path, label_map).values
        except InputError as error:
            problems.append(str(error))
    raise_problems(few_of_each(problems), f"the references in {labels} cannot be used:")
    return {value: str(value) for value in sorted(values - {0})}
