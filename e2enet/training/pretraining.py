"""A training on other data that comes before a run: its best weights and masks are what the run starts with.

`pretraining` in the config is a list of overrides: what the first training has otherwise than the run. It lies in
RUN/pretraining, a run folder of its own, and is resumed or skipped like any run.
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
# Written when the training is over: its score, and the checkpoint that the run starts with.
FINISHED_FILE = "finished.json"
CHOSEN = ("data", "augmentation")  # groups whose files hold the values of one section
# What a pretraining has by itself, whatever the run has.
OWN: dict[str, Any] = {
    "pretraining": None,
    "initial_weights": None,
    "resume": None,
    "ablation": None,
    "row": None,
    "final.predict": False,  # its weights are wanted; metrics.csv has its validation
    "final.compact": False,
}


def pretrain(own: DictConfig, run_folder: Path, plan: Plan, train: Callable[[DictConfig, Path], float]) -> Path:
    """The checkpoint of a pretraining, which is trained or resumed where it is not there yet.

    Args:
        own: its config, of `pretraining_config`; plan, folder and resume are set here.
        run_folder: the run's.
        plan: the run's; its strides and patch are the pretraining's too, unless its overrides say otherwise, or the
            networks of two datasets would have two shapes. Spacing and normalisation are each dataset's own.
        train: trains the config that it is given in the folder that it is given; the validation Dice.
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
                raise  # before its first step
            raise KeyboardInterrupt(f"stopped while pretraining; go on with it by resume={run_folder}") from stopped
        if is_rank_zero():
            write_json(folder / FINISHED_FILE, {"dice": dice})
    best = folder / "checkpoints" / "best.ckpt"
    return best if best.is_file() else folder / LAST_CHECKPOINT  # without a validated class there is no best one


def pretraining_config(config: DictConfig) -> DictConfig:
    """The run's config with the overrides of `config.pretraining`, in order.

    `data=NAME` takes the file conf/data/NAME.yaml as it is, without what the run changed in its own `data`; other
    groups cannot be chosen, since their files hold more than one section's values.

    Raises:
        InputError: what is no override, or chooses what cannot be chosen, all at once.
    """
    # Resolved, as a resumed run's config is, which must give the same; Hydra's own section has no part in it.
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
    """What is wrong with the pretraining of a config that is right by itself; `find` checks a config."""
    if not config.get("pretraining"):
        return []
    try:
        own = pretraining_config(config)
    except InputError as error:
        return [str(error)]
    return [f"pretraining: {problem}" for problem in find(own) or _granularity_problems(own.dsff, config.dsff)]


def _granularity_problems(own: DictConfig, run: DictConfig) -> list[str]:
    """Masks that the run could not go on from; `load_initial_weights` would refuse them, but after the training."""
    sizes = [chosen_group_size(masks.granularity, masks.group_size) for masks in (own, run)]
    if not (own.enabled and run.enabled) or sizes[0] == sizes[1]:
        return []
    given, wanted = (f"dsff.granularity={masks.granularity} dsff.group_size={masks.group_size}" for masks in (own, run))
    return [f"{given}: the run starts with its masks; expected {wanted}, or dsff.enabled=false"]
