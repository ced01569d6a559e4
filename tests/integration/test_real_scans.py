"""Real scans through all five commands: the shared hippocampus dataset, and one CT as a user's own dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2enet.data.cases.splits import five_fold

pytestmark = pytest.mark.integration


def test_hippocampus(shared_data: Path, tmp_path: Path, take_tour: Callable[..., Any]) -> None:
    folder = shared_data / "Task04_Hippocampus"
    dataset = ["data=msd", "data.name=Task04_Hippocampus", f"paths.data={shared_data}"]
    few = ["training=hippocampus", "data.limit_cases=4", "final.max_cases=3"]
    _, validation = five_fold([path.name.split(".")[0] for path in folder.glob("labelsTr/[!.]*.nii.gz")], 0)
    for part in ("imagesTr", "labelsTr"):  # the three cases that train.py scores at its end
        (tmp_path / part).mkdir()
        for case in validation[:3]:
            (tmp_path / part / f"{case}.nii.gz").symlink_to(folder / part / f"{case}.nii.gz")
    (tmp_path / "dataset.json").symlink_to(folder / "dataset.json")  # names the classes for the evaluation
    tour = take_tour(dataset, tmp_path / "imagesTr", [str(tmp_path / "labelsTr")], *few)
    tour.assert_agreement()
    tour.assert_grid(validation[0], folder / "imagesTr" / f"{validation[0]}.nii.gz")
    assert {entry["name"] for entry in tour.summary["classes"].values()} == {"Anterior", "Posterior"}


def test_six_organs_of_one_ct(shared_data: Path, tmp_path: Path, take_tour: Callable[..., Any]) -> None:
    source, folder = shared_data / "CT_example", tmp_path / "raw" / "Dataset500_CT"
    files = {"imagesTr/ct_0000": "ct", "labelsTr/ct": "seg", "imagesTs/whole_0000": "ct_whole"}
    for name, file in files.items():
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        path.symlink_to(source / f"{file}.nii.gz")
    names = {int(value): name for value, name in json.loads((source / "labels.json").read_text()).items()}
    labels = {"background": 0, **{name: value for value, name in names.items()}}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    # Of the 117 structures in the file the first six are organs of the abdomen; the others become background.
    organs = {0: "background", **{value: names[value] for value in range(1, 7)}}
    others = [value for value in names if value not in organs]
    dataset = [
        *("data=nnunet", "data.name=Dataset500_CT", f"paths.data={tmp_path / 'raw'}", "fold=all"),
        f"data.labels={{{','.join(f'{value}:{name}' for value, name in organs.items())}}}",
        f"data.label_map={{{','.join(f'{value}:0' for value in others)}}}",
    ]
    references = [str(folder / "labelsTr"), *(f"--label-map={value}=0" for value in others)]
    # One case cannot be split: fold=all trains and validates on it.
    tour = take_tour(dataset, folder / "imagesTr", references)
    tour.assert_agreement()
    tour.assert_grid("ct", source / "ct.nii.gz")
    plan = json.loads(next(tour.prepared.glob("*/plan.json")).read_text())
    assert plan["spacing"] == pytest.approx([3, 3, 3]) and plan["normalisation"][0]["scheme"] == "ct"
    assert {row["name"] for row in tour.trained.values()} == set(organs.values()) - {"background"}
