"""Keys that identify jobs: hashes of the config without the settings that do not change the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from e2enet.common.files import content_key
from e2enet.common.steps import with_order

# Tables in which values for other keys are looked up; those keys hold what was found. And the report's name of the
# dataset.
LOOKED_UP = ("data.facts", "data.paper_patch", "data.published_as")
# The name of a run, the place of its files, where and how it is computed, and what it logs.
WITHOUT_EFFECT = (
    *LOOKED_UP,
    "ablation",
    "row",
    "name",
    "paths",
    "run_folder",
    "resume",
    "logger",
    "data.num_workers",
    "data.prepare_workers",
    "data.augment_on",
    "training.checkpoint_every",
    "training.checkpoint_unit",
    "training.keep_every",
    "training.checkpoint_activations",
    "training.engine",
    "training.compile",
    "final.overlay",
    "final.probabilities",
    "final.compact",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.deterministic",
    "trainer.enable_progress_bar",
    "trainer.probe",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    *("trainer.progress", "trainer.log_every"),  # earlier names of two of these
)
# What follows training: jobs that differ in nothing else train the same network.
AFTER_TRAINING = ("final", "optimized_metric")
SHORT = 8  # hexadecimal digits of a key in the name of a job's folder: 4e9 different values


def job_key(config: Mapping[str, Any]) -> str:
    """Return the key of a resolved job config (plain containers): 64 hexadecimal digits.

    Settings that are null count as absent. So a later version with one more setting, null by default, still finds the
    finished jobs of an earlier version.
    """
    return content_key(_without(with_order(config), WITHOUT_EFFECT))


def training_key(config: Mapping[str, Any]) -> str:
    """Return the key of the training: equal for jobs that differ only in what follows it (`final.*`)."""
    return content_key(_without(with_order(config), (*WITHOUT_EFFECT, *AFTER_TRAINING)))


def _without(section: Mapping[str, Any], paths: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path == "trainer.deterministic":
            kept[str(key)] = "warn"  # without effect, but the default of earlier versions counted: their jobs are found
            continue
        if path in paths or value is None:
            continue
        if (path, value) == ("training.precision", "auto"):
            value = 32  # the default of earlier versions, and what `auto` means on a CPU: their jobs are found
        kept[str(key)] = _without(value, paths, f"{path}.") if isinstance(value, Mapping) else value
    return kept
