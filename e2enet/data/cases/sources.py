"""Where raw datasets come from: folders that a user brings, in one of several layouts, and the generated phantom."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from e2enet.common.files import naming_unreadable
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.layout import read_or_raise, scan_msd
from e2enet.data.formats.problems import Problem, dataset_error
from e2enet.data.synthetic.phantom import phantom_folder_name, write_phantom

Scan = Callable[[Path, list[Problem]], RawDataset]


class DataSource(Protocol):
    """Where a raw dataset comes from."""

    @property
    def folder(self) -> Path:
        """The dataset's folder."""

    @property
    def prepared_name(self) -> str:
        """Name of the folder of prepared cases; sources that read a folder differently give different names."""

    def excluding(self, ids: Sequence[str]) -> DataSource:
        """The same source without the cases of these ids."""

    def create(self) -> None:
        """Make the raw dataset where that is possible; nothing for data that a user brings."""

    def scan(self, problems: list[Problem]) -> RawDataset:
        """Read what can be read, before any voxel, and add to `problems` what is wrong.

        InputError where there is nothing to read at all.
        """

    def read(self) -> RawDataset:
        """The dataset; InputError with all errors that `scan` finds."""


@dataclass(frozen=True)
class FolderSource:
    """A folder that the user brings.

    Attributes:
        folder: The dataset's folder.
        scan_folder: The reader of its layout, of `formats.layout`, with its options filled in.
        prepared_suffix: Told apart by this where several datasets are read from one folder (AMOS: CT and MRI).
        exclude: Ids of cases that are left out, with whatever is wrong with them.
    """

    folder: Path
    scan_folder: Scan
    prepared_suffix: str = ""
    exclude: tuple[str, ...] = ()

    @property
    def prepared_name(self) -> str:
        """The folder's own name, with the suffix."""
        return f"{self.folder.name}{self.prepared_suffix}"

    def excluding(self, ids: Sequence[str]) -> FolderSource:
        """The same folder without the cases of these ids."""
        return replace(self, exclude=tuple(ids))

    def create(self) -> None:
        """Nothing: the data must be there."""

    def scan(self, problems: list[Problem]) -> RawDataset:
        """What the layout's reader finds in the folder."""
        with naming_unreadable(self.folder):
            return without_cases(self.scan_folder(self.folder, problems), self.exclude, problems)

    def read(self) -> RawDataset:
        """The same, raising all errors at once."""
        return read_or_raise(self.scan, self.folder)


@dataclass(frozen=True)
class PhantomSource:
    """A phantom under `root`, whose folder name carries its parameters' hash: changed parameters give
    another folder.
    """

    root: Path
    name: str
    settings: dict[str, Any] = field(hash=False)
    exclude: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of exactly this phantom."""
        return self.root / phantom_folder_name(self.name, self.settings)

    @property
    def prepared_name(self) -> str:
        """The folder's name, hash included."""
        return self.folder.name

    def excluding(self, ids: Sequence[str]) -> PhantomSource:
        """The same phantom without the cases of these ids."""
        return replace(self, exclude=tuple(ids))

    def create(self) -> None:
        """Write the phantom unless it is there."""
        parameters = {key: value for key, value in self.settings.items() if key != "version"}
        write_phantom(self.folder, **parameters)

    def scan(self, problems: list[Problem]) -> RawDataset:
        """The phantom is in Decathlon layout."""
        return without_cases(scan_msd(self.folder, problems), self.exclude, problems)

    def read(self) -> RawDataset:
        """The phantom is in Decathlon layout."""
        return read_or_raise(self.scan, self.folder)


def without_cases(dataset: RawDataset, exclude: Sequence[str], problems: list[Problem]) -> RawDataset:
    """The dataset without the cases of these ids, and `problems` without theirs.

    Adds to `problems`: an id that is no case's, with the nearest that is one, and that no training case is left.
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
