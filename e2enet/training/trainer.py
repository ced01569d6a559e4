"""The Lightning trainer of a run, with its callbacks and checkpoints, from the config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from e2enet.common.console import console
from e2enet.common.signatures import build_nested, build_part
from e2enet.runs.folders import COST_FILE
from e2enet.system.determinism import set_torch_flags
from e2enet.system.ranks import planned_processes
from e2enet.training.callbacks import CostFile, EpochPrinter, SearchedScore, TrainLossLogger
from e2enet.training.checkpoints import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    BestCheckpoint,
    KeptCheckpoints,
    LastCheckpoint,
    monitored,
)
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.module import PATCHES, WHOLE_CASES, SegmentationModule
from e2enet.training.overflow import OverflowCounter
from e2enet.training.parts import RunParts
from e2enet.training.run_folder import Claim
from e2enet.training.timing import LoaderWait, TimeKeeper

_NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
# DDP's argument by its name in this version of torch: 2.6 has the older one.
KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}

# Arguments given to a callback that has such parameters.
SUPPLIED_TO_CALLBACKS = frozenset({"run_folder", "labels", "scheme", "plan", "loader"})
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_trainer(
    parts: RunParts,
    module: SegmentationModule,
    run_folder: Path,
    loggers: list[Logger],
    identity: dict[str, Any],
    claim: Claim,
) -> pl.Trainer:
    """Build a trainer that claims the run folder and writes checkpoints, pictures and cost.json to it.

    `identity` is what a resumed run may not change (`resume.run_identity`).
    """
    options, training = dict(parts.trainer), parts.training
    set_torch_flags(options.pop("deterministic"), options["accelerator"])  # set here, not by Lightning
    options.pop("probe")
    bars = options.pop("enable_progress_bar") and console.is_terminal
    loader_wait = LoaderWait(_profiler(options.pop("profiler", None), run_folder))
    callbacks: list[pl.Callback] = [*_dsff(parts), claim, TrainLossLogger(), OverflowCounter()]
    callbacks.append(TimeKeeper(loader_wait, options["log_every_n_steps"]))
    callbacks.append(CostFile(run_folder / COST_FILE))
    callbacks.append(RichProgressBar() if bars else EpochPrinter())
    if (longest := options.pop("max_time", None)) is not None:
        # Lightning's own timer stops within an epoch, whose rest a resumed run would leave out.
        callbacks.append(Timer(build_nested(longest), interval="epoch"))
    callbacks += build_callbacks(parts.callbacks, module, run_folder, training["validate_full"])
    callbacks += [SearchedScore(searched)] if (searched := parts.config.get("optimized_metric")) else []
    callbacks += _checkpoints(training, run_folder / "checkpoints", identity)
    plugins = options.pop("plugins", None) or []
    trainer = pl.Trainer(
        **{key: build_nested(value) for key, value in options.items() if key != "strategy"},
        strategy=_strategy(options),
        max_epochs=training["epochs"],
        accumulate_grad_batches=training["accumulate"],
        gradient_clip_val=training["clip_norm"],
        precision=training["precision"],
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *build_nested(plugins if isinstance(plugins, list) else [plugins])],
        profiler=loader_wait,
        default_root_dir=run_folder,
        enable_progress_bar=bars,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # The samplers of the two validation loaders decide which epochs are validated.
        check_val_every_n_epoch=1,
        # The samplers shard by rank themselves. Lightning's would shard a second time, and repeat validation cases
        # until every rank has as many.
        use_distributed_sampler=False,
    )
    trainer.loggers = loggers  # fast_dev_run removes them
    return trainer


def build_callbacks(
    sections: Mapping[str, Any], module: SegmentationModule, run_folder: Path, validate_full: int | None
) -> list[pl.Callback]:
    """Build the callbacks of the config group `callbacks`, in its order; a name whose section is null gives none.

    A callback gets those of these arguments that its signature has: `run_folder`, `labels` (label -> class name),
    `scheme` (the label scheme), `plan`, and `loader` (the validation loader whose score selects best.ckpt).
    """
    known: dict[str, Any] = {"run_folder": run_folder, "labels": dict(module.scheme.names), "scheme": module.scheme}
    known["plan"] = module.plan
    known["loader"] = WHOLE_CASES if validate_full else PATCHES
    return [build_part(section, **known) for section in sections.values() if section is not None]


def _checkpoints(training: Mapping[str, Any], folder: Path, identity: dict[str, Any]) -> list[pl.Callback]:
    """Build the checkpoint callbacks; `LastCheckpoint` is last, since it stores the others' states and may stop."""
    last = LastCheckpoint(folder / LAST, training["checkpoint_every"], training["checkpoint_unit"], identity)
    every = training.get("keep_every")  # runs of earlier versions have no such key
    kept = [KeptCheckpoints(folder, every)] if every else []
    return [BestCheckpoint(folder / BEST, monitored(training["validate_full"])), *kept, last]


def _strategy(options: Mapping[str, Any]) -> Any:
    """Return DDP if there are several processes or the config asks for it; other strategies as given."""
    strategy = options["strategy"]
    if strategy not in ("auto", "ddp") or (strategy == "auto" and planned_processes(options) == 1):
        return build_nested(strategy)
    # The buffers are kernel masks. Broadcasting them before every forward pass would silently overwrite masks that
    # differ by mistake. It would also hang, since processes validate different numbers of cases, one pass for each.
    return DDPStrategy(**KEEP_BUFFERS)


def _profiler(chosen: Any, folder: Path) -> Profiler | None:
    """Build `trainer.profiler`: a section, or one of Lightning's names, which writes fit-profile.txt to `folder`."""
    return PROFILERS[chosen](dirpath=folder, filename="profile") if isinstance(chosen, str) else build_nested(chosen)


def _dsff(parts: RunParts) -> list[pl.Callback]:
    section = dict(parts.dsff)
    return [DSFFCallback(build_part(section, seed=parts.seed))] if section.pop("enabled") else []
