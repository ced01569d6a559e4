"""Where raw datasets come from: folders that a user brings, in two layouts, and the generated phantom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from e2enet.data.formats.layout import RawDataset, read_msd, read_nnunet
from e2enet.data.synthetic.phantom import phantom_folder_name, write_phantom


class DataSource(Protocol):
    """Where a raw dataset comes from."""

    @property
    def folder(self) -> Path:
        """The dataset's folder; its name also names the folder of prepared cases."""

    def create(self) -> None:
        """Make the raw dataset where that is possible; nothing for data that a user brings."""

    def read(self) -> RawDataset:
        """Read and check dataset.json."""


@dataclass(frozen=True)
class MSDSource:
    """A folder that the user brings, read as Medical Segmentation Decathlon."""

    folder: Path

    def create(self) -> None:
        """Nothing: the data must be there."""

    def read(self) -> RawDataset:
        """See `layout.read_msd`."""
        return read_msd(self.folder)


@dataclass(frozen=True)
class NNUNetSource:
    """A folder that the user brings, read as nnU-Net raw data."""

    folder: Path

    def create(self) -> None:
        """Nothing: the data must be there."""

    def read(self) -> RawDataset:
        """See `layout.read_nnunet`."""
        return read_nnunet(self.folder)


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

    def create(self) -> None:
        """Write the phantom unless it is there."""
        parameters = {key: value for key, value in self.settings.items() if key != "version"}
        write_phantom(self.folder, **parameters)

    def read(self) -> RawDataset:
        """The phantom is in Decathlon layout."""
        return read_msd(self.folder)
