"""What differs between the runs of an experiment and its full scale, and between published and obtained accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from e2enet.common.configs import as_plain, compose_config, group_options
from e2enet.common.errors import first_line
from e2enet.common.steps import with_order
from e2enet.data.planning.planner import PAPER_BATCH
from e2enet.network.build import NAMES as NETWORK_NAMES
from e2enet.report.results.runs import Runs
from e2enet.report.tables.columns import interval
from e2enet.report.tables.table import Column, Line, Table, is_known, number, published_range, text
from e2enet.runs.ablations import row_setting
from e2enet.runs.job_key import WITHOUT_EFFECT
from e2enet.runs.variants import flat
from e2enet.training.step_parts import STEP_PARTS

# Sections in which runs of an experiment may differ from its full scale; a dataset's own facts follow from its name.
SECTIONS = (
    "network",
    "dsff",
    "training",
    "loss",
    "optimizer",
    "schedule",
    "plan",
    "final",
    "pretraining",
    "augmentation",
)
SAMPLER_KEYS = ("foreground_share", "class_weights", "case_weights")
DATA_KEYS = (
    *("data.limit_cases", "data.split", "data.group", "data.exclude"),
    *(f"data.sampler.{key}" for key in SAMPLER_KEYS),
)
DATASET, PATCH = "dataset", "patch size"
NAMES = {
    "network.base_features": "width (channels at full resolution)",
    "training.epochs": "epochs",
    "training.steps_per_epoch": "steps per epoch",
    "plan.batch_size": "batch size",
}
# Settings that others imply: the width of the network, and that masks are DSFF's.
TOLD = ("training.base_features", "dsff._target_")
FIRST = (DATASET, PATCH, *NAMES)
# The paper's name of a dataset, by the data module of an earlier version or by the dataset's own name.
DATASETS = {"BTCVDataModule": "BTCV", "Task01_BrainTumour": "BraTS"}


def setting_differences(runs: Runs, experiment: str) -> Table:
    """Return a table of the settings in which started runs differ from `experiments=NAME` and the row at full scale.

    A row's own settings are the same on both sides. If a setting differs between rows, every value is listed.
    """
    ablation = runs.ablations.get(experiment, {})
    jobs = runs.jobs[(runs.jobs["experiment"] == experiment) & runs.jobs["key"].isin(list(runs.configs))]
    notes = []
    found: dict[str, tuple[list[Any], list[Any]]] = {}
    for row, own in jobs.groupby("row", sort=False, dropna=False):
        row = row if is_known(row) else None
        if row is not None and row not in (ablation.get("rows") or {}):
            notes.append(f"{experiment}, {row}: the experiment has no such row any more; its full scale is not known")
            continue
        try:
            full = _full_scale(experiment, ablation, row)
        except (HydraException, OmegaConfBaseException) as error:
            notes.append(f"{experiment}, {row}: its full scale cannot be composed: {first_line(error)}")
            continue
        for key in own["key"]:
            small = _settings(runs.configs[key]) | {PATCH: runs.costs.get(key, {}).get("patch_size")}
            for name in [*full, *(name for name in small if name not in full)]:
                # Which data keys exist follows from the dataset's name, so only those of both sides are compared.
                shared = name not in DATA_KEYS or (name in full and name in small)
                if shared and full.get(name) != small.get(name):
                    values = found.setdefault(name, ([], []))
                    values[0].append(full.get(name))
                    values[1].append(small.get(name))
    order = sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    lines = [
        {"setting": NAMES.get(name, name), "full": _listed(found[name][0]), "obtained": _listed(found[name][1])}
        for name in order
    ]
    lines += _repetition_differences(experiment, jobs)
    columns = (
        Column("setting", text("setting"), numeric=False),
        Column("full scale", text("full"), numeric=False),
        Column("these runs", text("obtained"), numeric=False),
    )
    return Table("What differs from full scale", columns, tuple(lines), tuple(notes))


def published_differences(lines: Sequence[Line]) -> Table:
    """Compare published and obtained Dice of the lines of `experiment_lines` that have both on the same dataset."""
    compared, elsewhere = [], []
    for line in lines:
        published_on = line["published_on"]
        low, high = published_range(line.get("published_dice"))
        if low is None or high is None or published_on is None or not is_known(line["dice"]):
            continue
        if _plain(line["data"]) != _plain(published_on):
            elsewhere.append(published_on)
            continue
        difference = f"{line['dice'] - high:+.2f}"
        if low != high:
            difference = f"{difference} to {line['dice'] - low:+.2f}"
        inside = _position(low, high, line) if is_known(line["dice_low"]) else ""
        compared.append({**line, "difference": difference, "inside": inside})
    columns = (
        Column("row", text("label"), numeric=False),
        Column("Dice (%)", number("published_dice", 1), "published"),
        Column("Dice (%)", number("dice", 2), "obtained"),
        Column("interval", interval, "obtained"),
        Column("obtained - published", text("difference")),
        Column("published inside the interval", text("inside"), numeric=False),
    )
    note = f"Published for {_listed(elsewhere)}, obtained on other data: not compared."
    return Table("Published and obtained Dice", columns, tuple(compared), (note,) if elsewhere else ())


def dataset_name(config: Mapping[str, Any]) -> str:
    """Return the paper's name of a run's dataset; its own name if the paper does not use it."""
    data = config.get("data") or {}
    module, name = str(data.get("_target_", "")).rpartition(".")[2], str(data.get("name", ""))
    if "modality" in data:
        return f"AMOS-{data['modality'].replace('both', 'MRI')}"  # trained on both, it is scored on MRI
    return data.get("published_as") or DATASETS.get(module) or DATASETS.get(name) or name


def dataset_names(runs: Runs, jobs: pd.DataFrame) -> list[str]:
    """Return each job's dataset by `dataset_name`; a job not started takes the name of a started one of its data."""
    names = {key: dataset_name(runs.configs[key]) for key in jobs["key"] if key in runs.configs}
    started = {key: name for key, name in names.items() if name}
    pairs = list(zip(jobs["key"], jobs["data"], strict=True))
    known = {data: started[key] for key, data in pairs if key in started}
    return [started.get(key, known.get(data, data)) for key, data in pairs]


