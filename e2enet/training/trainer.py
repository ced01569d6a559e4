"""The Lightning trainer of a run: its callbacks and checkpoints, from the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig

from e2enet.common.configs import as_plain
from e2enet.common.console import console
from e2enet.system.determinism import set_torch_flags
from e2enet.training.callbacks import CostFile, EpochLines, EpochNumbers, ValidationPicture
from e2enet.training.checkpoints import (
    BEST,
    LAST,
    BestCheckpoint,
    KeptCheckpoints,
    LastCheckpoint,
    WholeCheckpoints,
    monitored,
)
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.module import PATCHES, WHOLE_CASES, SegmentationModule
from e2enet.training.run_folder import Claim
from e2enet.training.timing import LoaderWait, TimeKeeper


def build_trainer(
    config: DictConfig,
    module: SegmentationModule,
    run_folder: Path,
    loggers: list[Logger],
    identity: dict[str, Any],
    claim: Claim,
) -> pl.Trainer:
    """A trainer that writes checkpoints, pictures and cost.json to the run folder, which it claims when it begins.

    `identity` is what the run may not change when it is gone on with (`resume.run_identity`).
    """
    set_torch_flags(config.trainer.deterministic, config.trainer.accelerator)  # Lightning is given none of them
    bars = config.trainer.progress and console.is_terminal
    validate_full = config.training.validate_full
    drawn = WHOLE_CASES if validate_full else PATCHES
    loader_wait = LoaderWait()
    callbacks: list[pl.Callback] = [*_dsff(config), claim, EpochNumbers()]
    callbacks.append(TimeKeeper(loader_wait, config.trainer.log_every))
    callbacks.append(CostFile(run_folder / "cost.json"))
    callbacks.append(ValidationPicture(run_folder / "figures", module.scheme, module.plan, drawn))
    callbacks.append(RichProgressBar() if bars else EpochLines())
    callbacks += _checkpoints(config, run_folder / "checkpoints", identity)
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=_strategy(config),
        limit_val_batches=config.trainer.limit_val_batches,
        max_epochs=config.training.epochs,
        accumulate_grad_batches=config.training.accumulate,
        gradient_clip_val=config.training.clip_norm,
        precision=config.training.precision,
        logger=loggers,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        profiler=loader_wait,
        log_every_n_steps=config.trainer.log_every,
        default_root_dir=run_folder,
        enable_progress_bar=bars,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # Which epochs are validated, the samplers of the two validation loaders know.
        check_val_every_n_epoch=1,
        # The samplers shard by rank themselves; Lightning's would split their keys a second time, and repeat
        # validation cases to make their number even.
        use_distributed_sampler=False,
    )


def _checkpoints(config: DictConfig, folder: Path, identity: dict[str, Any]) -> list[pl.Callback]:
    """The last one last: it stores the states of the others, and may end the run."""
    training = config.training
    last = LastCheckpoint(folder / LAST, training.checkpoint_every, training.checkpoint_unit, identity)
    every = training.get("keep_every")  # runs of earlier versions have no such key
    kept = [KeptCheckpoints(folder, every)] if every else []
    return [BestCheckpoint(folder / BEST, monitored(training.validate_full)), *kept, last]


def _strategy(config: DictConfig) -> str | Strategy:
    """Data-parallel training where there are several processes, or where it is asked for."""
    if config.trainer.strategy == "auto" and config.trainer.devices * config.trainer.num_nodes == 1:
        return "auto"
    # The buffers are kernel masks. Sent from the first process before every forward pass, masks that have come to
    # differ would be overwritten unseen; and processes validate different numbers of cases, with a pass for each.
    return DDPStrategy(forward_sync_buffers=False)


def _dsff(config: DictConfig) -> list[pl.Callback]:
    options = as_plain(config.dsff)
    masks = options.pop("masks")
    return [DSFFCallback(seed=config.seed, **options)] if masks else []
