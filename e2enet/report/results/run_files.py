"""Read the files of one run folder for the report: metrics, progress and scores, also while the run trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from e2enet.common.errors import InputError
from e2enet.common.files import read_json
from e2enet.runs.folders import SUMMARY_FILE

METRICS_FILE = "metrics.csv"
SCORES_FILE = "scores.csv"
METRICS = ("dice", "nsd", "hd95")
# The score that chooses best.ckpt: of whole cases if the run validates them, else of patches.
WHOLE_CASES, PATCHES = "val_full/dice", "val/dice"


@dataclass(frozen=True)
class Progress:
    """Epochs done, epochs in all, and the best validation scores so far; NaN if unknown.

    `best` is the score that chooses best.ckpt. If that is of whole cases it comes late; `best_patches` is known after
    the first epoch.
    """

    epoch: float = math.nan
    epochs: float = math.nan
    best: float = math.nan
    best_patches: float = math.nan


def read_metrics(path: Path) -> pd.DataFrame:
    """Read a metrics.csv; return an empty table if it does not exist yet or its first line is being written."""
    try:
        return pd.read_csv(path)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame()
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of comma-separated values ({error})") from error


def read_record(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a JSON file that a run writes, such as summary.json; InputError if it lacks one of the keys."""
    content = read_json(path)
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; not written by this program?")
    return content


def read_progress(folder: Path, config: Mapping[str, Any] | None) -> Progress:
    """Read how far a run is from its metrics.csv; `config` is its config.yaml, None if it was never started."""
    if config is None:
        return Progress()
    training = config.get("training", {})
    metrics = read_metrics(folder / METRICS_FILE)
    # An epoch's loss is written when it ends; lines about single steps come before.
    done = metrics.loc[metrics["train/loss"].notna(), "epoch"] if "train/loss" in metrics else metrics.get("epoch", [])
    score = WHOLE_CASES if training.get("validate_full") else PATCHES
    return Progress(
        epoch=float(max(done, default=-1)) + 1 if "train/loss" in metrics else 0.0,
        epochs=float(training.get("epochs", math.nan)),
        best=_largest(metrics, score),
        best_patches=_largest(metrics, PATCHES),
    )


def read_scores(folder: Path) -> pd.DataFrame:
    """Read scores.csv, a line per case and class or region: case, class, name, dice, nsd, hd95, outcome, region.

    `class` is text; that of a region is its labels, such as "1+2". summary.json tells classes and regions apart.

    Raises:
        InputError: a column is missing, a score is not a number, or a class is not in summary.json.
    """
    path = folder / SCORES_FILE
    texts = ("case", "class", "name", "outcome")
    try:
        # As text: a case named "NA" or "007" keeps its name.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of scores ({error})") from error
    missing = [name for name in (*texts, *METRICS) if name not in table]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}")
    try:
        table = table.replace({name: {"": "nan"} for name in METRICS}).astype(dict.fromkeys(METRICS, float))
    except ValueError as error:
        raise InputError(f"{path}: a score is no number ({error})") from error
    summary = read_record(folder / SUMMARY_FILE, ("mean", "classes"))
    classes = {(label, entry["name"]) for label, entry in summary["classes"].items()}
    regions = {("+".join(map(str, entry["labels"])), name) for name, entry in summary.get("regions", {}).items()}
    named = list(zip(table["class"], table["name"], strict=True))
    unknown = sorted(set(named) - classes - regions)
    if unknown:
        raise InputError(f"{path}: scores {unknown}, which are no classes of {folder / SUMMARY_FILE}")
    table["region"] = [pair not in classes for pair in named]
    # A region with the name and labels of a class has its scores twice.
    return table.drop_duplicates(["case", "class", "name"], ignore_index=True)


def _largest(metrics: pd.DataFrame, column: str) -> float:
    return float(metrics[column].max()) if column in metrics else math.nan