def _position(low: float, high: float, line: Line) -> str:
    """Return whether a published number or range lies in the interval of a line: yes, partly or no."""
    inside = [line["dice_low"] <= end <= line["dice_high"] for end in (low, high)]
    covers = low <= line["dice_low"] and line["dice_high"] <= high
    return "yes" if all(inside) else "partly" if any(inside) or covers else "no"


def _repetition_differences(experiment: str, jobs: pd.DataFrame) -> list[dict[str, str]]:
    """Return a line for folds and one for seeds, if the jobs have others than the experiment's own sweep."""
    try:
        config = compose_config([f"experiments={experiment}"], with_hydra=True)
    except (HydraException, OmegaConfBaseException):
        return []  # the notes on its rows report it
    found = []
    for key, name in (("fold", "folds"), ("seed", "seeds")):
        swept = OmegaConf.select(config, f"hydra.sweeper.params.{key}")
        override = OverridesParser.create().parse_override(f"{key}={config[key] if swept is None else swept}")
        full = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(override.value())]
        obtained = [str(value) for value in sorted(jobs[key], key=str)]
        if obtained and set(obtained) != set(full):
            found.append({"setting": name, "full": _listed(full), "obtained": _listed(obtained)})
    return found


def _full_scale(experiment: str, ablation: Mapping[str, Any], row: str | None) -> dict[str, Any]:
    """Return the settings of an experiment's row at full scale, composed from its file."""
    overrides = [] if row is None else list(ablation["rows"][row].get("overrides", ()))
    config = compose_config([f"experiments={experiment}", *overrides])
    names = [name for name in (*SECTIONS, "data") if name in config]
    content = {name: as_plain(config[name]) if OmegaConf.is_dict(config[name]) else config[name] for name in names}
    settings = _settings(content)
    if content["plan"]["kind"] == "paper" and settings["plan.batch_size"] is None:
        settings["plan.batch_size"] = PAPER_BATCH
    setting = row_setting(ablation, row) if row is not None else ablation.get("setting") or {}
    return settings | {PATCH: setting.get("patch_size", content["plan"]["patch_size"])}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {name: value} of the settings to compare, without the patch size, which planning may decide."""
    config = with_order(with_names_of_today(config))
    sections = flat({name: config.get(name) for name in (*SECTIONS, "data")})
    kept = {
        key: value
        for key, value in sections.items()
        if key not in (*WITHOUT_EFFECT, *TOLD, "plan.patch_size") and (not key.startswith("data.") or key in DATA_KEYS)
    }
    return {DATASET: dataset_name(config)} | kept


def with_names_of_today(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run's config with the keys of today, if an earlier version wrote it.

    There the network had a `name`, loss, optimizer and schedule were in `training`, `data` named a recipe of
    augmentation, and `dsff.enabled` was `dsff.masks`.
    """
    network, training = dict(config.get("network") or {}), dict(config.get("training") or {})
    if "name" in network:
        network = {"_target_": NETWORK_NAMES.get(network.pop("name")), **network}
    moved = {part: training.pop(part) for part in STEP_PARTS if part in training}
    recipe = (config.get("data") or {}).get("augmentation")
    if isinstance(recipe, str) and recipe in group_options("augmentation"):
        moved["augmentation"] = as_plain(compose_config([f"augmentation={recipe}"]).augmentation)
    if "masks" in (masks := dict(config.get("dsff") or {})):
        moved["dsff"] = {"enabled": masks.pop("masks"), **masks}
    return {**config, "network": network, "training": training, **moved}


def _listed(values: Iterable[Any]) -> str:
    """Join the different values in order of appearance; null is left to planning or a default."""
    return ", ".join(dict.fromkeys("null" if value is None else str(value) for value in values))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
