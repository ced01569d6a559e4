"""Checkpoints of train.py as nnU-Net's model folders, and back; without nnU-Net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.inference.checkpoint import load_model
from e2enet.network.build import build_network
from e2enet.network.dsff import init_masks, set_group_size
from e2enet.nnunet.__main__ import main
from e2enet.nnunet.export import export_to_nnunet, import_from_nnunet
from tests.nnunet.test_read_model import make_adapter, write_model

PLAN: dict[str, Any] = {
    "depth_axis": 2,
    "spacing": [3.0, 0.5, 1.0],
    "patch_size": [4, 16, 8],
    "strides": [[1, 2, 1], [2, 2, 2]],
    "batch_size": 2,
    "normalisation": [
        {"scheme": "ct", "lower": -900.0, "upper": 200.0, "mean": 10.0, "std": 100.0},
        {"scheme": "zscore", "nonzero": True},
    ],
    "median_shape": [6, 20, 12],
}
DATASET: dict[str, Any] = {
    "name": "liver",
    "labels": {0: "background", 1: "liver", 2: "tumour"},
    "channels": ["CT", "PET"],
    "mirror_axes": [1],
    "file_ending": ".nii.gz",
}
NETWORK = {"_target_": "e2enet.network.E2ENet", "base_features": 4, "width": 2, "shift_size": 5}


def write_checkpoint(path: Path, *, seed: int = 0, group_size: int = 1, **changes: Any) -> Path:
    """A checkpoint as train.py writes it, with masks."""
    parts: dict[str, Any] = {"network": NETWORK, "plan": PLAN, "dataset": DATASET} | changes
    torch.manual_seed(seed)
    outputs = len(parts["dataset"].get("trained_regions", ())) or len(parts["dataset"]["labels"])
    network = build_network(parts["network"], in_channels=2, num_classes=outputs, strides=parts["plan"]["strides"])
    set_group_size(network, group_size)
    init_masks(network, 0.5, generator=torch.Generator().manual_seed(seed))
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"hyper_parameters": parts | {"training": {}, "group_size": group_size}, "state_dict": weights}, path)
    return path


@pytest.mark.parametrize("depth_axis", [0, 1, 2])
def test_an_exported_model_is_the_model(tmp_path: Path, depth_axis: int) -> None:
    path = write_checkpoint(tmp_path / "one.ckpt", plan=PLAN | {"depth_axis": depth_axis})
    folder = export_to_nnunet([path], tmp_path / "model")
    ours, theirs = load_model(path), load_model(folder / "fold_0")
    assert theirs.plan == ours.plan
    assert not theirs.file_axes  # nnU-Net's reader brings scans to RAS too
    assert (theirs.scheme, theirs.channels, theirs.mirror_axes) == (ours.scheme, ours.channels, ours.mirror_axes)
    assert theirs.file_ending == ours.file_ending
    expected = ours.network.state_dict()
    for name, value in theirs.network.state_dict().items():
        assert torch.equal(value, expected[name]), name
    with torch.inference_mode():
        x = torch.randn(1, 2, 4, 16, 8)
        assert torch.equal(ours.network(x), theirs.network(x))


def test_what_nnunet_reads_is_there(tmp_path: Path) -> None:
    folder = export_to_nnunet([write_checkpoint(tmp_path / "one.ckpt")], tmp_path / "model")
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    assert (plans["transpose_forward"], plans["transpose_backward"]) == ([0, 2, 1], [0, 2, 1])
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["architecture"]["network_class_name"] == "e2enet.nnunet.adapter.E2ENetAdapter"
    arguments = configuration["architecture"]["arch_kwargs"]
    assert arguments["features_per_stage"] == [8, 16, 32]
    assert arguments["strides"] == [[1, 1, 1], [1, 2, 1], [2, 2, 2]] and arguments["shift_size"] == 5
    assert configuration["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    assert configuration["use_mask_for_norm"] == [False, True]
    statistics = plans["foreground_intensity_properties_per_channel"]
    assert statistics["0"] == {"percentile_00_5": -900.0, "percentile_99_5": 200.0, "mean": 10.0, "std": 100.0}
    assert dataset["labels"] == {"background": 0, "liver": 1, "tumour": 2}
    assert dataset["channel_names"] == {"0": "CT", "1": "PET"}


def test_regions_and_groups_and_ignored_voxels_move_too(tmp_path: Path) -> None:
    regions = {"trained_regions": {"whole": [1, 2], "tumour": [2]}, "regions_class_order": [1, 2], "ignore": 3}
    path = write_checkpoint(tmp_path / "one.ckpt", dataset=DATASET | regions, group_size=4)
    folder = export_to_nnunet([path], tmp_path / "model")
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "whole": [1, 2], "tumour": [2], "ignore": 3}
    assert dataset["regions_class_order"] == [1, 2]
    again = load_model(folder / "fold_0")
    assert again.scheme.regions == {"whole": (1, 2), "tumour": (2,)} and again.scheme.ignore == 3
    assert again.network.decoder.columns[0][0].up.group_size == 4  # type: ignore[union-attr, index]


def test_several_checkpoints_are_folds(tmp_path: Path) -> None:
    paths = [write_checkpoint(tmp_path / f"{seed}.ckpt", seed=seed) for seed in (0, 1)]
    folder = export_to_nnunet(paths, tmp_path / "model")
    assert sorted(path.name for path in folder.glob("fold_*")) == ["fold_0", "fold_1"]
    for index, path in enumerate(paths):
        fold = torch.load(folder / f"fold_{index}" / "checkpoint_final.pth", weights_only=True)
        expected = torch.load(path, weights_only=True)["state_dict"]
        assert torch.equal(fold["network_weights"]["network.heads.0.weight"], expected["network.heads.0.weight"])
        assert (fold["trainer_name"], fold["inference_allowed_mirroring_axes"]) == ("nnUNetTrainer", (1,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": DATASET | {"file_ending": ".mha"}}, r"its scans end in \.mha: \.nii\.gz or \.nii expected"),
        ({"dataset": DATASET | {"spacing_unit": "um"}}, "lengths count in um: mm expected"),
        ({"dataset": DATASET | {"file_axes": True}}, "it comes from nnU-Net itself"),
    ],
)
def test_what_nnunet_would_predict_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_checkpoint(tmp_path / "one.ckpt", **changes)
    with pytest.raises(InputError, match=f"(?s)one.ckpt: nnU-Net cannot predict as it does:.*{message}"):
        export_to_nnunet([path], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_folds_of_other_networks_are_refused(tmp_path: Path) -> None:
    """Another shift has weights of the same shapes: nnU-Net would load them and predict otherwise."""
    first = write_checkpoint(tmp_path / "one.ckpt")
    other = write_checkpoint(tmp_path / "two.ckpt", network=NETWORK | {"shift_size": 3})
    with pytest.raises(InputError, match=r"two\.ckpt: the network of .*one\.ckpt expected"):
        export_to_nnunet([first, other], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_imported_checkpoint_is_the_model(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model", make_adapter()) / "fold_0" / "checkpoint_final.pth"
    path = import_from_nnunet(source, tmp_path / "one.ckpt")
    theirs, ours = load_model(source), load_model(path)
    assert (ours.plan, ours.file_axes, ours.mirror_axes) == (theirs.plan, True, theirs.mirror_axes)
    with torch.inference_mode():
        x = torch.randn(1, 1, 4, 16, 8)
        assert torch.equal(ours.network(x), theirs.network(x))


def test_the_command_converts_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "one.ckpt")
    main(["convert", str(path), str(tmp_path / "model")])
    assert "nnUNetv2_predict_from_modelfolder -i INPUT -o OUTPUT -m" in capsys.readouterr().out
    main(["convert", str(tmp_path / "model" / "fold_0" / "checkpoint_final.pth"), str(tmp_path / "again.ckpt")])
    first, again = (torch.load(one, weights_only=True) for one in (path, tmp_path / "again.ckpt"))
    assert first["state_dict"].keys() == again["state_dict"].keys()
    assert again["hyper_parameters"]["plan"] == PLAN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.ckpt"], "at least one checkpoint and the place to write to"),
        (["a.pth", "b.pth", "c.ckpt"], "one checkpoint of nnU-Net at a time"),
        (["a.pth", "model"], "a free place expected whose name ends in .ckpt"),
        (["one.ckpt", "there"], "there: is there and not empty; a new or empty folder expected"),
    ],
)
def test_wrong_calls_end_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").touch()
    with pytest.raises(SystemExit) as end:
        main(["convert", *arguments])
    assert end.value.code == 2 and message in capsys.readouterr().err
