"""nnU-Net's part of `python -m benchmarks.accuracy`: its own commands on a tiny phantom, and its trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("nnunetv2", reason="nnU-Net v2 is not installed (pip install e2enet[nnunet])")

from benchmarks import accuracy, accuracy_nnunet
from benchmarks.accuracy_work import Bench
from e2enet.common.errors import InputError
from e2enet.common.files import read_json
from tests.test_accuracy import command, make_bench


def fold(folder: Path) -> Path:
    return folder / "results" / "Dataset001_phantom" / "nnUNetTrainerMinutes__nnUNetPlans__3d_fullres" / "fold_0"


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


def test_nnunet_is_timed_trained_resumed_and_scored(tmp_path: Path) -> None:
    methods = ["--methods", "nnunet", "--minutes", "0.1", "0.2", "--seeds", "0", "--seconds-per-step", "nnunet=3"]
    accuracy.main(command(tmp_path, *methods))
    bench = make_bench(tmp_path)
    job = bench.folder / "jobs" / "nnunet_s0"
    files = {path.name for path in fold(job).glob("checkpoint_*")}
    assert {"checkpoint_epoch_0001.pth", "checkpoint_epoch_0002.pth", "checkpoint_final.pth"} <= files
    assert not [name for name in files if name.endswith(".part")]
    # The poly schedule ends with the second of two epochs, and the split is ours.
    rates = read(fold(job) / "checkpoint_final.pth")["logging"]["lrs"]
    assert rates == pytest.approx([0.01, 0.01 * 0.5**0.9])
    split = bench.chosen.split
    (own,) = json.loads((bench.folder / "nnunet/preprocessed/Dataset001_phantom/splits_final.json").read_text())
    assert own == {"train": [case.id for case in split.train], "val": [case.id for case in split.validation]}
    log = next(fold(job).glob("training_log_*.txt")).read_text()
    assert "This split has 4 training and 1 validation cases." in log
    seconds = read_json(fold(job) / "epoch_seconds.json")
    points = [read_json(job / "points" / f"{minutes}.json") for minutes in ("0.1", "0.2")]
    assert [point["steps"] for point in points] == [2, 4] and 0 < points[0]["dice"] < 1
    assert [point["clock_seconds"] for point in points] == [seconds["0"], seconds["0"] + seconds["1"]]
    assert "nnunetv2 2" in points[0]["versions"] and any(
        "2 epochs of 2 iterations" in one for one in points[0]["settings"]
    )
    first = read(fold(job) / "checkpoint_epoch_0001.pth")["network_weights"]

    # Killed after the first epoch: the second is trained from its checkpoint.
    for path in fold(job).glob("checkpoint_*"):
        if path.name != "checkpoint_epoch_0001.pth":
            path.unlink()
    (fold(job) / "checkpoint_epoch_0001.pth").rename(fold(job) / "checkpoint_latest.pth")
    (job / "points" / "0.2.json").unlink()
    accuracy.main(command(tmp_path, *methods))
    assert "checkpoint_epoch_0001.pth" not in {path.name for path in fold(job).iterdir()}
    assert read_json(fold(job) / "epoch_seconds.json")["0"] == seconds["0"]
    last = read(fold(job) / "checkpoint_epoch_0002.pth")
    assert last["current_epoch"] == 2 and last["network_weights"].keys() == first.keys()
    assert any(not torch.equal(value, first[name]) for name, value in last["network_weights"].items())
    assert (job / "points" / "0.2.json").is_file()

    # Its seconds can be measured. The folder of that training goes.
    assert 0 < accuracy_nnunet.measure_seconds(bench, "nnunet", 1) < 60
    assert list((bench.folder / "timing").iterdir()) == []


def test_what_nnunet_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, overrides=("data.num_train=5", "data.shape=[32,32,12]", "data.spacing_unit=um"))
    with pytest.raises(InputError, match="unit um: none expected"):
        accuracy_nnunet.check(bench, "nnunet")


def test_a_python_without_nnunet_is_named(tmp_path: Path) -> None:
    bench: Bench = make_bench(tmp_path, nnunet_python=str(tmp_path / "bin" / "python"))
    with pytest.raises(InputError, match=r"bin/python: no nnUNetv2_train beside it; .*--nnunet-python"):
        accuracy_nnunet.check(bench, "nnunet")
