"""One training run, from a checked config to scored predictions in a run folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig
from torch import distributed, nn

from e2enet.common.configs import as_plain
from e2enet.common.console import say
from e2enet.common.errors import ExitCode
from e2enet.data.command import build_datamodule
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.formats.naming import has_numbered_ids
from e2enet.data.loaders.worker_notes import naming_held_cases
from e2enet.inference.checkpoint import load_model
from e2enet.network.build import trust_network
from e2enet.network.granularity import chosen_group_size
from e2enet.system.ranks import current_team, is_first
from e2enet.training.checkpoints import BestCheckpoint, write_compact
from e2enet.training.final import score_run
from e2enet.training.initial_weights import check_shapes, load_initial_weights
from e2enet.training.loggers import build_loggers, finish_wandb
from e2enet.training.module import SegmentationModule
from e2enet.training.pretraining import pretrain
from e2enet.training.probe import probe_step
from e2enet.training.records import write_connections
from e2enet.training.resume import (
    LAST_CHECKPOINT,
    FoundCheckpoint,
    find_checkpoint,
    refuse_changes,
    refuse_shorter,
    run_identity,
)
from e2enet.training.rewind import later_checkpoints, set_aside
from e2enet.training.run_folder import Claim, how_to_go_on, refuse_taken, write_claim
from e2enet.training.step_parts import training_settings
from e2enet.training.trainer import build_trainer


@dataclass(frozen=True)
class RunResult:
    """`dice` is the mean validation Dice, of the final prediction where there is one."""

    folder: Path
    dice: float


def run_training(
    config: DictConfig,
    run_folder: Path,
    *,
    successor: nn.Module | None = None,
    claim: Callable[[], None] = lambda: None,
) -> RunResult:
    """Prepare the data where needed, train, predict and score; everything is written to `run_folder`.

    `config.resume`, where set, is the run folder itself and training goes on from its last checkpoint, from the
    start where it has none yet; or one of its checkpoints. A `successor` is the network that this run is the
    pretraining of, and `claim` writes what makes its folder a run's, once training begins.

    Every process of a data-parallel training calls this; the first one alone writes.

    Raises:
        InputError: an unusable dataset, a folder that holds another run already, initial weights that do
            not fit, a step or batches that do not fit into memory, or a loss that is not finite.
    """
    checkpoint, later = _where_to_begin(config, run_folder)
    _quiet()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_datamodule(
        config,
        accumulate=config.training.accumulate,
        steps_per_epoch=config.training.steps_per_epoch,
        validation_patches=config.training.validation_patches,
        validate_every=config.training.validate_every,
        validate_full=config.training.validate_full,
    )
    data.prepare_data()
    data.setup("fit")
    identity = run_identity(config, data)
    if checkpoint is not None:
        refuse_changes(checkpoint, identity)
    module = build_module(config, data)
    if successor is not None:
        heading = "pretraining: its network has not the shape of the run's:"
        check_shapes(successor, module.network, module.hparams, heading)

    def claim_folder() -> None:
        claim()
        if checkpoint is not None and later:
            set_aside(run_folder, checkpoint, later)
        write_claim(run_folder, config, data.run_split)

    if checkpoint is None:
        _start_from_other_weights(config, run_folder, module, claim_folder)
    own = Claim(claim_folder, checkpoint.state.rows if checkpoint else 0)
    try:
        loggers = _loggers(config, run_folder, goes_on=config.resume is not None and not later)
        trainer = build_trainer(config, module, run_folder, loggers, identity, own)
        path = checkpoint.path if checkpoint else None
        # With processes that a pretraining has joined already, the loss would wait for theirs.
        if config.trainer.probe and trainer.is_global_zero and not distributed.is_initialized():
            probe_step(trainer, module)
        with naming_held_cases(lambda: trainer.train_dataloader):
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        own.take(trainer)
    except SystemExit as error:
        # Lightning answers Ctrl-C by an exit that looks like a failure, and SIGTERM by one that looks like success.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(how_to_go_on(run_folder)) from error
        if isinstance(error, SIGTERMException):
            raise SystemExit(ExitCode.TERMINATED) from error
        raise
    except KeyboardInterrupt as error:  # not in the training itself
        raise KeyboardInterrupt(how_to_go_on(run_folder)) from error
    finally:
        finish_wandb()
    return RunResult(run_folder, _finish(config, run_folder, data, trainer))


def _where_to_begin(config: DictConfig, run_folder: Path) -> tuple[FoundCheckpoint | None, list[Path]]:
    """The checkpoint to go on from, None for a beginning, and the later ones where it was chosen by name."""
    if not config.resume:
        if is_first():  # by the time that another process looks, this may be its own run's
            refuse_taken(run_folder)
        return None, []
    checkpoint = find_checkpoint(Path(config.resume))
    if checkpoint is None:
        return None, []
    refuse_shorter(checkpoint, config.training.epochs)
    return checkpoint, later_checkpoints(run_folder, checkpoint) if Path(config.resume).is_file() else []


def build_module(config: DictConfig, data: SegmentationDataModule) -> SegmentationModule:
    """The training module for a data module that is set up."""
    trust_network(str(config.network["_target_"]))
    return SegmentationModule(
        network=as_plain(config.network),
        plan=data.plan.to_dict(),
        dataset={
            "name": data.dataset.name,
            **data.dataset.scheme.to_plain(),
            "channels": list(data.dataset.channels),
            "mirror_axes": list(data.mirror_axes),
            "file_ending": data.dataset.file_ending,
            "numbered_ids": has_numbered_ids(data.dataset.training),
            "label_map": dict(data.dataset.label_map),
            "regions": {name: list(labels) for name, labels in data.dataset.regions.items()},
        },
        training=training_settings(config),
        group_size=chosen_group_size(config.dsff.granularity, config.dsff.group_size),
    )


def _start_from_other_weights(
    config: DictConfig, run_folder: Path, module: SegmentationModule, claim: Callable[[], None]
) -> None:
    """Load the weights of `config.initial_weights`, or of `config.pretraining`, which is run first where it has to."""
    source = config.initial_weights
    if config.pretraining:
        source = pretrain(
            config,
            run_folder,
            module.plan,
            lambda own, folder: run_training(own, folder, successor=module.network, claim=claim).dice,
        )
        # Whether it ran just now or long ago must make no difference.
        pl.seed_everything(config.seed, workers=True, verbose=False)
    if source is not None:
        load_initial_weights(module.network, Path(source), as_plain(config.dsff))


def _loggers(config: DictConfig, run_folder: Path, *, goes_on: bool) -> list[Logger]:
    content = as_plain(config)
    return build_loggers(content.get("logger") or {}, run_folder, goes_on=goes_on, config=content)


def _finish(config: DictConfig, run_folder: Path, data: SegmentationDataModule, trainer: pl.Trainer) -> float:
    """Score the best checkpoint where asked; the mean validation Dice."""
    best = run_folder / "checkpoints" / "best.ckpt"
    dice = next(callback.latest for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint))
    # Without a validated class there is no best checkpoint: the last one stands in.
    checkpoint = best if best.is_file() else run_folder / LAST_CHECKPOINT
    if checkpoint.is_file() and trainer.is_global_zero:
        write_connections(run_folder / "connections.json", load_model(checkpoint).network)
        if config.final.compact:
            write_compact(checkpoint)
    if not config.final.predict:
        return dice
    summary = score_run(config, run_folder, checkpoint, data.val_cases, data.test_cases, current_team())
    if summary is None:
        return dice
    say(f"run folder: {run_folder}")
    return float(summary["mean"]["dice"])


def _quiet() -> None:
    """Silence remarks about choices made on purpose, and Lightning's advertisements."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for remark in (
        "does not have many workers",
        "isinstance.treespec, LeafSpec",
        "is smaller than the logging interval",
        "It is recommended to use .self.log",  # with sync_dist: what is logged is the same on all processes
        "Experiment logs directory .* exists and is not empty",  # config.yaml is there before
        "You're resuming from a checkpoint that ended before the epoch ended",  # the data module knows where
    ):
        warnings.filterwarnings("ignore", f".*{remark}")
