"""Scans to predict are found by the layout of the training data, as a checkpoint holds it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from e2enet.common.configs import as_plain, compose_config
from e2enet.common.errors import InputError
from e2enet.common.signatures import build_part
from e2enet.data.cases.sources import DataSource
from e2enet.data.earlier import data_of_today
from e2enet.data.formats.problems import Problem
from e2enet.data.layouts.folder import FolderLayout
from e2enet.data.layouts.prediction import find_cases
from e2enet.data.layouts.stored import stored_layout
from tests.data.folders import touch
from tests.data.patterns import acdc, layout, scanned


def test_prediction_finds_what_is_laid_out_so(tmp_path: Path) -> None:
    acdc(tmp_path, "database/training", 1, 2)
    acdc(tmp_path, "database/testing", 101)
    lines: list[str] = []

    def ids(source: Path, name: str = "acdc", channels: int = 1) -> list[str]:
        return [case.id for case in find_cases(source, ["MRI"] * channels, layouts=[layout(name)], say=lines.append)]

    frames = ["patient001_frame01", "patient001_frame12", "patient002_frame01", "patient002_frame12"]
    assert ids(tmp_path) == [*frames, "patient101_frame01", "patient101_frame12"]
    assert ids(tmp_path / "database/training") == frames
    assert ids(tmp_path / "database/training/patient001") == frames[:2]
    scan = tmp_path / "database/training/patient001/patient001_frame01.nii.gz"
    assert ids(scan) == [frames[0]]
    flat = touch(tmp_path / "flat", "x.nii.gz", "y.nii.gz")
    assert ids(flat) == ["x", "y"]
    assert [line.partition(": ")[2] for line in lines] == [
        "laid out as the training data, 6 cases",
        "laid out as the training data, 4 cases",
        "laid out as the training data, 2 cases",
        "one scan",
        "a flat folder of scans, 2 cases",
    ]
    touch(tmp_path / "b", *(f"P/P-{part}.nii.gz" for part in ("t1n", "t1c", "t2w", "t2f")))
    assert ids(tmp_path / "b/P/P-t1c.nii.gz", "brats_2023", 4) == ["P"]
    assert lines[-1].endswith("P-t1c.nii.gz: laid out as the training data, 1 case")


def test_prediction_of_a_folder_with_a_dataset_json(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii.gz", "imagesTs/b.nii.gz")
    cases = '[{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}], "test": ["imagesTs/b.nii.gz"]'
    text = f'{{"modality": {{"0": "CT"}}, "labels": {{"0": "background", "1": "x"}}, "training": {cases}}}'
    (tmp_path / "dataset.json").write_text(text)
    problems: list[Problem] = []
    found = find_cases(tmp_path, ["MRI"], problems=problems, layouts=[layout("msd")])
    assert [case.id for case in found] == ["a", "b"] and not problems  # the missing label is no problem
    assert [case.id for case in find_cases(tmp_path / "imagesTr", ["MRI"], layouts=[layout("msd")])] == ["a"]
    with pytest.raises(InputError, match="dataset cannot be used"):
        DataSource(tmp_path, layout("msd")).read()


@pytest.mark.parametrize(
    ("name", "more", "choice"),
    [
        ("BraTSDataModule", {"layout": "cases"}, ["data=brats_2021"]),
        ("BraTSDataModule", {"layout": "msd"}, ["data=brats"]),
        ("BTCVDataModule", {}, ["data=btcv"]),
        ("AMOSDataModule", {"modality": "MRI"}, ["data=amos_mri"]),
        ("PhantomDataModule", {"num_train": 7, "phantom_seed": 3}, ["data.num_train=7", "data.phantom_seed=3"]),
    ],
)
def test_runs_of_earlier_versions_are_read_by_the_layouts_of_today(
    name: str, more: dict[str, Any], choice: list[str]
) -> None:
    section = {"_target_": f"e2enet.data.datasets.{name}", "name": "mine", "augmentation": "none", **more}
    read = data_of_today(section)
    assert read["layout"] == as_plain(compose_config(choice).data)["layout"]
    assert read["_target_"] == "e2enet.data.datamodule.SegmentationDataModule"
    assert (read["name"], read["augmentation"]) == ("mine", "none") and data_of_today(read) == read


def test_an_ensemble_takes_the_first_layout_that_fits(tmp_path: Path) -> None:
    acdc(tmp_path, "training", 1)
    both = [layout("kits"), layout("acdc")]
    assert [case.id for case in find_cases(tmp_path, ["MRI"], layouts=both)] == [
        "patient001_frame01",
        "patient001_frame12",
    ]


def test_a_checkpoints_layout_is_built_where_it_is_e2enets_own() -> None:
    section = as_plain(compose_config(["data=brats_2023"]).data.layout)
    own = stored_layout(section)
    assert isinstance(own, FolderLayout) and own.patterns == layout("brats_2023").patterns  # type: ignore[attr-defined]
    for wrong, problem in (
        ({"_target_": "antigravity.fly"}, "none of e2enet, .*trust=\\[antigravity.fly\\]"),
        ({**section, "image": "{case"}, "cannot be built \\(image='{case'"),
        ({**section, "more": 1}, "cannot be built"),
        ([section], "no section with _target_"),
    ):
        with pytest.raises(InputError, match=problem):
            stored_layout(wrong)
    assert "antigravity" not in sys.modules
    with pytest.raises(InputError, match="is no class of e2enet"):
        stored_layout({"_target_": "collections.Counter"}, ["collections.Counter"])


OWN_LAYOUT = """
from e2enet.data.formats.dataset import build_raw_dataset
from e2enet.data.formats.labels import resolve_labels
from e2enet.data.formats.naming import Case
from e2enet.data.layouts.layout import Layout


class ByTable(Layout):
    def __init__(self, table: str) -> None:
        self.table = table

    def scan(self, folder, problems, table):
        rows = [line.split() for line in (folder / self.table).read_text().splitlines()]
        cases = [Case(name, (folder / image,), folder / label) for name, image, label in rows]
        labels = resolve_labels(None, table, problems)
        return build_raw_dataset("own", folder, ["CT"], labels, table, training=cases, problems=problems)
"""


def test_a_layout_in_code_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_layout.py").write_text(OWN_LAYOUT, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    section = {"_target_": "own_layout.ByTable", "table": "cases.txt"}
    folder = touch(tmp_path / "d", "x/1.nii.gz", "y/1.nii.gz", "x/2.nii.gz")
    (folder / "cases.txt").write_text("one x/1.nii.gz y/1.nii.gz\ntwo x/2.nii.gz y/2.nii.gz\n")
    dataset, told = scanned(build_part(section), folder)
    assert [case.id for case in dataset.training] == ["one", "two"] and dataset.channels == ("CT",)
    assert told == {("two", "error", "no such file", "y/2.nii.gz")}
    with pytest.raises(InputError, match="none of e2enet"):
        stored_layout(section)
    own = stored_layout(section, ["own_layout.ByTable"])
    assert [case.id for case in find_cases(folder, ["MRI"], layouts=[own])] == ["one", "two"]  # no label is needed
