"""Compose a job's config from its overrides, with those of its experiment's row on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from e2enet.common.configs import EXPERIMENTS, as_plain, compose_config, make_paths_absolute
from e2enet.runs.job_key import job_key, training_key
from e2enet.common.overrides import force_added, with_names_of_today


@dataclass(frozen=True)
class ComposedJob:
    """One combination of a sweep's values.

    Attributes:
        overrides: Overrides given for it, without the row's own.
        config: Composed, the row's overrides applied; without Hydra's section.
        experiment: The file in experiments/ that it belongs to, if any.
        varied: Its overrides that differ between the jobs of the sweep, without experiment, row, fold and seed.
    """

    overrides: tuple[str, ...]
    config: DictConfig
    experiment: str | None
    varied: tuple[str, ...] = ()

    @cached_property
    def content(self) -> dict[str, Any]:
        """The config in plain containers, resolved."""
        return as_plain(self.config)

    @property
    def key(self) -> str:
        """Identifies the job: see `runs.job_key`."""
        return job_key(self.content)

    @property
    def training_key(self) -> str:
        """Shared by jobs that train the same network."""
        return training_key(self.content)


def compose_job(overrides: Sequence[str]) -> ComposedJob:
    """Compose a job's config from its overrides, as Hydra gives them to a job, and apply its row's.

    The row's overrides (groups too: `dsff=dense`) come last. They win over the same key on the command line, because
    the experiment defines its rows. They are not checked here; errors are Hydra's and OmegaConf's.
    """
    config = compose_config(overrides, with_hydra=True)
    more = row_overrides(config)
    if more:
        config = compose_config([*overrides, *more], with_hydra=True)
    experiment = OmegaConf.select(config, f"hydra.runtime.choices.{EXPERIMENTS}")
    with open_dict(config):
        config.pop("hydra")
    make_paths_absolute(config)
    return ComposedJob(tuple(overrides), config, experiment)


def row_overrides(config: DictConfig) -> list[str]:
    """Return the overrides of the config's row; [] without a row or if the experiment has none of that name.

    Values are forced in (`++key=value`), like those of the command line. `configuration.check` later checks that every
    key exists.
    """
    row = config.get("row")
    content = OmegaConf.select(config, f"ablation.rows.{row}") if row is not None else None
    given = content.get("overrides") if isinstance(content, DictConfig) else None
    return force_added(with_names_of_today([str(text) for text in given or ()]))
