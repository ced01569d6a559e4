"""The parts of a run, read once from a checked config; later code does not read the config again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from e2enet.common.configs import as_plain
from e2enet.data.command import build_datamodule
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.system.precision import resolve_precision
from e2enet.training.pretraining import pretraining_config
from e2enet.training.step_parts import training_settings

# Keys of `training` passed to the data module.
OF_DATA = ("accumulate", "steps_per_epoch", "validation_patches", "validate_every", "validate_full")


@dataclass(frozen=True)
class FinalSettings:
    """Settings of the prediction after training, the section `final`; conf/config.yaml explains each."""

    predict: bool
    max_cases: int | None
    mirror: bool
    step: float
    nsd_tolerance: float
    overlay: bool
    probabilities: bool = False
    compact: bool = False


@dataclass(frozen=True)
class RunParts:
    """The parts of a run.

    Attributes:
        config: The whole resolved config, as in config.yaml and in loggers.
        seed: For weights, patches, augmentation and masks.
        data: The data module, not yet prepared.
        network: The section `network`, kept in checkpoints.
        dsff: The section `dsff`, with `enabled` and `_target_`.
        training: The section `training` with loss, optimizer and schedule added, as kept in checkpoints. Its precision
            is that of this machine, never `auto`.
        trainer: The section `trainer`.
        callbacks: Name -> section, or None for no callback.
        loggers: Name -> section, or None for no logger.
        final: Settings of the prediction after training.
        resume: The run folder or one of its checkpoints; None for a new run.
        initial_weights: A checkpoint or run folder, or None.
        pretraining: The config of a pretraining on other data, or None.
    """

    config: dict[str, Any]
    seed: int
    data: SegmentationDataModule
    network: dict[str, Any]
    dsff: dict[str, Any]
    training: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: dict[str, Any]
    loggers: dict[str, Any]
    final: FinalSettings
    resume: Path | None
    initial_weights: Path | None
    pretraining: DictConfig | None


def read_parts(config: DictConfig) -> RunParts:
    """Return the parts of a checked config; InputError if the data module or pretraining cannot be built."""
    content = as_plain(config)
    training = training_settings(config)
    training["precision"] = resolve_precision(training["precision"], content["trainer"]["accelerator"])
    return RunParts(
        config=content,
        seed=content["seed"],
        data=build_datamodule(config, **{key: training[key] for key in OF_DATA}),
        network=content["network"],
        dsff=content["dsff"],
        training=training,
        trainer=content["trainer"],
        callbacks=content.get("callbacks") or {},
        loggers=content.get("logger") or {},
        final=FinalSettings(**content["final"]),
        resume=_path(content.get("resume")),
        initial_weights=_path(content.get("initial_weights")),
        pretraining=pretraining_config(config) if content.get("pretraining") else None,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
