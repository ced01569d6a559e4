"""Folders of NIfTI files: pairing, refusals, class names, the two written files, and the command."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.description import Description, read_class_names
from e2enet.data.formats.problems import Problem
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.formats.volume import read_geometry, read_label, to_frame
from e2enet.evaluation import score_folder
from e2enet.evaluation.__main__ import main

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def cube(value: int = 1, start: int = 2) -> np.ndarray:
    array = np.zeros((8, 8, 8), np.uint8)
    array[start : start + 3, 2:5, 2:5] = value
    return array


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Case a is predicted exactly, case b misses class 2."""
    predictions, labels = tmp_path / "predictions", tmp_path / "data" / "labelsTs"
    write(predictions / "a.nii.gz", cube())
    write(labels / "a.nii.gz", cube())
    write(predictions / "b.nii.gz", cube())
    write(labels / "b.nii.gz", np.maximum(cube(), cube(2, start=5)))
    return predictions, labels


def test_scores_and_files(folders, tmp_path, capsys):
    predictions, labels = folders
    names = {"labels": {"0": "background", "1": "liver", "2": "gut"}}
    (labels.parent / "dataset.json").write_text(json.dumps(names))
    main([str(predictions), str(labels), "--output", str(tmp_path / "out")])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    diagonal = math.sqrt(8**2 + 16**2 + 24**2)
    assert summary["n_cases"] == 2
    liver, gut = summary["classes"]["1"], summary["classes"]["2"]
    assert {"name": "liver", "dice": 1.0, "nsd": 1.0, "hd95": 0.0, "n": 2}.items() <= liver.items()
    assert {"name": "gut", "dice": 0.0, "nsd": 0.0, "n": 1, "missed": 1}.items() <= gut.items()
    assert gut["hd95"] == pytest.approx(diagonal)
    assert summary["mean"] == pytest.approx({"dice": 0.5, "nsd": 0.5, "hd95": diagonal / 2})
    with (tmp_path / "out" / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["class"], row["outcome"]) for row in rows] == [
        ("a", "1", "scored"),
        ("a", "2", "absent"),
        ("b", "1", "scored"),
        ("b", "2", "missed"),
    ]
    assert (rows[0]["dice"], rows[1]["dice"], rows[3]["nsd"]) == ("1.0", "", "0.0")
    assert "mean of classes" in capsys.readouterr().out


def test_tolerance_is_in_mm(folders):
    predictions, labels = folders
    write(predictions / "a.nii.gz", np.roll(cube(), 1, axis=2))  # 3 mm along z
    write(predictions / "b.nii.gz", np.roll(cube(), 1, axis=2))
    narrow = score_folder(predictions, labels, nsd_tolerance=2.9)[1]["classes"]["1"]["nsd"]
    wide = score_folder(predictions, labels, nsd_tolerance=3.0)[1]["classes"]["1"]["nsd"]
    assert narrow < 1.0
    assert wide == 1.0


def test_classes_found_in_the_references(folders):
    _, summary, warnings = score_folder(*folders)
    assert {label: entry["name"] for label, entry in summary["classes"].items()} == {"1": "1", "2": "2"}
    assert any("no dataset.json" in warning for warning in warnings)


def test_extra_prediction_is_a_warning(folders):
    predictions, labels = folders
    write(predictions / "c.nii.gz", cube())
    (predictions / "._a.nii.gz").write_bytes(b"left by macOS")
    _, summary, warnings = score_folder(predictions, labels, names={1: "x", 2: "y"})
    assert summary["n_cases"] == 2
    assert [warning for warning in warnings if "c.nii.gz" in warning and "no reference" in warning]
    assert len(warnings) == 1


