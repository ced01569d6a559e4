"""Read raw datasets by their layout on disk, with problems either collected (scan) or raised (read).

Before any voxel is read, it is checked that every listed file exists, no case comes twice and labels are 0..K-1.
`scan_*` appends problems to a list and returns what can be read. `read_*` raises all errors at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from e2enet.common.files import naming_unreadable
from e2enet.data.formats.amos import Modality, scan_amos
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.json_layouts import scan_msd, scan_nnunet
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem, raise_errors

__all__ = [
    "Case",
    "LabelTable",
    "RawDataset",
    "read_amos",
    "read_msd",
    "read_nnunet",
    "read_or_raise",
    "scan_amos",
    "scan_msd",
    "scan_nnunet",
]


def read_msd(folder: str | Path, table: LabelTable | None = None) -> RawDataset:
    """Read a Medical Segmentation Decathlon folder; InputError listing every problem. See `scan_msd`."""
    return read_or_raise(lambda problems: scan_msd(folder, problems, table), folder)


def read_nnunet(folder: str | Path, table: LabelTable | None = None) -> RawDataset:
    """Read an nnU-Net raw folder; InputError listing every problem. See `scan_nnunet`."""
    return read_or_raise(lambda problems: scan_nnunet(folder, problems, table), folder)


def read_amos(folder: str | Path, table: LabelTable | None = None, *, modality: Modality = "CT") -> RawDataset:
    """Read one modality of an AMOS22 folder; InputError listing every problem. See `scan_amos`."""
    return read_or_raise(lambda problems: scan_amos(folder, problems, table, modality=modality), folder)


def read_or_raise(scan: Callable[[list[Problem]], RawDataset], folder: str | Path) -> RawDataset:
    """Return the result of `scan`; raise one InputError with all errors that it finds."""
    problems: list[Problem] = []
    with naming_unreadable(folder):
        dataset = scan(problems)
    raise_errors(problems, f"{folder}: the dataset cannot be used")
    return dataset
