"""The same model predicted by nnU-Net's own code, without the trainer's folder, and by e2enet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

pytest.importorskip("nnunetv2", reason="nnU-Net v2 is not installed (pip install e2enet[nnunet])")

from e2enet.data.formats.volume import read_volume
from e2enet.data.preparation.preprocess import preprocess
from e2enet.inference.checkpoint import load_model
from e2enet.inference.config import read_config
from e2enet.inference.run import run_prediction
from e2enet.inference.sliding_window import predict_probabilities
from e2enet.network.engine.inference import CompactNetwork
from e2enet.nnunet.export import export_to_nnunet
from tests.nnunet.conftest import CONFIGURATION, PLANS, NNUNet, environment
from tests.nnunet.test_export import PLAN, write_checkpoint

# Labels of a network that has hardly been trained. nnU-Net adds windows up in half precision and averages logits over
# windows, where e2enet averages probabilities in float32.
SAME_LABELS = 0.95


def make_predictor(model: Path) -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    predictor.network.engine = "dense"
    return predictor


def scans(nnunet: NNUNet) -> list[list[Path]]:
    files = sorted((nnunet.dataset / "imagesTs").iterdir())
    return [files[:2], files[2:]]


def pad_to(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """One window (1, C, D, H, W) with the image (C, ..) in its corner."""
    window = torch.zeros(1, len(image), *size)
    window[0, :, : image.shape[1], : image.shape[2], : image.shape[3]] = image
    return window


def test_stock_nnunet_builds_the_network_from_the_plans(nnunet: NNUNet, trained: Path, tmp_path: Path) -> None:
    with environment(nnunet.variables(tmp_path)):
        assert "nnUNet_extTrainer" not in os.environ
        predictor = make_predictor(trained)
    assert predictor.trainer_name == "nnUNetTrainer"
    weights = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    for name, value in predictor.network.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_input_and_logits_are_nnunets(nnunet: NNUNet, trained: Path, tmp_path: Path) -> None:
    """Preprocessing to 1e-5 and logits to 1e-4: H and W are swapped, so that sums come in another order."""
    model = load_model(trained / "fold_0")
    with environment(nnunet.variables(tmp_path)):
        predictor = make_predictor(trained)
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        for files in scans(nnunet):
            theirs, _, _ = preprocessor.run_case(
                [str(path) for path in files],
                None,
                predictor.plans_manager,
                predictor.configuration_manager,
                predictor.dataset_json,
            )
            volume = read_volume(files, model.plan.depth_axis, file_axes=model.file_axes)
            ours = preprocess(volume, model.plan).image
            image = torch.from_numpy(np.asarray(theirs))
            np.testing.assert_allclose(ours.transpose(0, 1, 3, 2), image, atol=1e-5)
            window = pad_to(image, (16, 32, 32))
            with torch.inference_mode():
                expected = predictor.network.eval()(window)
                found = model.network(window.transpose(3, 4).contiguous()).transpose(3, 4)
            assert expected.abs().max() > 1
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_compact_in_the_adapter_gives_the_masked_networks_labels(nnunet: NNUNet, trained: Path, tmp_path: Path) -> None:
    """By nnU-Net's predictor: no voxel differs."""
    found = {}
    with environment(nnunet.variables(tmp_path)):
        predictor = make_predictor(trained)
        for engine in ("dense", "sparse"):
            predictor.network.engine = engine
            torch.manual_seed(0)
            found[engine] = predictor.predict_logits_from_preprocessed_data(torch.randn(2, 14, 36, 40)).float()
        assert isinstance(predictor.network._prediction_pass, CompactNetwork)
    assert torch.equal(found["dense"].argmax(0), found["sparse"].argmax(0))
    torch.testing.assert_close(found["dense"].softmax(0), found["sparse"].softmax(0), rtol=0, atol=5e-3)


def test_both_commands_label_alike(nnunet: NNUNet, trained: Path, tmp_path: Path) -> None:
    """nnUNetv2_predict in an environment without nnUNet_extTrainer, and predict.py of the same model folder."""
    inputs = nnunet.dataset / "imagesTs"
    program = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as main; main()"
    options = ["-d", "5", "-tr", "nnUNetTrainerE2ENet", "-p", PLANS, "-c", CONFIGURATION, "-f", "0", "-device", "cpu"]
    places = ["-i", str(inputs), "-o", str(tmp_path / "theirs"), "-npp", "1", "-nps", "1", "--disable_tta"]
    clean = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    variables = clean | nnunet.variables(trained.parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program, *places, *options], capture_output=True, text=True, check=False, env=variables
    )
    assert done.returncode == 0, done.stderr
    values = {"checkpoint": str(trained), "input": str(inputs), "output": str(tmp_path / "ours"), "mirror": False}
    assert run_prediction(read_config(values)) == {}
    require_alike(tmp_path / "ours", tmp_path / "theirs", 2)


def test_a_checkpoint_of_train_predicts_in_nnunet(nnunet: NNUNet, tmp_path: Path) -> None:
    """Exported, by nnU-Net's predictor: one window, whose logits are ours, and labels on the scan's own grid."""
    plan = PLAN | {
        "spacing": [3.6, 0.62, 0.62],
        "patch_size": [16, 32, 32],
        "normalisation": [{"scheme": "zscore", "nonzero": False}] * 2,
    }
    checkpoint = write_checkpoint(tmp_path / "one.ckpt", plan=plan)
    model = load_model(checkpoint)
    folder = export_to_nnunet([checkpoint], tmp_path / "model")
    with environment(nnunet.variables(tmp_path)):
        predictor = make_predictor(folder)
        (tmp_path / "theirs").mkdir()
        for files in scans(nnunet):
            image, properties = _preprocessed(predictor, files)
            volume = read_volume(files, plan["depth_axis"])
            np.testing.assert_allclose(preprocess(volume, model.plan).image, image, atol=1e-5)
            with torch.inference_mode():
                expected = predictor.network.eval()(pad_to(image, (16, 32, 32)))[0].softmax(0)
            found = predict_probabilities([model.network], pad_to(image, (16, 32, 32))[0], (16, 32, 32))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            case = files[0].name.removesuffix("_0000.nii.gz")
            predictor.predict_from_files_sequential([[str(path) for path in files]], [str(tmp_path / "theirs" / case)])
            assert properties["spacing"][0] > 3
    values = {
        "checkpoint": str(checkpoint),
        "input": str(nnunet.dataset / "imagesTs"),
        "output": str(tmp_path / "ours"),
    }
    assert run_prediction(read_config(values | {"mirror": False})) == {}
    require_alike(tmp_path / "ours", tmp_path / "theirs", 2)


def _preprocessed(predictor: Any, files: list[Path]) -> tuple[torch.Tensor, dict[str, Any]]:
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    image, _, properties = preprocessor.run_case(
        [str(path) for path in files],
        None,
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    return torch.from_numpy(np.asarray(image)), properties


def require_alike(ours: Path, theirs: Path, count: int) -> None:
    files = sorted(path.name for path in theirs.glob("*.nii.gz"))
    assert len(files) == count
    for name in files:
        first: Any = nib.load(ours / name)  # type: ignore[attr-defined]
        second: Any = nib.load(theirs / name)  # type: ignore[attr-defined]
        np.testing.assert_allclose(first.affine, second.affine, atol=1e-5)
        labels = [np.asarray(image.dataobj) for image in (first, second)]
        assert labels[0].shape == labels[1].shape and len(np.unique(labels[0])) > 1
        assert (labels[0] == labels[1]).mean() > SAME_LABELS, name
