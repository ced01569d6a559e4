"""The Lightning trainer of a run: its callbacks and checkpoints, from the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from e2enet.common.console import console
from e2enet.training.callbacks import CostFile, EpochLines, TimeKeeper, ValidationPicture
from e2enet.training.configs import as_plain
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.module import SegmentationModule

MONITOR = "val/dice"


def build_trainer(
    config: DictConfig, module: SegmentationModule, run_folder: Path, loggers: list[Logger]
) -> pl.Trainer:
    """A trainer that writes checkpoints, pictures and cost.json to the run folder."""
    bars = config.trainer.progress and console.is_terminal
    callbacks: list[pl.Callback] = [*_dsff(config), TimeKeeper(), CostFile(run_folder / "cost.json")]
    callbacks.append(ValidationPicture(run_folder / "figures", module.labels, module.plan.spacing))
    callbacks.append(RichProgressBar() if bars else EpochLines())
    callbacks += checkpoints(run_folder / "checkpoints", config.training.checkpoint_every)
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=config.trainer.strategy,
        deterministic=config.trainer.deterministic,
        limit_val_batches=config.trainer.limit_val_batches,
        max_epochs=config.training.epochs,
        check_val_every_n_epoch=config.training.validate_every,
        accumulate_grad_batches=config.training.accumulate,
        gradient_clip_val=config.training.clip_norm,
        precision=config.training.precision,
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=run_folder,
        enable_progress_bar=bars,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # The patch sampler shards by rank itself; Lightning's would split its keys a second time.
        use_distributed_sampler=False,
    )


def checkpoints(folder: Path, every: int) -> list[pl.Callback]:
    """Writers of best.ckpt (largest mean validation Dice) and last.ckpt (every so many epochs).

    Two, since one writer's `save_last` follows its best checkpoint and not the run.
    """
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    return [
        ModelCheckpoint(filename="best", monitor=MONITOR, mode="max", **common),
        ModelCheckpoint(filename="last", every_n_epochs=every, save_on_train_epoch_end=True, **common),
    ]


def _dsff(config: DictConfig) -> list[pl.Callback]:
    options = as_plain(config.dsff)
    masks = options.pop("masks")
    return [DSFFCallback(seed=config.seed, **options)] if masks else []
