"""Observers of a training run: where the time goes, a line per epoch, the cost, a validation picture."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger

from e2enet.common.console import console
from e2enet.common.overlay import save_overlay
from e2enet.training.module import SegmentationModule
from e2enet.training.records import write_cost


class TimeKeeper(pl.Callback):
    """Logs `time/step` (seconds per batch, waiting included) and `time/data_share` (of it, waiting)."""

    def __init__(self) -> None:
        self._last = 0.0
        self._waited = 0.0
        self._worked = 0.0
        self._batches = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._waited, self._worked, self._batches = 0.0, 0.0, 0
        self._last = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """What passed since the last batch ended was waiting for this one."""
        now = time.perf_counter()
        self._waited += now - self._last
        self._last = now

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """What passed since the batch arrived was work."""
        now = time.perf_counter()
        self._worked += now - self._last
        self._batches += 1
        self._last = now

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's sums."""
        total = self._waited + self._worked
        if self._batches and total > 0:
            pl_module.log("time/step", total / self._batches, rank_zero_only=True)
            pl_module.log("time/data_share", self._waited / total, rank_zero_only=True)


class EpochLines(pl.Callback):
    """Prints one line per epoch, which a log file keeps where a progress bar leaves nothing."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print loss, Dice where it was measured in this epoch, and seconds per step."""
        if not trainer.is_global_zero:
            return
        shown = {"train/loss": "loss", "val/dice": "val dice", "time/step": "s/step"}
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            del shown["val/dice"]  # what is stored is an earlier epoch's
        parts = [
            f"{label} {float(trainer.callback_metrics[key]):.3f}"
            for key, label in shown.items()
            if key in trainer.callback_metrics
        ]
        console.print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: " + ", ".join(parts), highlight=False)


class CostFile(pl.Callback):
    """Writes the network's cost once its masks are drawn; their number never changes afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count at the plan's patch size."""
        assert isinstance(pl_module, SegmentationModule)
        if trainer.is_global_zero:
            write_cost(self.path, pl_module.network, pl_module.plan.patch_size)


class ValidationPicture(pl.Callback):
    """Saves the first validation case with its segmentation and reference; sends it to W&B where that is on.

    Args:
        folder: where `validation_<case>.png` is written; each validation replaces it, W&B keeps them all.
        labels: class names by label, background 0 included.
        spacing: voxel size of prepared cases in mm, depth first.
    """

    def __init__(self, folder: Path, labels: Mapping[int, str], spacing: tuple[float, float, float]) -> None:
        self.folder = folder
        self.labels = dict(labels)
        self.spacing = spacing

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first case of a validation."""
        if batch_idx != 0 or not trainer.is_global_zero or trainer.sanity_checking:
            return
        path = self.folder / f"validation_{batch['case'][0]}.png"
        save_overlay(
            path,
            batch["image"][0, 0].float().cpu().numpy(),
            outputs["segmentation"].cpu().numpy(),
            reference=batch["label"][0].cpu().numpy(),
            labels=self.labels,
            spacing=self.spacing,
        )
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(key="validation/overlay", images=[str(path)], step=trainer.global_step)
