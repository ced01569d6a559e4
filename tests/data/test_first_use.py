"""A dataset is checked at its first use and after a change, and not if nothing changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.cases.choice import CaseChoice
from e2enet.data.cases.sources import DataSource
from e2enet.data.checking import run as checking
from e2enet.data.checking.first_use import check_at_first_use
from e2enet.data.formats.layout import LabelTable
from e2enet.data.layouts.described import MSDLayout


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    """Three cases of 6 x 6 x 6 voxels in Decathlon layout."""
    folder = tmp_path / "Task00_Tiny"
    generator = np.random.default_rng(0)
    names = ["a", "b", "c"]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for name in names:
        label = np.zeros((6, 6, 6), np.uint8)
        label[2:4, 2:4, 2:4] = 1
        image = generator.normal(size=label.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labelsTr" / f"{name}.nii.gz")
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return DataSource(folder, MSDLayout())


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders in the order in which they are checked, in this process."""
    seen: list[Path] = []
    check = checking.check_dataset

    def counted(
        source: DataSource, num_workers: int | None = None, choice: CaseChoice | None = None
    ) -> checking.Report:
        seen.append(source.folder)
        return check(source, 0, choice)

    monkeypatch.setattr(checking, "check_dataset", counted)
    return seen


def test_it_is_looked_through_once(source: DataSource, checks: list[Path], tmp_path: Path) -> None:
    for _ in range(2):
        check_at_first_use(source, tmp_path / "prepared")
    assert checks == [source.folder]
    assert json.loads((tmp_path / "prepared" / "checked.json").read_text())["warnings"] == []


def test_a_changed_file_and_another_label_table_are_looked_at_again(
    source: DataSource, checks: list[Path], tmp_path: Path
) -> None:
    check_at_first_use(source, tmp_path / "prepared")
    image = source.folder / "imagesTr" / "b.nii.gz"
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    check_at_first_use(source, tmp_path / "prepared")
    assert len(checks) == 2
    renamed = LabelTable({0: "background", 1: "liver"}, {}, {})
    other = DataSource(source.folder, MSDLayout(), renamed)
    check_at_first_use(other, tmp_path / "prepared")
    assert len(checks) == 3


def test_a_changed_training_file_is_looked_at_where_a_test_case_has_its_id(
    source: DataSource, checks: list[Path], tmp_path: Path
) -> None:
    image = source.folder / "imagesTr" / "b.nii.gz"
    (source.folder / "imagesTs").mkdir()
    voxels = np.random.default_rng(1).normal(size=(6, 6, 6)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), source.folder / "imagesTs" / "b.nii.gz")
    content = json.loads((source.folder / "dataset.json").read_text())
    (source.folder / "dataset.json").write_text(json.dumps(content | {"test": ["./imagesTs/b.nii.gz"]}))
    for number in (1, 2):
        check_at_first_use(source, tmp_path / "prepared")
        check_at_first_use(source, tmp_path / "prepared")
        assert len(checks) == number
        os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))


def test_every_error_is_told_and_nothing_remembered(source: DataSource, checks: list[Path], tmp_path: Path) -> None:
    image = source.folder / "imagesTr" / "a.nii.gz"
    image.write_bytes(image.read_bytes()[:-20])
    label = np.full((6, 6, 6), 7, np.uint8)
    nib.save(nib.Nifti1Image(label, np.eye(4)), source.folder / "labelsTr" / "c.nii.gz")
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            check_at_first_use(source, tmp_path / "prepared")
        assert "a.nii.gz" in str(caught.value) and "c.nii.gz" in str(caught.value)
    assert len(checks) == 2 and not (tmp_path / "prepared" / "checked.json").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Task99_None"):
        check_at_first_use(DataSource(tmp_path / "Task99_None", MSDLayout()), tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', "\xff\xfe"])
def test_a_damaged_record_is_made_anew(source: DataSource, checks: list[Path], tmp_path: Path, damage: str) -> None:
    prepared = tmp_path / "prepared"
    check_at_first_use(source, prepared)
    record = prepared / "checked.json"
    whole = record.read_bytes()
    record.write_text(damage, encoding="latin-1")
    check_at_first_use(source, prepared)
    assert len(checks) == 2 and record.read_bytes() == whole