def test_every_problem_is_listed_at_once(folders, tmp_path, capsys):
    predictions, labels = folders
    moved = AFFINE.copy()
    moved[0, 3] = 0.5
    write(labels / "c.nii.gz", cube())
    write(predictions / "d.nii.gz", cube()[:7])
    write(labels / "d.nii.gz", cube())
    write(predictions / "e.nii.gz", cube(), moved)
    write(labels / "e.nii.gz", cube())
    (predictions / "f.nii.gz").write_bytes(b"no image")
    write(labels / "f.nii.gz", cube())
    with pytest.raises(SystemExit) as stopped:
        main([str(predictions), str(labels), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "c: no prediction" in message
    assert "d: shape (7, 8, 8)" in message
    assert "e.nii.gz: the affines differ by up to 0.5 mm, at most " in message and "repair=FOLDER" in message
    assert "f.nii.gz: cannot be read as an image" in message
    assert not (tmp_path / "out").exists()


def test_affine_noise_is_tolerated(folders):
    predictions, labels = folders
    noisy = AFFINE + 1e-5
    noisy[3] = [0, 0, 0, 1]
    write(predictions / "a.nii.gz", cube(), noisy)
    assert score_folder(predictions, labels)[1]["classes"]["1"]["dice"] == 1.0


def test_voxels_that_are_no_classes(folders):
    predictions, labels = folders
    write(predictions / "a.nii.gz", cube(9))
    write(predictions / "b.nii.gz", cube().astype(np.float32) / 2)
    both = r"(?s)a\.nii\.gz: holds the values \[9\].*b\.nii\.gz: holds the value 0\.5, whole numbers"
    with pytest.raises(InputError, match=both):
        score_folder(predictions, labels)


def test_labels_with_a_scale_are_what_they_say(folders):
    predictions, labels = folders
    image = nib.load(labels / "a.nii.gz")
    header = image.header.copy()
    header.set_data_dtype(np.int16)  # for float values nibabel writes a scale into the header
    nib.save(nib.Nifti1Image(image.get_fdata() * 1.000015, image.affine, header), labels / "a.nii.gz")
    assert nib.load(labels / "a.nii.gz").dataobj.slope != 1
    scores, _, _ = score_folder(predictions, labels)
    assert [score.dice for score in scores if (score.case, score.label) == ("a", 1)] == [1.0]


def test_float_files_and_other_endings(folders):
    predictions, labels = folders
    (predictions / "a.nii.gz").unlink()
    write(predictions / "a.nii", cube().astype(np.float64))
    assert score_folder(predictions, labels)[1]["classes"]["1"]["dice"] == 1.0
    write(predictions / "a.nii.gz", cube())
    with pytest.raises(InputError, match="a: two files"):
        score_folder(predictions, labels)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_impossible_tolerance(folders, tolerance):
    with pytest.raises(InputError, match="expected a number of mm"):
        score_folder(*folders, nsd_tolerance=tolerance)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match=r"(?s)nowhere: no such folder.*neither: no such folder"):
        score_folder(tmp_path / "nowhere", tmp_path / "neither")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no label image"):
        score_folder(tmp_path / "empty", tmp_path / "empty")


def test_a_folder_that_is_lost_is_the_one_error(folders, tmp_path):
    for make, reason in (
        (lambda path: path.symlink_to("/nowhere/x"), "a link whose target /nowhere/x is not there"),
        (lambda path: path.touch(), "a file, a folder expected"),
    ):
        lost = tmp_path / reason[:6]
        make(lost)
        with pytest.raises(InputError) as caught:
            score_folder(lost, folders[1])
        assert str(caught.value).splitlines()[1:] == [f"  - {lost}: {reason}"]


def test_what_many_files_have_is_one_line(folders):
    predictions, labels = folders
    for number in range(20):
        write(labels / f"c{number:02d}.nii.gz", cube())
    with pytest.raises(InputError) as caught:
        score_folder(predictions, labels)
    line = f"  - c00: no prediction for {labels / 'c00.nii.gz'} (and 19 more like it)"
    assert str(caught.value).splitlines()[1:] == [line]
    for number in range(20):
        write(predictions / f"c{number:02d}.nii.gz", cube(9))
    with pytest.raises(InputError) as caught:
        score_folder(predictions, labels, names={0: "background", 1: "liver", 2: "gut"})
    line = (
        f"  - {predictions / 'c00.nii.gz'}: holds the values [9], which are no classes; expected [0, 1, 2] (and 19 more"
    )
    assert [line in one for one in str(caught.value).splitlines()[1:]] == [True]


@pytest.mark.parametrize(
    "labels",
    [{"0": "background", "2": "spleen", "1": "liver"}, {"background": 0, "spleen": 2, "liver": 1}],
    ids=["msd", "nnunet"],
)
def test_both_dialects_of_names(labels, tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert read_class_names(tmp_path) == LabelScheme({0: "background", 1: "liver", 2: "spleen"})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"whole": [1, 2]}, r"regions_class_order is None: one label for each region expected"),
        ({"background": 0, "liver": 1, "ignore": [2, 3]}, "labels: one integer expected for the label 'ignore'"),
        ({"background": 0, "liver": 1, "ignore": 1}, r"labels give the values \[1\] to more than one name"),
        ({"liver": "one"}, "labels 'liver': 'one': one integer per label expected"),
        ({"liver": 1, "spleen": 1}, r"labels give the values \[1\] to more than one name"),
        (["background", "liver"], r"labels is \['background', 'liver'\]: an object of names and values expected"),
        ({"1": "liver", "2": "liver"}, r"labels \[1, 2\] are all called 'liver'"),
        ({"1": "li\x1b[2Jver"}, r"label 1 is called .*: a name of printable signs expected"),
    ],
)
def test_unusable_names(labels, message, tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(InputError, match=rf"dataset\.json: its labels cannot be scored:\n  - {message}"):
        read_class_names(tmp_path)
    problems: list[Problem] = []
    Description(tmp_path, problems).labels()
    assert len(problems) == 1 and re.match(message, problems[0].problem)


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "PREDICTIONS LABELS" in text and "--nsd-tolerance MM" in text and "scores.csv" in text


def test_axes_of_one_voxel_are_dropped_by_one_rule(folders: tuple[Path, Path]) -> None:
    """As other tools write them, in any place behind the third; training reads such labels too."""
    predictions, labels = folders
    expected, _, _ = score_folder(predictions, labels)
    for path, axes in ((predictions / "a.nii.gz", 1), (labels / "b.nii.gz", 2)):
        array = np.asarray(nib.load(path).dataobj)
        write(path, array.reshape(*array.shape, *[1] * axes))
        np.testing.assert_array_equal(read_label(path, 2)[0], to_frame(array, read_geometry(path, 2)))
    assert score_folder(predictions, labels)[0] == expected
    array = np.asarray(nib.load(predictions / "a.nii.gz").dataobj)
    write(predictions / "a.nii.gz", np.stack([array] * 2, axis=-1))
    with pytest.raises(InputError, match=r"expected 3D images, got prediction \(8, 8, 8, 2\), reference \(8, 8, 8\)"):
        score_folder(predictions, labels)
