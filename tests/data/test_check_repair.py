"""Repaired copies of labels lie on their image's grid and hold the original's voxels; the original is not changed."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.data.check import main
from e2enet.data.checking.repair import repair_labels
from e2enet.data.formats.grid import grid_problem
from e2enet.data.formats.volume import read_geometry


def shifted(affine: np.ndarray, x: float) -> np.ndarray:
    moved = affine.copy()
    moved[0, 3] += x
    return moved


def test_a_copy_lies_on_the_grid_with_the_same_voxels(toy: Any, tmp_path: Path) -> None:
    image, label = toy.image("a"), toy.label("a")
    affine = nib.load(image).affine
    scaled = nib.Nifti1Image(np.asarray(nib.load(label).dataobj), shifted(affine, 0.5))
    scaled.header.set_slope_inter(2, 0)
    scaled.header["descrip"] = scaled.header["aux_file"] = b"Doe^Jane"
    scaled.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe, born 1970"))
    nib.save(scaled, label)
    before = toy.state()
    (repair,) = repair_labels(toy.check().facts, toy.folder, tmp_path / "fixed")
    assert toy.state() == {**before}
    assert repair.copy == tmp_path / "fixed" / "labelsTr" / "a.nii.gz" and repair.reason == ""
    assert grid_problem(read_geometry(image), read_geometry(repair.copy)) is None
    copy, original = nib.load(repair.copy), nib.load(label)
    np.testing.assert_array_equal(copy.affine, affine)
    np.testing.assert_array_equal(copy.dataobj.get_unscaled(), original.dataobj.get_unscaled())
    assert copy.dataobj.slope == original.dataobj.slope
    # Header texts and extensions may hold patients' names.
    assert b"Doe" in gzip.decompress(label.read_bytes()) and b"Doe" not in gzip.decompress(repair.copy.read_bytes())
    assert len(original.header.extensions) == 1 and not copy.header.extensions
    assert copy.get_data_dtype() == original.get_data_dtype()


def test_the_affine_may_come_from_the_qform(toy: Any, tmp_path: Path) -> None:
    array = np.asarray(nib.load(toy.image("a")).dataobj)
    image = nib.Nifti1Image(array, None)
    turned = np.array([[0.6, -0.8, 0, 5], [0.8, 0.6, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]])  # oblique
    image.set_qform(turned, code=1)
    image.set_sform(None, code=0)
    nib.save(image, toy.image("a"))
    toy.write_label("a", affine=shifted(turned, 1))
    (repair,) = repair_labels(toy.check().facts, toy.folder, tmp_path / "fixed")
    np.testing.assert_array_equal(nib.load(repair.copy).affine, nib.load(toy.image("a")).affine)


def test_copies_put_in_place_make_the_dataset_sound(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine = nib.load(toy.image("a")).affine
    toy.write_label("a", affine=shifted(affine, 0.5))
    toy.write_label("b", affine=affine @ np.diag([1, 1, -1, 1]))
    toy.write_label("c", shape=(8, 9, 7))
    before = toy.state()
    arguments = ["data=msd", "data.name=toy", f"paths.data={toy.folder.parent}", "workers=0"]
    assert main([*arguments, f"repair={tmp_path}/fixed"]) == 1  # the dataset itself is not repaired
    assert toy.state() == before
    copies = [path for path in (tmp_path / "fixed").rglob("*") if path.is_file()]
    assert copies == [tmp_path / "fixed" / "labelsTr" / "a.nii.gz"]
    printed = capsys.readouterr().out
    assert f"{toy.label('a')}: corrected copy {copies[0]}" in printed
    assert (
        f"{toy.label('b')}: no corrected copy: its axes (LPI) do not point as the image's (LPS) do: look at both"
        in printed
    )
    assert f"{toy.label('c')}: no corrected copy: its shape (8, 9, 7) is not the image's (8, 9, 6)" in printed
    assert f"1 corrected label in {tmp_path}/fixed; the originals are as they were." in printed
    copies[0].replace(toy.label("a"))
    assert [case for case, *_ in toy.problems()] == ["b", "c"]


def test_nothing_to_repair_writes_nothing(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data=msd", "data.name=toy", f"paths.data={toy.folder.parent}", "workers=0"]
    assert main([*arguments, f"repair={tmp_path}/fixed"]) == 0
    assert not (tmp_path / "fixed").exists() and "repair: nothing was written." in capsys.readouterr().out
