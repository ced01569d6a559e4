"""Check a command line of e2enet train, every job of a sweep included; report all mistakes before anything starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from typing import NamedTuple

import torch
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from e2enet.common import config_check
from e2enet.common.config_check import Schema
from e2enet.common.configs import EXPERIMENTS, compose_config, group_options
from e2enet.common.errors import first_line, raise_problems
from e2enet.common.overrides import (
    as_text,
    chooses_group,
    chosen_options,
    forced,
    is_multirun,
    is_override,
    override_values,
    overrides_of,
    parse_override,
    several_values,
    unknown_choice,
    unreadable,
    with_names_of_today,
)
from e2enet.configuration.conflicts import on_cpu
from e2enet.configuration.idle_masks import idle_mask_settings
from e2enet.configuration.rules import DEVICES, SCHEMA
from e2enet.runs.rows import row_overrides
from e2enet.system.ranks import launched, planned_processes
from e2enet.training.part_trials import part_problems
from e2enet.training.pretraining import pretraining_problems
from e2enet.training.resume import resumed_config
from e2enet.training.step_parts import STEP_PARTS, training_settings

HEADING = "The configuration cannot be used:"
# Larger sweeps are checked value by value instead of job by job.
MAX_JOBS = 32
PLUGIN_GROUPS = ("hydra/launcher=", "hydra/sweeper=")


class Plugin(NamedTuple):
    """The package of a Hydra launcher or sweeper, and the extra of e2enet that installs it."""

    package: str
    extra: str


# Beginning of the chosen name -> plugin.
PLUGINS = {
    "joblib": Plugin("hydra-joblib-launcher", "launchers"),
    "submitit": Plugin("hydra-submitit-launcher", "launchers"),
    "slurm": Plugin("hydra-submitit-launcher", "launchers"),
    "optuna": Plugin("hydra-optuna-sweeper", "search"),
}


def check_command_line(arguments: Sequence[str], *, printed: bool = False) -> None:
    """Check a command line of e2enet train, every job of a multirun included.

    Hydra stops at the first unknown key, and a sweep at its first bad job. This reports all problems in one
    InputError.

    Args:
        arguments: from `read_arguments`.
        printed: the config is only printed (`--cfg job`): values may be missing, or meant for another machine.
    """
    schema = replace(SCHEMA, conflicts=()) if printed else SCHEMA
    problems = _command_line_problems(overrides_of(arguments), is_multirun(arguments), schema)
    raise_problems(list(dict.fromkeys(problems)), HEADING)


def read_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the command line by today's names, with quotes around texts that Hydra would parse as numbers."""
    overrides = overrides_of(arguments)
    flags = [text for text in arguments if text not in overrides]
    return [*flags, *(as_text(text, SCHEMA.test_of) for text in with_names_of_today(overrides))]


def config_problems(config: DictConfig, *, elsewhere: bool = False) -> list[str]:
    """Return the problems of a composed config, a line each; with `elsewhere`, without those of this machine."""
    kept = tuple(conflict for conflict in SCHEMA.conflicts if not (elsewhere and conflict.machine))
    problems = config_check.config_problems(config, replace(SCHEMA, conflicts=kept))
    problems += _unusable_parts(config, problems)
    return problems or pretraining_problems(config, partial(config_problems, elsewhere=elsewhere))


def runs_elsewhere(config: DictConfig) -> bool:
    """Whether a sweep's launcher runs the jobs on other machines; each of them checks its config again there."""
    return str(OmegaConf.select(config, "hydra.launcher._target_")).endswith(".SlurmLauncher")


def _unusable_parts(config: DictConfig, problems: Sequence[str]) -> Iterator[str]:
    """Yield problems of a loss, optimizer or schedule that no step could use, if their keys have no known problem."""
    if any(problem.startswith(("training", "trainer", *STEP_PARTS)) for problem in problems):
        return
    device = "cuda" if torch.cuda.device_count() and not on_cpu(config.trainer.accelerator) else "cpu"
    yield from part_problems(training_settings(config), device)


