"""Scores with ignored voxels, and scores of regions that a network was trained with."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.scheme import LabelScheme
from e2enet.evaluation import score_case, score_files, score_folder, scores_table
from e2enet.evaluation.__main__ import main
from e2enet.evaluation.choose_components import choice_content, choose_classes, write_postprocessed
from e2enet.evaluation.folder import write_scores
from e2enet.inference.largest_component import keep_largest, read_postprocessing, require_labels
from e2enet.report.results.run_files import read_scores

SPACING = (1.0, 2.0, 3.0)
NAMES = {0: "background", 1: "a", 2: "b"}
SPARSE = LabelScheme(NAMES, ignore=3)
REGIONS = LabelScheme(NAMES, None, {"all": (1, 2), "b": (2,)}, (1, 2))


def maps(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return prediction and reference (D, H, W) of two blocks; four planes of the reference are ignored."""
    random = np.random.default_rng(seed)
    reference = np.zeros((8, 9, 10), np.uint8)
    reference[1:6, 2:7, 1:5], reference[1:6, 2:7, 5:9] = 1, 2
    prediction = np.where(random.random(reference.shape) < 0.2, random.integers(0, 3, reference.shape), reference)
    reference[:, :4] = 3
    return prediction.astype(np.uint8), reference


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0])), path)
    return path


@pytest.mark.parametrize("there", [0, 1, 2])
def test_no_score_depends_on_ignored_voxels(there: int) -> None:
    prediction, reference = maps()
    scores = score_case("a", prediction, reference, SPACING, NAMES, regions={"all": (1, 2)}, ignore=3)
    changed = np.where(reference == 3, np.uint8(there), prediction)
    assert score_case("a", changed, reference, SPACING, NAMES, regions={"all": (1, 2)}, ignore=3) == scores
    known = reference != 3
    for label, score in zip((1, 2), scores, strict=False):
        first, second = prediction[known] == label, reference[known] == label
        assert score.dice == pytest.approx(2 * (first & second).sum() / (first.sum() + second.sum()))
        assert 0 < score.nsd < 1 and score.hd95 > 0
    without = score_case("a", prediction, np.where(known, reference, 0), SPACING, NAMES, regions={"all": (1, 2)})
    assert without != scores  # predictions in ignored voxels would otherwise count


def test_a_structure_is_cut_at_ignored_voxels_in_both_maps() -> None:
    """Both maps have the same surface at the cut, which counts as agreement."""
    reference = np.zeros((9, 9, 9), np.uint8)
    reference[2:7, 2:7, 2:7] = 1
    prediction = reference.copy()
    reference[5:] = 3
    (score,) = score_case("a", prediction, reference, SPACING, [1], ignore=3)
    assert (score.dice, score.nsd, score.hd95) == (1.0, 1.0, 0.0)


def test_files_may_hold_anything_where_the_reference_is_ignored(tmp_path: Path) -> None:
    prediction, reference = maps()
    prediction[reference == 3] = 77
    save(tmp_path / "p" / "a.nii.gz", prediction)
    save(tmp_path / "labelsTr" / "a.nii.gz", reference)
    described = {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    scores, summary, warnings = score_folder(tmp_path / "p", tmp_path / "labelsTr")
    assert scores == score_case("a", prediction, reference, SPACING, [1, 2], ignore=3) and warnings == []
    assert list(summary["classes"]) == ["1", "2"]
    (tmp_path / "dataset.json").unlink()  # the command line can name the ignore label instead
    main([str(tmp_path / "p"), str(tmp_path / "labelsTr"), "--ignore", "3"])
    told = json.loads((tmp_path / "p" / "summary.json").read_text())
    assert told["mean"] == summary["mean"] and list(told["classes"]) == ["1", "2"]
    pairs = {"a": (tmp_path / "p" / "a.nii.gz", tmp_path / "labelsTr" / "a.nii.gz")}
    with pytest.raises(InputError, match=r"labelsTr/a\.nii\.gz: holds the values \[3\]"):
        score_files(pairs, NAMES)
    prediction[reference != 3] = 3
    save(tmp_path / "p" / "a.nii.gz", prediction)
    with pytest.raises(InputError, match=r"p/a\.nii\.gz: holds the values \[3\]"):
        score_files(pairs, SPARSE)


def test_another_ignore_label_than_that_of_dataset_json_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction, reference = maps()
    save(tmp_path / "p" / "a.nii.gz", prediction)
    save(tmp_path / "labelsTr" / "a.nii.gz", reference)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}))
    given = [str(tmp_path / "p"), str(tmp_path / "labelsTr"), "--ignore"]
    with pytest.raises(SystemExit):
        main([*given, "4"])
    told = " ".join(capsys.readouterr().err.split())
    assert "labelsTr: dataset.json calls 3 ignore, and --ignore is 4: the same label, or no --ignore, expected" in told
    assert not (tmp_path / "p" / "summary.json").exists()
    main([*given, "3"])
    assert list(json.loads((tmp_path / "p" / "summary.json").read_text())["classes"]) == ["1", "2"]


