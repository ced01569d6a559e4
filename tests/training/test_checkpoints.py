"""best.ckpt follows a single score, which some epochs lack; last.ckpt is written at its period."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, monitored
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.loggers import MetricsFile
from e2enet.training.module import SegmentationModule


class FakeTrainer:
    def __init__(self, *callbacks: Any) -> None:
        self.saved: list[Path] = []
        self.callbacks = callbacks

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        assert not weights_only
        self.saved.append(path)


def saves(callback: BestCheckpoint, epochs: list[dict[str, float]], *others: Any) -> list[bool]:
    """Return for each epoch, given its scores, whether it writes the checkpoint."""
    module = SegmentationModule.__new__(SegmentationModule)
    found = []
    for scores in epochs:
        object.__setattr__(module, "scores", scores)
        trainer: Any = FakeTrainer(*others)
        callback.on_train_epoch_end(trainer, module)
        assert trainer.saved == []  # the epoch's numbers are not in metrics.csv yet
        callback.on_train_batch_start(trainer, module, None, 0)
        found.append(trainer.saved == [callback.path])
    return found


@pytest.mark.parametrize(
    ("validate_full", "score"), [(None, "val/dice"), (0, "val/dice"), (1, "val_full/dice"), (50, "val_full/dice")]
)
def test_whole_cases_choose_where_they_are_validated(validate_full: int | None, score: str) -> None:
    assert monitored(validate_full) == score


def test_only_the_largest_score_of_its_own_kind_counts() -> None:
    callback = BestCheckpoint(Path("best.ckpt"), "val_full/dice")
    epochs = [
        {"val/dice": 0.9},  # scores of patches are ignored
        {"val/dice": 0.9, "val_full/dice": 0.5},
        {"val_full/dice": 0.4},
        {},
        {"val_full/dice": math.nan},
        {"val_full/dice": 0.5},
        {"val_full/dice": 0.6},
    ]
    assert saves(callback, epochs) == [False, True, False, False, False, False, True]


def test_a_network_that_is_denser_than_the_runs_end_is_never_best(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = DSFFCallback(0.2, density_initial=0.5, update_every=4)
    callback = BestCheckpoint(Path("best.ckpt"), "val/dice")
    monkeypatch.setattr(masks, "excess", lambda _: 3)
    assert saves(callback, [{"val/dice": 0.9}], masks) == [False]
    monkeypatch.setattr(masks, "excess", lambda _: 0)
    assert saves(callback, [{"val/dice": 0.7}, {"val/dice": 0.6}], masks) == [True, False]
    constant = DSFFCallback(0.2)
    assert saves(BestCheckpoint(Path("best.ckpt"), "val/dice"), [{"val/dice": 0.7}], constant) == [True]


def test_a_resumed_run_remembers_its_best() -> None:
    first, second = (BestCheckpoint(Path("best.ckpt"), "val/dice") for _ in range(2))
    assert saves(first, [{"val/dice": 0.7}]) == [True]
    second.load_state_dict(first.state_dict())
    assert second.latest == 0.7
    assert saves(second, [{"val/dice": 0.6}, {"val/dice": 0.8}, {}]) == [False, True, False] and second.latest == 0.8


@pytest.mark.parametrize("moment", ["e2enet.training.checkpoints.torch.save", "e2enet.common.files.os.fsync"])
def test_a_checkpoint_that_is_not_written_to_its_end_leaves_those_before(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = AtomicCheckpointIO()
    for epoch in (1, 2):
        writer.save_checkpoint({"epoch": epoch}, tmp_path / "last.ckpt")

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, stop)
    with pytest.raises(KeyboardInterrupt):
        writer.save_checkpoint({"epoch": 3}, tmp_path / "last.ckpt")
    found = {path.name: torch.load(path)["epoch"] for path in tmp_path.iterdir()}
    assert found == {"last.ckpt": 2, "previous.ckpt": 1}


class FakeLoop:
    """A trainer that counts batches and records the steps after which it writes."""

    def __init__(self, batches: int, accumulate: int) -> None:
        self.num_training_batches = batches
        self.accumulate_grad_batches = accumulate
        self.world_size = 1
        self.global_step = 0
        self.loggers = [MetricsFile(Path("nowhere"))]
        self.written: list[int] = []

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        self.written.append(self.global_step)

    def run(self, callback: LastCheckpoint, epochs: int) -> list[int]:
        trainer: Any = self
        callback.on_train_start(trainer, trainer)
        for _ in range(epochs):
            for index in range(self.num_training_batches):
                callback.on_train_batch_start(trainer, trainer, None, index)
                self.global_step += (index + 1) % self.accumulate_grad_batches == 0
            callback.on_validation_start(trainer, trainer)
            callback.on_validation_batch_end(trainer, trainer)
        callback.on_train_end(trainer, trainer)
        return self.written


@pytest.mark.parametrize(
    ("every", "unit", "accumulate", "written"),
    [
        (4, "steps", 1, [4, 8, 12, 16, 18]),
        (6, "steps", 1, [6, 12, 18, 18]),  # once per epoch, before validation
        (2, "epochs", 1, [12, 18]),
        (2, "steps", 3, [2, 4, 6, 6]),  # optimizer steps, never within an accumulation
        (1, "epochs", 3, [2, 4, 6, 6]),
        (99, "steps", 1, [18]),
    ],
)
def test_the_period_is_in_optimizer_steps_or_epochs(every: int, unit: str, accumulate: int, written: list[int]) -> None:
    assert FakeLoop(6, accumulate).run(LastCheckpoint(Path("last.ckpt"), every, unit, {}), epochs=3) == written


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_resuming_runs_no_code_of_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil(tmp_path / "ran")}, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "ran").exists()
