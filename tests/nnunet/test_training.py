"""Training through nnU-Net's own code: masks, clipping, checkpoints, and exact resume."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("nnunetv2", reason="nnU-Net v2 is not installed (pip install e2enet[nnunet])")

from e2enet.common.errors import InputError
from e2enet.network.dsff import fusion_layers
from e2enet.nnunet import trainers
from tests.nnunet.conftest import CONFIGURATION, LENGTH, NAME, NNUNet, environment, seed_everything

TRAINERS = Path(trainers.__path__[0])


class KilledError(Exception):
    pass


def read(model: Path, name: str = "checkpoint_final.pth") -> dict[str, Any]:
    return torch.load(model / "fold_0" / name, weights_only=False)


def require_equal(first: Any, second: Any, path: str = "") -> None:
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            require_equal(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            require_equal(one, other, f"{path}[{index}]")
    else:
        assert first == second, path


def test_the_folder_for_nnunet_holds_one_file() -> None:
    """nnU-Net imports every module below it."""
    assert [path.name for path in TRAINERS.rglob("*.py")] in (
        ["__init__.py", "nnunet_trainer_e2enet.py"],
        ["nnunet_trainer_e2enet.py", "__init__.py"],
    )


def test_masks_are_held_and_updated_and_kept(trained: Path) -> None:
    content = read(trained)
    steps = LENGTH["epochs"] * LENGTH["iterations_per_epoch"]
    state, weights = content["dsff_state"], content["network_weights"]
    assert state["step"] == steps == 9 and state["num_updates"] == 4  # at steps 2, 4, 6, 8
    masks = {name: value for name, value in weights.items() if name.endswith("kernel_mask")}
    assert len(masks) == 15  # 6 nodes: 6 transposed convolutions and, two blocks in each of 3 nodes, 9 convolutions
    for name, mask in masks.items():
        assert int(mask.sum()) == round(0.3 * mask.numel())
        weight = weights[name.replace("kernel_mask", "weight")]
        assert not weight[~mask].any() and weight[mask].any()
        layer = name.removesuffix(".kernel_mask")
        assert bool((state["ever_active"][layer] >= mask).all())
    assert any(
        int(ever.sum()) > int(masks[f"{layer}.kernel_mask"].sum()) for layer, ever in state["ever_active"].items()
    )
    assert content["dsff_settings"]["density"] == 0.3 and content["dsff_settings"]["enabled"] is True
    assert content["trainer_name"] == "nnUNetTrainer"
    momenta = [entry["momentum_buffer"] for entry in content["optimizer_state"]["state"].values()]
    assert any((value == 0).any() for value in momenta if value.ndim == 5)


def test_the_log_tells_of_the_masks(trained: Path) -> None:
    log = next((trained / "fold_0").glob("training_log_*.txt")).read_text()
    told = re.findall(r"DSFF: density (\S+), updates (\d+), churn \S+, ever active (\S+)", log)
    assert [int(updates) for _, updates, _ in told] == [1, 3, 4]
    assert [float(share) for share, _, _ in told] == pytest.approx([0.3] * 3, abs=1e-3)
    assert all(float(ever) > 0.31 for _, _, ever in told)


def test_resumed_equals_uninterrupted(nnunet: NNUNet, trained: Path, tmp_path: Path) -> None:
    """Weights, masks, moments, counters and nnU-Net's own log but for the times: to the last bit."""
    with environment(nnunet.variables(tmp_path, TRAINERS)):
        seed_everything(7)
        first = nnunet.trainer()
        begin = first.on_epoch_start

        def begin_or_die() -> None:
            if first.current_epoch == 1:
                raise KilledError
            begin()

        first.on_epoch_start = begin_or_die
        with pytest.raises(KilledError):
            first.run_training()
        seed_everything(8)  # as another process: the checkpoint knows better
        second = nnunet.trainer(resume=True)
        assert second.current_epoch == 1 and second.dsff.step == 3
        second.run_training()
    resumed, whole = read(tmp_path / NAME / trained.name), read(trained)
    for key in ("network_weights", "optimizer_state", "dsff_state", "dsff_settings", "random_state", "current_epoch"):
        require_equal(resumed[key], whole[key], key)
    for key in ("train_losses", "val_losses", "mean_fg_dice", "lrs"):
        require_equal(resumed["logging"][key], whole["logging"][key], key)