def test_trained_regions_stand_in_the_place_of_classes(tmp_path: Path) -> None:
    prediction, reference = maps()
    reference[reference == 3] = 0
    pairs = {"a": (save(tmp_path / "p.nii.gz", prediction), save(tmp_path / "r.nii.gz", reference))}
    scores, summary = score_files(pairs, REGIONS, regions={"only a": (1,)})
    expected = score_case("a", prediction, reference, SPACING, [], regions={"all": (1, 2), "b": (2,), "only a": (1,)})
    assert scores == expected
    assert {key: entry["name"] for key, entry in summary["classes"].items()} == {"1+2": "all", "2": "b"}
    assert summary["mean"]["dice"] == pytest.approx((expected[0].dice + expected[1].dice) / 2)
    assert list(summary["regions"]) == ["only a"]
    write_scores(tmp_path, scores, summary)
    with (tmp_path / "scores.csv").open() as stream:
        rows = [(row["class"], row["name"]) for row in csv.DictReader(stream)]
    assert rows == [("1+2", "all"), ("2", "b"), ("1", "only a")]
    table = read_scores(tmp_path)  # the report treats trained regions as classes
    assert table["region"].tolist() == [False, False, True]
    assert scores_table(summary).row_count == 4


def test_names_of_regions_come_from_dataset_json(tmp_path: Path) -> None:
    prediction, reference = maps()
    reference[reference == 3] = 4
    save(tmp_path / "p" / "a.nii.gz", np.where(prediction == 2, 4, prediction).astype(np.uint8))
    save(tmp_path / "labelsTr" / "a.nii.gz", reference)
    described = {"labels": {"background": 0, "all": [1, 2, 4], "b": 2}, "regions_class_order": [1, 2]}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    save(tmp_path / "p" / "a.nii.gz", prediction)
    _, summary, _ = score_folder(tmp_path / "p", tmp_path / "labelsTr", label_map={4: 2})
    assert [entry["labels"] for entry in summary["classes"].values()] == [[1, 2], [2]]


def two_cases(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Write two cases of a structure with a core of label 2. Each prediction has an extra speck.

    The speck has label 1 in the first case, and labels 1 and 2 in the second.
    """
    pairs = {}
    for case, speck in (("a", (1, 1)), ("b", (1, 2))):
        reference = np.zeros((8, 8, 8), np.uint8)
        reference[0:3, 0:3, 0:3], reference[1, 1, 1] = 1, 2
        prediction = reference.copy()
        prediction[6, 6, 5:7] = speck
        pairs[case] = save(folder / f"p/{case}.nii.gz", prediction), save(folder / f"r/{case}.nii.gz", reference)
    return pairs


def test_regions_keep_their_largest_component(tmp_path: Path) -> None:
    labels = np.array([[[1, 1, 2, 0, 2, 1, 0, 2]]], np.uint8)
    assert keep_largest(labels, [(1, 2)]).tolist() == [[[1, 1, 2, 0, 0, 0, 0, 0]]]
    assert keep_largest(labels, [2]).tolist() == [[[1, 1, 2, 0, 2, 1, 0, 2]]]  # all components have one size
    whole, core = choose_classes(two_cases(tmp_path), REGIONS)
    assert (whole.label, whole.name, whole.n_changed) == ((1, 2), "all", 2)
    assert whole.dice_before == pytest.approx(2 * 27 / (27 + 29)) and whole.dice_after == 1.0
    assert (core.label, core.dice_before, core.dice_after) == (2, pytest.approx((1 + 2 / 3) / 2), core.dice_before)
    content = choice_content([whole, core])
    assert content["keep_largest"] == ["1+2"] and list(content["classes"]) == ["1+2", "2"]
    (tmp_path / "postprocessing.json").write_text(json.dumps({**content, "runs": ["x"]}))
    choice = read_postprocessing(tmp_path / "postprocessing.json")
    assert choice.classes == ((1, 2),) and choice.describe() == "largest component of 1+2 all"
    require_labels(choice, REGIONS)
    with pytest.raises(InputError, match="the model has"):
        require_labels(choice, SPARSE)
    prediction, reference = two_cases(tmp_path)["b"]
    write_postprocessed(prediction, tmp_path / "o.nii.gz", choice.classes)
    np.testing.assert_array_equal(nib.load(tmp_path / "o.nii.gz").dataobj, nib.load(reference).dataobj)


def test_the_choice_leaves_ignored_voxels_out(tmp_path: Path) -> None:
    pairs = two_cases(tmp_path)
    for _, path in pairs.values():
        reference = np.asarray(nib.load(path).dataobj).copy()
        reference[6:] = 3
        save(path, reference)
    first, _ = choose_classes(pairs, SPARSE)
    assert first.n_changed == 2 and first.dice_before == first.dice_after == 1.0  # the specks lie in ignored voxels
