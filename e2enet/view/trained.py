"""The runs that made predictions: their datasets, and whether the labels of two mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2enet.common.errors import InputError
from e2enet.data.formats.description import read_class_names
from e2enet.data.formats.labels import LabelTable, resolve_labels
from e2enet.data.formats.scheme import scheme_difference
from e2enet.runs.folders import CONFIG_FILE, read_config
from e2enet.view.meaning import Meaning

if TYPE_CHECKING:
    from e2enet.data.formats.dataset import RawDataset
    from e2enet.data.formats.naming import Case

# Keys of a config's data section that decide what labels mean.
DECISIVE = ("name", "labels", "label_map", "regions_class_order")


@dataclass(frozen=True)
class Run:
    """A run: its name, the data section of its config, and its dataset, or why that cannot be read here."""

    folder: Path
    name: str
    data: Mapping[str, Any]
    dataset: RawDataset | None
    problem: str

    @property
    def table(self) -> LabelTable:
        """The config's settings for labels."""
        return LabelTable.of_config(*map(self.data.get, ("labels", "label_map", "regions", "regions_class_order")))

    @property
    def cases(self) -> dict[str, Case]:
        """The cases of the dataset by id."""
        found = self.dataset
        return {} if found is None else {one.id: one for one in (*found.training, *found.validation, *found.test)}


def run_of(folders: Mapping[Path, str]) -> Run | None:
    """Return the run that made the predictions, of two the first whose dataset is here; None if there is none.

    Two runs share the page's classes, and a case its reference.

    Args:
        folders: Folder of a run -> its name.

    Raises:
        InputError: the labels of two runs mean different things.
    """
    runs = [_read_run(folder, name) for folder, name in folders.items()]
    if len(runs) == 2:
        first, second = runs
        found = _difference(first, second)
        if found is not None:
            raise InputError(
                f"{first.name} and {second.name} cannot be shown side by side: {found}; "
                "expected runs whose labels mean the same"
            )
    return next((run for run in runs if run.dataset is not None), runs[0] if runs else None)


def _difference(first: Run, second: Run) -> str | None:
    if first.dataset is not None and second.dataset is not None:
        return scheme_difference(first.dataset.scheme, second.dataset.scheme, (first.name, second.name))
    for key in DECISIVE:
        one, other = first.data.get(key), second.data.get(key)
        if one != other:
            problem = first.problem or second.problem
            return f"data.{key} is {one} in {first.name} and {other} in {second.name} ({problem})"
    return None


def _read_run(folder: Path, name: str) -> Run:
    from e2enet.data.command import dataset_of_run

    config = read_config(folder)
    try:
        dataset, problem = dataset_of_run(config, folder / CONFIG_FILE), ""
    except InputError as error:  # it may lie on another machine
        dataset, problem = None, str(error)
    return Run(folder, name, config.get("data") or {}, dataset, problem)


def named_otherwise(meaning: Meaning, table: LabelTable, labels: Path | None, run: str) -> list[str]:
    """Return a warning if the dataset.json of given references, read by the run's table, has other labels."""
    found = None if labels is None else read_class_names(labels)
    if found is None:
        return []
    other = scheme_difference(meaning.scheme, resolve_labels(found, table, []), (run, str(labels)))
    return [] if other is None else [f"{other}; the names and numbers of {run} are shown"]
