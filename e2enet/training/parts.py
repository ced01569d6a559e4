"""What a run is made of: the parts of a checked config, read once, so that no step behind it asks the config again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from e2enet.common.configs import as_plain
from e2enet.data.command import build_datamodule
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.training.pretraining import pretraining_config
from e2enet.training.step_parts import training_settings

# Keys of `training` that the data module is given.
OF_DATA = ("accumulate", "steps_per_epoch", "validation_patches", "validate_every", "validate_full")


@dataclass(frozen=True)
class FinalSettings:
    """What follows training, the section `final`: conf/config.yaml says what each is."""

    predict: bool
    max_cases: int | None
    mirror: bool
    step: float
    nsd_tolerance: float
    overlay: bool
    compact: bool = False


@dataclass(frozen=True)
class RunParts:
    """The parts of a run.

    Attributes:
        config: The whole config, resolved, as config.yaml keeps it and loggers show it.
        seed: Of weights, patches, augmentation and masks.
        data: Not yet prepared.
        network: The section, which checkpoints keep.
        dsff: The section, with `masks` and `_target_`.
        training: The section, with loss, optimizer and schedule in it, as checkpoints keep it.
        trainer: The section.
        callbacks: Name -> section, or None for none.
        loggers: Name -> section, or None for none.
        final: What follows training.
        resume: The run folder, or one of its checkpoints; None for a new run.
        initial_weights: A checkpoint or run folder, or None.
        pretraining: The config of a training on other data that comes before this one, or None.
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
    """The parts of a checked config; InputError for a data module or a pretraining that cannot be built."""
    content = as_plain(config)
    training = training_settings(config)
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
