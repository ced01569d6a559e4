"""Predictions of five folds: each case scored once, gaps and repetitions reported, postprocessing chosen."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.common.files import read_json
from e2enet.data.cases.split_file import RunSplit, write_run_split
from e2enet.data.cases.splits import five_fold
from e2enet.evaluation.collect import collect_cases
from e2enet.evaluation.out_of_fold import main
from e2enet.inference.folds import find_folds
from e2enet.inference.largest_component import find_postprocessing
from e2enet.training.records import write_config

CASES = [f"scan_{index}" for index in range(6)]  # fold 0 validates two of them


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def reference(index: int) -> np.ndarray:
    """Return a label map: class 1 is a cube, class 2 a bar in two parts."""
    array = np.zeros((8, 8, 8), np.uint8)
    array[1:3, 1:3, 1:3] = 1
    array[5, index, 0:3] = array[5, index, 5:7] = 2
    return array


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A dataset and a run per fold. Each prediction is the reference plus a speck of class 1."""
    data = tmp_path / "data" / "Task99_Tiny"
    for index, case in enumerate(CASES):
        save(data / "imagesTr" / f"{case}.nii.gz", np.zeros((8, 8, 8), np.float32))
        save(data / "labelsTr" / f"{case}.nii.gz", reference(index))
    names = {"0": "background", "1": "cube", "2": "bar"}
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in CASES]
    content = {"name": "tiny", "modality": {"0": "MRI"}, "labels": names, "training": training, "test": []}
    (data / "dataset.json").write_text(json.dumps(content))
    for fold in range(5):
        run = tmp_path / "sweep" / f"fold{fold}"
        overrides = ["data=msd", "data.name=Task99_Tiny", f"fold={fold}", "dsff=dense", f"run_folder={run}"]
        write_config(run / "config.yaml", compose_config([*overrides, f"paths.data={tmp_path / 'data'}"]))
        (run / "summary.json").write_text("{}")
        for case in five_fold(CASES, fold)[1]:
            prediction = reference(CASES.index(case))
            prediction[7, 7, 7] = 1
            save(run / "validation" / f"{case}.nii.gz", prediction)
    return tmp_path / "sweep"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_case_is_scored_once(sweep: Path) -> None:
    main([str(sweep)])
    output = sweep / "out_of_fold" / "seed0"
    summary = read_json(output / "summary.json")
    # The cube has 8 voxels; with the speck 9 are predicted.
    assert summary["n_cases"] == 6 and summary["classes"]["1"]["dice"] == pytest.approx(16 / 17)
    assert (summary["classes"]["2"]["hd95"], summary["classes"]["2"]["nsd"]) == (0.0, 1.0)
    assert summary["mean"]["dice"] == pytest.approx((16 / 17 + 1) / 2)
    listed = {row["case"]: int(row["fold"]) for row in rows(output / "cases.csv")}
    assert listed == {case: fold for fold in range(5) for case in five_fold(CASES, fold)[1]}
    assert [row["case"] for row in rows(output / "scores.csv")] == sorted(CASES * 2)
    assert not (output / "postprocessing.json").exists()


def test_postprocessing_is_chosen_stored_and_applied(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(sweep), "--postprocessing"])
    output = sweep / "out_of_fold" / "seed0"
    choice = find_postprocessing([sweep / f"fold{fold}" for fold in range(5)])
    assert choice is not None and choice.path == (output / "postprocessing.json").resolve()
    assert choice.classes == (1,)  # the bar has two true parts
    stored = read_json(choice.path)
    assert stored["runs"] == [f"fold{fold}" for fold in range(5)] and stored["n_cases"] == 6
    assert stored["mean_dice"] == pytest.approx({"before": (16 / 17 + 1) / 2, "after": 1.0})
    assert stored["classes"]["2"]["dice_after"] == pytest.approx(6 / 8)
    for index, case in enumerate(CASES):
        image = nib.load(output / "postprocessed" / f"{case}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), reference(index))
    assert read_json(output / "postprocessed" / "summary.json")["mean"]["dice"] == 1.0
    assert read_json(output / "summary.json")["mean"]["dice"] < 1.0
    assert "Postprocessed" in capsys.readouterr().out


def test_a_choice_that_helps_nobody_leaves_no_old_results(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(sweep), "--postprocessing"])
    for path in sweep.glob("fold*/validation/*.nii.gz"):
        save(path, reference(CASES.index(path.name.removesuffix(".nii.gz"))))
    main([str(sweep), "--postprocessing"])
    output = sweep / "out_of_fold" / "seed0"
    assert read_json(output / "postprocessing.json")["keep_largest"] == []
    assert not (output / "postprocessed").exists()
    assert "no class gains" in capsys.readouterr().out


