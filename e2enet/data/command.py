"""Command lines of the data commands: `data=NAME paths.data=DIR [key=value ..]`, composed as in e2enet train.

`e2enet check` and `e2enet prepare` are plain modules, not Hydra apps, and write no Hydra files. They accept the
overrides of `e2enet train` and keys of their own. So a training command line also works for its data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from e2enet.common.config_check import config_problems, unknown_key, wrong_value
from e2enet.common.config_rules import Rule
from e2enet.common.configs import CONFIGS, as_plain, compose_config, group_options
from e2enet.common.errors import InputError, first_line, raise_problems
from e2enet.common.overrides import (
    as_text,
    chooses_group,
    forced,
    override_values,
    parse_override,
    several_values,
    unknown_choice,
    unreadable,
    with_names_of_today,
)
from e2enet.data.config_rules import EXTRAS, MOVED, SCHEMA
from e2enet.data.earlier import data_of_today

if TYPE_CHECKING:
    from e2enet.data.cases.sources import DataSource
    from e2enet.data.datamodule import SegmentationDataModule
    from e2enet.data.formats.dataset import RawDataset

HEADING = "The command line cannot be used (--help shows the keys):"
# The sections that the commands read and check. e2enet train checks the others.
SECTIONS = ["paths", "seed", "fold", "data", "plan"]


@dataclass(frozen=True)
class Option:
    """A command's own key, which is not in the config: its default value, rule and help text."""

    default: Any
    rule: Rule
    help: str


@dataclass(frozen=True)
class DataCommand:
    """A checked command line: the composed config, as in e2enet train, and the values of the command's own keys."""

    config: DictConfig
    options: dict[str, Any]


def compose_data(arguments: Sequence[str], options: Mapping[str, Option] | None = None) -> DataCommand:
    """Compose conf/config.yaml with a command's arguments; `options` are the command's own keys.

    Sections and groups must exist. Keys and values are checked in `paths`, `seed`, `fold`, `data`, `plan` and the
    options. The other sections (`training=hippocampus`, `network.base_features=8`) are accepted unchecked, since a
    choice there may set a plan. Raises one InputError with all problems.
    """
    options = options or {}
    values = {name: option.default for name, option in options.items()}
    overrides: list[str] = []
    problems: list[str] = []
    for given in with_names_of_today(arguments):
        argument = as_text(given, lambda key: options[key].rule.accepts if key in options else SCHEMA.test_of(key))
        if argument.startswith("-"):
            problems.append(f"{argument}: expected key=value (there is no flag but --help)")
            continue
        try:
            override = parse_override(argument)
        except HydraException as error:
            problems.append(unreadable(argument, error))
            continue
        if override.is_sweep_override():
            problems.append(several_values(argument))
        elif override.key_or_group in options and not override.is_delete():
            values[override.key_or_group] = override.value()
        elif chooses_group(override):
            (chosen,) = override_values(override)
            known = group_options(override.key_or_group)
            if chosen in known:
                overrides.append(argument)
            else:
                problems.append(unknown_choice(override.key_or_group, chosen, known))
        else:
            overrides.append(argument if override.is_delete() else forced(override, *override_values(override)))
    problems += [
        wrong_value(name, values[name], option.rule)
        for name, option in options.items()
        if not option.rule.accepts(values[name])
    ]
    config = _compose(overrides, problems, options)
    raise_problems(list(dict.fromkeys(problems)), HEADING)
    return DataCommand(config, values)


def build_datamodule(config: DictConfig, **more: Any) -> SegmentationDataModule:
    """Build the data module of `config.data`; the rest of the config gives paths, fold, seed and plan.

    `more` holds parameters of the module that are not in `config.data`, such as `steps_per_epoch`.
    """
    section = data_of_today(as_plain(config.data))
    for name in EXTRAS:
        section.pop(name, None)  # read by other keys; no parameters of the module
    if OmegaConf.select(config, "augmentation") is not None:  # runs of earlier versions have no such section
        more["augmentation"] = as_plain(config.augmentation)
    # Called after instantiate: Hydra would also instantiate the recipe's steps if it got them as arguments.
    module: SegmentationDataModule = instantiate({**section, "_partial_": True, "_convert_": "all"})(
        root=os.path.expanduser(config.paths.data),
        prepared_root=os.path.expanduser(config.paths.prepared),
        fold=config.fold,
        seed=config.seed,
        plan=as_plain(config.plan),
        score_test=bool(OmegaConf.select(config, "final.predict", default=True)),
        **more,
    )
    return module


def dataset_source(config: DictConfig) -> DataSource:
    """Return the raw data source of a run from its config, which may be of an earlier version.

    Parts that only training needs, such as the sampler, are not built.
    """
    data = {key: value for key, value in as_plain(config.data).items() if key not in ("sampler", *MOVED)}
    return build_datamodule(OmegaConf.create({**as_plain(config), "data": data})).source


def dataset_of_run(config: Mapping[str, Any], path: Path) -> RawDataset:
    """List the raw dataset of a run from its config.yaml (plain containers), without reading voxels.

    Relative paths start from the working directory. Problems of single cases are not reported. Raises InputError that
    names `path`, the config's file, if its data section cannot be used, or the folder if the data is missing.
    """
    try:
        source = dataset_source(OmegaConf.create(dict(config)))
    except (HydraException, OmegaConfBaseException, ImportError) as error:
        raise InputError(f"{path}: its data section cannot be used ({error})") from error
    if not Path(source.folder).is_dir():
        raise InputError(f"{source.folder}: no such folder; expected the raw data that the runs were trained on")
    return source.scan([])


def show_help(arguments: Sequence[str], text: str, options: Mapping[str, Option]) -> None:
    """If the arguments contain --help or -h, print the text, the command's own keys and the datasets, and exit."""
    if not {"--help", "-h"} & set(arguments):
        return
    width = max(map(len, options), default=0)
    keys = "\n".join(f"  {name:<{width}}  {option.help}" for name, option in options.items())
    print(f"{text.strip()}\n\nKeys beside those of e2enet train:\n{keys}" if keys else text.strip())
    print(f"\ndata= one of: {', '.join(group_options('data'))}\nkeys of each: {CONFIGS / 'data'}/NAME.yaml")
    sys.exit(0)


def _compose(overrides: Sequence[str], problems: list[str], options: Mapping[str, Option]) -> DictConfig:
    """Return the composed config; append problems of its keys and values to `problems`."""
    known = compose_config()
    try:
        config = compose_config(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        problems.append(first_line(error))
        return known
    problems.extend(_unknown_sections(config, [*map(str, known), *options]))
    problems.extend(config_problems(OmegaConf.masked_copy(config, SECTIONS), SCHEMA))
    return config


def _unknown_sections(config: DictConfig, known: Sequence[str]) -> Iterator[str]:
    for key in map(str, config):
        if key not in known and not key.startswith("_"):
            yield unknown_key(key, key, "", known)
