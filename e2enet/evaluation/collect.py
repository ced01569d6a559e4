"""Collect the validation predictions of all folds of a configuration: each case once, with its reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from e2enet.common.errors import InputError, raise_problems
from e2enet.data.cases.split_file import read_run_split
from e2enet.data.cases.splits import split_dataset
from e2enet.data.formats.layout import RawDataset
from e2enet.data.formats.scheme import LabelScheme
from e2enet.evaluation.folder import Pairs
from e2enet.evaluation.pairing import find_label_images
from e2enet.inference.finished import file_digest
from e2enet.inference.folds import FoldRuns
from e2enet.inference.largest_component import BEST
from e2enet.runs.folders import SweepJob, read_config

NAMED = 5  # cases that a message lists


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of cases by networks that did not train on them; the choice of the best epoch did see them.

    Attributes:
        pairs: {case: (prediction, reference)}, sorted by case.
        folds: {case: the fold that validates it}.
        scheme: The dataset's labels, regions and ignore label.
        scoring: Keyword arguments of `score_files`: nsd_tolerance, label_map, regions, unit.
        origin: What postprocessing.json records about these runs: experiment, row, seed, data, runs, n_cases, and the
            digests of their best checkpoints.
    """

    pairs: Pairs
    folds: dict[str, int]
    scheme: LabelScheme
    scoring: dict[str, Any]
    origin: dict[str, Any]


def collect_cases(folds: FoldRuns, *, data_root: Path | None = None) -> OutOfFold:
    """Find prediction and reference of every validation case of the folds.

    Args:
        folds: Finished runs of one configuration and one seed, one per fold (`find_folds`).
        data_root: Parent folder of the raw dataset; None: the one in the runs' config.

    Raises:
        InputError: a run has fold=all, which validates on its training cases; the dataset is missing; or cases have
            no prediction, several, or one by a fold that does not validate them. The message names the cases.
    """
    if any(job.fold == "all" for job in folds.jobs):
        raise InputError(f"{folds.sweep}: fold=all validates on its training cases; expected runs of folds 0, 1, ..")
    config = read_config(folds.jobs[0].folder)
    problems: list[str] = []
    pairs: dict[str, tuple[Path, Path]] = {}
    fold_of: dict[str, int] = {}
    predicted: Counter[str] = Counter()
    dataset = _dataset(config, data_root)
    labelled = {case.id: case.label for case in (*dataset.training, *dataset.validation)}
    for job in folds.jobs:
        fold = int(job.fold)
        found = find_label_images(job.folder / "validation", problems)
        validated = _validated(job, dataset)
        gone = [case for case in validated if labelled.get(case) is None]
        problems += [f"fold {fold}: {_listed(gone)}: no labelled case of {dataset.folder}"] * bool(gone)
        references = {case: label for case in validated if (label := labelled.get(case)) is not None}
        problems += _differences(job, found, references)
        predicted.update(found.keys())
        for case in found.keys() & references.keys():
            pairs[case], fold_of[case] = (found[case], references[case]), fold
    problems += [f"{case}: predicted by {count} folds" for case, count in sorted(predicted.items()) if count > 1]
    raise_problems(problems, f"{folds.sweep}: the validation predictions of its folds are not one per case:")
    return OutOfFold(
        dict(sorted(pairs.items())),
        fold_of,
        dataset.scheme,
        {
            "nsd_tolerance": float(config["final"]["nsd_tolerance"]),
            "label_map": dataset.label_map,
            "regions": dataset.regions,
            "unit": config["data"].get("spacing_unit"),
        },
        _origin(folds, len(pairs)),
    )


def _dataset(config: dict[str, Any], data_root: Path | None) -> RawDataset:
    """Return the raw dataset of a run without reading voxels."""
    from e2enet.data.command import dataset_source  # imports Lightning, which takes seconds

    settings = OmegaConf.create(config)
    if data_root is not None:
        settings.paths.data = str(data_root)
    return dataset_source(settings).scan([])  # problems of a scored case show up in scoring


def _validated(job: SweepJob, dataset: RawDataset) -> Sequence[str]:
    """Return the ids of the cases that a run validates: from its stored split, else from its config."""
    stored = read_run_split(job.folder)
    if stored is not None:
        return stored.validation
    data = read_config(job.folder)["data"]
    split = split_dataset(dataset, data.get("split", "five_fold"), int(job.fold), data.get("group"))
    return [case.id for case in split.validation]


def _differences(job: SweepJob, found: dict[str, Path], references: dict[str, Path]) -> list[str]:
    """List the fold's validation cases without a prediction, and predictions of cases that it does not validate."""
    missing, extra = sorted(references.keys() - found.keys()), sorted(found.keys() - references.keys())
    problems = []
    if missing:
        problems.append(
            f"fold {job.fold}: no prediction of {len(missing)} of its {len(references)} validation cases, "
            f"{_listed(missing)} ({job.folder / 'validation'})"
        )
    if extra:
        problems.append(f"fold {job.fold}: predicts {_listed(extra)}, which it does not validate ({job.folder})")
    return problems


def _listed(cases: Sequence[str]) -> str:
    return ", ".join(cases[:NAMED]) + " .." * (len(cases) > NAMED)


def _origin(folds: FoldRuns, num_cases: int) -> dict[str, Any]:
    job = folds.jobs[0]
    runs = {str(run.folder.relative_to(folds.sweep)): run.folder / BEST for run in folds.jobs}
    return {
        "experiment": folds.configuration.experiment,
        "row": folds.configuration.row,
        "seed": job.seed,
        "data": job.data,
        "runs": list(runs),
        "checkpoints": {run: file_digest(file) for run, file in runs.items() if file.is_file()},
        "n_cases": num_cases,
    }
