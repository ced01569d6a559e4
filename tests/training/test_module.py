"""The Lightning module: its checkpoint, its scores, its optimizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from e2enet.common.configs import as_plain, compose_config
from e2enet.inference.checkpoint import load_model
from e2enet.inference.sliding_window import predict_probabilities
from e2enet.training.callbacks import TrainLossLogger
from e2enet.training.module import SegmentationModule
from e2enet.training.step_parts import training_settings
from tests.training.conftest import quiet_trainer

PLAN: dict[str, Any] = {
    "depth_axis": 2,
    "spacing": [3.0, 1.0, 1.0],
    "patch_size": [2, 8, 8],
    "strides": [[1, 2, 2]],
    "batch_size": 2,
    "normalisation": [{"scheme": "none"}],
    "median_shape": [4, 10, 8],
}
DATASET: dict[str, Any] = {
    "name": "Tiny",
    "labels": {0: "background", 1: "liver", 2: "spleen"},
    "channels": ["CT"],
    "mirror_axes": [0, 1],
    "file_ending": ".nii.gz",
}


def make_module(*overrides: str) -> SegmentationModule:

    config = compose_config(["network.base_features=4", *overrides])
    network, training = as_plain(config.network), training_settings(config)
    return SegmentationModule(network, copy.deepcopy(PLAN), copy.deepcopy(DATASET), training)  # type: ignore[arg-type]


def loader(shape: tuple[int, int, int], count: int, batch_size: int) -> torch.utils.data.DataLoader:
    generator = torch.Generator().manual_seed(0)
    samples = [
        {
            "image": torch.randn(1, *shape, generator=generator),
            "label": torch.randint(0, 3, shape, generator=generator),
            "case": f"case_{index}",
        }
        for index in range(count)
    ]
    return torch.utils.data.DataLoader(samples, batch_size=batch_size)  # type: ignore[arg-type]


def fit(module: SegmentationModule, folder: Path, **options: Any) -> pl.Trainer:
    trainer = quiet_trainer(folder, TrainLossLogger(), **options)
    trainer.fit(module, loader((2, 8, 8), 4, 2), [loader((2, 8, 8), 4, 2), loader((4, 10, 8), 2, 1)])
    return trainer


def test_a_checkpoint_holds_the_contract_and_opens_anywhere(tmp_path: Path) -> None:
    module = make_module()
    trainer = fit(module, tmp_path)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert content["hyper_parameters"]["plan"] == PLAN
    assert content["hyper_parameters"]["dataset"] == DATASET
    assert content["hyper_parameters"]["network"]["base_features"] == 4
    assert all(name.startswith("network.") for name in content["state_dict"])
    loaded = load_model(tmp_path / "model.ckpt")
    image = torch.randn(1, 1, 2, 8, 8)
    torch.testing.assert_close(loaded.network(image), module.eval()(image))
    again = SegmentationModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    torch.testing.assert_close(again.eval()(image), module(image))


def test_patches_and_whole_cases_are_scored_apart_and_by_class(tmp_path: Path) -> None:
    module = make_module()
    trainer = fit(module, tmp_path)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for score in ("val/dice", "val_full/dice"):
        mean = (metrics[f"{score}_liver"] + metrics[f"{score}_spleen"]) / 2
        assert metrics[score] == pytest.approx(mean) == pytest.approx(module.scores[score])
        assert 0 < metrics[score] < 1
    assert metrics["val/dice"] != metrics["val_full/dice"]
    assert metrics["train/loss"] > 0
    assert metrics["train/lr"] == pytest.approx(0.01 * 3e-3)  # the warm-up's first step


def test_the_whole_case_score_is_that_of_the_sliding_window(tmp_path: Path) -> None:
    module = make_module()
    fit(module, tmp_path)
    hits, sizes = torch.zeros(3), torch.zeros(3)
    for case in loader((4, 10, 8), 2, 1):
        windows = predict_probabilities([module.eval().network], case["image"][0], PLAN["patch_size"])
        segmentation = windows.argmax(dim=0)
        for label in range(3):
            hits[label] += ((segmentation == label) & (case["label"][0] == label)).sum()
            sizes[label] += (segmentation == label).sum() + (case["label"] == label).sum()
    assert module.scores["val_full/dice"] == pytest.approx(float((2 * hits / sizes)[1:].mean()))


def test_a_whole_case_whose_output_is_not_finite_is_told_and_counts_as_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = make_module().eval()
    (broken, _) = loader((4, 10, 8), 2, 1)
    broken["image"][0, 0, 0, 0, 0] = float("nan")
    scored = module.validation_step(broken, 0, dataloader_idx=1)["segmentation"]
    assert scored.shape == (1, 4, 10, 8) and not scored.any()
    told = " ".join(capsys.readouterr().out.split())
    assert "warning: validation case case_0: the network's output is NaN or infinite in precision torch.float32" in told
    module.on_validation_start()
    dice, _ = module.case_counts.compute_and_reset()
    assert dice[1] == dice[2] == 0  # both classes are missed: the score must not look like success


def test_scores_are_forgotten_where_nothing_is_validated(tmp_path: Path) -> None:
    module = make_module()
    module.on_validation_epoch_end()
    assert module.scores == {}
    fit(module, tmp_path, limit_val_batches=1)
    assert set(module.scores) == {"val/dice", "val_full/dice"}
    module.on_validation_epoch_end()
    assert module.scores == {}


def test_optimizer_and_schedule_come_from_the_config(tmp_path: Path) -> None:
    paper = make_module("training=paper")
    trainer = fit(paper, tmp_path, max_epochs=4)
    optimizer = trainer.optimizers[0]
    assert type(optimizer) is torch.optim.SGD
    assert {key: optimizer.defaults[key] for key in ("momentum", "nesterov", "weight_decay")} == {
        "momentum": 0.99,
        "nesterov": True,
        "weight_decay": 3e-5,
    }
    assert float(trainer.callback_metrics["train/lr"]) == pytest.approx(0.01 * (1 / 4) ** 0.9)
    torch_schedule = make_module(
        "schedule._target_=torch.optim.lr_scheduler.StepLR",
        "schedule.interval=epoch",
        "++schedule.step_size=1",
        "++schedule.gamma=0.5",
        "~schedule.warmup",
    )
    trainer = fit(torch_schedule, tmp_path, max_epochs=3)
    assert float(trainer.callback_metrics["train/lr"]) == pytest.approx(3e-3 / 4)


def test_bf16_training_keeps_float32_weights_and_loss(tmp_path: Path) -> None:
    module = make_module()
    trainer = fit(module, tmp_path, precision="bf16-mixed")
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert trainer.callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_an_incomplete_accumulation_takes_the_whole_step_of_the_batches_that_there_are(
    accumulate: int, tmp_path: Path
) -> None:
    options = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1"]
    options += ["schedule._target_=e2enet.training.schedules.constant", "~schedule.warmup"]
    options += ["optimizer.weight_decay=0", "++loss.batch_dice=false"]
    torch.manual_seed(0)
    module = make_module(*options)
    expected = copy.deepcopy(module)
    # Five batches of one sample. Steps of `accumulate` batches, the last with the rest, equal steps of larger batches.
    trainer = quiet_trainer(tmp_path, TrainLossLogger(), accumulate_grad_batches=accumulate)
    trainer.fit(module, loader((2, 8, 8), 5, 1))
    losses = []
    for batch in loader((2, 8, 8), 5, accumulate):
        for parameter in expected.parameters():
            parameter.grad = None
        parts = [
            expected.loss(expected.network.train()(image[None]), label[None])
            for image, label in zip(batch["image"], batch["label"], strict=True)
        ]
        losses += [float(part.detach()) for part in parts]
        torch.stack(parts).mean().backward()
        with torch.no_grad():
            for parameter in expected.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    assert len(losses) == 5 and trainer.global_step == -(-5 // accumulate)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(sum(losses) / 5)