def _command_line_problems(
    overrides: Sequence[str], multirun: bool, schema: Schema, swept: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the problems of a sweep or run; of the keys `swept`, one of several values is among the overrides."""
    choices: list[list[str]] = []
    read: list[str] = []
    for text in overrides:
        try:
            if not is_override(text):
                raise HydraException("no value")
            override = parse_override(text)
        except HydraException as error:
            yield unreadable(text, error)
            continue
        read.append(text)
        if override.is_sweep_override() and not multirun:
            yield f"{several_values(text)}; several values start a sweep: add -m"
        if isinstance(override.value(), Glob):
            yield f"{text}: patterns of choices are not read; expected the choices, with commas between"
            continue
        values = [] if override.is_delete() else override_values(override)
        if override.is_delete() or override.key_or_group.startswith("hydra"):
            choices.append([text])
        elif chooses_group(override):
            options = group_options(override.key_or_group)
            unknown = sorted(set(chosen_options(override)) - set(options))
            for option in unknown:
                yield unknown_choice(override.key_or_group, option, options)
            known = [f"{_group_key(override)}={value}" for value in values if not set(unknown) & {value.strip("[]")}]
            choices += [known] if known and not (unknown and isinstance(override.value(), list)) else []
        else:
            # An unknown key is added to the config and reported there, with all other problems.
            choices.append([forced(override, value) for value in values])
    for override in (parse_override(text) for text in read if text.startswith(f"{EXPERIMENTS}=")):
        if multirun and override.is_sweep_override():
            yield f"{EXPERIMENTS}: one in a launch, each brings its own rows (a common name=TEXT joins their folders)"
            return
    plugins = [*_plugin_problems(read)]
    yield from plugins
    if plugins:  # their configs do not exist
        choices = [values for values in choices if not values[0].startswith(PLUGIN_GROUPS)]
    swept = [*swept, *(parse_override(values[0]).key_or_group for values in choices if len(values) > 1)]
    for job in _jobs(choices):
        yield from _job_problems(job, swept, multirun, schema)


def _job_problems(job: Sequence[str], swept: Sequence[str], multirun: bool, schema: Schema) -> Iterator[str]:
    """Yield the problems of one combination of values, including its experiment's own sweep.

    `swept` are the keys with several values.
    """
    try:
        config = compose_config(job, with_hydra=True)
    except (HydraException, OmegaConfBaseException) as error:
        lacking = [text for name, plugin in PLUGINS.items() if f"/{name}'" in str(error) and (text := _lacks(plugin))]
        yield first_line(error) + "".join(f"; it {text}" for text in lacking)
        return
    row = config.get("row")
    try:
        more = row_overrides(config)
        config = compose_config([*job, *more], with_hydra=True) if more else config
    except (HydraException, OmegaConfBaseException) as error:
        yield f"row {row}: {first_line(error)}"
        return
    own = OmegaConf.select(config, "hydra.sweeper.params") or {}
    given = {text.lstrip("+").split("=", 1)[0] for text in job}
    params = [f"{key}={value}" for key, value in own.items() if key not in given]
    if multirun and params:
        # The sweep's parameters are now among the overrides, so the recursion ends.
        sweeper = config.hydra.runtime.choices["hydra/sweeper"]
        chosen = [] if any(text.startswith("hydra/sweeper=") for text in job) else [f"hydra/sweeper={sweeper}"]
        yield from _command_line_problems([*job, *chosen, *params], multirun, schema, swept)
        return
    if schema is not SCHEMA:
        yield from config_check.config_problems(config, schema, allow_missing=True)
        return
    if config.get("resume") is not None and not multirun:
        # The run uses the stored config, not the defaults of this command line.
        config = resumed_config(config, job)
    known = config_problems(config, elsewhere=multirun and runs_elsewhere(config))
    problems = [*known, *idle_mask_settings(config, job, more, swept)]
    yield from (f"row {row}: {problem}" if more else problem for problem in problems)
    yield from _multirun_problems(config) if multirun else _process_problems(config)


def _plugin_problems(overrides: Sequence[str]) -> Iterator[str]:
    """Yield launchers and sweepers that are not installed, and values that the chosen sweeper does not accept.

    Of a missing plugin Hydra would only say that it cannot find its config.
    """
    chosen = dict(text.split("=", 1) for text in overrides if text.startswith(PLUGIN_GROUPS))
    for group, value in chosen.items():
        plugin = next((plugin for name, plugin in PLUGINS.items() if value.startswith(name)), None)
        if plugin is not None and (problem := _lacks(plugin)):
            yield f"{group}={value}: {problem}"
    intervals = [text for text in overrides if parse_override(text).is_interval_sweep()]
    if intervals and _sweeper(overrides) == "basic":
        for text in intervals:
            yield f"{text}: needs a sweeper that draws values from intervals, as hydra/sweeper=optuna does"


def _sweeper(overrides: Sequence[str]) -> str:
    """Return the sweeper that a command line chooses, directly or by one of its groups (`hparams_search=optuna`)."""
    parsed = {text: parse_override(text) for text in overrides}
    groups = [text for text, override in parsed.items() if chooses_group(override) and not override.is_sweep_override()]
    try:
        return str(compose_config(groups, with_hydra=True).hydra.runtime.choices["hydra/sweeper"])
    except (HydraException, OmegaConfBaseException):
        return "basic"  # an unknown choice is reported with the other problems


def _lacks(plugin: Plugin) -> str | None:
    """Return how to install a plugin that is missing; None if it is installed."""
    if any(metadata.distributions(name=plugin.package)):
        return None
    return f"needs the extra `{plugin.extra}`: python -m pip install -c constraints.txt -e '.[{plugin.extra}]'"


def _multirun_problems(config: DictConfig) -> Iterator[str]:
    choices = OmegaConf.select(config, "hydra.runtime.choices") or {}
    if choices.get(EXPERIMENTS) is not None and choices.get("hydra/sweeper") != "basic":
        yield (
            f"{EXPERIMENTS}={choices[EXPERIMENTS]}: a search (hydra/sweeper={choices['hydra/sweeper']}) tries many "
            "settings, and a row of an experiment has one; give the row's overrides without the experiment"
        )
    if config.get("resume") is not None:
        yield "resume: continues one run; start it without -m (a sweep goes on by its own command line)"
    nodes = OmegaConf.select(config, "trainer.num_nodes")
    if isinstance(nodes, int) and nodes > 1:
        yield (
            f"trainer.num_nodes={nodes}: each job of a sweep runs on one machine (trainer.devices processes); start a "
            "run on several with torchrun or SLURM, without -m"
        )


def _process_problems(config: DictConfig) -> Iterator[str]:
    """Yield values that do not fit the processes started by torchrun or srun; each of them runs the whole program."""
    started = launched()
    devices, nodes = (OmegaConf.select(config, f"trainer.{key}") for key in ("devices", "num_nodes"))
    if started.world_size == 1 or not started.launcher or not DEVICES.accepts(devices) or not isinstance(nodes, int):
        return
    count = planned_processes({"devices": devices, "num_nodes": nodes, "accelerator": config.trainer.accelerator})
    if count == 1 and started.launcher == "srun" and started.rank == 0:
        return  # may be a command of a batch script without srun: SLURM sets the number of tasks there too
    if count != started.world_size:
        yield (
            f"trainer.devices={devices}, trainer.num_nodes={nodes}: {count} process(es), but "
            f"{started.launcher} started {started.world_size}; give as many to both (and trainer=ddp)"
        )
    raw = OmegaConf.to_container(config, resolve=False)
    if config.get("resume") is None and isinstance(raw, dict) and "${now:" in str(raw.get("run_folder")):
        yield "run_folder: each process would name it by its own clock; expected a folder, e.g. run_folder=runs/ddp"


def _jobs(choices: Sequence[Sequence[str]]) -> Iterable[Sequence[str]]:
    """Return every combination of one value per key; for a large sweep, each value once with the others' first."""
    count = 1
    for values in choices:
        count *= len(values)
    if count <= MAX_JOBS:
        return itertools.product(*choices)
    first = [values[0] for values in choices]
    return [[*first[:index], value, *first[index + 1 :]] for index, values in enumerate(choices) for value in values]


def _group_key(override: Override) -> str:
    """Return the group in Hydra's spelling: `data`, or `+name` if the user added it."""
    return f"{'+' if override.is_add() else ''}{override.key_or_group}"
