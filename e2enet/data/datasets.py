"""One Lightning data module per kind of dataset: the same machinery behind another source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from e2enet.data.datamodule import DataOptions, SegmentationDataModule
from e2enet.data.sources import MSDSource, NNUNetSource, PhantomSource
from e2enet.data.synthetic.phantom import phantom_settings


class MSDDataModule(SegmentationDataModule):
    """A dataset in Medical Segmentation Decathlon layout at `root/name`."""

    def __init__(
        self, *, name: str, root: str | Path, prepared_root: str | Path, **options: Unpack[DataOptions]
    ) -> None:
        super().__init__(MSDSource(Path(root) / name), prepared_root=prepared_root, **options)


class NNUNetDataModule(SegmentationDataModule):
    """A dataset in nnU-Net raw layout at `root/name`."""

    def __init__(
        self, *, name: str, root: str | Path, prepared_root: str | Path, **options: Unpack[DataOptions]
    ) -> None:
        super().__init__(NNUNetSource(Path(root) / name), prepared_root=prepared_root, **options)


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
