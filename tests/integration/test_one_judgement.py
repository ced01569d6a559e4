"""Data that pass the check can be prepared, trained, predicted and scored; other data are refused by every command."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.data.check import main as check
from e2enet.data.prepare import main as prepare
from e2enet.evaluation.__main__ import main as evaluate
from e2enet.training.run import run_training

pytestmark = pytest.mark.integration
SHAPE = (20, 18, 10)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
CLASSES = {"background": 0, "Anterior": 1, "Posterior": 2}


def label_of(case: int) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[3 + case % 2 : 9, 4:12, 2:7], label[11:17, 4:12, 2:7] = 1, 2
    return label


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, dtype: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    if dtype is not None:
        image.header.set_data_dtype(dtype)  # for float values nibabel then writes a scale into the header
    nib.save(image, path)


def write(folder: Path, ids: list[str], channels: int = 1, labels: dict[str, Any] | None = None) -> Path:
    """Write these cases as Decathlon, or as nnU-Net with several channels: noise with a bright block per class."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(ids):
        for channel in range(channels):
            image = generator.normal(100, 10, SHAPE).astype(np.float32) + 60 * label_of(number)
            end = f"_{channel:04d}" if channels > 1 else ""
            save(folder / "imagesTr" / f"{name}{end}.nii.gz", image)
        save(folder / "labelsTr" / f"{name}.nii.gz", label_of(number))
    listed = [{part: f"./{part}sTr/{name}.nii.gz" for part in ("image", "label")} for name in ids]
    content = {"channel_names": {str(c): "MR" for c in range(channels)}, "labels": labels or CLASSES}
    (folder / "dataset.json").write_text(json.dumps({**content, "training": listed, "test": []}))
    return folder


def test_odd_files_that_the_check_lets_pass(tmp_path: Path, take_tour: Callable[..., Any]) -> None:
    """Odd are: ids from img_0000, scaled labels, qform only, a grid rotated by 45 degrees, a .nii, a Windows path."""
    folder = write(tmp_path / "raw" / "TaskOdd", [f"img_{number:04d}" for number in range(5)])
    images, labels = folder / "imagesTr", folder / "labelsTr"
    for number in range(3):
        save(labels / f"img_{number:04d}.nii.gz", label_of(number) * 1.000015, dtype=np.int16)
    assert nib.load(labels / "img_0000.nii.gz").dataobj.slope != 1
    qform = nib.Nifti1Image(label_of(3), None)
    qform.set_qform(AFFINE, code=1)
    qform.set_sform(None, code=0)
    nib.save(qform, labels / "img_0003.nii.gz")
    half = np.sqrt(0.5)
    turned = np.array([[half, -half, 0, 0], [half, half, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    nearly = turned + np.array([[0, 1e-7, 0, 0], [0, -1e-7, 0, 0], [0] * 4, [0] * 4])
    save(images / "img_0004.nii.gz", nib.load(images / "img_0004.nii.gz").get_fdata().astype(np.float32), turned)
    save(labels / "img_0004.nii.gz", label_of(4), nearly)
    (labels / "img_0002.nii").write_bytes(gzip.decompress((labels / "img_0002.nii.gz").read_bytes()))
    (labels / "img_0002.nii.gz").unlink()
    listed = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(listed.replace("labelsTr/img_0002.nii.gz", "labelsTr\\\\img_0002.nii"))
    tour = take_tour(["data=msd", "data.name=TaskOdd", f"paths.data={folder.parent}"], images, [str(labels)])
    tour.assert_agreement()
    assert {case for case, _ in tour.scores} == {f"img_{number:04d}" for number in range(5)}


def outside(folder: Path) -> None:
    image = np.zeros(SHAPE, np.float32)
    image[18:, :2, 8:] = 5
    for channel in range(2):
        save(folder / f"imagesTr/b_{channel:04d}.nii.gz", image + channel * (image > 0))


def of_zeros(folder: Path) -> None:
    for channel in range(2):
        save(folder / f"imagesTr/b_{channel:04d}.nii.gz", np.zeros(SHAPE, np.float32))


def minus_one(folder: Path) -> None:
    save(folder / "labelsTr/b.nii.gz", label_of(1).astype(np.int16) - 1)


def between(folder: Path) -> None:
    save(folder / "labelsTr/b.nii.gz", label_of(1) * np.float32(0.98))


def third(folder: Path) -> None:
    for path in (folder / "labelsTr").iterdir():
        array = np.asarray(nib.load(path).dataobj).copy()
        array[:5] = 3
        save(path, array)


def twins(folder: Path) -> None:  # fold 0 validates the second
    for channel in range(2):
        save(
            folder / f"imagesTr/d_{channel:04d}.nii.gz",
            nib.load(folder / f"imagesTr/a_{channel:04d}.nii.gz").get_fdata(),
        )


def dead_link(folder: Path) -> None:
    scan = folder / "imagesTr" / "b_0001.nii.gz"
    scan.unlink()
    scan.symlink_to(folder / "moved" / scan.name)


# Name -> change to a sound dataset, its labels, whether the evaluation notices, the reason that all commands give.
REFUSED: dict[str, tuple[Callable[[Path], None], dict[str, Any], bool, str]] = {
    "zeros": (of_zeros, CLASSES, False, "b_0000.nii.gz: the image is zero everywhere, other values expected"),
    "outside": (outside, CLASSES, False, "b.nii.gz: all its 440 labelled voxels lie outside of the box"),
    "minus-one": (minus_one, CLASSES, True, "b.nii.gz: values from -1 to 1, labels from 0 to 32767 expected"),
    "between": (between, CLASSES, True, "b.nii.gz: holds the value 0.98, whole numbers (labels) expected"),
    "twins": (twins, CLASSES, False, "d_0000.nii.gz: the same image, voxel for voxel, as case a, on both"),
    "dead-link": (dead_link, CLASSES, False, "b_0001.nii.gz"),
    "ignore": (third, {**CLASSES, "ignore": [3, 4]}, True, "labels: one integer expected for the label 'ignore'"),
    "regions": (third, {**CLASSES, "whole": [1, 2, 3]}, True, "regions_class_order is None: one label for each region"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_command_takes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, labels, scored, reason = REFUSED[name]
    folder = write(tmp_path / "raw" / "Dataset001_Odd", list("abcdef"), 2, labels)
    spoil(folder)
    dataset = ["data=nnunet", f"data.name={folder.name}", f"paths.data={folder.parent}"]
    assert check(dataset) == 1
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert len(shown) == 1 and reason in shown[0]
    shared = [*dataset, f"paths.prepared={tmp_path / 'prepared'}"]
    if name != "twins":  # prepared cases do not depend on the split
        with pytest.raises(SystemExit):
            prepare(shared)
        assert reason in capsys.readouterr().err
    with pytest.raises(InputError) as refused:
        run_training(compose_config(shared), tmp_path / "run")
    assert reason in str(refused.value)
    if scored:
        with pytest.raises(SystemExit):
            evaluate([str(folder / "labelsTr"), str(folder / "labelsTr"), "--output", str(tmp_path / "scores")])
        assert reason in capsys.readouterr().err
