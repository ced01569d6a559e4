"""Where a raw dataset comes from: its folder, its layout, and the config's settings for it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from e2enet.common.files import naming_unreadable
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.grid import Unit
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.layout import read_or_raise
from e2enet.data.formats.problems import Problem, dataset_error
from e2enet.data.layouts.layout import Layout


@dataclass(frozen=True)
class DataSource:
    """Where a raw dataset comes from.

    Attributes:
        folder: The dataset's folder.
        layout: How the folder is read.
        table: The config's label settings.
        exclude: Ids of cases to leave out, together with their problems.
        unit: Unit of length in all files. None takes the unit of each header.
    """

    folder: Path
    layout: Layout
    table: LabelTable = field(default_factory=LabelTable)
    exclude: tuple[str, ...] = ()
    unit: Unit | None = None

    @property
    def prepared_name(self) -> str:
        """Folder name of the prepared cases. Each way to read the same raw folder has its own."""
        return f"{self.folder.name}{self.layout.prepared_suffix}" + (f"_in_{self.unit}" if self.unit else "")

    def create(self) -> None:
        """Write the raw dataset if the layout can."""
        self.layout.create(self.folder)

    def scan(self, problems: list[Problem]) -> RawDataset:
        """Read the dataset without its voxels, and append errors and warnings to `problems`.

        Raise InputError if nothing can be read.
        """
        with naming_unreadable(self.folder):
            dataset = self.layout.scan(self.folder, problems, self.table)
        return without_cases(_in_unit(dataset, self.unit), self.exclude, problems)

    def read(self) -> RawDataset:
        """Return the dataset; raise InputError listing all errors that `scan` finds."""
        return read_or_raise(self.scan, self.folder)


def _in_unit(dataset: RawDataset, unit: Unit | None) -> RawDataset:
    parts = (dataset.training, dataset.validation, dataset.test)
    training, validation, test = (tuple(replace(case, unit=unit) for case in cases) for cases in parts)
    return replace(dataset, training=training, validation=validation, test=test)


def without_cases(dataset: RawDataset, exclude: Sequence[str], problems: list[Problem]) -> RawDataset:
    """Return the dataset without the cases in `exclude`, and remove their problems from `problems`.

    Append a problem for each id that no case has, with the most similar id, and one if no training case is left.
    """
    if not exclude:
        return dataset
    parts = (dataset.training, dataset.validation, dataset.test)
    known = {case.id for cases in parts for case in cases}
    known |= {problem.case for problem in problems if problem.case is not None}
    problems[:] = [problem for problem in problems if problem.case not in exclude]
    for name in exclude:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            text = f"data.exclude names {name}, no case of the dataset" + (
                f"; did you mean {close[0]}?" if close else ""
            )
            problems.append(dataset_error(text, dataset.folder))
    training, validation, test = (tuple(case for case in cases if case.id not in exclude) for cases in parts)
    if dataset.training and not training:
        problems.append(dataset_error("data.exclude leaves no training case, at least one expected", dataset.folder))
    only_trained = dataset.only_trained.difference(exclude)
    ids = tuple(exclude)
    return replace(
        dataset, training=training, validation=validation, test=test, only_trained=only_trained, excluded=ids
    )
