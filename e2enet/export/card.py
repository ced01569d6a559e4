"""A model to share: compact.ckpt, with a model card that is written from the run's own records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.common.files import read_json
from e2enet.export.description import model_words
from e2enet.inference.checkpoint import LoadedModel, read_hyper_parameters
from e2enet.runs.folders import CONFIG_FILE, COST_FILE, SUMMARY_FILE
from e2enet.training.checkpoints import BEST
from e2enet.training.compact import COMPACT, Origin, find_origin, write_compact

RECORDS = (SUMMARY_FILE, COST_FILE, "split.json", "versions.json")
UNKNOWN = "a checkpoint that the file does not name"
CARD = """\
# {name}: {classes}

E2ENet ([arXiv 2312.04727](https://arxiv.org/abs/2312.04727)) that segments {classes} in 3D scans with {channels}.
Trained by e2enet {version}; this card is written from the run's records.

## Use

```bash
pip install "e2enet[train]"
e2enet predict checkpoint={checkpoint} input=SCANS output=LABELS
```

SCANS is a scan, or a folder of scans that are named as those of the training data. LABELS gets a label image for each
of them, on the scan's own grid:

| value | class |
|---|---|
{label_rows}

## Intended use

Research on segmentation, and as a starting point of training (`initial_weights={checkpoint}`). **Not for diagnosis.**
The model expects scans like those that it was trained on: {channels}, the same region of the body, a spacing near
{spacing} mm (slices first).

## Training data

{name}: {cases} (fold {fold}).

Source, population, scanners and licence of the data: TO BE FILLED IN.

## Training

| | |
|---|---|
| network | {network}, {levels} levels, {params} parameters and {flops} GFLOP a patch at a density of {density} |
| weights | from {weights} |
| plan | patch {patch} voxels at {spacing} mm, slices along {axis} |
| recipe | {epochs} epochs of {steps} steps of {batch} patches, seed {seed}, precision {precision} |
| software | {packages}, Python {python} |
| code | {commit} |
| machine | {machine} |

## Scores

{scores}

## Limits

- Trained once, with one seed, on {train} cases of one source. Other scanners, protocols, ages and diseases are
  untested.
- Scores, if any, are of cases of the same source.
- The model looks for these classes in any scan, also where there are none.

## Licence

Of the weights: TO BE FILLED IN by who trained them, within the terms of the data.
"""
SCORES = """\
Of the {scored_cases}, mean (standard deviation) over cases. {chosen}

| class | Dice | NSD ({tolerance:g} mm) | HD95, mm | cases |
|---|---|---|---|---|
{score_rows}
{mean_row}"""


def write_card(model: LoadedModel, folder: Path) -> None:
    """Write compact.ckpt and README.md, the model card, into a folder.

    The card holds the run's scores if they are of this model's weights; if not, it says so.

    Raises:
        InputError: the model does not lie in the folder of a run that was trained and scored to its end.
    """
    run = model.path.resolve().parent.parent
    missing = [name for name in (CONFIG_FILE, *RECORDS) if not (run / name).is_file()]
    if missing:
        raise InputError(f"{run}: {', '.join(missing)} missing; the folder of a run that has ended expected")
    text = card_text(model, run)
    write_compact(model.path, folder / COMPACT)
    (folder / "README.md").write_text(text, encoding="utf-8")


def card_text(model: LoadedModel, run: Path) -> str:
    """Return the model card of a run's model, in Markdown."""
    config = OmegaConf.load(run / CONFIG_FILE)
    assert isinstance(config, DictConfig)
    summary, cost, split, versions = (read_json(run / name) for name in RECORDS)
    packages, machine, plan = versions["packages"], versions["machine"], model.plan
    origin = find_origin(model.path)
    names = ("torch", "lightning", "monai", "numpy")
    return CARD.format(
        **model_words(model),
        name=config.data.name,
        version=packages["e2enet"],
        checkpoint=COMPACT,
        spacing=" x ".join(f"{edge:.3g}" for edge in plan.spacing),
        train=len(split["train"]),
        cases=_cases(split),
        fold=config.fold,
        network=type(model.network).__name__,
        levels=len(plan.strides) + 1,
        params=f"{cost['exact']['params'] / 1e6:.2f} M",
        flops=f"{cost['exact']['flops'] / 1e9:.3g}",
        density=f"{cost['density']:.2g}",
        epochs=config.training.epochs,
        steps=config.training.steps_per_epoch,
        batch=plan.batch_size,
        seed=config.seed,
        # `auto` of the config is what the run's machine made of it: the checkpoint holds that.
        precision=read_hyper_parameters(model.path).get("training", {}).get("precision", config.training.precision),
        packages=", ".join(f"{name} {packages[name]}" for name in names),
        python=versions["python"],
        commit=_commit(versions["git"]),
        machine=", ".join([machine["processor"], f"{machine['cores']} cores", *machine["gpus"]]),
        weights=origin or UNKNOWN,
        scores=_scores(model, origin, summary, config, on_training_cases=_is_on_training_cases(split)),
    )


def _is_on_training_cases(split: Mapping[str, list[str]]) -> bool:
    """Whether validation cases were trained on, as for fold=all."""
    return not set(split["train"]).isdisjoint(split["validation"])


def _cases(split: Mapping[str, list[str]]) -> str:
    if _is_on_training_cases(split):
        return f"{len(split['train'])} training cases and none apart for validation"
    return f"{len(split['train'])} training and {len(split['validation'])} validation cases"


def _scores(
    model: LoadedModel,
    origin: Origin | None,
    summary: Mapping[str, Any],
    config: DictConfig,
    *,
    on_training_cases: bool,
) -> str:
    """Return the section about scores: those of the run, if this model is the one that was scored."""
    scored = Origin(**summary["checkpoint"]) if "checkpoint" in summary else None  # None: of an earlier version
    file = scored.file if scored else BEST
    if origin is None or (origin.step != scored.step if scored else origin.file != BEST):
        reason = f"the run scored {scored or BEST}, and these weights are from {origin or UNKNOWN}"
        say(f"{model.path}: the card has no scores: {reason}")
        return f"There are none: {reason}."
    chosen = _chosen(config) if file == BEST else f"They are those of {scored}."
    scored_cases = f"{summary['n_cases']} validation cases"
    if on_training_cases:
        scored_cases = f"{summary['n_cases']} cases that it was trained on"
        chosen = "They do not tell how it segments other scans, and must not be compared with scores of a fold."
    return SCORES.format(
        scored_cases=scored_cases,
        chosen=chosen,
        tolerance=config.final.nsd_tolerance,
        score_rows="\n".join(_row(entry["name"], entry, entry["n"]) for entry in summary["classes"].values()),
        mean_row=_row("**mean of classes**", summary["mean"], summary["n_cases"]),
    )


def _commit(git: Mapping[str, Any]) -> str:
    if git["commit"] is None:
        return "an installed package"
    return f"commit {git['commit']}" + (f", {git['changed_files']} files changed" if git["changed_files"] else "")


def _chosen(config: DictConfig) -> str:
    chosen = "whole validation cases" if config.training.validate_full else "patches of the validation cases"
    return f"The checkpoint with the best score on {chosen} was taken, so the scores are slightly optimistic."


def _row(name: str, entry: Mapping[str, Any], cases: int) -> str:
    cells = [_cell(entry, key, digits) for key, digits in (("dice", 3), ("nsd", 3), ("hd95", 2))]
    return f"| {' | '.join([name, *cells, str(cases)])} |"


def _cell(entry: Mapping[str, Any], key: str, digits: int) -> str:
    """Return a score with its standard deviation over cases, "-" if no case has one."""
    value, spread = entry[key], entry.get("sd", {}).get(key)
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + (f" ({spread:.{digits}f})" if spread is not None else "")
