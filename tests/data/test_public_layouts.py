"""AMOS, BTCV and BraTS as downloaded: cases, modalities and parts are found, and all flaws reported at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2enet.common.configs import as_plain, compose_config
from e2enet.common.errors import InputError
from e2enet.common.signatures import build_part
from e2enet.data.cases.sources import DataSource
from e2enet.data.formats.amos import modality_of
from e2enet.data.formats.layout import (
    LabelTable,
    RawDataset,
    read_amos,
    read_msd,
    scan_amos,
)
from e2enet.data.formats.problems import Problem
from e2enet.data.layouts.layout import Layout
from e2enet.data.layouts.prediction import BRATS, find_cases

TABLE = LabelTable({0: "background", 1: "core", 2: "edema", 3: "enhancing"}, {4: 3}, {"core": (1, 3)})


def layout(name: str) -> Layout:
    """The layout of conf/data/NAME.yaml."""
    return build_part(as_plain(compose_config([f"data={name}"]).data.layout))


def read(name: str, root: Path, table: LabelTable = TABLE) -> RawDataset:
    return DataSource(root, layout(name), table).read()


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def ids(dataset: RawDataset) -> tuple[list[str], list[str], list[str]]:
    parts = (dataset.training, dataset.validation, dataset.test)
    return tuple([case.id for case in cases] for cases in parts)  # type: ignore[return-value]


def amos(root: Path, training: list[str], validation: list[str] = (), test: list[str] = ()) -> Path:  # type: ignore[assignment]
    content: dict[str, object] = {"name": "AMOS", "labels": {"0": "background", "1": "spleen"}}
    for section, part, cases in (("training", "Tr", training), ("validation", "Va", validation), ("test", "Ts", test)):
        entries = [{"image": f"./images{part}/{case}.nii.gz"} for case in cases]
        if section != "test":
            entries = [entry | {"label": entry["image"].replace("images", "labels")} for entry in entries]
        content[section] = entries
        for entry in entries:
            touch(*(root / path for path in entry.values()))
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def btcv(root: Path, *files: str) -> Path:
    touch(*(root / f"{file}.nii.gz" for file in files))
    return root


def brats(root: Path, *cases: str, ending: str = ".nii.gz", parts: str = "flair t1 t1ce t2 seg") -> Path:
    touch(*(root / case / f"{case}_{part}{ending}" for case in cases for part in parts.split()))
    return root


def test_amos_modalities_are_told_apart_by_number(tmp_path: Path) -> None:
    root = amos(tmp_path, ["amos_0001", "amos_0500", "amos_0501"], ["amos_0008", "amos_0600"], ["amos_0002"])
    assert [modality_of(f"amos_{number}") for number in ("0500", "0501")] == ["CT", "MRI"]
    assert ids(read_amos(root)) == (["amos_0001", "amos_0500"], ["amos_0008"], ["amos_0002"])
    assert ids(read_amos(root, modality="MRI")) == (["amos_0501"], ["amos_0600"], [])
    assert read_amos(root).channels == ("CT",) and read_amos(root, modality="MRI").channels == ("MRI",)
    assert read_amos(root).validation[0].label == root / "labelsVa/amos_0008.nii.gz"
    both = read_amos(root, modality="both")  # MRI; CT cases are trained on only
    assert ids(both) == (["amos_0001", "amos_0500", "amos_0501"], ["amos_0600"], []) and both.channels == ("CT or MRI",)
    assert both.only_trained == {"amos_0001", "amos_0500"}


def test_amos_flaws(tmp_path: Path) -> None:
    root = amos(tmp_path, ["amos_0001", "amos_0004", "amos_0507", "case_7"], [], ["amos_0002"])
    (root / "labelsTr/amos_0004.nii.gz").unlink()
    (root / "imagesTr/amos_0507.nii.gz").unlink()
    touch(root / "imagesTr/amos_0009.nii.gz", root / "imagesTr/._amos_0001.nii.gz")
    problems: list[Problem] = []
    dataset = scan_amos(root, problems)
    assert [case.id for case in dataset.training] == ["amos_0001", "amos_0004"]
    assert {(problem.case, problem.severity, problem.problem) for problem in problems} == {
        ("amos_0004", "error", "no such file"),
        ("case_7", "error", "a name like amos_0001.nii.gz expected"),
        (None, "warning", "belongs to no case of the dataset"),
    }
    with pytest.raises(InputError, match=r"(?s)case case_7: .*amos_0004\.nii\.gz: no such file"):
        read_amos(root)
    with pytest.raises(InputError, match=r"case amos_0507: .*imagesTr/amos_0507\.nii\.gz: no such file"):
        read_amos(root, modality="MRI")


def test_btcv_with_and_without_the_folder_rawdata(tmp_path: Path) -> None:
    files = ("Training/img/img0001", "Training/label/label0001", "Testing/img/img0061")
    outer = btcv(tmp_path / "a", *(f"RawData/{file}" for file in files))
    inner = btcv(tmp_path / "b", *files)
    for root in (outer, outer / "RawData", inner):
        dataset = read("btcv", root)
        assert ids(dataset) == (["img0001"], [], ["img0061"])
        assert dataset.channels == ("CT",) and dataset.test[0].label is None
        label = dataset.training[0].label
        assert label is not None and label.name == "label0001.nii.gz"


def test_btcv_flaws(tmp_path: Path) -> None:
    root = btcv(tmp_path, "Training/img/img0001", "Training/label/label0001", "Training/img/img0002")
    btcv(root, "Training/label/label0003", "Training/img/image4")
    touch(root / "Training/img/img0001.nii")
    problems: list[Problem] = []
    assert [case.id for case in layout("btcv").scan(root, problems, TABLE).training] == ["img0001"]
    assert {(problem.case, problem.severity) for problem in problems} == {
        ("img0001", "error"),
        ("img0002", "error"),
        ("image4", "error"),
        (None, "warning"),
    }
    text = "\n".join(map(str, problems))
    assert "label0002.nii.gz: the case has no label" in text and "label0003.nii.gz: is the label of no image" in text
    assert "img0001.nii: is there twice, also as img0001.nii.gz" in text
    assert "image4.nii.gz: a name like img0001.nii.gz expected" in text
    with pytest.raises(InputError, match="holds neither RawData/Training nor Training"):
        read("btcv", tmp_path / "Training")
    with pytest.raises(InputError, match="no names of its labels"):
        read("btcv", root, LabelTable())


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_brats_cases(tmp_path: Path, ending: str) -> None:
    root = brats(tmp_path, "BraTS2021_00000", "BraTS2021_00002", ending=ending)
    brats(root, "BraTS2021_00003", ending=ending, parts="flair t1 t1ce t2")
    touch(root / "name_mapping.csv")
    dataset = read("brats_2021", root)
    assert ids(dataset) == (["BraTS2021_00000", "BraTS2021_00002"], [], ["BraTS2021_00003"])
    assert [path.name.removeprefix("BraTS2021_00000_") for path in dataset.training[0].images] == [
        f"{part}{ending}" for part in ("flair", "t1", "t1ce", "t2")
    ]
    assert dataset.channels == ("FLAIR", "T1w", "T1gd", "T2w") and dataset.file_ending == ending
    assert dataset.label_map == {4: 3} and dataset.regions == {"core": (1, 3)}


def test_brats_flaws(tmp_path: Path) -> None:
    # As published: the label of one case of 2020 has another name.
    root = brats(tmp_path, "BraTS20_Training_355", ending=".nii", parts="flair t1 t1ce t2")
    touch(root / "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    brats(root, "BraTS20_Training_001", ending=".nii", parts="flair t1 t2 seg")
    brats(root, "BraTS20_Training_002", ending=".nii")
    brats(root, "BraTS20_Training_003", ending=".nii", parts="flair t1 t1ce t2")
    problems: list[Problem] = []
    dataset = layout("brats_2021").scan(root, problems, TABLE)
    assert ids(dataset) == (["BraTS20_Training_002"], [], ["BraTS20_Training_003"])
    first, third, second = sorted(problems, key=lambda problem: str(problem.case or "of the folder"))
    assert first.case == "BraTS20_Training_001" and "BraTS20_Training_001_t1ce.nii missing" in first.problem
    assert second.severity == "warning" and second.problem == "has no label: a test case"
    assert second.file == str(root / "BraTS20_Training_003/BraTS20_Training_003_flair.nii")
    assert "BraTS20_Training_355_seg.nii missing; not expected: W39_1998.09.19_Segm.nii" in third.problem
    with pytest.raises(InputError, match=r"holds no image like {case}/{case}_{modality}\.nii\.gz"):
        read("brats_2021", root / "BraTS20_Training_002")


def test_a_remapped_decathlon(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr/a.nii.gz", tmp_path / "labelsTr/a.nii.gz", tmp_path / "imagesTr/b.nii.gz")
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "core", "2": "edema", "4": "enhancing"},
        "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = read_msd(tmp_path, LabelTable(label_map={4: 3}, regions={"whole": (1, 2, 3)}))
    assert dataset.labels == {0: "background", 1: "core", 2: "edema", 3: "enhancing"}
    assert dataset.label_map == {4: 3} and dataset.regions == {"whole": (1, 2, 3)}
    with pytest.raises(InputError, match=r"\[3\] missing"):
        read_msd(tmp_path)


def test_cases_to_predict_in_brats_folders(tmp_path: Path) -> None:
    brats(tmp_path, "B_1", "B_2", "B[1]*")
    assert [case.id for case in find_cases(tmp_path, BRATS.channels)] == ["B[1]*", "B_1", "B_2"]
    (case,) = find_cases(tmp_path / "B_2", BRATS.channels)
    assert case.id == "B_2" and [path.name for path in case.images] == [
        f"B_2_{part}.nii.gz" for part in ("flair", "t1", "t1ce", "t2")
    ]
    (tmp_path / "B_1/B_1_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case B_1: .*B_1_t2\.nii\.gz missing"):
        find_cases(tmp_path, BRATS.channels)
    with pytest.raises(InputError, match="holds no image"):
        find_cases(tmp_path, ["MRI"])


@pytest.mark.parametrize(
    ("channels", "parts"),
    [
        (["FLAIR", "T1w", "t1gd", "T2w"], "flair t1 t1ce t2"),  # the Decathlon's
        (["T1", "T1ce", "T2", "Flair"], "t1 t1ce t2 flair"),  # nnU-Net's
        (["t2w", "t1c", "t1n", "t2f"], "t2 t1ce t1 flair"),  # those of 2023
        (["T1-Gd", "T2_FLAIR", "T2 w", "T1"], "t1ce flair t2 t1"),
    ],
)
def test_brats_files_are_in_the_order_of_the_models_channels(tmp_path: Path, channels: list[str], parts: str) -> None:
    brats(tmp_path, "B_1", "B_2")
    for source in (tmp_path, tmp_path / "B_1", tmp_path / "B_1" / "B_1_t2.nii.gz"):
        first = find_cases(source, channels)[0]
        assert [path.name for path in first.images] == [f"B_1_{part}.nii.gz" for part in parts.split()]


@pytest.mark.parametrize("channels", [["MRI0", "MRI1", "MRI2", "MRI3"], ["T1", "T1w", "T1ce", "T2"]])
def test_brats_files_that_no_channel_names_are_refused(tmp_path: Path, channels: list[str]) -> None:
    brats(tmp_path, "B_1")
    expected = "flair or t2f or t2flair; t1 or t1w or t1n; t1ce or t1gd or t1c; t2 or t2w"
    with pytest.raises(InputError, match=f"the model's channels are {', '.join(channels)}; .*{expected}") as error:
        find_cases(tmp_path, channels)
    assert str(error.value).startswith(str(tmp_path))
    touch(*(tmp_path / "flat" / f"x_000{index}.nii.gz" for index in range(4)))
    assert [case.id for case in find_cases(tmp_path / "flat", channels)] == ["x"]
