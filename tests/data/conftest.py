"""A tiny raw dataset that tests break in one way or another, and small prepared cases."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.data.cases.sources import DataSource
from e2enet.data.checking.run import Report, check_dataset
from e2enet.data.layouts.described import MSDLayout
from e2enet.data.preparation.foreground import sample_coordinates
from e2enet.data.preparation.store import PreparedCase

AFFINE = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1]])  # LPS, slices of 3 mm
SHAPE = (8, 9, 6)


@dataclass
class Toy:
    """A sound Decathlon dataset of six training cases a..f and one test case t; labels 1 liver, 2 spleen."""

    folder: Path
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        for case in "abcdef":
            self.write_image(case)
            self.write_label(case)
        self.write_image("t", part="Ts")
        self.describe()

    def image(self, case: str, part: str = "Tr") -> Path:
        return self.folder / f"images{part}" / f"{case}.nii.gz"

    def label(self, case: str) -> Path:
        return self.folder / "labelsTr" / f"{case}.nii.gz"

    def write_image(
        self,
        case: str,
        array: np.ndarray | None = None,
        affine: np.ndarray = AFFINE,
        shape: tuple[int, ...] = SHAPE,
        part: str = "Tr",
    ) -> Path:
        array = self.rng.integers(-1000, 1000, shape, dtype=np.int16) if array is None else array
        return save(self.image(case, part), array, affine)

    def write_label(
        self,
        case: str,
        array: np.ndarray | None = None,
        affine: np.ndarray = AFFINE,
        shape: tuple[int, ...] = SHAPE,
    ) -> Path:
        if array is None:
            array = np.zeros(shape, np.uint8)
            array[1:4, 1:4], array[5:7, 5:7] = 1, 2
        return save(self.label(case), array, affine)

    def describe(self, **changes: Any) -> None:
        training = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "abcdef"]
        content = {
            "name": "Toy",
            "modality": {"0": "CT"},
            "labels": {"0": "background", "1": "liver", "2": "spleen"},
            "training": training,
            "test": ["./imagesTs/t.nii.gz"],
        }
        (self.folder / "dataset.json").write_text(json.dumps(content | changes))

    def check(self, num_workers: int = 0) -> Report:
        return check_dataset(DataSource(self.folder, MSDLayout()), num_workers)

    def problems(self) -> list[tuple[str | None, str, str, str | None]]:
        """Return the problems of the check as (case, severity, problem, file relative to the folder)."""
        return [
            (one.case, one.severity, one.problem, one.file and str(Path(one.file).relative_to(self.folder)))
            for one in self.check().problems
        ]

    def state(self) -> dict[str, bytes]:
        """Return the bytes of every file below the folder's parent."""
        root = self.folder.parent
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    yield Toy(tmp_path / "raw" / "toy")


def make_case(folder: Path, name: str = "a", shape: Sequence[int] = (7, 12, 13), channels: int = 1) -> PreparedCase:
    """Make a case whose voxel values are their flat index. Class 1 is a corner voxel, class 2 a block inside."""
    d, h, w = shape
    image = np.stack([np.arange(d * h * w, dtype=np.float32).reshape(shape)] * channels)
    label = np.zeros(shape, np.uint8)
    label[0, 0, 0] = 1
    label[d // 2 - 1 : d // 2 + 1, h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1] = 2
    paths = folder / f"{name}.image.npy", folder / f"{name}.label.npy"
    for path, array in zip(paths, (image, label), strict=True):
        np.save(path, array)
    coordinates = {str(value): rows for value, rows in sample_coordinates(label).items()}
    np.savez(folder / f"{name}.foreground.npz", **coordinates)  # type: ignore[arg-type]
    return PreparedCase(name, *paths, shape=(d, h, w))