def test_gaps_repetitions_and_strangers_are_named(sweep: Path) -> None:
    first, second = five_fold(CASES, 0)[1]
    other = five_fold(CASES, 1)[1][0]
    (sweep / "fold0" / "validation" / f"{first}.nii.gz").unlink()
    shutil.copy(sweep / "fold1" / "validation" / f"{other}.nii.gz", sweep / "fold0" / "validation")
    with pytest.raises(InputError) as caught:
        collect_cases(find_folds(sweep))
    message = str(caught.value)
    assert f"fold 0: no prediction of 1 of its 2 validation cases, {first} (" in message
    assert f"fold 0: predicts {other}, which it does not validate" in message
    assert f"{other}: predicted by 2 folds" in message
    assert second not in message
    shutil.rmtree(sweep / "fold2" / "validation")
    with pytest.raises(InputError, match=r"fold2/validation: no such folder"):
        collect_cases(find_folds(sweep))


def test_repeated_runs_of_a_fold_count_once(sweep: Path) -> None:
    shutil.copytree(sweep / "fold0", sweep / "fold0_again")
    (sweep / "fold1" / "summary.json").unlink()  # interrupted, then trained again
    shutil.copytree(sweep / "fold1", sweep / "fold1_again")
    (sweep / "fold1_again" / "summary.json").write_text("{}")
    cases = collect_cases(find_folds(sweep))
    assert list(cases.pairs) == CASES
    assert cases.origin["runs"] == ["fold0_again", "fold1_again", "fold2", "fold3", "fold4"]


def test_missing_folds_are_refused_unless_allowed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "fold0" / "summary.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        main([str(sweep)])
    assert stopped.value.code == 2 and "fold 0, seed 0: interrupted" in capsys.readouterr().err
    assert not (sweep / "out_of_fold").exists()
    main([str(sweep), "--allow-missing-folds", "--output", str(sweep.parent / "elsewhere")])
    assert read_json(sweep.parent / "elsewhere" / "summary.json")["n_cases"] == 4
    assert "warning: without fold 0" in capsys.readouterr().out


def test_another_place_of_the_dataset(sweep: Path) -> None:
    (sweep.parent / "data").rename(sweep.parent / "moved")
    with pytest.raises(InputError, match="Task99_Tiny"):
        collect_cases(find_folds(sweep))
    cases = collect_cases(find_folds(sweep), data_root=sweep.parent / "moved")
    assert list(cases.pairs) == CASES and cases.scoring["nsd_tolerance"] == 1.0


def test_training_cases_are_not_out_of_fold(sweep: Path) -> None:
    run = sweep / "fold0"
    for fold in range(1, 5):
        shutil.rmtree(sweep / f"fold{fold}")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("fold: 0", "fold: all"))
    with pytest.raises(InputError, match="fold=all validates on its training cases"):
        collect_cases(find_folds(sweep))


def test_folds_of_a_file_are_scored_by_the_split_that_each_run_kept(sweep: Path) -> None:
    """Three folds of `data.split=FILE`. Later the file is gone, and a case is missing from the dataset."""
    folds = [(CASES[2:], CASES[:2]), (CASES[:2] + CASES[4:], CASES[2:4]), (CASES[:4], CASES[4:])]
    for fold in (3, 4):
        shutil.rmtree(sweep / f"fold{fold}")
    for fold, (train, validation) in enumerate(folds):
        run = sweep / f"fold{fold}"
        text = (run / "config.yaml").read_text()
        assert "split: five_fold" in text
        (run / "config.yaml").write_text(text.replace("split: five_fold", "split: splits_final.json"))
        write_run_split(run, RunSplit(3, tuple(train), tuple(validation), ()))
        shutil.rmtree(run / "validation")
        for case in validation:
            save(run / "validation" / f"{case}.nii.gz", reference(CASES.index(case)))
    cases = collect_cases(find_folds(sweep))
    assert cases.folds == {case: fold for fold, (_, validation) in enumerate(folds) for case in validation}
    (sweep / "fold1" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"(?s)folds of .* are missing.*fold 1, seed 0: interrupted"):
        find_folds(sweep)
    shutil.rmtree(sweep / "fold1")
    with pytest.raises(InputError, match="fold 1, seed 0: not in the sweep"):
        find_folds(sweep)
    description = sweep.parent / "data" / "Task99_Tiny" / "dataset.json"
    content = read_json(description)
    content["training"] = content["training"][1:]
    description.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"fold 0: {CASES[0]}: no labelled case of "):
        collect_cases(find_folds(sweep, allow_missing=True))


def test_folds_by_patient_are_scored_by_their_own_split(sweep: Path) -> None:
    """Runs from before split.json existed: `group` in the config decides which run validates which case."""
    for path in sweep.glob("fold*/config.yaml"):
        path.write_text(path.read_text().replace("group: null", "group: scan_([0-4])|scan_5"))
    with pytest.raises(InputError, match="its first group has no match in the ids scan_5"):
        collect_cases(find_folds(sweep))
