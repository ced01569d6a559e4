"""Raw datasets by their layout on disk: scanned, which collects what is wrong, or read, which raises it.

Everything is checked here before any voxel is read: every listed file exists, no case comes twice, labels are
0..K-1. `scan_*` adds what is wrong to a list and gives what can be read; `read_*` raises all of it at once.
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
    """What `scan` gives where it finds no error; else one InputError with all of them."""
    problems: list[Problem] = []
    with naming_unreadable(folder):
        dataset = scan(problems)
    raise_errors(problems, f"{folder}: the dataset cannot be used")
    return dataset
