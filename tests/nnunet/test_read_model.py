"""Models of nnU-Net's, read without nnU-Net: axes, refusals, and what of NumPy may be in a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.common.files import write_json
from e2enet.data.formats.volume import read_volume
from e2enet.data.synthetic.scans import CT, draw_organs
from e2enet.data.synthetic.stored import Encoding, Grid, save_image
from e2enet.inference.checkpoint import load_ensemble, load_model, read_hyper_parameters
from e2enet.inference.config import read_config
from e2enet.inference.run import find_checkpoints, run_prediction
from e2enet.network.dsff import fusion_layers, init_masks
from e2enet.network.nnunet_arguments import ADAPTER
from e2enet.nnunet.adapter import E2ENetAdapter

ARCHITECTURE = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 16],
    "strides": [[1, 1, 1], [1, 1, 2], [2, 2, 2]],
    "kernel_sizes": [[1, 3, 3]] * 3,
}
PATCH = [4, 8, 16]  # in nnU-Net's order of axes
INTENSITIES = {"percentile_00_5": -900.0, "percentile_99_5": 200.0, "mean": 10.0, "std": 100.0}


def make_adapter() -> E2ENetAdapter:
    torch.manual_seed(0)
    adapter = E2ENetAdapter(input_channels=1, num_classes=3, engine="dense", **ARCHITECTURE)
    init_masks(adapter, 0.5, generator=torch.Generator().manual_seed(1))
    return adapter.eval()


def write_model(
    folder: Path, adapter: E2ENetAdapter, change: Callable[[dict[str, Any], dict[str, Any]], None] | None = None
) -> Path:
    """A model folder as nnU-Net leaves it. `change` is given plans and checkpoint."""
    configuration = {
        "data_identifier": "nnUNetE2ENetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": PATCH,
        "median_image_size_in_voxels": [6.5, 12.0, 20.0],
        "spacing": [3.0, 1.0, 0.5],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "architecture": {"network_class_name": ADAPTER, "arch_kwargs": dict(ARCHITECTURE), "_kw_requires_import": []},
    }
    plans = {
        "dataset_name": "Dataset001_Liver",
        "plans_name": "nnUNetE2ENetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES | {"max": 1.0, "min": 0.0, "median": 0.5}},
    }
    checkpoint: dict[str, Any] = {
        "network_weights": adapter.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.5), np.float32(0.25)],
            "dice_per_class_or_region": [[np.float32(1), np.int64(2)]],
            "array": np.arange(3.0),
        },
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }
    if change:
        change(plans, checkpoint)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def test_what_training_left_is_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", make_adapter()) / "fold_0"
    model = load_model(path)
    assert model.path == path / "checkpoint_final.pth"
    # nnU-Net's axes are (z, y, x), the frame's (z, x, y).
    assert model.plan.depth_axis == 2 and model.file_axes
    assert (model.plan.spacing, model.plan.patch_size) == ((3.0, 0.5, 1.0), (4, 16, 8))
    assert model.plan.strides == ((1, 2, 1), (2, 2, 2))
    assert model.plan.median_shape == (6, 20, 12)
    assert model.mirror_axes == (0, 2)
    assert model.plan.normalisation == ({"scheme": "ct", "lower": -900.0, "upper": 200.0, "mean": 10.0, "std": 100.0},)
    assert model.labels == {0: "background", 1: "liver", 2: "tumour"} and model.channels == ("CT",)
    assert read_hyper_parameters(path)["dataset"]["name"] == "Dataset001_Liver"


def test_the_network_gives_the_adapters_logits(tmp_path: Path) -> None:
    adapter = make_adapter()
    model = load_model(write_model(tmp_path / "model", adapter) / "fold_0")
    x = torch.randn(1, 1, *PATCH)
    with torch.inference_mode():
        expected, found = adapter(x), model.network(x.transpose(3, 4).contiguous()).transpose(3, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 0.1
    for name, layer in fusion_layers(model.network).items():
        assert torch.equal(layer.kernel_mask, fusion_layers(adapter.network)[name].kernel_mask)


@pytest.mark.parametrize(
    ("forward", "depth_axis", "swapped"),
    [([0, 1, 2], 2, True), ([1, 0, 2], 1, True), ([2, 0, 1], 0, True), ([0, 2, 1], 2, False), ([2, 1, 0], 0, False)],
)
def test_every_transpose_has_its_place_in_the_frame(
    tmp_path: Path, forward: list[int], depth_axis: int, swapped: bool
) -> None:
    def change(plans: dict[str, Any], checkpoint: dict[str, Any]) -> None:
        plans["transpose_forward"] = forward

    model = load_model(write_model(tmp_path / "model", make_adapter(), change) / "fold_0")
    assert model.plan.depth_axis == depth_axis
    assert model.plan.patch_size == ((4, 16, 8) if swapped else (4, 8, 16))
    # What nnU-Net would cut its patches from: axes (z, y, x) of the file, transposed.
    file = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # (x, y, z)
    path = tmp_path / "scan.nii.gz"
    save_image(path, [file], Grid((1.0, 1.0, 1.0), "LPI"), Encoding("float32"))
    stored = read_volume([path], 2, file_axes=True).array[0].transpose(1, 2, 0)  # (z, x, y) -> (x, y, z)
    frame = read_volume([path], depth_axis, file_axes=True).array[0]
    theirs = stored.transpose(2, 1, 0).transpose(forward)
    assert np.array_equal(theirs.transpose(0, 2, 1) if swapped else theirs, frame)


def test_a_reader_that_brings_scans_to_ras_is_followed(tmp_path: Path) -> None:
    def change(plans: dict[str, Any], checkpoint: dict[str, Any]) -> None:
        plans["image_reader_writer"] = "NibabelIOWithReorient"

    assert not load_model(write_model(tmp_path / "model", make_adapter(), change) / "fold_0").file_axes


def test_inherited_configurations_and_groups_are_read(tmp_path: Path) -> None:
    def change(plans: dict[str, Any], checkpoint: dict[str, Any]) -> None:
        plans["configurations"]["mine"] = {
            "inherits_from": "3d_fullres",
            "batch_size": 7,
            "dsff": {"granularity": "group", "group_size": 4},
        }
        checkpoint["init_args"]["configuration"] = "mine"

    adapter = make_adapter()
    for layer in fusion_layers(adapter).values():
        layer.kernel_mask.fill_(True)
    path = write_model(tmp_path / "model", adapter, change) / "fold_0"
    assert load_model(path).plan.batch_size == 7
    assert {layer.group_size for layer in fusion_layers(load_model(path).network).values()} == {4}


def test_file_axes_are_kept_whatever_the_orientation(tmp_path: Path) -> None:
    """nnU-Net's SimpleITKIO reads voxels as they lie: two files that differ by their affine alone are one input."""
    scan = draw_organs(np.random.default_rng(0), (12, 10, 6), 2, [CT])
    volumes, natives = [], []
    for code in ("RAS", "LPS"):
        path = tmp_path / f"{code}.nii.gz"
        save_image(path, scan.channels, Grid((1.0, 1.0, 3.0), code), Encoding("float32"))
        volumes.append(read_volume([path], 2, file_axes=True).array)
        natives.append(read_volume([path], 2).array)
    assert np.array_equal(natives[0], natives[1])  # the same place of the body
    assert np.array_equal(volumes[0], volumes[1][:, :, ::-1, ::-1])  # the same place of the file is another one
    assert not np.array_equal(volumes[0], volumes[1])


