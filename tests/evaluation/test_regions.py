"""Regions as unions of classes, renumbered references, and files paired by other names."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from e2enet.common.errors import InputError
from e2enet.evaluation import score_case, score_files, score_folder, scores_table, summarise
from e2enet.evaluation.__main__ import main
from e2enet.evaluation.pairing import find_label_images

SPACING = (1.0, 2.0, 3.0)
REGIONS = {"whole tumour": (1, 2, 3), "tumour core": (1, 3), "enhancing tumour": (3,)}
NAMES = {1: "core", 2: "edema", 3: "enhancing"}


def tumour(core: int, edema: int, enhancing: int) -> np.ndarray:
    """Return a row of `core` voxels of label 1, then `edema` of label 2, then `enhancing` of label 3."""
    array = np.zeros((12, 3, 3), np.uint8)
    values = [1] * core + [2] * edema + [3] * enhancing
    array[: len(values), 1, 1] = values
    return array


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0])), path)


def dice_of(array: np.ndarray, other: np.ndarray, labels: tuple[int, ...]) -> float:
    first, second = np.isin(array, labels), np.isin(other, labels)
    return 2 * int((first & second).sum()) / int(first.sum() + second.sum())


def test_regions_are_scored_beside_the_classes() -> None:
    prediction, reference = tumour(2, 4, 2), tumour(3, 3, 3)
    scores = {score.label: score for score in score_case("a", prediction, reference, SPACING, NAMES, regions=REGIONS)}
    assert list(scores) == [1, 2, 3, *REGIONS]
    for name, labels in REGIONS.items():
        assert scores[name].dice == pytest.approx(dice_of(prediction, reference, labels))
    assert scores["whole tumour"].dice == pytest.approx(16 / 17)  # 8 of 9 voxels, worked by hand
    assert scores["enhancing tumour"].dice == scores[3].dice


def test_confused_classes_cost_the_region_nothing() -> None:
    scores = score_case("a", tumour(4, 0, 0), tumour(0, 0, 4), SPACING, NAMES, regions=REGIONS)
    found = {score.label: (score.dice, score.outcome) for score in scores}
    assert found["tumour core"] == (1.0, "scored")
    assert found[1] == (0.0, "invented") and found[3] == (0.0, "missed") and found["enhancing tumour"][1] == "missed"


def test_the_summary_keeps_its_mean_over_classes() -> None:
    scores = score_case("a", tumour(2, 2, 0), tumour(2, 2, 1), SPACING, NAMES, regions=REGIONS)
    scores += score_case("b", tumour(2, 2, 0), tumour(2, 2, 0), SPACING, NAMES, regions=REGIONS)
    summary, plain = summarise(scores, NAMES, REGIONS), summarise(scores, NAMES)
    assert summary["mean"] == plain["mean"] and summary["classes"] == plain["classes"] and "regions" not in plain
    enhancing = summary["regions"]["enhancing tumour"]
    assert enhancing["labels"] == [3] and enhancing["dice"] == 0.0
    assert [enhancing[key] for key in ("n", "absent", "missed", "invented")] == [1, 1, 1, 0]
    assert summary["regions"]["whole tumour"]["dice"] == pytest.approx((8 / 9 + 1) / 2)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(scores_table(summary))
    text = console.export_text()
    assert text.index("mean of classes") < text.index("whole tumour (1, 2, 3)") < text.index("enhancing tumour (3)")


def test_references_are_renumbered_predictions_are_not(tmp_path: Path) -> None:
    prediction, reference = tumour(2, 2, 2), tumour(2, 2, 2)
    write(tmp_path / "p.nii.gz", prediction)
    write(tmp_path / "r.nii.gz", np.where(reference == 3, 4, reference).astype(np.uint8))
    pairs = {"a": (tmp_path / "p.nii.gz", tmp_path / "r.nii.gz")}
    _, summary = score_files(pairs, NAMES, label_map={4: 3}, regions=REGIONS)
    assert summary["mean"]["dice"] == 1.0 and summary["regions"]["whole tumour"]["dice"] == 1.0
    with pytest.raises(InputError, match=r"r\.nii\.gz: holds the values \[4\]"):
        score_files(pairs, NAMES)
    with pytest.raises(InputError, match=r"p\.nii\.gz: holds the values \[3\]"):
        score_files(pairs, {1: "core", 2: "edema"}, label_map={4: 2})


def test_impossible_regions(tmp_path: Path) -> None:
    write(tmp_path / "p.nii.gz", tumour(1, 1, 1))
    pairs = {"a": (tmp_path / "p.nii.gz", tmp_path / "p.nii.gz")}
    with pytest.raises(InputError, match=r"(?s)region 'x' unites \[1, 4\].*region 'y' unites \[\]"):
        score_files(pairs, NAMES, regions={"x": (1, 4), "y": ()})


def test_the_command_for_brats_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case, arrays in {"B_1": (tumour(2, 2, 2), tumour(2, 2, 2)), "B_2": (tumour(1, 2, 3), tumour(2, 2, 2))}.items():
        prediction, reference = arrays
        write(tmp_path / "predictions" / f"{case}.nii.gz", prediction)
        write(tmp_path / "BraTS" / case / f"{case}_seg.nii.gz", np.where(reference == 3, 4, reference).astype(np.uint8))
        write(tmp_path / "BraTS" / case / f"{case}_flair.nii.gz", reference)
    options = ["--label-names", "*/*_seg", "--label-map", "4=3", "--region", "tumour core=1,3", "--region", "all=1,2,3"]
    main([str(tmp_path / "predictions"), str(tmp_path / "BraTS"), "--output", str(tmp_path), *options])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["n_cases"] == 2 and list(summary["classes"]) == ["1", "2", "3"]
    assert summary["regions"]["all"] | {"labels": [1, 2, 3], "dice": 1.0} == summary["regions"]["all"]
    with (tmp_path / "scores.csv").open() as stream:
        rows = [(row["case"], row["class"], row["name"], row["outcome"]) for row in csv.DictReader(stream)]
    assert rows[3:5] == [("B_1", "1+3", "tumour core", "scored"), ("B_1", "1+2+3", "all", "scored")]
    assert "tumour core (1, 3)" in capsys.readouterr().out


def test_names_hold_no_other_pattern_than_the_star(tmp_path: Path) -> None:
    for name in ("a[1]x", "a1x", "a[1]_?", "a[1]_b"):
        (tmp_path / f"{name}.nii.gz").touch()
    found = find_label_images(tmp_path, [], "a[1]*")
    assert list(found) == ["_?", "_b", "x"] and found["_?"].name == "a[1]_?.nii.gz"
    assert list(find_label_images(tmp_path, [], "a[1]_?*")) == []
    assert list(find_label_images(tmp_path, [])) == ["a1x", "a[1]_?", "a[1]_b", "a[1]x"]


def test_names_of_btcv_are_paired(tmp_path: Path) -> None:
    for number in ("0001", "0002"):
        write(tmp_path / "predictions" / f"img{number}.nii.gz", tumour(2, 2, 2))
        write(tmp_path / "label" / f"label{number}.nii.gz", tumour(2, 2, 2))
    write(tmp_path / "label" / "other.nii.gz", tumour(9, 0, 0))
    folders = (tmp_path / "predictions", tmp_path / "label")
    scores, summary, _ = score_folder(*folders, prediction_names="img*", label_names="label*")
    assert {score.case for score in scores} == {"0001", "0002"} and summary["mean"]["dice"] == 1.0
    with pytest.raises(InputError, match="label0001: no prediction for"):
        score_folder(*folders)
    with pytest.raises(InputError, match="holds no label image named like seg"):
        score_folder(*folders, label_names="seg*")
    for wrong in ("label", "../*", "/data/*"):
        with pytest.raises(InputError, match=r"with \* for the case expected"):
            score_folder(*folders, label_names=wrong)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--label-map", "4"], "a whole number from 0 expected"),
        (["--label-map", "a=3"], "'a': a whole number from 0 expected"),
        (["--region", "1,2"], "NAME=LABELS expected"),
        (["--region", "core=1,x"], "'x': a whole number from 0 expected"),
    ],
)
def test_wrong_options_are_refused(option: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["predictions", "labels", *option])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_absent_regions_have_no_score() -> None:
    (score,) = score_case("a", tumour(1, 0, 0), tumour(1, 0, 0), SPACING, [], regions={"enhancing": (3,)})
    assert score.outcome == "absent" and math.isnan(score.dice)
