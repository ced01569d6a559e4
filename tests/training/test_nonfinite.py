"""Losses and gradients that are NaN or infinite: the batch is described, and the run stops or skips it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from e2enet.common.configs import as_plain, compose_config
from e2enet.common.errors import InputError
from e2enet.network.dsff import fusion_layers, kernel_scores
from e2enet.training.callbacks import TrainLossLogger
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.module import SegmentationModule
from e2enet.training.nonfinite import without_gradient
from e2enet.training.nonfinite_record import case_statistics
from e2enet.training.step_parts import training_settings
from tests.training.conftest import quiet_trainer

SHAPE = (2, 8, 8)
PLAN: dict[str, Any] = {
    "depth_axis": 2,
    "spacing": [3.0, 1.0, 1.0],
    "patch_size": list(SHAPE),
    "strides": [[1, 2, 2]],
    "batch_size": 2,
    "normalisation": [{"scheme": "none"}],
    "median_shape": list(SHAPE),
}
DATASET: dict[str, Any] = {
    "name": "Tiny",
    "labels": {0: "background", 1: "liver", 2: "spleen"},
    "channels": ["CT"],
    "mirror_axes": [],
    "file_ending": ".nii.gz",
}
# No schedule and no clipping, so that a skipped step does not change later ones.
PLAIN = ["~schedule.warmup", "schedule._target_=e2enet.training.schedules.constant"]
MOMENTUM = ["optimizer._target_=torch.optim.SGD", "++optimizer.momentum=0.9"]


def make_module(*overrides: str) -> SegmentationModule:
    config = compose_config(["network.base_features=4", *PLAIN, *overrides])
    network, training = as_plain(config.network), training_settings(config)
    torch.manual_seed(0)
    return SegmentationModule(network, PLAN, DATASET, training)  # type: ignore[arg-type]


def samples(numbers: Sequence[int], bad: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Return a sample per number, which depends on the number alone. Those of `bad` hold an infinite voxel."""
    made = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        image = torch.randn(1, *SHAPE, generator=generator)
        if number in bad:
            image[0, 1, 2, 3] = float("inf")
        label = torch.randint(0, 3, SHAPE, generator=generator)
        made.append({"image": image, "label": label, "case": f"case_{number}"})
    return made


def fit(
    module: SegmentationModule, folder: Path, data: list[dict[str, Any]], *callbacks: pl.Callback, **options: Any
) -> pl.Trainer:
    """Train one epoch in batches of two."""
    trainer = quiet_trainer(folder, TrainLossLogger(), *callbacks, **options)
    trainer.fit(module, DataLoader(data, batch_size=2))  # type: ignore[arg-type]
    return trainer


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "nonfinite").glob("*.json"))]


def test_the_run_stops_and_names_the_file(tmp_path: Path) -> None:
    module = make_module()
    with pytest.raises(InputError) as caught:
        fit(module, tmp_path, samples(range(8), bad=[5]))
    path = tmp_path / "nonfinite" / "epoch_0_batch_2_rank_0.json"
    assert f"loss is nan at epoch 0, batch 2, cases case_4, case_5: statistics of the batch in {path}" in str(
        caught.value
    )
    (record,) = records(tmp_path)
    assert record["loss"] != record["loss"] and record["step"] == 2 and record["learning_rate"] == 3e-3
    assert record["grad_scale"] is None and record["nonfinite_weights"] == {"count": 0, "first": []}
    good, bad = record["cases"]
    assert (good["case"], bad["case"]) == ("case_4", "case_5") and bad["labels"] == [0, 1, 2]
    assert good["channels"][0]["nonfinite_voxels"] == 0 and bad["channels"][0]["nonfinite_voxels"] == 1
    other = make_module()
    fit(other, tmp_path, samples(range(4)))
    assert_equal(weights(module), weights(other))  # the weights from before the bad batch


def test_statistics_are_of_the_finite_voxels() -> None:
    image = torch.tensor([1.0, 3.0, float("nan"), float("-inf")]).reshape(1, 1, 1, 2, 2)
    image = torch.cat([image, torch.full_like(image, float("nan"))], dim=1)
    (found,) = case_statistics({"image": image, "label": torch.tensor([[[[0, 2], [2, 0]]]]), "case": ["a"]})
    assert found["labels"] == [0, 2]
    assert found["channels"] == [
        {"min": 1.0, "max": 3.0, "mean": 2.0, "std": 1.0, "nonfinite_voxels": 2},
        {"min": None, "max": None, "mean": None, "std": None, "nonfinite_voxels": 4},
    ]


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("optimizer", [[], MOMENTUM], ids=["AdamW", "SGD"])
def test_a_batch_that_is_left_out_changes_nothing(growth: str, optimizer: list[str], tmp_path: Path) -> None:
    def train(bad: Sequence[int], numbers: Sequence[int]) -> tuple[SegmentationModule, DSFFCallback, pl.Trainer]:
        module = make_module("training.skip_nonfinite=1", *optimizer)
        masks = DSFFCallback(0.5, update_every=2, update_until=0.5, growth=growth, fraction_schedule="constant")
        trainer = fit(module, tmp_path, samples(numbers, bad), masks, gradient_clip_val=1.0)
        return module, masks, trainer

    # Batch 1 would have been the step with the mask update. Without it the third batch is.
    module, masks, trainer = train([3], [*range(12)])
    other, other_masks, other_trainer = train([], [0, 1, *range(4, 12)])
    assert trainer.global_step == 6 and masks.step == other_masks.step == 5
    assert masks.num_updates == other_masks.num_updates == 1
    assert_equal(weights(module), weights(other))
    moments, other_moments = (run.optimizers[0].state_dict()["state"] for run in (trainer, other_trainer))
    torch.testing.assert_close(moments, other_moments, rtol=0, atol=0)
    for layer in fusion_layers(module).values():
        assert int(layer.kernel_mask.sum()) == round(0.5 * layer.kernel_mask.numel())
        assert not kernel_scores(layer.weight)[~layer.kernel_mask].any()
    (record,) = records(tmp_path)
    assert [case["case"] for case in record["cases"]] == ["case_2", "case_3"]
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(
        float(other_trainer.callback_metrics["train/loss"])
    )