def test_predictions_lie_on_the_scans_own_grid(tmp_path: Path) -> None:
    """Of two copies of a scan, turned and not, each is predicted as its own file lies."""
    import nibabel as nib

    model = write_model(tmp_path / "model", make_adapter())
    scan = draw_organs(np.random.default_rng(0), (24, 20, 6), 2, [CT])
    (tmp_path / "scans").mkdir()
    for code in ("RAS", "LPS"):
        grid = Grid((0.5, 1.0, 3.0), code)
        save_image(tmp_path / "scans" / f"{code}_0000.nii.gz", scan.channels, grid, Encoding("float32"))
    values = {"checkpoint": str(model), "input": str(tmp_path / "scans"), "output": str(tmp_path / "out")}
    assert run_prediction(read_config(values | {"overlay": True, "mirror": False})) == {}
    results = {code: nib.load(tmp_path / "out" / f"{code}.nii.gz") for code in ("RAS", "LPS")}  # type: ignore[attr-defined]
    assert nib.aff2axcodes(results["LPS"].affine) == ("L", "P", "S")  # type: ignore[attr-defined]
    labels = {code: np.asarray(result.dataobj) for code, result in results.items()}  # type: ignore[attr-defined]
    assert len(np.unique(labels["RAS"])) > 1
    assert not np.array_equal(labels["RAS"], labels["LPS"][::-1, ::-1])
    assert (tmp_path / "out" / "LPS.png").is_file()


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_a_finished_prediction_is_of_these_plans_and_labels(tmp_path: Path, name: str) -> None:
    """They decide results as the weights do: spacing, patch, normalisation, labels."""
    folder = write_model(tmp_path / "model", make_adapter())
    scan = draw_organs(np.random.default_rng(0), (24, 20, 6), 2, [CT])
    (tmp_path / "scans").mkdir()
    save_image(tmp_path / "scans" / "x_0000.nii.gz", scan.channels, Grid((0.5, 1.0, 3.0)), Encoding("float32"))
    values = {"checkpoint": str(folder), "input": str(tmp_path / "scans"), "output": str(tmp_path / "out")}
    config = read_config(values | {"mirror": False})
    assert run_prediction(config) == {} and run_prediction(config) == {}
    write_json(folder / name, json.loads((folder / name).read_text()) | {"note": "edited"})
    with pytest.raises(InputError, match=r"x\.nii\.gz: by other checkpoints, or other plans of nnU-Net"):
        run_prediction(config)


