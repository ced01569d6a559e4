"""One Lightning data module per kind of dataset: the same machinery behind another source.

All but the phantom lie at `root/name` and take what their files do not say of their labels: `labels` (label ->
name, background included), `label_map` (value in the files -> label) and `regions` (name -> labels united).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

from e2enet.common.errors import InputError
from e2enet.data.cases.sources import FolderSource, PhantomSource
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.formats.amos import Modality
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.layout import scan_amos, scan_brats, scan_btcv, scan_msd, scan_nnunet
from e2enet.data.options import DataOptions
from e2enet.data.synthetic.phantom import phantom_settings

Names = Mapping[int, str] | None
LabelMap = Mapping[int, int] | None
Regions = Mapping[str, Sequence[int]] | None


class MSDDataModule(SegmentationDataModule):
    """A dataset in Medical Segmentation Decathlon layout."""

    def __init__(
        self,
        *,
        name: str,
        root: str | Path,
        prepared_root: str | Path,
        labels: Names = None,
        label_map: LabelMap = None,
        regions: Regions = None,
        **options: Unpack[DataOptions],
    ) -> None:
        scan = partial(scan_msd, table=label_table(labels, label_map, regions))
        super().__init__(FolderSource(Path(root) / name, scan), prepared_root=prepared_root, **options)


class NNUNetDataModule(SegmentationDataModule):
    """A dataset in nnU-Net raw layout."""

    def __init__(
        self,
        *,
        name: str,
        root: str | Path,
        prepared_root: str | Path,
        labels: Names = None,
        label_map: LabelMap = None,
        regions: Regions = None,
        **options: Unpack[DataOptions],
    ) -> None:
        scan = partial(scan_nnunet, table=label_table(labels, label_map, regions))
        super().__init__(FolderSource(Path(root) / name, scan), prepared_root=prepared_root, **options)


class AMOSDataModule(SegmentationDataModule):
    """AMOS22 as downloaded; `modality` picks its CT or its MRI cases, or both to train on, validated on MRI."""

    def __init__(
        self,
        *,
        name: str,
        root: str | Path,
        prepared_root: str | Path,
        modality: Modality,
        labels: Names = None,
        label_map: LabelMap = None,
        regions: Regions = None,
        **options: Unpack[DataOptions],
    ) -> None:
        scan = partial(scan_amos, table=label_table(labels, label_map, regions), modality=modality)
        source = FolderSource(Path(root) / name, scan, prepared_suffix=f"_{modality.lower()}")
        super().__init__(source, prepared_root=prepared_root, **options)


class BTCVDataModule(SegmentationDataModule):
    """BTCV as downloaded; it has no dataset.json, so `labels` must name its organs."""

    def __init__(
        self,
        *,
        name: str,
        root: str | Path,
        prepared_root: str | Path,
        labels: Names,
        label_map: LabelMap = None,
        regions: Regions = None,
        **options: Unpack[DataOptions],
    ) -> None:
        scan = partial(scan_btcv, table=label_table(labels, label_map, regions))
        super().__init__(FolderSource(Path(root) / name, scan), prepared_root=prepared_root, **options)


class BraTSDataModule(SegmentationDataModule):
    """BraTS: the Decathlon's Task01 (`layout="msd"`), or a folder per case as of 2020 and 2021 (`"cases"`)."""

    def __init__(
        self,
        *,
        name: str,
        root: str | Path,
        prepared_root: str | Path,
        layout: Literal["msd", "cases"],
        labels: Names,
        label_map: LabelMap = None,
        regions: Regions = None,
        **options: Unpack[DataOptions],
    ) -> None:
        layouts = {"msd": scan_msd, "cases": scan_brats}
        if layout not in layouts:
            raise InputError(f"layout={layout!r}: {' | '.join(layouts)} expected")
        scan = partial(layouts[layout], table=label_table(labels, label_map, regions))
        super().__init__(FolderSource(Path(root) / name, scan), prepared_root=prepared_root, **options)


class PhantomDataModule(SegmentationDataModule):
    """The phantom, generated at `root/name_<hash>`; its parameters are those of `write_phantom`.

    `phantom_seed` decides the phantom; `seed`, as everywhere, the samples drawn from it.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        prepared_root: str | Path,
        name: str = "phantom",
        num_train: int = 20,
        num_test: int = 4,
        shape: Sequence[int] = (64, 64, 24),
        spacing: Sequence[float] = (1.0, 1.0, 3.0),
        phantom_seed: int = 0,
        **options: Unpack[DataOptions],
    ) -> None:
        settings = phantom_settings(
            num_train=num_train, num_test=num_test, shape=shape, spacing=spacing, seed=phantom_seed
        )
        super().__init__(PhantomSource(Path(root), name, settings), prepared_root=prepared_root, **options)


def label_table(names: Names, label_map: LabelMap, regions: Regions) -> LabelTable:
    """The three sections of a config as one table, their numbers as integers."""
    return LabelTable(
        None if names is None else {int(label): str(name) for label, name in names.items()},
        {int(value): int(label) for value, label in (label_map or {}).items()},
        {str(name): tuple(int(label) for label in labels) for name, labels in (regions or {}).items()},
    )