def test_accumulation_keeps_the_other_batches_of_a_step(tmp_path: Path) -> None:
    sgd = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1", "training.skip_nonfinite=3"]
    module = make_module(*sgd, "optimizer.weight_decay=0.1")
    start = weights(module)
    # Steps of two batches: one batch of the first step is bad, both of the second are.
    fit(module, tmp_path, samples(range(8), bad=[2, 4, 7]), accumulate_grad_batches=2)
    expected = make_module()
    images, labels = (torch.stack([sample[key] for sample in samples([0, 1])]) for key in ("image", "label"))
    expected.loss(expected.network.train()(images), labels).backward()  # only one batch is left
    for name, parameter in expected.named_parameters():
        if parameter.grad is not None:
            step = 0.1 * (parameter.grad + 0.1 * start[name])
            torch.testing.assert_close(weights(module)[name], start[name] - step, rtol=1e-5, atol=1e-7)
    assert len(records(tmp_path)) == 3


def test_accumulated_batches_do_not_stay_in_memory(tmp_path: Path) -> None:
    module, held = make_module(), []  # stops at the first bad batch
    check_loss = module.guard.check_loss

    def watched(*given: Any) -> bool:
        admitted = check_loss(*given)
        held.append(sum("image" in batch for batch in module.guard._batches))
        return admitted

    module.guard.check_loss = watched  # type: ignore[method-assign]
    weight = next(module.network.parameters())
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(InputError, match="gradient norm is nan"):
        fit(module, tmp_path, samples(range(6)), accumulate_grad_batches=3)
    assert held == [1, 1, 1]  # only the last batch of two cases is kept
    (record,) = records(tmp_path)
    assert [case["case"] for case in record["cases"]] == [f"case_{index}" for index in range(6)]
    assert [("channels" in case) for case in record["cases"]] == [False] * 4 + [True] * 2


def test_only_so_many_in_a_row_are_left_out(tmp_path: Path) -> None:
    data = samples(range(12), bad=[0, 2, 6, 8, 10])
    with pytest.raises(InputError, match=r"batch 5, .*training\.skip_nonfinite=2 batches were left out before it"):
        fit(make_module("training.skip_nonfinite=2"), tmp_path, data)
    assert len(records(tmp_path)) == 5  # two in a row, a good batch, then three in a row


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_epoch_without_a_good_batch_ends_the_run(what: str, tmp_path: Path) -> None:
    def train(epochs: int) -> pl.Trainer:
        module = make_module("training.skip_nonfinite=10")
        if what == "gradient":
            weight = next(module.network.parameters())
            weight.register_hook(lambda gradient: gradient * (float("nan") if trainer.current_epoch == 1 else 1))
        bad = SpoilSecondEpoch() if what == "loss" else pl.Callback()
        trainer = quiet_trainer(tmp_path, TrainLossLogger(), bad, max_epochs=epochs)
        trainer.fit(module, DataLoader(samples(range(6)), batch_size=2))  # type: ignore[arg-type]
        return trainer

    expected = r"epoch 1: all of its 3 batches were left out \(training\.skip_nonfinite=10\), .*nonfinite\. Look at"
    with pytest.raises(InputError, match=expected):
        train(3)
    assert len(records(tmp_path)) == 3
    trainer = train(1)
    assert float(trainer.callback_metrics["train/loss"]) > 0


class SpoilSecondEpoch(pl.Callback):
    """Make every image of the second epoch infinite."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1:
            batch["image"].fill_(float("inf"))


def test_a_gradient_is_caught_before_it_spoils_the_weights(tmp_path: Path) -> None:
    module = make_module("training.skip_nonfinite=1")
    calls: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("nan") if len(calls) == 2 else gradient

    next(module.network.parameters()).register_hook(spoil)
    fit(module, tmp_path, samples(range(6)))
    (record,) = records(tmp_path)
    assert record["gradient_norm"] != record["gradient_norm"] and "loss" not in record
    assert [case["case"] for case in record["cases"]] == ["case_2", "case_3"]
    other = make_module()
    fit(other, tmp_path, samples([0, 1, 4, 5]))
    assert_equal(weights(module), weights(other))


def test_a_gradient_scaler_judges_gradients_and_not_losses(tmp_path: Path) -> None:
    def train(spoilt: int | None, bad: Sequence[int]) -> tuple[SegmentationModule, float]:
        module = make_module("training.skip_nonfinite=1")
        calls: list[int] = []

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return gradient * float("inf") if len(calls) == spoilt else gradient

        next(module.network.parameters()).register_hook(spoil)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        fit(module, tmp_path, samples(range(6), bad), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        return module, scaler.get_scale()

    _, scale = train(spoilt=2, bad=[])
    assert scale == 4.0 and records(tmp_path) == []  # the scaler handles this
    module, scale = train(spoilt=None, bad=[3])
    (record,) = records(tmp_path)
    assert scale == 8.0 and record["grad_scale"] == 8.0 and record["precision"] == "16-mixed"
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_loss_without_gradient_reaches_every_parameter() -> None:
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    loss = without_gradient(torch.tensor(float("nan")), module.parameters())
    loss.backward()
    assert loss.isnan() and module.bias.grad is None
    assert module.weight.grad is not None and not module.weight.grad.any()
