"""Callbacks that observe training: an epoch's loss, a line per epoch, the cost, a validation picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.planning.plan import Plan
from e2enet.inference.overlay import save_overlay
from e2enet.training.module import PATCHES, SCORES, WHOLE_CASES, SegmentationModule
from e2enet.training.nonfinite import LEFT_OUT, NonFiniteGuard
from e2enet.training.records import write_cost

# Share of time spent waiting for data from which it is reported.
NOTICEABLE_WAIT = 0.1
SCORE_LABELS = {SCORES[PATCHES]: "val dice", SCORES[WHOLE_CASES]: "whole cases"}


class TrainLossLogger(pl.Callback):
    """Logs the mean loss of an epoch's batches and the learning rate at its start.

    Lightning's own sums over an epoch are in no checkpoint. These are, so an epoch resumed in its middle has the
    mean of all its batches.
    """

    KEY = "epoch_numbers"  # in a checkpoint

    def __init__(self) -> None:
        self._learning_rate = 0.0
        self._sum: float | Tensor = 0.0
        self._batches = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the sums; warn if the learning rate is 0, as at the end of a schedule."""
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        if not any(group["lr"] for group in trainer.optimizers[0].param_groups):
            say(
                f"warning: epoch {trainer.current_epoch + 1} begins with a learning rate of 0 (schedule): no "
                "weight changes while it is 0",
                style="yellow",
            )
        self._sum, self._batches = 0.0, 0
        _guard(pl_module).used = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch's loss. It stays on its device, since reading it would wait for the GPU.

        Raises:
            InputError: the epoch ends and all of its batches were left out.
        """
        if LEFT_OUT not in outputs:
            # Lightning has divided the loss by `accumulate_grad_batches`.
            self._sum = self._sum + outputs["loss"].detach().float() * trainer.accumulate_grad_batches
            self._batches += 1
        if batch_idx + 1 == trainer.num_training_batches:
            _guard(pl_module).end_epoch(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the learning rate and the loss, averaged over all processes."""
        pl_module.log("train/lr", self._learning_rate, rank_zero_only=True)
        pl_module.log("train/loss", self._mean_sum(trainer, pl_module) / self._batches, prog_bar=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        total = float(self._mean_sum(trainer, pl_module))
        numbers = {"lr": self._learning_rate, "sum": total, "batches": self._batches}
        checkpoint[self.KEY] = numbers | {"used": _guard(pl_module).used}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint[self.KEY]
        self._learning_rate, self._sum, self._batches = state["lr"], state["sum"], state["batches"]
        _guard(pl_module).used = state.get("used", state["batches"])

    def _mean_sum(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Tensor:
        # Not by Lightning's sync_dist: it waits for the others whenever a callback of one process reads the value.
        own = torch.as_tensor(self._sum, dtype=torch.float32, device=pl_module.device)
        return torch.as_tensor(trainer.strategy.reduce(own, reduce_op="mean"))


def _guard(module: pl.LightningModule) -> NonFiniteGuard:
    assert isinstance(module, SegmentationModule)
    return module.guard


class SearchedScore(pl.Callback):
    """Ends a run after its first validation if `optimized_metric` names a score of it that there is not.

    Other values may be logged later or more rarely. They are looked up when the run has ended.

    Args:
        name: of the value, as in metrics.csv.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise InputError that lists the scores of the same kind."""
        assert isinstance(pl_module, SegmentationModule)
        kind = f"{self.name.partition('/')[0]}/"
        measured = any(score.startswith(kind) for score in pl_module.scores)
        if measured and trainer.is_global_zero and self.name not in trainer.callback_metrics:
            names = sorted(name for name in trainer.callback_metrics if name.startswith(kind))
            raise InputError(f"optimized_metric={self.name}: is not measured; expected {' | '.join(names)}")


class EpochPrinter(pl.Callback):
    """Prints one line per epoch, for log files, in which a progress bar leaves nothing."""

    def __init__(self) -> None:
        self._advised = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print loss, this epoch's Dice if measured, seconds per step, and the share of a long wait for data."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, SegmentationModule)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # The metrics also hold scores of earlier epochs.
        shown = {"loss": metrics.get("train/loss", math.nan)}  # NaN if every batch was left out
        shown |= {label: pl_module.scores[name] for name, label in SCORE_LABELS.items() if name in pl_module.scores}
        shown["s/step"] = metrics["time/step"]
        parts = [f"{label} {value:.3f}" for label, value in shown.items()]
        waits = metrics["time/data_share"] >= NOTICEABLE_WAIT
        if waits:
            parts.append(f"waited {metrics['time/data_share']:.0%} for data")
        say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: " + ", ".join(parts))
        # Only once, and not after the first epoch: its loader has just started.
        if waits and trainer.current_epoch > 0 and not self._advised:
            self._advised = True
            say("To wait less: more data.num_workers, or data.augment_on=device")


class CostFile(pl.Callback):
    """Writes the network's cost after the masks are drawn. The end of the run writes that of the scored network."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the cost at the plan's patch size."""
        assert isinstance(pl_module, SegmentationModule)
        if trainer.is_global_zero:
            write_cost(self.path, pl_module.network, pl_module.plan.patch_size)


class ValidationPicture(pl.Callback):
    """Saves the first validated case (or patch) with its segmentation and reference; also to W&B if that is on.

    Args:
        run_folder: the picture is its figures/validation_<case>.png. Each validation replaces it; W&B keeps them all.
        scheme: the label scheme; ignored voxels are drawn as background.
        plan: of the prepared cases, for their spacing and depth axis.
        loader: the validation loader to draw from, PATCHES or WHOLE_CASES.
    """

    def __init__(self, run_folder: Path, scheme: LabelScheme, plan: Plan, loader: int) -> None:
        self.folder = run_folder / "figures"
        self.scheme = scheme
        self.plan = plan
        self.loader = loader

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first case or patch of a validation."""
        if batch_idx != 0 or dataloader_idx != self.loader or not trainer.is_global_zero or trainer.sanity_checking:
            return
        path = self.folder / f"validation_{batch['case'][0]}.png"
        save_overlay(
            path,
            batch["image"][0, 0].float().cpu().numpy(),
            outputs["segmentation"][0].cpu().numpy(),
            reference=self.scheme.without_ignored(batch["label"][0].cpu().numpy()),
            labels=self.scheme.names,
            spacing=self.plan.spacing,
            depth_axis=self.plan.depth_axis,
        )
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(key="validation/overlay", images=[str(path)], step=trainer.global_step)
