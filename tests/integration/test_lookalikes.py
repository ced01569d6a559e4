"""The look-alikes of AMOS22 (CT and MRI), BTCV, BraTS (in both layouts) and nnU-Net through all five commands."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.data.check import main as check
from e2enet.data.prepare import main as prepare
from e2enet.data.synthetic.lookalikes import LOOKALIKES
from e2enet.training.run import run_training

pytestmark = pytest.mark.integration
REGIONS = ("--region=whole tumour=1,2,3", "--region=enhancing tumour=3")  # the core differs by layout


@pytest.fixture
def raw(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a look-alike and returns its folder."""

    def write(name: str) -> Path:
        writer, folder = LOOKALIKES[name]
        return writer(tmp_path / "raw" / folder, 5, 0)

    return write


@pytest.mark.parametrize("modality", ["ct", "mri"])
def test_amos(modality: str, raw: Callable[[str], Path], take_tour: Callable[..., Any]) -> None:
    folder = raw("amos")
    dataset = [f"data=amos_{modality}", f"paths.data={folder.parent}"]
    # Both modalities are in one folder. The published validation cases are scored.
    tour = take_tour(dataset, folder / "imagesVa", [str(folder / "labelsVa")], "data.split=official")
    tour.assert_agreement()
    assert tour.summary["n_cases"] == 4 and len({case for case, _ in tour.trained}) == 2
    assert tour.summary["classes"].keys() == {str(label) for label in range(1, 16)}
    for case in tour.predictions.glob("*.nii.gz"):
        tour.assert_grid(case.name.removesuffix(".nii.gz"), folder / "imagesVa" / case.name)


def test_btcv(raw: Callable[[str], Path], take_tour: Callable[..., Any]) -> None:
    training = raw("btcv") / "RawData" / "Training"
    labels = [str(training / "label"), "--prediction-names", "img*", "--label-names", "label*"]
    tour = take_tour(["data=btcv", f"paths.data={training.parents[2]}"], training / "img", labels)
    tour.assert_agreement(lambda case: case.removeprefix("img"))
    assert tour.summary["n_cases"] == 5
    tour.assert_grid("img0001", training / "img" / "img0001.nii.gz")


def test_brats_of_the_decathlon(raw: Callable[[str], Path], take_tour: Callable[..., Any]) -> None:
    folder = raw("brats")
    labels = [str(folder / "labelsTr"), *REGIONS, "--region=tumour core=2,3"]
    tour = take_tour(["data=brats", f"paths.data={folder.parent}"], folder / "imagesTr", labels)
    assert tour.summary["regions"].keys() == {"whole tumour", "tumour core", "enhancing tumour"}
    tour.assert_agreement()
    tour.assert_grid("BRATS_001", folder / "imagesTr" / "BRATS_001.nii.gz")


def test_brats_as_a_folder_per_case(raw: Callable[[str], Path], take_tour: Callable[..., Any]) -> None:
    folder = raw("brats_cases")
    labels = [str(folder), "--label-names=*/*_seg", "--label-map=4=3", *REGIONS, "--region=tumour core=1,3"]
    tour = take_tour(["data=brats_2021", f"paths.data={folder.parent}"], folder, labels)  # predicted in its own layout
    assert tour.summary["n_cases"] == 5
    tour.assert_agreement()
    assert {"1+2+3", "1+3", "3"} <= {label for _, label in tour.trained}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "labels", "cases"),
    [
        ("acdc", ["labels", "--label-names=*_gt"], 12),
        ("kits", ["dataset", "--label-names=*/segmentation", "--region=all=1,2,3", "--region=masses=2,3"], 5),
        ("brats_2023", [".", "--label-names=*/*-seg", *REGIONS, "--region=tumour core=1,3"], 5),
    ],
)
def test_predicted_as_it_lies(
    name: str, labels: list[str], cases: int, raw: Callable[[str], Path], take_tour: Callable[..., Any]
) -> None:
    folder = raw(name)
    if name == "acdc":  # the evaluation pairs files within one folder
        (folder / "labels").mkdir()
        for file in folder.glob("database/*/*/*_gt.nii.gz"):
            (folder / "labels" / file.name).symlink_to(file)
    tour = take_tour([f"data={name}", f"paths.data={folder.parent}"], folder, [str(folder / labels[0]), *labels[1:]])
    assert tour.summary["n_cases"] == cases
    tour.assert_agreement()


def test_nnunet(raw: Callable[[str], Path], take_tour: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Each of two channels has its own file. A scan with another ending is read by predict.py alone."""
    folder = raw("nnunet")
    images = folder / "imagesTr"
    for channel in range(2):
        packed = images / f"prostate_00_{channel:04d}.nii.gz"
        (images / f"spare_{channel:04d}.nii").write_bytes(gzip.decompress(packed.read_bytes()))
    dataset = ["data=nnunet", f"data.name={folder.name}", f"paths.data={folder.parent}"]
    tour = take_tour(dataset, images, [str(folder / "labelsTr")])
    tour.assert_agreement()
    tour.assert_grid("prostate_03", images / "prostate_03_0000.nii.gz")
    assert {case for case, _ in tour.scores} == {f"prostate_{number:02d}" for number in range(5)}
    lost = f"warning: {images}: not taken: ends in .nii, .nii.gz expected (2: spare_0000.nii, spare_0001.nii)"
    unscored = f"warning: {tour.predictions / 'spare.nii'}: has no reference and is not scored"
    shown = capsys.readouterr().out.splitlines()
    assert shown.count(lost) == 2 and shown.count(unscored) == 1  # check and prepare; the evaluation


def test_what_the_check_finds_stops_the_others(raw: Callable[[str], Path], tmp_path: Path) -> None:
    folder = raw("nnunet")
    scan, label = folder / "imagesTr" / "prostate_01_0001.nii.gz", folder / "labelsTr" / "prostate_03.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-50])
    label.unlink()
    dataset = ["data=nnunet", f"data.name={folder.name}", f"paths.data={folder.parent}"]
    assert check(dataset) == 1
    shared = [*dataset, f"paths.prepared={tmp_path / 'prepared'}"]
    with pytest.raises(SystemExit) as stopped:
        prepare(shared)
    assert stopped.value.code == 2
    with pytest.raises(InputError) as caught:
        run_training(compose_config(shared), tmp_path / "run")
    assert "2 errors" in str(caught.value) and str(scan) in str(caught.value) and str(label) in str(caught.value)
    assert not list(tmp_path.glob("prepared/**/*.npy")) and not (tmp_path / "run" / "config.yaml").exists()
