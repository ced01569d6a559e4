"""Raw datasets by their layout on disk: scanned, which collects what is wrong, or read, which raises it.

Everything is checked here before any voxel is read: every listed file exists, no case comes twice, labels are
0..K-1. `scan_*` adds what is wrong to a list and gives what can be read; `read_*` raises all of it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from e2enet.common.files import naming_unreadable
from e2enet.data.formats.amos import Modality, scan_amos
from e2enet.data.formats.brats import MODALITIES, find_case_folders, holds_case, read_case_folders, scan_brats
from e2enet.data.formats.btcv import scan_btcv
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.json_layouts import scan_msd, scan_nnunet
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.naming import Case, find_named_cases, readable
from e2enet.data.formats.problems import Problem, raise_errors

__all__ = [
    "Case",
    "LabelTable",
    "RawDataset",
    "find_cases",
    "read_amos",
    "read_brats",
    "read_btcv",
    "read_msd",
    "read_nnunet",
    "read_or_raise",
    "scan_amos",
    "scan_brats",
    "scan_btcv",
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


def read_btcv(folder: str | Path, table: LabelTable) -> RawDataset:
    """Read a BTCV folder; InputError listing every problem. See `scan_btcv`."""
    return read_or_raise(lambda problems: scan_btcv(folder, problems, table), folder)


def read_brats(folder: str | Path, table: LabelTable) -> RawDataset:
    """Read a folder of BraTS cases; InputError listing every problem. See `scan_brats`."""
    return read_or_raise(lambda problems: scan_brats(folder, problems, table), folder)


def find_cases(
    source: str | Path,
    num_channels: int,
    file_ending: str = ".nii.gz",
    problems: list[Problem] | None = None,
    numbered_ids: bool = False,
) -> list[Case]:
    """Cases to predict, sorted by id: images in a folder, one image, or folders of BraTS cases.

    Images are told apart by name (`naming.find_named_cases`). InputError naming what is missing; a list of `problems`
    takes what is wrong with single cases instead, as long as there is a case without.
    """
    folder = Path(source)
    with naming_unreadable(folder):
        folders = find_case_folders(folder) if num_channels == len(MODALITIES) and folder.is_dir() else []
        folders = [folder] if num_channels == len(MODALITIES) and holds_case(folder) else folders
        if not any(map(holds_case, folders)):
            return find_named_cases(source, num_channels, file_ending, problems, numbered_ids)
        found: list[Problem] = []
        cases = readable(read_case_folders(folder, folders, found), found)
    if problems is None or not cases:
        raise_errors(found, f"{source}: these cases cannot be predicted")
    if problems is not None:
        problems += found
    return cases


def read_or_raise(scan: Callable[[list[Problem]], RawDataset], folder: str | Path) -> RawDataset:
    """What `scan` gives where it finds no error; else one InputError with all of them."""
    problems: list[Problem] = []
    with naming_unreadable(folder):
        dataset = scan(problems)
    raise_errors(problems, f"{folder}: the dataset cannot be used")
    return dataset
