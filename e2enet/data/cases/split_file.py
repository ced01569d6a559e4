"""Split files: nnU-Net's splits_final.json, and the split.json that each run writes.

nnU-Net's file is a list of any number of folds. Each fold is {"train": [ids], "val": [ids]}.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import read_json, write_json

NNUNET_FILE = "splits_final.json"
PREPROCESSED = "nnUNet_preprocessed"  # the environment variable of nnU-Net
RUN_FILE = "split.json"


@dataclass(frozen=True)
class RunSplit:
    """The split that a run was trained with: ids by use, and the number of folds."""

    folds: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def is_split_file(rule: object) -> bool:
    """Whether `data.split` names a file."""
    return isinstance(rule, str) and rule.endswith(".json")


def find_split_file(name: str, folder: Path) -> Path:
    """Find the file that `data.split` names, for the dataset in `folder`.

    Search beside dataset.json, in the dataset's folder of nnU-Net's preprocessed data, then relative to the working
    directory. Raise InputError listing these places if none has the file.
    """
    name, preprocessed = os.path.expanduser(name), os.environ.get(PREPROCESSED)
    places = [folder / name, *([Path(preprocessed) / folder.name / name] if preprocessed else []), Path(name)]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise InputError(f"data.split={name}: no such file; looked for {looked}")


def read_split_file(path: Path) -> list[tuple[list[str], list[str]]]:
    """Return the training and validation ids of each fold in file order; raise InputError for other content."""
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise InputError(f'{path}: a list of folds expected, {{"train": [ids], "val": [ids]}} each')
    problems = [
        f'fold {number}: {{"train": [ids], "val": [ids]}} with at least one id each expected'
        for number, fold in enumerate(content)
        if not isinstance(fold, Mapping) or not all(_is_ids(fold.get(part)) for part in ("train", "val"))
    ]
    raise_problems(problems, f"{path}: cannot be used as a split:")
    return [(list(fold["train"]), list(fold["val"])) for fold in content]


def write_run_split(run_folder: Path, split: RunSplit) -> None:
    """Write a run's split beside its config, since the dataset and the split file may change later."""
    write_json(run_folder / RUN_FILE, vars(split))


def read_run_split(run_folder: Path) -> RunSplit | None:
    """Read the split of a run. Return None if the run wrote none; raise InputError if the file is something else."""
    path = run_folder / RUN_FILE
    if not path.is_file():
        return None
    content: Any = read_json(path)
    parts = ("train", "validation", "test")
    known = isinstance(content, dict) and all(_is_ids(content.get(part), least=0) for part in parts)
    if not known or not isinstance(content.get("folds"), int):
        raise InputError(f"{path}: not the split of a run")
    return RunSplit(content["folds"], *(tuple(content[part]) for part in parts))


def _is_ids(value: Any, least: int = 1) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) >= least
        and all(isinstance(name, str) for name in value)
    )
