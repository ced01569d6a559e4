"""Scans of every format are predicted alike. Results have their scan's format unless another is requested."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from e2enet.common.errors import InputError
from e2enet.data.formats.opening import open_image
from e2enet.data.formats.volume import read_label
from e2enet.evaluation import score_folder
from e2enet.evaluation.choose_components import write_postprocessed
from e2enet.inference.config import PredictConfig, read_config
from e2enet.inference.run import run_prediction

ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
FAST: dict[str, Any] = {"device": "cpu", "mirror": False, "step": 1.0, "engine": "dense"}
Predict = Callable[..., list[str]]


@pytest.fixture
def scans(tmp_path: Path, scan: nib.Nifti1Image) -> Path:
    """One oblique scan as cases a, b, .. in every format except GIPL, which stores no directions."""
    folder = tmp_path / "scans"
    folder.mkdir()
    nib.save(scan, folder / "a.nii.gz")
    volume = SimpleITK.ReadImage(str(folder / "a.nii.gz"))
    for case, ending in zip("bcdef", ENDINGS[1:], strict=True):
        SimpleITK.WriteImage(volume, str(folder / f"{case}{ending}"))
    return folder


@pytest.fixture
def predict(write_checkpoint: Callable[..., Path], tmp_path: Path) -> Predict:
    """Return a function that predicts a folder without failure and returns the visible files of the results."""
    checkpoint = write_checkpoint()

    def run(source: Path, output: Path = tmp_path / "out", **changes: Any) -> list[str]:
        assert run_prediction(PredictConfig((checkpoint,), source, output, **FAST, **changes)) == {}
        return sorted(path.name for path in output.iterdir() if not path.name.startswith("."))

    return run


def test_results_are_those_of_nifti_in_the_format_of_the_scan(predict: Predict, scans: Path, tmp_path: Path) -> None:
    names = ["a.nii.gz", "b.nii", "c.mha", "d.mhd", "d.zraw", "e.nrrd", "f.nhdr", "f.raw.gz"]
    assert predict(scans) == names
    out = tmp_path / "out"
    expected = SimpleITK.ReadImage(str(out / "a.nii.gz"))
    assert len(np.unique(SimpleITK.GetArrayFromImage(expected))) > 1
    for case, ending in zip("bcdef", ENDINGS[1:], strict=True):
        found = SimpleITK.ReadImage(str(out / f"{case}{ending}"))
        assert found.GetPixelID() == SimpleITK.sitkUInt8 and open_image(out / f"{case}{ending}").shape == (16, 14, 7)
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found), SimpleITK.GetArrayFromImage(expected))
        scan = SimpleITK.ReadImage(str(scans / f"{case}{ending}"))
        for place in ("GetOrigin", "GetSpacing", "GetDirection"):
            np.testing.assert_allclose(getattr(found, place)(), getattr(scan, place)(), atol=1e-5)


def test_results_are_in_the_format_that_is_asked_for(predict: Predict, scans: Path, tmp_path: Path) -> None:
    for path in scans.glob("[!ad].*"):
        path.unlink()
    assert predict(scans, file_ending=".nrrd") == ["a.nrrd", "d.nrrd"]
    first, second = (read_label(tmp_path / "out" / f"{case}.nrrd", 2)[0] for case in "ad")
    np.testing.assert_array_equal(first, second)
    assert predict(scans / "d.mhd", tmp_path / "more", file_ending=".nii.gz", overlay=True) == ["d.nii.gz", "d.png"]


def test_finished_cases_are_known_by_all_that_they_were_made_of(
    predict: Predict, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in scans.glob("[!d].*"):
        path.unlink()
    out = tmp_path / "out"
    assert predict(scans) == ["d.mhd", "d.zraw"]
    before = (out / "d.mhd").stat().st_mtime_ns
    assert predict(scans) == ["d.mhd", "d.zraw"] and (out / "d.mhd").stat().st_mtime_ns == before
    assert "1 of 1 cases are in" in capsys.readouterr().out
    (out / "d.zraw").unlink()
    assert predict(scans) == ["d.mhd", "d.zraw"] and (out / "d.mhd").stat().st_mtime_ns > before
    voxels = bytearray((scans / "d.raw").read_bytes())
    voxels[40] ^= 1
    (scans / "d.raw").write_bytes(voxels)
    with pytest.raises(InputError, match=r"d\.mhd: it was made of another scan of this name"):
        predict(scans)


def test_no_case_gets_a_second_result_of_another_ending(predict: Predict, scans: Path, tmp_path: Path) -> None:
    source = scans / "c.mha"
    assert predict(source) == ["c.mha"]
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds c\.mha .* another folder, or file_ending=\.mha"):
            predict(source, file_ending=".nii.gz", overwrite=overwrite)
    assert predict(source, overwrite=True) == ["c.mha"]


def test_results_never_take_the_place_of_their_scans(predict: Predict, scans: Path) -> None:
    with pytest.raises(InputError, match=r"the results of a, b, c, d, e \.\. would replace the scans themselves"):
        predict(scans, scans)
    with pytest.raises(InputError, match=r"holds a\.nii\.gz, b\.nii, d\.mhd, e\.nrrd, f\.nhdr of cases"):
        shutil.move(scans / "c.mha", scans / "c.bin")
        predict(scans, scans, file_ending=".mha")


def test_evaluation_pairs_endings_that_differ(scans: Path, tmp_path: Path) -> None:
    results, references = tmp_path / "results", tmp_path / "references"
    labels = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(0, 3, (7, 14, 16), dtype=np.uint8))
    labels.CopyInformation(SimpleITK.ReadImage(str(scans / "c.mha")))
    for folder, endings in ((results, ENDINGS), (references, tuple(reversed(ENDINGS)))):
        folder.mkdir()
        for case, ending in zip("abcdef", endings, strict=True):
            SimpleITK.WriteImage(labels, str(folder / f"{case}{ending}"))
    scores, summary, _ = score_folder(results, references, names={1: "liver", 2: "spleen"})
    assert summary["n_cases"] == 6 and summary["mean"]["dice"] == 1 and len(scores) == 12
    shutil.copy(references / "a.nhdr", references / "b.nhdr")
    with pytest.raises(InputError, match=r"b: two files, .* and b\.nhdr; expected one|b: two files, .*b\.nhdr and"):
        score_folder(results, references, names={1: "liver", 2: "spleen"})


def test_postprocessing_keeps_format_and_grid(scans: Path, tmp_path: Path) -> None:
    labels = np.zeros((16, 14, 7), np.uint8)
    labels[1:4, 1:4, 1:4], labels[8, 8, 5] = 1, 1
    image = SimpleITK.GetImageFromArray(labels.T)
    image.CopyInformation(SimpleITK.ReadImage(str(scans / "e.nrrd")))
    SimpleITK.WriteImage(image, str(tmp_path / "p.nrrd"))
    write_postprocessed(tmp_path / "p.nrrd", tmp_path / "new" / "p.nrrd", [1])
    found = open_image(tmp_path / "new" / "p.nrrd")
    labels[8, 8, 5] = 0
    np.testing.assert_array_equal(found.read_values(), labels)
    np.testing.assert_allclose(found.affine, open_image(scans / "e.nrrd").affine, atol=1e-9)


def test_a_folder_of_dicom_slices_is_a_case(predict: Predict, scans: Path, tmp_path: Path) -> None:
    volume = SimpleITK.Cast(SimpleITK.ReadImage(str(scans / "c.mha")) * 100, SimpleITK.sitkInt16)
    direction = volume.GetDirection()
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for case in ("first", "second"):
        (tmp_path / "series" / case).mkdir(parents=True)
        for number in range(volume.GetDepth()):
            piece = volume[:, :, number]
            for key, values in (
                ("0020|0032", volume.TransformIndexToPhysicalPoint((0, 0, number))),
                ("0020|0037", direction[0::3] + direction[1::3]),
            ):
                piece.SetMetaData(key, "\\".join(f"{value:.8f}" for value in values))
            piece.SetMetaData("0020|000e", "1.2.3")
            piece.SetMetaData("0010|0010", "Doe^Jane")
            writer.SetFileName(str(tmp_path / "series" / case / f"{number}.dcm"))
            writer.Execute(piece)
    SimpleITK.WriteImage(volume, str(tmp_path / "first.nii.gz"))
    assert predict(tmp_path / "series", tmp_path / "out") == ["first.nii.gz", "second.nii.gz"]
    assert predict(tmp_path / "first.nii.gz", tmp_path / "nifti") == ["first.nii.gz"]
    found, expected = (nib.load(tmp_path / name / "first.nii.gz") for name in ("out", "nifti"))
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert found.header.get_xyzt_units()[0] == "mm" and b"Doe" not in (tmp_path / "out" / "first.nii.gz").read_bytes()
    record = json.loads((tmp_path / "out" / ".predicted" / "first.json").read_text())
    assert predict(tmp_path / "series" / "first", tmp_path / "out") == ["first.nii.gz", "second.nii.gz"]  # kept
    assert len(record["scan"]) == 32
    (tmp_path / "series" / "first" / "3.dcm").unlink()
    with pytest.raises(InputError, match=r"first\.nii\.gz: it was made of another scan of this name"):
        predict(tmp_path / "series" / "first", tmp_path / "out")
    checkpoint, again = tmp_path / "best.ckpt", tmp_path / "again"
    failures = run_prediction(PredictConfig((checkpoint,), tmp_path / "series", again, **FAST))
    assert list(failures) == ["first"] and "even ones expected: is a slice missing?" in failures["first"]
    assert sorted(path.name for path in again.glob("*.*")) == [".predicted", "second.nii.gz"]


@pytest.mark.parametrize("value", [".gipl", "nrrd", 3, ".png"])
def test_endings_of_results_that_are_none(value: Any) -> None:
    paths = {"checkpoint": "a", "input": "b", "output": "c"}
    with pytest.raises(InputError, match=rf"file_ending={value}: expected null, \.nii\.gz, \.nii, .* or \.nhdr"):
        read_config(paths | {"file_ending": value})
    assert read_config(paths | {"file_ending": ".mha"}).file_ending == ".mha"
