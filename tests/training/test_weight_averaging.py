"""Averaged weights beside masks: what a checkpoint holds, also one that is written within a validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from e2enet.network.dsff import fusion_layers
from e2enet.training.dsff_callback import DSFFCallback
from tests.training.conftest import TinySparse, quiet_trainer

weight_averaging = pytest.importorskip("e2enet.training.weight_averaging", reason="needs Lightning 2.6")


class Validated(TinySparse):
    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        pass


class SaveAroundValidation(pl.Callback):
    """Save before a validation and within it, as `LastCheckpoint` does after a stop signal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latest: dict[str, Tensor] = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.latest = {name: value.clone() for name, value in pl_module.state_dict().items()}
        trainer.save_checkpoint(self.folder / "before.ckpt")

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / "within.ckpt")


@pytest.mark.parametrize(("decay", "told"), [(0.999, True), (0.5, False)])
def test_a_run_too_short_for_its_average_is_told(
    decay: float, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Validated(lambda parameters: torch.optim.SGD(parameters, lr=0.05))
    average = weight_averaging.MaskedWeightAveraging(decay=decay)
    batches = DataLoader(TensorDataset(torch.randn(24, 4, 2, 5, 5)), batch_size=2)
    quiet_trainer(tmp_path, average).fit(module, batches)
    said = " ".join(capsys.readouterr().out.split())
    assert ("after 12 averaged steps 99% of the average is still the weights before them" in said) == told
    assert told or "warning" not in said


def test_the_latest_weights_are_validated_and_saved_before_the_first_average(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Watched(Validated):
        def on_train_batch_end(self, *_: Any) -> None:
            self.trained = {name: value.clone() for name, value in self.state_dict().items()}

        def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
            seen.append(all(torch.equal(self.trained[name], value) for name, value in self.state_dict().items()))

    module = Watched(lambda parameters: torch.optim.AdamW(parameters, lr=0.05))
    average = weight_averaging.MaskedWeightAveraging(decay=0.9, update_starting_at_step=1000)
    save = SaveAroundValidation(tmp_path)
    batches = DataLoader(TensorDataset(torch.randn(24, 4, 2, 5, 5)), batch_size=2)
    trainer = quiet_trainer(tmp_path, DSFFCallback(0.4, update_every=5), average, save)
    trainer.fit(module, batches, DataLoader(TensorDataset(torch.randn(2, 4, 2, 5, 5))))
    assert seen == [True, True]
    for moment in ("before", "within"):
        stored = torch.load(tmp_path / f"{moment}.ckpt", weights_only=False)["state_dict"]
        assert all(torch.equal(stored[name], value) for name, value in save.latest.items()), moment


def test_a_checkpoint_within_a_validation_is_that_before_it(tmp_path: Path) -> None:
    """Lightning exchanges latest weights and average for a validation, and would save them under each other's name."""
    module = Validated(lambda parameters: torch.optim.AdamW(parameters, lr=0.05))
    average = weight_averaging.MaskedWeightAveraging(decay=0.9, update_every_n_steps=4)
    save = SaveAroundValidation(tmp_path)
    trainer = quiet_trainer(tmp_path, DSFFCallback(0.4, update_every=5), average, save)
    batches = DataLoader(TensorDataset(torch.randn(24, 4, 2, 5, 5)), batch_size=2)
    trainer.fit(module, batches, DataLoader(TensorDataset(torch.randn(2, 4, 2, 5, 5))))
    before, within = (torch.load(tmp_path / f"{name}.ckpt", weights_only=False) for name in ("before", "within"))
    for key in ("state_dict", "current_model_state"):
        assert before[key].keys() == within[key].keys()
        assert all(torch.equal(before[key][name], value) for name, value in within[key].items()), key
    assert all(torch.equal(within["current_model_state"][name], value) for name, value in save.latest.items())
    assert any(not torch.equal(within["state_dict"][name], value) for name, value in save.latest.items())
    for state in (within["state_dict"], within["current_model_state"]):
        for name in fusion_layers(module):
            assert not state[f"{name}.weight"][~state[f"{name}.kernel_mask"]].any()