def test_dead_gradients_are_gone_before_nnunet_clips(
    nnunet: NNUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[tuple[float, float]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def noted(parameters: Any, limit: float) -> Any:
        parameters = list(parameters)
        dead = [layer.weight.grad[~layer.kernel_mask] for layer in fusion_layers(trainer.adapter).values()]
        assert sum(len(part) for part in dead) > 1000 and not any(part.any() for part in dead)
        alive = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
        total = clip(parameters, limit)
        norms.append((float(total), float(alive.norm())))
        assert limit == 12
        return total

    with environment(nnunet.variables(tmp_path, TRAINERS)):
        seed_everything(3)
        trainer = nnunet.trainer(configuration={"training": {**LENGTH, "epochs": 1, "iterations_per_epoch": 4}})
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
        trainer.run_training()
    assert len(norms) == 4
    assert all(total == pytest.approx(alive, rel=1e-5) for total, alive in norms)


def test_dense_fusion_is_trained_without_masks(nnunet: NNUNet, tmp_path: Path) -> None:
    length = {**LENGTH, "epochs": 1, "iterations_per_epoch": 1}
    with environment(nnunet.variables(tmp_path, TRAINERS)):
        trainer = nnunet.trainer(configuration={"dsff": {"enabled": False}, "training": length})
        trainer.run_training()
        assert trainer.dsff is None
        assert all(bool(layer.kernel_mask.all()) for layer in fusion_layers(trainer.adapter).values())
        content = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert "dsff_state" not in content and content["random_state"]["torch"].dtype == torch.uint8


def test_on_a_cpu_active_kernels_alone_are_trained(nnunet: NNUNet, tmp_path: Path) -> None:
    """Wide networks of few active kernels train by the engine; its gradients are the masked network's."""
    from e2enet.network.engine.training import TrainingEngine

    architecture = json.loads(nnunet.plans.read_text())["configurations"][CONFIGURATION]["architecture"]
    architecture["arch_kwargs"]["features_per_stage"] = [32, 64, 64, 64]
    changes = {"architecture": architecture, "dsff": {"density": 0.2, "growth": "gradient", "update_every": 2}}
    with environment(nnunet.variables(tmp_path, TRAINERS)):
        seed_everything(5)
        trainer = nnunet.trainer(configuration=changes | {"training": {**LENGTH, "iterations_per_epoch": 3}})
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        batch = next(trainer.dataloader_train)
        gradients = []
        for every_kernel in (False, True):
            if every_kernel:
                trainer._active_kernels = trainer.adapter.network
            trainer.optimizer.step = lambda: None
            trainer.train_step(batch)
            gradients.append([parameter.grad.clone() for parameter in trainer.network.parameters()])
            if not every_kernel:
                assert isinstance(trainer.adapter._training_pass, TrainingEngine)
        for sparse, masked in zip(*gradients, strict=True):
            torch.testing.assert_close(sparse, masked, rtol=1e-3, atol=1e-4)


def test_nnunets_own_trainer_takes_the_plans(nnunet: NNUNet, tmp_path: Path) -> None:
    """A dense fusion grid. Each of E2ENet's heads has one of nnU-Net's weights that is not zero."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    with environment(nnunet.variables(tmp_path)):
        plans = json.loads(nnunet.plans.read_text()) | {"continue_training": False}
        dataset = json.loads((nnunet.dataset / "dataset.json").read_text())
        trainer = nnUNetTrainer(plans, CONFIGURATION, 0, dataset, torch.device("cpu"))
        trainer.on_train_start()
        assert [float(weight) for weight in trainer.loss.weight_factors] == pytest.approx([2 / 3, 1 / 3, 0])
        assert len(trainer.network.network.heads) == 2
        before = trainer.network.network.heads[1].weight.clone()
        trainer.on_train_epoch_start()
        assert trainer.train_step(next(trainer.dataloader_train))["loss"] > 0
        assert not torch.equal(trainer.network.network.heads[1].weight, before)
        trainer.network.eval()
        with torch.no_grad():
            assert trainer.validation_step(next(trainer.dataloader_val))["tp_hard"].shape == (2,)


def test_wrong_plans_stop_before_the_data_are_read(nnunet: NNUNet, tmp_path: Path) -> None:
    stock = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 2,
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
        },
        "_kw_requires_import": ["conv_op"],
    }
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"dsff": {"density": 2}}, "density=2: expected a share"),
        ({"training": {"epochs": -1}}, "epochs is -1"),
        (
            {"architecture": stock},
            "network_class_name of the plans is .*PlainConvUNet: e2enet.nnunet.adapter.E2ENetAdapter",
        ),
    ]
    for configuration, message in wrong:
        with environment(nnunet.variables(tmp_path, TRAINERS)):
            trainer = nnunet.trainer(configuration=configuration)
            with pytest.raises(InputError, match=message):
                trainer.initialize()


def test_other_settings_are_not_resumed(nnunet: NNUNet, trained: Path) -> None:
    results = trained.parents[1]
    with environment(nnunet.variables(results, TRAINERS)):
        trainer = nnunet.trainer(configuration={"dsff": {"density": 0.1}})
        with pytest.raises(InputError, match=r"density is 0.1, 0.3 in the checkpoint"):
            trainer.load_checkpoint(str(trained / "fold_0" / "checkpoint_final.pth"))
        trainer = nnunet.trainer(configuration={"dsff": {"enabled": False}})
        with pytest.raises(InputError, match=r"checkpoint_final.pth: was trained with DSFF, .* enabled false"):
            trainer.load_checkpoint(str(trained / "fold_0" / "checkpoint_final.pth"))


def test_a_checkpoint_is_whole_or_absent(nnunet: NNUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with environment(nnunet.variables(tmp_path, TRAINERS)):
        trainer = nnunet.trainer()
        trainer.initialize()
        path = tmp_path / "checkpoint_latest.pth"
        trainer.save_checkpoint(str(path))
        before = path.read_bytes()
        save, calls = torch.save, []

        def fails_at_last(content: Any, place: Any) -> None:
            calls.append(place)
            if len(calls) == 2:
                Path(place).write_bytes(b"half")
                raise KilledError
            save(content, place)

        monkeypatch.setattr(torch, "save", fails_at_last)
        with pytest.raises(KilledError):
            trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before and len(calls) == 2
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == [path.name]
