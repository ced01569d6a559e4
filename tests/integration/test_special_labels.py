"""Datasets with nnU-Net's ignore label and with regions, through all five commands, and resumed runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from e2enet.common.configs import compose_config
from e2enet.evaluation.__main__ import main as evaluate
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training
from tests.integration.test_one_judgement import SHAPE, save, write
from tests.training.conftest import differences, numbers

pytestmark = pytest.mark.integration
IGNORE, REGIONS = {"background": 0, "Anterior": 1, "Posterior": 2, "ignore": 3}, {"background": 0, "whole": [1, 2]}
REGIONS |= {"Posterior": 2}


def annotated_in_part(folder: Path) -> Path:
    """Write cases with every second plane set to the ignore label, as in sparse annotation."""
    folder = write(folder, list("abcdef"), 2, IGNORE)
    for path in (folder / "labelsTr").iterdir():
        array = np.asarray(nib.load(path).dataobj).copy()
        array[:, :, ::2] = 3
        save(path, array)
    return folder


def of_regions(folder: Path) -> Path:
    folder = write(folder, list("abcdef"), 2, REGIONS)
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**described, "regions_class_order": [1, 2]}))
    return folder


def dataset(folder: Path) -> list[str]:
    return ["data=nnunet", f"data.name={folder.name}", f"paths.data={folder.parent}"]


def stored(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_resumed_alike(run: Path) -> None:
    """Assert that resuming after the first epoch gives the same checkpoint and metrics."""
    whole, scores = stored(run), numbers(run)
    given = [f"resume={run / 'checkpoints' / 'epoch_0001.ckpt'}", "final.predict=false"]
    run_training(resumed_config(compose_config(given), given), run)
    again = stored(run)
    assert differences(again["state_dict"], whole["state_dict"]) == []
    assert differences(again["optimizer_states"], whole["optimizer_states"]) == []
    assert numbers(run) == scores


TWICE = ["training.epochs=2", "training.keep_every=1", "training.validate_full=1", "trainer.probe=false"]


def test_ignored_voxels(tmp_path: Path, take_tour: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = annotated_in_part(tmp_path / "raw" / "Dataset001_Sparse")
    tour = take_tour(dataset(folder), folder / "imagesTr", [str(folder / "labelsTr")], *TWICE)
    tour.assert_agreement()
    assert list(tour.summary["classes"]) == ["1", "2"]
    assert stored(tour.run)["hyper_parameters"]["dataset"]["ignore"] == 3
    assert len(stored(tour.run)["state_dict"]["network.heads.0.weight"]) == 3  # background and two classes
    for path in tour.predictions.glob("*.nii.gz"):
        values = np.asarray(nib.load(path).dataobj).copy()
        assert values.max() <= 2
        values[:, :, ::2] = np.random.default_rng(0).integers(0, 4, SHAPE)[:, :, ::2]
        save(path, values.astype(np.uint8))
    before = (tour.predictions / "scores.csv").read_text()
    evaluate([str(tour.predictions), str(folder / "labelsTr")])
    assert (tour.predictions / "scores.csv").read_text() == before
    assert_resumed_alike(tour.run)


def test_regions(tmp_path: Path, take_tour: Callable[..., Any]) -> None:
    folder = of_regions(tmp_path / "raw" / "Dataset002_Regions")
    tour = take_tour(dataset(folder), folder / "imagesTr", [str(folder / "labelsTr")], *TWICE)
    tour.assert_agreement()
    assert {key: entry["name"] for key, entry in tour.summary["classes"].items()} == {"1+2": "whole", "2": "Posterior"}
    whole, posterior = (tour.summary["classes"][key]["dice"] for key in ("1+2", "2"))
    assert tour.summary["mean"]["dice"] == pytest.approx((whole + posterior) / 2)
    assert len(stored(tour.run)["state_dict"]["network.heads.0.weight"]) == 2  # a sigmoid for each region
    with (tour.run / "metrics.csv").open() as stream:
        assert {"val_full/dice_whole", "val/dice_Posterior"} <= set(stream.readline().strip().split(","))
    row = tour.trained["a" if ("a", "1+2") in tour.trained else next(iter(tour.trained))[0], "1+2"]
    assert row["name"] == "whole"
    assert_resumed_alike(tour.run)
