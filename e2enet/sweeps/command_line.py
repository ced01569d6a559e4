"""Compose all jobs of a multirun's command line in Hydra's order, and find the folder that they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from e2enet.common.configs import EXPERIMENTS, compose_config, make_paths_absolute
from e2enet.common.console import say
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.overrides import force_added, is_override, parse_override, quoted
from e2enet.configuration.check import HEADING, config_problems, runs_elsewhere
from e2enet.runs.rows import ComposedJob, compose_job

# The folder of a job and its lines in tables name these anyway.
NAMED = ("row", "fold", "seed", EXPERIMENTS)
MANY_JOBS = 20  # composing takes 0.2 s per job: print a message from this many jobs on


@dataclass(frozen=True)
class PlannedSweep:
    """A multirun before it starts.

    Attributes:
        folder: Holds the manifest and the jobs' folders.
        name: The config's `name`.
        jobs: In Hydra's order. Empty if the sweeper chooses jobs as it goes; those register themselves.
        arguments: The command line that makes Hydra run exactly these jobs.
    """

    folder: Path
    name: str
    jobs: tuple[ComposedJob, ...]
    arguments: tuple[str, ...]


def plan_sweep(arguments: Sequence[str]) -> PlannedSweep:
    """Compose and check every job of a multirun's command line.

    Raises:
        InputError: a job cannot run (the message names its row), or the jobs would lie in different folders.
    """
    overrides = [text for text in arguments if not text.startswith("-") and is_override(text)]
    parsed = [parse_override(text) for text in overrides]
    once = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    master = compose_config(force_added(once), with_hydra=True)
    swept = {str(key): value for key, value in (OmegaConf.select(master, "hydra.sweeper.params") or {}).items()}
    # The command line replaces an experiment's own parameters only if both are spelled alike.
    forced = [text if text.partition("=")[0] in swept else force_added([text])[0] for text in overrides]
    jobs: tuple[ComposedJob, ...] = ()
    if str(master.hydra.sweeper._target_).endswith(f".{BasicSweeper.__name__}"):
        texts = [*(f"{key}={value}" for key, value in swept.items()), *forced]
        jobs = _compose_all(texts, elsewhere=runs_elsewhere(master))
    name, folder = _name_and_folder(master, jobs, {override.key_or_group for override in parsed})
    flags = [text for text in arguments if text not in overrides]
    # One literal folder for all jobs and launchers.
    return PlannedSweep(folder, name, jobs, (*flags, *forced, f"hydra.sweep.dir={quoted(str(folder))}"))


def _compose_all(texts: Sequence[str], *, elsewhere: bool) -> tuple[ComposedJob, ...]:
    """Compose and check every combination."""
    parsed = OverridesParser.create().parse_overrides(list(texts))
    combinations = [
        [text for text in combination if not _of_hydra(text)]
        for combination in BasicSweeper.split_arguments(parsed, None)[0]
    ]
    if len(combinations) >= MANY_JOBS:
        say(f"composing {len(combinations)} jobs ...")
    jobs = [compose_job(combination) for combination in combinations]
    problems: dict[str, None] = {}
    for job in jobs:
        row, found = job.config.get("row"), config_problems(job.config, elsewhere=elsewhere)
        problems |= dict.fromkeys(f"row {row}: {text}" if row else text for text in found)
    raise_problems(list(problems), HEADING)
    values: dict[str, set[str]] = defaultdict(set)
    for text in (text for job in jobs for text in job.overrides):
        key, _, value = text.lstrip("+").partition("=")
        values[key].add(value)
    varied = {key for key, found in values.items() if len(found) > 1 and key not in NAMED}
    return tuple(
        replace(job, varied=tuple(text.lstrip("+") for text in job.overrides if _key(text) in varied)) for job in jobs
    )


def _name_and_folder(master: DictConfig, jobs: Sequence[ComposedJob], given: set[str]) -> tuple[str, Path]:
    """Return the sweep's name and folder: `hydra.sweep.dir` or `run_folder` if given, else paths.runs/name."""
    make_paths_absolute(master)
    config = jobs[0].config if jobs else master
    if "hydra.sweep.dir" in given:
        return str(config.name), Path(str(master.hydra.sweep.dir)).expanduser()
    if "run_folder" in given:
        return str(config.name), Path(str(config.run_folder))
    names = list(dict.fromkeys(str(job.config.name) for job in jobs))
    if len(names) > 1:
        raise InputError(
            f"the jobs of this sweep would lie in different folders (name={', '.join(names)}): give it one by name=TEXT"
        )
    return str(config.name), Path(str(config.paths.runs)) / str(config.name)


def _of_hydra(text: str) -> bool:
    return _key(text).startswith(("hydra.", "hydra/")) or _key(text) == "hydra"


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0]
