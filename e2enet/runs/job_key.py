"""What makes two jobs the same: a key of the config without what leaves the result as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from e2enet.common.files import content_key
from e2enet.common.steps import with_order

# Tables that other keys of a config are looked up in. What was found there stands in the key that asked. And what the
# report calls the dataset.
LOOKED_UP = ("data.facts", "data.paper_patch", "data.published_as")
# What a run is called, where its files are, where it runs and how, and what it tells about itself.
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
    "final.compact",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.enable_progress_bar",
    "trainer.probe",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    *("trainer.progress", "trainer.log_every"),  # as earlier versions called two of these
)
# What follows training: jobs that differ in nothing else train the same network.
AFTER_TRAINING = ("final", "optimized_metric")
SHORT = 8  # hexadecimal digits of a key in the name of a job's folder: 4e9 of them


def job_key(config: Mapping[str, Any]) -> str:
    """The key of a resolved job config (plain containers): 64 hexadecimal digits.

    Keys that are null count as absent. A later version of the code with one key more, off by default, then still
    finds the finished jobs of an earlier one.
    """
    return content_key(_without(with_order(config), WITHOUT_EFFECT))


def training_key(config: Mapping[str, Any]) -> str:
    """The key of what is trained: equal for jobs that differ only in what follows training (`final.*`)."""
    return content_key(_without(with_order(config), (*WITHOUT_EFFECT, *AFTER_TRAINING)))


def _without(section: Mapping[str, Any], paths: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in paths or value is None:
            continue
        kept[str(key)] = _without(value, paths, f"{path}.") if isinstance(value, Mapping) else value
    return kept
