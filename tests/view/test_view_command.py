"""`e2enet view`: runs and plain folders of predictions, two of them side by side, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.view.__main__ import main
from e2enet.view.find import find_entries, probabilities_of
from tests.view.conftest import MARKUP, means_of, reference_values, save, scan_values


def test_a_run_is_shown_with_its_dataset(run: Path, read_script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run)])
    found = means_of(run / "viewer")
    assert found["case_3"] == [1.0] and 0.5 < found["case_1"][0] < 1.0 and len(found) == 2
    labels = read_script(run / "viewer" / "list.js")["meanings"][0]["labels"]
    assert [label["name"] for label in labels] == ["liver", MARKUP, "spleen"]
    printed = capsys.readouterr().out
    assert f" kB; open {run / 'viewer' / 'index.html'} in a browser" in printed


def test_a_folder_of_a_run_is_shown_with_its_dataset_and_has_a_viewer_of_its_own(run: Path, read_script: Any) -> None:
    save(run / "test" / "case_0.nii.gz", reference_values())
    main([str(run / "test")])
    assert means_of(run / "test" / "viewer") == {"case_0": [1.0]}
    content = read_script(run / "test" / "viewer" / "list.js")
    assert content["title"] == "first, test" and not (run / "viewer").exists()


def test_two_runs_stand_side_by_side(
    run: Path, tmp_path: Path, read_script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run, run.with_name("second"))
    save(other / "validation" / "case_1.nii.gz", reference_values())
    (other / "validation" / "case_3.nii.gz").unlink()
    main([str(run), str(other), "--output", str(tmp_path / "both")])
    first, second = means_of(tmp_path / "both")["case_1"]
    assert first < 1.0 and second == 1.0
    content = read_script(tmp_path / "both" / "list.js")
    assert [pane["name"] for pane in content["cases"][0]["panes"]] == ["first", "second"]
    assert content["title"] == "first and second"
    assert "not shown: case_3, which only one of first and second predicts" in capsys.readouterr().out


def test_a_folder_of_predictions_with_labels_takes_the_images_beside_them(dataset: Path, read_script: Any) -> None:
    main([str(dataset / "predictions"), "--labels", str(dataset / "labelsTs")])
    found = means_of(dataset / "predictions" / "viewer")
    assert found["good"] == [1.0] and found["poor"][0] < 1.0
    labels = read_script(dataset / "predictions" / "viewer" / "list.js")["meanings"][0]["labels"]
    assert [label["name"] for label in labels] == ["liver", MARKUP, "spleen"]


def test_predictions_without_references_have_no_scores(dataset: Path, tmp_path: Path, read_script: Any) -> None:
    shutil.move(dataset / "dataset.json", dataset / "predictions" / "dataset.json")  # as nnU-Net leaves it
    main([str(dataset / "predictions"), "--images", str(dataset / "imagesTs"), "--output", str(tmp_path / "v")])
    assert means_of(tmp_path / "v") == {"good": [None], "poor": [None]}
    content = read_script(tmp_path / "v" / "cases" / "0.js")
    assert content["reference"] is None and content["panes"][0]["difference"] is None
    assert read_script(tmp_path / "v" / "list.js")["meanings"][0]["labels"][0]["name"] == "liver"


def test_references_that_are_missing_are_told(dataset: Path) -> None:
    sources, images = [dataset / "predictions"], dataset / "imagesTs"
    assert find_entries(sources, images, dataset / "labelsTs").warnings == []
    (dataset / "labelsTs" / "good.nii.gz").unlink()
    found = find_entries(sources, images, dataset / "labelsTs")
    assert found.warnings == [f"without a score: good, whose references are not in {dataset / 'labelsTs'}"]
    assert [entry.case.label is None for entry in found.entries] == [True, False]
    shutil.move(dataset / "labelsTs" / "poor.nii.gz", dataset / "labelsTs" / "label_poor.nii.gz")
    with pytest.raises(InputError, match=r"labelsTs: has no reference of good, poor; expected files named like the"):
        find_entries(sources, images, dataset / "labelsTs")


def test_a_run_without_its_dataset_is_shown_with_the_folders_that_are_given(run: Path) -> None:
    raw = run.parents[1] / "raw" / "Task09_Tiny"
    moved = raw.rename(run.parents[1] / "moved")
    with pytest.raises(InputError, match=r"Task09_Tiny: no such folder; .*, or --images FOLDER and --labels FOLDER$"):
        find_entries([run])
    found = find_entries([run], moved / "imagesTr", moved / "labelsTr")
    assert [entry.case.id for entry in found.entries] == ["case_1", "case_3"]
    assert found.entries[0].case.label == moved / "labelsTr" / "case_1.nii.gz"
    assert found.entries[0].meaning.scheme.names[1] == "liver"  # of the dataset.json above the references
    (warning,) = found.warnings
    assert warning.startswith(f"the dataset of {run} is not used: {raw}: no such folder")


def test_labels_without_names_are_called_by_their_values(dataset: Path) -> None:
    (dataset / "dataset.json").unlink()
    found = find_entries([dataset / "predictions"], dataset / "imagesTs", dataset / "labelsTs")
    assert found.entries[0].meaning.scheme.names == {0: "background", 1: "1", 2: "2", 3: "3"}


def test_channels_of_nnunet_are_all_stored(dataset: Path, tmp_path: Path, read_script: Any, decode: Any) -> None:
    for case in ("good", "poor"):
        for channel in range(2):
            save(tmp_path / "two" / f"{case}_{channel:04d}.nii.gz", scan_values(channel))
    main([str(dataset / "predictions"), "--images", str(tmp_path / "two"), "--output", str(tmp_path / "v")])
    channels = read_script(tmp_path / "v" / "cases" / "0.js")["channels"]
    assert [channel["name"] for channel in channels] == ["channel 0", "channel 1"]
    values = [np.asarray(decode(channel["data"]).dataobj) for channel in channels]
    assert [np.sort(one.ravel()).tolist() for one in values] == [
        np.sort(scan_values(channel).ravel()).tolist() for channel in range(2)
    ]


def test_only_probabilities_of_this_prediction_are_taken(dataset: Path) -> None:
    prediction = dataset / "predictions" / "good.nii.gz"
    np.savez(prediction.with_name("good.npz"), probabilities=np.zeros(1))
    assert probabilities_of(prediction, "good") is None  # nothing tells what wrote it
    record = dataset / "predictions" / ".predicted" / "good.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"more": []}))
    assert probabilities_of(prediction, "good") is None  # of an earlier prediction
    record.write_text(json.dumps({"more": [".npz"]}))
    assert probabilities_of(prediction, "good") == prediction.with_name("good.npz")


def test_what_cannot_be_shown_is_told(dataset: Path, run: Path, tmp_path: Path) -> None:
    predictions = dataset / "predictions"
    with pytest.raises(InputError, match=r"predictions without a run; expected --images FOLDER"):
        find_entries([predictions])
    with pytest.raises(InputError, match=r"nothing: no such folder"):
        find_entries([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no label image; expected predictions, or a run folder"):
        find_entries([tmp_path / "empty"])
    save(tmp_path / "others" / "x.nii.gz", scan_values())
    with pytest.raises(InputError, match=r"no prediction can be shown with its scan\n  - not shown: good, poor, whose"):
        find_entries([predictions], tmp_path / "others")
    (run.parent / "sweep.json").write_text("{}")
    with pytest.raises(InputError, match=r"runs: a sweep; expected one or two of its runs, or `e2enet report"):
        find_entries([run.parent])
    shutil.rmtree(run / "validation")
    with pytest.raises(InputError, match=r"validation: no such folder; expected the predictions of a run that ended"):
        find_entries([run])


def test_a_folder_that_is_no_viewer_stays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "mine" / "scan.nii.gz", scan_values())
    with pytest.raises(SystemExit) as stopped:
        main([str(run), "--output", str(tmp_path / "mine")])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "mine: is there and not empty; a new or empty folder, or an earlier viewer, expected" in told
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["scan.nii.gz"]
