"""Where raw datasets come from: folders that a user brings, in one of several layouts, and the generated phantom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from e2enet.common.files import naming_unreadable
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.layout import read_or_raise, scan_msd
from e2enet.data.formats.problems import Problem
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
    """

    folder: Path
    scan_folder: Scan
    prepared_suffix: str = ""

    @property
    def prepared_name(self) -> str:
        """The folder's own name, with the suffix."""
        return f"{self.folder.name}{self.prepared_suffix}"

    def create(self) -> None:
        """Nothing: the data must be there."""

    def scan(self, problems: list[Problem]) -> RawDataset:
        """What the layout's reader finds in the folder."""
        with naming_unreadable(self.folder):
            return self.scan_folder(self.folder, problems)

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

    @property
    def folder(self) -> Path:
        """Folder of exactly this phantom."""
        return self.root / phantom_folder_name(self.name, self.settings)

    @property
    def prepared_name(self) -> str:
        """The folder's name, hash included."""
        return self.folder.name

    def create(self) -> None:
        """Write the phantom unless it is there."""
        parameters = {key: value for key, value in self.settings.items() if key != "version"}
        write_phantom(self.folder, **parameters)

    def scan(self, problems: list[Problem]) -> RawDataset:
        """The phantom is in Decathlon layout."""
        return scan_msd(self.folder, problems)

    def read(self) -> RawDataset:
        """The phantom is in Decathlon layout."""
        return read_or_raise(self.scan, self.folder)
