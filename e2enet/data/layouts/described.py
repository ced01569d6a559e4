"""Layouts whose dataset.json lists the cases or says how their files are named."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from e2enet.common.errors import InputError
from e2enet.data.formats.amos import Modality, scan_amos
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.json_layouts import scan_msd, scan_nnunet
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.problems import Problem
from e2enet.data.layouts.layout import Layout


class MSDLayout(Layout):
    """A folder in the layout of the Medical Segmentation Decathlon."""

    def scan(self, folder: Path, problems: list[Problem], table: LabelTable) -> RawDataset:
        """See `scan_msd`."""
        return scan_msd(folder, problems, table)


class NNUNetLayout(Layout):
    """A folder in nnU-Net's raw layout."""

    def scan(self, folder: Path, problems: list[Problem], table: LabelTable) -> RawDataset:
        """See `scan_nnunet`."""
        return scan_nnunet(folder, problems, table)


class AMOSLayout(Layout):
    """AMOS22 as downloaded.

    `modality` selects the CT or the MRI cases. "both" trains on CT and MRI and validates on MRI.
    """

    def __init__(self, modality: Modality) -> None:
        if modality not in get_args(Modality):
            raise InputError(f"modality={modality!r}: one of {', '.join(get_args(Modality))} expected")
        self.modality: Modality = modality

    def scan(self, folder: Path, problems: list[Problem], table: LabelTable) -> RawDataset:
        """See `scan_amos`."""
        return scan_amos(folder, problems, table, modality=self.modality)

    @property
    def prepared_suffix(self) -> str:
        """The modality, since CT and MRI share one folder."""
        return f"_{self.modality.lower()}"
