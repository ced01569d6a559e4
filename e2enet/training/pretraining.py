"""Pretraining on other data: the run starts with its best weights and masks.

`pretraining` in the config is a list of overrides: the settings in which the pretraining differs from the run. It has
its own run folder, RUN/pretraining, and is resumed or skipped like any run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from e2enet.common.configs import as_plain, compose_config, group_options
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import write_json
from e2enet.common.overrides import (
    chooses_group,
    is_override,
    override_values,
    parse_override,
    renamed,
    unknown_choice,
    unreadable,
)
from e2enet.data.planning.plan import Plan
from e2enet.network.granularity import chosen_group_size
from e2enet.runs.folders import CONFIG_FILE
from e2enet.system.ranks import is_rank_zero
from e2enet.training.resume import LAST_CHECKPOINT

FOLDER = "pretraining"
# Written when the pretraining is finished: its score.
FINISHED_FILE = "finished.json"
CHOSEN = ("data", "augmentation")  # groups whose files hold the values of one section
# Values of every pretraining, whatever the run has.
OWN: dict[str, Any] = {
    "pretraining": None,
    "initial_weights": None,
    "resume": None,
    "ablation": None,
    "row": None,
    "optimized_metric": None,
    "final.predict": False,  # only its weights are used; metrics.csv has its validation
    "final.compact": False,
}


def pretrain(own: DictConfig, run_folder: Path, plan: Plan, train: Callable[[DictConfig, Path], float]) -> Path:
    """Return the checkpoint of a pretraining; train or resume it first if it is not finished.

    Args:
        own: its config, from `pretraining_config`; plan, folder and resume are set here.
        run_folder: the run's.
        plan: the run's. The pretraining takes its strides and patch size unless its own overrides set them: otherwise
            the networks of the two datasets would differ in shape. Each dataset keeps its own spacing and
            normalisation.
        train: trains the given config in the given folder and returns the validation Dice.
    """
    folder = run_folder / FOLDER
    if not (folder / FINISHED_FILE).is_file():
        own.plan.strides = own.plan.strides or [list(stride) for stride in plan.strides]
        own.plan.patch_size = own.plan.patch_size or list(plan.patch_size)
        own.run_folder = str(folder)
        own.resume = str(folder) if (folder / CONFIG_FILE).is_file() else None
        try:
            dice = train(own, folder)
        except KeyboardInterrupt as stopped:
            if not (run_folder / CONFIG_FILE).is_file():
                raise  # stopped before its first step
            raise KeyboardInterrupt(f"stopped while pretraining; go on with it by resume={run_folder}") from stopped
        if is_rank_zero():
            write_json(folder / FINISHED_FILE, {"dice": dice})
    best = folder / "checkpoints" / "best.ckpt"
    return best if best.is_file() else folder / LAST_CHECKPOINT  # no validated class: no best checkpoint


def pretraining_config(config: DictConfig) -> DictConfig:
    """Return the run's config with the overrides of `config.pretraining` applied in order.

    `data=NAME` takes the file conf/data/NAME.yaml as it is, without the run's own changes to `data`. `augmentation`
    can be chosen likewise. Other groups cannot: their files hold values of more than one section.

    Raises:
        InputError: lists all texts that are no overrides and all choices that are not possible.
    """
    # Resolved like the config of a resumed run, which must give the same result. Hydra's own section is left out.
    result = OmegaConf.create(as_plain(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])))
    problems = []
    for key, value in OWN.items():
        OmegaConf.update(result, key, value)
    for text in map(renamed, config.pretraining):
        try:
            override = parse_override(text) if is_override(text) else None
        except HydraException as error:
            problems.append(unreadable(text, error))
            continue
        if override is None or override.is_delete() or override.is_sweep_override():
            problems.append(f"{text}: expected key=value or data=NAME")
        elif not chooses_group(override):
            OmegaConf.update(result, override.key_or_group, override.value(), force_add=True)
        elif (group := override.key_or_group) not in CHOSEN:
            words = " and ".join(CHOSEN)
            problems.append(f"{text}: of the groups only {words} can be chosen; give the keys that differ")
        elif (chosen := override_values(override)[0]) not in group_options(group):
            problems.append(unknown_choice(group, chosen, group_options(group)))
        else:
            result[group] = compose_config([f"{group}={chosen}"])[group]
    raise_problems(problems, "pretraining: overrides that cannot be used:")
    return result


def pretraining_problems(config: DictConfig, find: Callable[[DictConfig], list[str]]) -> list[str]:
    """Return the problems of the pretraining of a config that is itself valid; `find` checks a config."""
    if not config.get("pretraining"):
        return []
    try:
        own = pretraining_config(config)
    except InputError as error:
        return [str(error)]
    return [f"pretraining: {problem}" for problem in find(own) or _granularity_problems(own.dsff, config.dsff)]


def _granularity_problems(own: DictConfig, run: DictConfig) -> list[str]:
    """Find masks that the run could not start with: `load_initial_weights` would refuse them only after training."""
    sizes = [chosen_group_size(masks.granularity, masks.group_size) for masks in (own, run)]
    if not (own.enabled and run.enabled) or sizes[0] == sizes[1]:
        return []
    given, wanted = (f"dsff.granularity={masks.granularity} dsff.group_size={masks.group_size}" for masks in (own, run))
    return [f"{given}: the run starts with its masks; expected {wanted}, or dsff.enabled=false"]
