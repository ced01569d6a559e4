"""Names and numbers of labels on the page: references are renumbered as in training, and runs must mean the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from e2enet.common.errors import InputError
from e2enet.view.__main__ import main
from e2enet.view.find import find_entries
from tests.view.conftest import LABELS, MARKUP, as_ras, means_of, predicted_values, reference_values, save

MERGED = {1: "liver", 2: f"{MARKUP} + spleen"}  # by label_map {3: 2}


def merged(values: np.ndarray) -> np.ndarray:
    """Renumber 3 to 2."""
    return np.where(values == 3, 2, values).astype(values.dtype)


def configure(run: Path, **data: Any) -> None:
    """Change the data section of a run's config."""
    config = OmegaConf.load(run / "config.yaml")
    config.data.update(data)
    OmegaConf.save(config, run / "config.yaml")


@pytest.fixture
def merging_run(run: Path) -> Path:
    """The run as it were with data.label_map={3:2}: its predictions have the labels 1 and 2."""
    configure(run, label_map={3: 2})
    save(run / "validation" / "case_1.nii.gz", merged(predicted_values()))
    save(run / "validation" / "case_3.nii.gz", merged(reference_values()))
    return run


def check_merged(viewer: Path, read_script: Any, decode: Any) -> None:
    """Check names, numbers and scores on the page."""
    content = read_script(viewer / "list.js")
    assert {one["value"]: one["name"] for one in content["meanings"][0]["labels"]} == MERGED
    means = means_of(viewer)
    assert means["case_3"] == [1.0] and 0.5 < means["case_1"][0] < 1.0
    for index in range(2):
        shown = read_script(viewer / "cases" / f"{index}.js")
        reference = np.asarray(decode(shown["reference"]).dataobj)
        np.testing.assert_array_equal(reference, np.asarray(as_ras(merged(reference_values())).dataobj))
        assert shown["values"] == [1, 2]


def test_given_references_are_renumbered_as_those_of_the_run(
    merging_run: Path, tmp_path: Path, read_script: Any, decode: Any
) -> None:
    labels = tmp_path / "raw" / "Task09_Tiny" / "labelsTr"
    main([str(merging_run)])
    check_merged(merging_run / "viewer", read_script, decode)
    main([str(merging_run), "--labels", str(labels), "--output", str(tmp_path / "given")])
    check_merged(tmp_path / "given", read_script, decode)
    assert find_entries([merging_run], labels=labels).warnings == []


def test_a_run_whose_dataset_is_elsewhere_renumbers_by_its_config(
    merging_run: Path, tmp_path: Path, read_script: Any, decode: Any
) -> None:
    moved = (tmp_path / "raw" / "Task09_Tiny").rename(tmp_path / "moved")
    main([str(merging_run), "--labels", str(moved / "labelsTr")])  # imagesTr is beside them
    check_merged(merging_run / "viewer", read_script, decode)
    (moved / "dataset.json").unlink()
    found = find_entries([merging_run], labels=moved / "labelsTr")
    assert found.entries[0].meaning.scheme.names == {0: "background", 1: "1", 2: "2"}  # no value is 3 any more
    configure(merging_run, labels={0: "background", 1: "one", 2: "rest"})
    found = find_entries([merging_run], labels=moved / "labelsTr")
    assert found.entries[0].meaning.scheme.names == {0: "background", 1: "one", 2: "rest"}


def test_the_command_line_renumbers_references_of_predictions_without_a_run(
    merging_run: Path, tmp_path: Path, read_script: Any, decode: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = shutil.copytree(merging_run / "validation", tmp_path / "predictions")
    labels = str(tmp_path / "raw" / "Task09_Tiny" / "labelsTr")
    main([str(predictions), "--labels", labels, "--label-map", "3=2"])
    check_merged(predictions / "viewer", read_script, decode)
    main([str(merging_run), "--label-map", "3=1", "--output", str(tmp_path / "other")])  # instead of the run's
    shown = read_script(tmp_path / "other" / "cases" / "0.js")
    assert np.array_equal(
        np.asarray(decode(shown["reference"]).dataobj) == 1, np.isin(as_ras(reference_values()).dataobj, (1, 3))
    )
    with pytest.raises(SystemExit) as stopped:
        images = str(tmp_path / "raw" / "Task09_Tiny" / "imagesTr")
        main([str(predictions), "--images", images, "--label-map", "3=2", "--output", str(tmp_path / "none")])
    assert stopped.value.code == 2 and not (tmp_path / "none").exists()
    assert "label map {3: 2}: no reference to renumber; expected --labels FOLDER" in capsys.readouterr().err


def test_references_of_other_labels_are_told(run: Path, tmp_path: Path) -> None:
    labels = shutil.copytree(tmp_path / "raw" / "Task09_Tiny" / "labelsTr", tmp_path / "others")
    swapped = {"background": 0, "spleen": 1, MARKUP: 2, "liver": 3}
    (labels / "dataset.json").write_text(json.dumps({"labels": swapped}))
    found = find_entries([run], labels=labels)
    assert found.warnings == [
        f"label 1 is 'liver' in first and 'spleen' in {labels}; the names and numbers of first are shown"
    ]
    assert found.entries[0].meaning.scheme.names == {value: name for name, value in LABELS.items()}


def test_runs_whose_labels_differ_are_not_shown_side_by_side(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run, run.with_name("second"))
    dataset = shutil.copytree(tmp_path / "raw" / "Task09_Tiny", tmp_path / "raw" / "Task10_Swapped")
    content = json.loads((dataset / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "spleen", "2": MARKUP, "3": "liver"}
    (dataset / "dataset.json").write_text(json.dumps(content))
    configure(other, name="Task10_Swapped")
    told = "first and second cannot be shown side by side: label 1 is 'liver' in first and 'spleen' in second; "
    with pytest.raises(SystemExit) as stopped:
        main([str(run), str(other), "--output", str(tmp_path / "both")])
    assert stopped.value.code == 2 and not (tmp_path / "both").exists()
    assert f"error: {told}expected runs whose labels mean the same\n" == capsys.readouterr().err
    content["labels"] = {str(value): name for name, value in LABELS.items()}  # another dataset of the same classes
    (dataset / "dataset.json").write_text(json.dumps(content))
    assert len(find_entries([run, other]).entries) == 2
    shutil.rmtree(dataset)  # nothing tells its names any more
    with pytest.raises(InputError, match=r"data.name is Task09_Tiny in first and Task10_Swapped in second \(.*no such"):
        find_entries([run, other])
    configure(other, name="Task09_Tiny", label_map={3: 2})
    with pytest.raises(InputError, match=r"label 2 is .* in first and .* \+ spleen\" in second; expected runs"):
        find_entries([run, other])


def test_given_scans_have_the_unit_of_the_run(run: Path, tmp_path: Path) -> None:
    configure(run, spacing_unit="um")
    found = find_entries([run], tmp_path / "raw" / "Task09_Tiny" / "imagesTr")
    assert [entry.case.unit for entry in found.entries] == ["um", "um"]
