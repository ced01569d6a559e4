"""Layouts by patterns of file names: ACDC, KiTS, BraTS 2023 as published, and impossible patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from e2enet.common.config_check import config_problems
from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.data.cases.splits import five_fold
from e2enet.data.command import SECTIONS, compose_data
from e2enet.data.config_rules import SCHEMA
from e2enet.data.formats.labels import LabelTable
from e2enet.data.layouts.folder import FolderLayout
from e2enet.data.layouts.pattern import parse_pattern
from tests.data.folders import touch
from tests.data.patterns import acdc, layout, scanned

PLAIN = {"image": "{case}.nii.gz", "label": "{case}_seg.nii.gz", "channels": ["CT"]}


@pytest.fixture(scope="module")
def acdc_config() -> DictConfig:
    return OmegaConf.masked_copy(compose_config(["data=acdc"]), SECTIONS)


def test_acdc_has_two_frames_of_a_patient_that_no_fold_parts(tmp_path: Path, acdc_config: DictConfig) -> None:
    acdc(tmp_path, "database/training", 1, 2, 3, 4, 5)
    acdc(tmp_path, "database/testing", 101)
    dataset, told = scanned(layout("acdc"), tmp_path)
    assert not told and dataset.file_ending == ".nii.gz"
    first, second = dataset.training[:2]
    assert (first.id, second.id) == ("patient001_frame01", "patient001_frame12") and len(dataset.training) == 10
    assert first.images == (tmp_path / "database/training/patient001/patient001_frame01.nii.gz",)
    assert first.label == tmp_path / "database/training/patient001/patient001_frame01_gt.nii.gz"
    assert [case.id for case in dataset.test] == ["patient101_frame01", "patient101_frame12"]
    assert all(case.label is not None for case in dataset.test)
    group = acdc_config.data.group
    for fold in range(5):
        _, validation = five_fold([case.id for case in dataset.training], fold, group)
        assert len(validation) == 2 and validation[0][:10] == validation[1][:10]


def test_acdc_with_a_label_of_another_name(tmp_path: Path) -> None:
    acdc(tmp_path, "training", 1, 2)
    (tmp_path / "training/patient002/patient002_frame12_gt.nii.gz").rename(tmp_path / "training/patient002/gt.nii.gz")
    _, told = scanned(layout("acdc"), tmp_path)
    problem = "patient002_frame12_gt.nii.gz missing; not expected: gt.nii.gz (rename it?)"
    assert told == {("patient002_frame12", "error", problem, "training/patient002")}


def test_kits_as_of_2023_and_2019(tmp_path: Path) -> None:
    names = [f"case_0000{number}/{kind}.nii.gz" for number in (0, 1) for kind in ("imaging", "segmentation")]
    names += ["case_00000/instances/kidney_instance-1_annotation-1.nii.gz", "case_00210/imaging.nii.gz"]
    touch(tmp_path, *(f"dataset/{name}" for name in names), "dataset/kits23.json")
    dataset, told = scanned(layout("kits"), tmp_path)
    assert [case.id for case in dataset.training] == ["case_00000", "case_00001"]
    assert [case.id for case in dataset.test] == ["case_00210"]
    assert told == {(None, "warning", "has no label: a test case", "dataset/case_00210/imaging.nii.gz")}
    touch(tmp_path, "dataset/case_1/imaging.nii.gz", "dataset/case_00003/segmentation.nii.gz")
    _, told = scanned(layout("kits"), tmp_path)
    strange = "not taken: a folder that holds scans, where the layout has none of its name"
    assert (None, "warning", strange, "dataset/case_1") in told
    assert ("case_00003", "error", "imaging.nii.gz missing", "dataset/case_00003") in told


def test_brats_as_of_2023(tmp_path: Path) -> None:
    parts = ("t1n", "t1c", "t2w", "t2f", "seg")
    touch(tmp_path, *(f"BraTS-GLI-00000-00{n}/BraTS-GLI-00000-00{n}-{part}.nii.gz" for n in (0, 1) for part in parts))
    dataset, told = scanned(layout("brats_2023"), tmp_path)
    assert not told and [case.id for case in dataset.training] == ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001"]
    assert dataset.channels == ("FLAIR", "T1w", "T1gd", "T2w")
    assert [path.name[20:23] for path in dataset.training[0].images] == ["t2f", "t1n", "t1c", "t2w"]
    ids = [f"BraTS-GLI-{n:05d}-000" for n in range(20)]
    group = compose_config(["data=brats_2023"]).data.group
    for fold in range(5):  # a second scan of some patients follows the first; the folds of single scans are nnU-Net's
        assert five_fold(ids, fold, group) == five_fold(ids, fold)
        train, validation = five_fold([*ids, *(f"BraTS-GLI-{n:05d}-001" for n in (2, 5, 9, 11))], fold, group)
        assert not {name[:-4] for name in train} & {name[:-4] for name in validation}
    (tmp_path / "BraTS-GLI-00000-001/BraTS-GLI-00000-001-t2f.nii.gz").unlink()
    _, told = scanned(layout("brats_2023"), tmp_path)
    lacking = "BraTS-GLI-00000-001-t2f.nii.gz missing"
    assert told == {("BraTS-GLI-00000-001", "error", lacking, "BraTS-GLI-00000-001")}


def test_modalities_by_folder_and_parts(tmp_path: Path) -> None:
    own = FolderLayout(
        image="{modality}/{site}/{case}.nii.gz",
        label="masks/{site}/{case}.nii.gz",
        channels={"T1": "t1", "T2": "t2"},
        case="{site}-{case}",
        folders={"training": "a", "validation": ["none", "b"]},
    )
    names = [f"{kind}/x/1.mha" for kind in ("t1", "t2", "masks")]
    touch(tmp_path, *(f"{part}/{name}" for part in "ab" for name in names), "a/t1/y/2.mha", "a/masks/y/2.mha")
    dataset, told = scanned(own, tmp_path)
    assert [case.id for case in dataset.training] == ["x-1"] and dataset.file_ending == ".mha"
    assert [case.label for case in dataset.validation] == [tmp_path / "b/masks/x/1.mha"]
    assert [path.parts[-3] for path in dataset.training[0].images] == ["t1", "t2"]
    assert {(case, severity, problem) for case, severity, problem, _ in told} == {
        ("y-2", "error", "2.mha missing"),
        ("x-1", "error", f"the id is in training too, as {tmp_path / 'a/t1/x/1.mha'}: another one for either expected"),
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"image": "{case}"}, "image='{case}': an ending out of .nii.gz"),
        ({"image": "a.nii.gz", "label": "b.nii.gz"}, "case='{case}': has the fields ['case'], some of image, []"),
        (
            {"label": "{name}_seg.nii.gz"},
            "label='{name}_seg.nii.gz': has the fields ['name'], those of image, ['case']",
        ),
        ({"label": "{case}.mha"}, "label='{case}.mha': the pattern of the images; another expected"),
        ({"case": "{patient}"}, "case='{patient}': has the fields ['patient'], some of image, ['case'], expected"),
        ({"case": "{case:>9999999999}"}, "case='{case:>9999999999}': fields alone expected in braces"),
        ({"image": "{case.nii.gz"}, "image='{case.nii.gz': a brace opens that none closes"),
        ({"image": "case}.nii.gz"}, "image='case}.nii.gz': a brace closes that none opens"),
        ({"image": "{case:[}.nii.gz"}, "'[' is no regular expression"),
        ({"image": "{1}.nii.gz"}, "{1} is no field"),
        ({"label": "{case}_{modality}.nii.gz"}, "has {modality}, which `channels` gives its values only in the images"),
        ({"channels": {"T1": "t1"}}, "image='{case}.nii.gz': has no {modality}"),
        ({"image": "../{case}.nii.gz"}, "a path below the dataset's folder expected"),
        ({"folders": {"trainig": "x"}}, "folders.trainig: no such part; training | validation | test expected"),
        ({"folders": {"training": "../x"}}, "folders.training=../x: folders below the dataset's expected"),
        ({"channels": []}, "channels=[]: at least one name expected"),
    ],
)
def test_patterns_that_cannot_be(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        FolderLayout(**(PLAIN | changes))
    assert problem in str(caught.value)


def test_bad_patterns_are_told_before_anything_starts() -> None:
    line = ["data=acdc", "data.layout.label='{patient}.nii.gz'", "data.num_train=7"]
    with pytest.raises(InputError) as caught:
        compose_data(line)
    assert "data.layout: label='{patient}.nii.gz': has the fields ['patient']" in str(caught.value)
    assert "data.num_train: unknown to the layout of this dataset" in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        ({"imag": "x"}, "data.layout.imag: unknown key; did you mean data.layout.image?"),
        ({"_target_": "pathlib.Path"}, "data.layout._target_=pathlib.Path: expected a class of e2enet."),
        ("flat", "data.layout=flat: expected a section with _target_"),
        (None, "data.layout=null: expected a section with _target_"),
    ],
)
def test_sections_that_are_no_layout(acdc_config: DictConfig, layout: Any, problem: str) -> None:
    config = acdc_config.copy()
    config.data.layout = {**config.data.layout, **layout} if isinstance(layout, dict) else layout
    assert any(text.startswith(problem) for text in config_problems(config, SCHEMA)), config_problems(config, SCHEMA)


def test_a_value_that_another_key_takes_is_told_once(acdc_config: DictConfig) -> None:
    config = acdc_config.copy()
    target = "e2enet.data.layouts.described.AMOSLayout"
    config.data.update({"modality": "PET", "layout": {"_target_": target, "modality": "${data.modality}"}})
    assert config_problems(config, SCHEMA) == ["data.modality=PET: expected CT | MRI | both"]


def test_a_file_belongs_to_the_pattern_that_says_more_of_its_name() -> None:
    pattern = parse_pattern(r"{a}/img{number:\d{2}}-{a}.nii.gz")
    assert pattern.fields == {"a", "number"} and pattern.num_literal == 4 and pattern.has_own_folders
    assert pattern.match(1, "img07-x", {"a": "x"}) == {"a": "x", "number": "07"}
    assert pattern.match(1, "img07-y", {"a": "x"}) is None and pattern.match(1, "img7-x", {"a": "x"}) is None
    assert pattern.fill({"a": "x", "number": "07"}, ".mha") == "x/img07-x.mha"


def test_images_and_labels_side_by_side(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "c_seg.nii.gz", "a.nii")
    dataset, told = scanned(FolderLayout(**PLAIN), tmp_path)  # type: ignore[arg-type]
    assert [case.id for case in dataset.training] == ["a"] and [case.id for case in dataset.test] == ["b"]
    assert told == {
        ("a", "error", "is there twice, also as a.nii.gz", "a.nii"),
        (None, "warning", "has no label: a test case", "b.nii.gz"),
        (None, "warning", "is the label of no image", "c_seg.nii.gz"),
    }
    with pytest.raises(InputError, match=r"brings no names of its labels: give them as data\.labels"):
        FolderLayout(**PLAIN).scan(tmp_path, [], LabelTable())  # type: ignore[arg-type]
