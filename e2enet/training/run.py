"""One training run, from a checked config to scored predictions in a run folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig
from torch import distributed, nn

from e2enet.common.console import say
from e2enet.common.errors import ExitCode
from e2enet.data.earlier import data_of_today
from e2enet.data.formats.naming import has_numbered_ids
from e2enet.data.loaders.worker_notes import naming_held_cases
from e2enet.inference.checkpoint import load_model
from e2enet.network.build import trust_network
from e2enet.network.granularity import chosen_group_size
from e2enet.runs.folders import COST_FILE
from e2enet.system.ranks import current_team, is_rank_zero
from e2enet.training.checkpoints import BestCheckpoint
from e2enet.training.compact import write_compact
from e2enet.training.dsff_callback import mask_callbacks
from e2enet.training.engine_choice import choose_engine
from e2enet.training.final import score_run
from e2enet.training.initial_weights import check_shapes, load_initial_weights
from e2enet.training.loggers import build_loggers, finish_wandb
from e2enet.training.module import SegmentationModule
from e2enet.training.part_trials import run_length
from e2enet.training.parts import RunParts, read_parts
from e2enet.training.pretraining import pretrain
from e2enet.training.probe import probe_step
from e2enet.training.records import write_connections, write_cost
from e2enet.training.resume import (
    LAST_CHECKPOINT,
    FoundCheckpoint,
    find_checkpoint,
    refuse_changes,
    refuse_shorter,
    run_identity,
)
from e2enet.training.rewind import later_checkpoints, make_way
from e2enet.training.run_folder import Claim, how_to_go_on, refuse_taken, write_claim
from e2enet.training.trainer import build_trainer


@dataclass(frozen=True)
class RunResult:
    """`dice` is the mean validation Dice; that of the final prediction if there is one."""

    folder: Path
    dice: float


def run_training(
    config: DictConfig,
    run_folder: Path,
    *,
    successor: nn.Module | None = None,
    claim: Callable[[], None] = lambda: None,
) -> RunResult:
    """Prepare the data if needed, train, predict and score; write everything to `run_folder`.

    Every process of a data-parallel training calls this; only rank 0 writes.

    Args:
        config: checked (`configuration.check`); read here once as `RunParts`. Its `resume` is None, the run folder or
            one of its checkpoints. With the run folder, training continues from its last checkpoint, or starts anew
            if there is none.
        run_folder: of this run.
        successor: if this run is a pretraining, the network that will start with its weights.
        claim: called when training begins; for a pretraining it marks the folder of the successor as a run's.

    Raises:
        InputError: an unusable dataset, a folder that already holds another run, initial weights that do not fit,
            a step or batches that do not fit into memory, or a loss that is not finite.
    """
    pl.seed_everything(config.seed, workers=True, verbose=False)
    parts = read_parts(config)
    data = parts.data
    if is_rank_zero() and parts.training["precision"] not in (32, parts.config["training"]["precision"]):
        say(f"training.precision=auto: {parts.training['precision']} on this GPU")
    checkpoint, later = _where_to_begin(parts.resume, run_folder, parts.training["epochs"])
    _quiet()
    data.prepare_data()
    data.setup("fit")
    identity = run_identity(parts.config, data)
    if checkpoint is not None:
        refuse_changes(checkpoint, identity)
    module = build_module(parts)
    if successor is not None:
        heading = "pretraining: its network has not the shape of the run's:"
        check_shapes(successor, module.network, module.hparams, heading)

    def claim_folder() -> None:
        claim()
        if checkpoint is not None:
            length = run_length(parts.training, "step")
            make_way(run_folder, checkpoint, later, length=length, predict=parts.final.predict)
        write_claim(run_folder, parts.config, data.run_split)

    if checkpoint is None:
        _start_from_other_weights(parts, run_folder, module, claim_folder)
    own = Claim(claim_folder, checkpoint.state.rows if checkpoint else 0)
    try:
        goes_on = parts.resume is not None and not later
        loggers = build_loggers(parts.loggers, run_folder, goes_on=goes_on, config=parts.config)
        trainer = build_trainer(parts, module, run_folder, loggers, identity, own)
        _draw_masks(trainer, module)
        if trainer.is_global_zero:
            choose_engine(trainer, module, measure=parts.trainer["probe"])
        # Not if a pretraining has already formed a process group: the loss would wait for the other processes.
        if parts.trainer["probe"] and trainer.is_global_zero and not distributed.is_initialized():
            probe_step(trainer, module)
        with naming_held_cases(lambda: trainer.train_dataloader):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint.path if checkpoint else None)
        own.take(trainer)
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit that looks like a failure, and SIGTERM into one that looks like success.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(how_to_go_on(run_folder)) from error
        if isinstance(error, SIGTERMException):
            raise SystemExit(ExitCode.TERMINATED) from error
        raise
    except KeyboardInterrupt as error:  # outside the training itself
        raise KeyboardInterrupt(how_to_go_on(run_folder)) from error
    finally:
        finish_wandb()
    return RunResult(run_folder, _finish(parts, run_folder, trainer))


def _where_to_begin(resume: Path | None, run_folder: Path, epochs: int) -> tuple[FoundCheckpoint | None, list[Path]]:
    """Return the checkpoint to resume from (None for a new start) and, if it was chosen by name, the later ones."""
    if resume is None:
        if is_rank_zero():  # other ranks check too late: rank 0 may have claimed the folder
            refuse_taken(run_folder)
        return None, []
    checkpoint = find_checkpoint(resume)
    if checkpoint is None:
        return None, []
    refuse_shorter(checkpoint, epochs)
    return checkpoint, later_checkpoints(run_folder, checkpoint) if resume.is_file() else []


def build_module(parts: RunParts) -> SegmentationModule:
    """Build the training module; the data module of `parts` must be set up."""
    data = parts.data
    trust_network(str(parts.network["_target_"]))
    return SegmentationModule(
        network=parts.network,
        plan=data.plan.to_dict(),
        dataset={
            "name": data.dataset.name,
            **data.dataset.scheme.to_plain(),
            "channels": list(data.dataset.channels),
            "mirror_axes": list(data.mirror_axes),
            "file_ending": data.dataset.file_ending,
            "spacing_unit": data.source.unit,
            "layout": data_of_today(parts.config["data"]).get("layout"),
            "numbered_ids": has_numbered_ids(data.dataset.training),
            "label_map": dict(data.dataset.label_map),
            "regions": {name: list(labels) for name, labels in data.dataset.regions.items()},
        },
        training=parts.training,
        group_size=chosen_group_size(parts.dsff["granularity"], parts.dsff["group_size"]),
    )


def _start_from_other_weights(
    parts: RunParts, run_folder: Path, module: SegmentationModule, claim: Callable[[], None]
) -> None:
    """Load the initial weights, or those of the pretraining, which runs first if it is not finished."""
    source = parts.initial_weights
    if parts.pretraining is not None:
        source = pretrain(
            parts.pretraining,
            run_folder,
            module.plan,
            lambda own, folder: run_training(own, folder, successor=module.network, claim=claim).dice,
        )
        # Seed again: the run must not depend on whether the pretraining ran just now.
        pl.seed_everything(parts.seed, workers=True, verbose=False)
    if source is not None:
        load_initial_weights(module.network, source, parts.dsff)


def _draw_masks(trainer: pl.Trainer, module: SegmentationModule) -> None:
    """Draw the masks before steps are tried: their time and memory are those of active kernels."""
    for callback in mask_callbacks(trainer):
        callback.setup(trainer, module, "fit")


def _tell_early_end(trainer: pl.Trainer) -> None:
    """Say that training ended before its last step: trainer.max_time or a callback ended it."""
    done, planned = trainer.global_step, trainer.estimated_stepping_batches
    if done < planned and trainer.is_global_zero:
        say(f"training ended after {done} of {planned:.0f} steps, as trainer.max_time or a callback asked for")


def _finish(parts: RunParts, run_folder: Path, trainer: pl.Trainer) -> float:
    """Score the best checkpoint if the config asks for it; return the mean validation Dice."""
    _tell_early_end(trainer)
    best = run_folder / "checkpoints" / "best.ckpt"
    dice = next(callback.latest for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint))
    # Without a validated class there is no best checkpoint: use the last one.
    checkpoint = best if best.is_file() else run_folder / LAST_CHECKPOINT
    if checkpoint.is_file() and trainer.is_global_zero:
        model = load_model(checkpoint)
        write_connections(run_folder / "connections.json", model.network)
        write_cost(run_folder / COST_FILE, model.network, model.plan.patch_size)
        if parts.final.compact:
            write_compact(checkpoint)
    if not parts.final.predict:
        return dice
    summary = score_run(parts, run_folder, checkpoint, parts.data.val_cases, parts.data.test_cases, current_team())
    if summary is None:
        return dice
    say(f"run folder: {run_folder}")
    return float(summary["mean"]["dice"])


def _quiet() -> None:
    """Silence warnings about deliberate settings, and Lightning's advertisements."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for remark in (
        "does not have many workers",
        "isinstance.treespec, LeafSpec",
        "is smaller than the logging interval",
        "It is recommended to use .self.log",  # with sync_dist: logged values are the same on all processes
        "Experiment logs directory .* exists and is not empty",  # config.yaml is written before
        "You're resuming from a checkpoint that ended before the epoch ended",  # the data module handles it
    ):
        warnings.filterwarnings("ignore", f".*{remark}")