def folds_of(folder: Path, **changes: Any) -> list[str]:
    """The checkpoints that e2enet predict takes of a model folder."""
    config = read_config({"checkpoint": str(folder), "input": "unused", "output": "unused", **changes})
    return [str(path.relative_to(folder)) for path in find_checkpoints(config)]


def write_folds(folder: Path, *files: str) -> Path:
    """A model folder with these files, or folders, and no more."""
    for name in ("plans.json", *files):
        path = folder / name
        (path if not path.suffix else path.parent).mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.touch()
    return folder


def test_a_model_folder_is_the_ensemble_of_its_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "model", make_adapter())
    shutil.copytree(folder / "fold_0", folder / "fold_1")
    (folder / "fold_1" / "checkpoint_latest.pth").touch()
    found = folds_of(folder)
    assert found == ["fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth"]
    assert len(load_ensemble([folder / name for name in found])) == 2
    assert "fold_0, fold_1 of a model of nnU-Net" in capsys.readouterr().out


def test_folds_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = [f"fold_{number}/checkpoint_final.pth" for number in range(11)]
    assert folds_of(write_folds(tmp_path, *files, "fold_x/checkpoint_final.pth")) == files


def test_unfinished_folds_are_refused_unless_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unfinished fold is no weaker fold, and a gap no smaller ensemble."""
    files = ("fold_0/checkpoint_final.pth", "fold_1/checkpoint_latest.pth", "fold_1/checkpoint_best.pth")
    write_folds(tmp_path, *files, "fold_2", "fold_4/checkpoint_final.pth")
    lines = [
        "fold_1: unfinished, holds checkpoint_best.pth and checkpoint_latest.pth; checkpoint_final.pth expected",
        "fold_2: unfinished, holds no checkpoint; checkpoint_final.pth expected",
        "fold_3: is not there",
    ]
    with pytest.raises(InputError, match=r"folds of this model are missing \(allow_missing_folds goes on") as error:
        folds_of(tmp_path)
    assert str(tmp_path) in str(error.value) and str(error.value).split("\n  - ")[1:] == lines
    left = ["fold_0/checkpoint_final.pth", "fold_4/checkpoint_final.pth"]
    assert folds_of(tmp_path, allow_missing_folds=True) == left
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f"warning: predicted without {line}" in printed for line in lines)
    assert "fold_0, fold_4 of a model of nnU-Net" in printed


def test_no_finished_fold_is_refused_even_if_folds_may_be_missing(tmp_path: Path) -> None:
    write_folds(tmp_path, "fold_0/checkpoint_best.pth")
    with pytest.raises(InputError, match=r"\(none is left\):\n  - fold_0: unfinished, holds checkpoint_best\.pth"):
        folds_of(tmp_path, allow_missing_folds=True)


def test_fold_all_is_not_averaged_with_single_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folds(tmp_path, "fold_all/checkpoint_final.pth")
    assert folds_of(tmp_path) == ["fold_all/checkpoint_final.pth"]
    write_folds(tmp_path, "fold_0/checkpoint_final.pth")
    capsys.readouterr()
    assert folds_of(tmp_path) == ["fold_0/checkpoint_final.pth"]
    assert "fold_all is left out, since there are numbered folds" in " ".join(capsys.readouterr().out.split())


class Anything:
    pass


def test_other_pickled_objects_are_refused(tmp_path: Path) -> None:
    def change(plans: dict[str, Any], checkpoint: dict[str, Any]) -> None:
        checkpoint["logging"] = Anything()

    path = write_model(tmp_path / "model", make_adapter(), change) / "fold_0"
    with pytest.raises(InputError, match=r"holds pickled objects, which could run code.*NumPy's numbers"):
        load_model(path)


def test_numpy_is_not_opened_to_what_runs_code(tmp_path: Path) -> None:
    """An array of objects could hold any of them."""

    def change(plans: dict[str, Any], checkpoint: dict[str, Any]) -> None:
        checkpoint["logging"] = np.array([Anything()], dtype=object)

    with pytest.raises(InputError, match=r"checkpoint_final\.pth: is no checkpoint, or holds pickled objects"):
        load_model(write_model(tmp_path / "model", make_adapter(), change) / "fold_0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, c: p["configurations"]["3d_fullres"]["architecture"].update(network_class_name="unet.PlainConvUNet"),
         "its network is unet.PlainConvUNet; e2enet.nnunet.adapter.E2ENetAdapter expected"),
        (lambda p, c: p.update(image_reader_writer="Tiff3DIO"), "image_reader_writer is 'Tiff3DIO': SimpleITKIO"),
        (lambda p, c: p.update(transpose_forward=[0, 0, 1]), r"transpose_forward is \[0, 0, 1\]"),
        (lambda p, c: p["configurations"]["3d_fullres"].update(previous_stage="3d_lowres"), "cascades need nnU-Net"),
        (lambda p, c: p["configurations"]["3d_fullres"].update(normalization_schemes=["RGBTo01Normalization"]),
         "'RGBTo01Normalization': CTNormalization, ZScoreNormalization"),
        (lambda p, c: p["configurations"]["3d_fullres"].update(spacing=[1.0, 2.0]), r"spacing is \[1.0, 2.0\]: three"),
        (lambda p, c: p["configurations"]["3d_fullres"].pop("patch_size"), "patch_size is missing"),
        (lambda p, c: p.pop("configurations"), "no such configuration 3d_fullres"),
        (lambda p, c: p["configurations"]["3d_fullres"].update(inherits_from="3d_fullres"), "inherits from itself"),
        (lambda p, c: p["configurations"]["3d_fullres"].update(batch_size="two"), "describes no model.*'two'"),
        (lambda p, c: p["configurations"]["3d_fullres"].update(patch_size=[4, 8, 10**9]), "patch_size is .*1000000000"),
        (lambda p, c: p["configurations"]["3d_fullres"]["architecture"].update(arch_kwargs=[1]), "n_stages is missing"),
        (lambda p, c: c.update(inference_allowed_mirroring_axes=("left",)), "describes no model.*'left'"),
        (lambda p, c: c.update(inference_allowed_mirroring_axes=(7,)), r"mirror_axes are \[7\]"),
        (lambda p, c: c.pop("network_weights"), "is no checkpoint of nnU-Net v2"),
        (lambda p, c: c["network_weights"].pop("network.heads.0.weight"), r"lacks heads\.0\.weight"),
        (lambda p, c: p["configurations"]["3d_fullres"].update(resampling_fn_data_kwargs={"is_seg": False, "order": 1}),
         r"resampling_fn_data_kwargs is .*'order': 1\}: .*'order': 3"),
        (lambda p, c: p.pop("foreground_intensity_properties_per_channel"), r"lower is None: a number expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], message: str
) -> None:
    path = write_model(tmp_path / "model", make_adapter(), change) / "fold_0"
    with pytest.raises(InputError, match=message) as error:
        load_model(path)
    assert str(tmp_path / "model") in str(error.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", make_adapter())
    (folder / "plans.json").unlink()
    with pytest.raises(InputError, match=r"plans\.json: no such file"):
        load_model(folder / "fold_0")
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"checkpoint_final\.pth: "):
        load_model(folder / "fold_0")
