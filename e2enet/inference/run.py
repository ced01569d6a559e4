"""Run e2enet predict: load the checkpoints, find the cases, predict them, report."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.data.formats.listing import note_companions
from e2enet.data.formats.naming import Case, result_ending
from e2enet.data.formats.problems import Problem
from e2enet.data.formats.remarks import scan_warnings
from e2enet.data.layouts.layout import Layout
from e2enet.data.layouts.prediction import find_cases
from e2enet.data.layouts.stored import stored_layout
from e2enet.inference.checkpoint import LoadedModel, load_ensemble
from e2enet.inference.config import PredictConfig
from e2enet.inference.folds import find_folds, is_sweep
from e2enet.inference.largest_component import Postprocessing, find_postprocessing, read_postprocessing, require_labels
from e2enet.inference.nnunet_folds import nnunet_folds
from e2enet.inference.predictor import WindowSettings, predict_cases
from e2enet.network.build import trust_network
from e2enet.network.engine import select_engine
from e2enet.system.determinism import set_prediction_flags
from e2enet.system.memory import give_back_freed_memory
from e2enet.system.ranks import joined_team, launched

# Output folder, a model, {label image: its case} -> a line for the console.
Viewing = Callable[[Path, LoadedModel, Mapping[Path, Case]], str]
AMP_TYPES = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


def run_prediction(config: PredictConfig, view: Viewing | None = None) -> dict[str, str]:
    """Predict as configured; return {case: reason} of the failed cases.

    `view` shows the predictions when all are done; its text goes to the console. The first process calls it.

    Under torchrun or srun every process calls this and predicts its share; each returns the failures of all.

    Raises:
        InputError: before the first prediction, if the device, the checkpoints or the input are unusable.
    """
    device = resolve_device(config.device)
    if config.precision == "16" and device.type == "cpu":
        raise InputError("precision=16: float16 needs a GPU; on the CPU expected 32 or bf16")
    if config.output.exists() and not config.output.is_dir():
        raise InputError(f"output={config.output}: is a file, expected a folder")
    for target in config.trust:
        trust_network(target)
    models = load_ensemble(find_checkpoints(config))
    postprocessing = resolve_postprocessing(config.postprocessing, models)
    problems: list[Problem] = []
    cases = _find_cases(config, models, problems)
    unusable = {str(problem.case): str(problem) for problem in problems if problem.severity == "error"}
    left_out = [problem for problem in problems if problem.severity == "warning"]
    for problem in left_out:
        say(f"warning: {problem}", style="yellow")
    for line in note_companions([config.input]):
        say(line)
    names = f"{len(models)} models" if len(models) > 1 else str(models[0].path)
    say(f"{len(cases)} cases, {names}, on {device}")
    _warn_of_scans(cases, models[0])
    if postprocessing is not None:
        say(f"postprocessing: {postprocessing.describe()} ({postprocessing.path})")
    set_prediction_flags(device)
    settings = WindowSettings(
        mirror=config.mirror,
        step=config.step,
        batch_size=config.batch_size,
        device=device,
        amp_dtype=AMP_TYPES[config.precision],
    )
    models = [with_engine(config.engine, model, settings) for model in models]  # last: `auto` may measure for seconds
    gc.collect()  # frees networks replaced by an engine, which reference cycles keep alive
    give_back_freed_memory()
    with joined_team() as team:
        failures = unusable | predict_cases(
            models,
            cases,
            config.output,
            settings,
            overlay=config.overlay,
            probabilities=config.probabilities,
            overwrite=config.overwrite,
            keep_largest_of=postprocessing.classes if postprocessing else (),
            file_ending=config.file_ending,
            team=team,
        )
    if failures:
        lines = "\n".join(f"  - {case}: {reason}" for case, reason in failures.items())
        text = f"{len(failures)} of {len(cases) + len(unusable)} cases failed:\n{lines}"
    else:
        text = f"all {len(cases)} cases are in {config.output}" + ", beside what is warned of above" * bool(left_out)
    say(text)
    endings = {case.id: result_ending(case, config.file_ending) for case in cases}
    done = {config.output / f"{case.id}{endings[case.id]}": case for case in cases if case.id not in failures}
    if view is not None and done and team.rank == 0:
        say(view(config.output, models[0], done))
    return failures


def _warn_of_scans(cases: Sequence[Case], model: LoadedModel) -> None:
    # nnU-Net's models keep the file's own axes, whose names the frame does not know.
    depth_axis = None if model.file_axes else model.plan.depth_axis
    for warning in scan_warnings(cases, depth_axis):
        say(f"warning: {warning}")


def _find_cases(config: PredictConfig, models: list[LoadedModel], problems: list[Problem]) -> list[Case]:
    first, layouts = models[0], find_layouts(models, config.trust)
    of_files = (first.file_ending, problems, first.numbered_ids)
    cases = find_cases(config.input, first.channels, *of_files, layouts, say)
    if first.spacing_unit is not None:
        say(f"lengths count in {first.spacing_unit}, as those of the training data")
    return [replace(case, unit=first.spacing_unit) for case in cases]


def find_layouts(models: Sequence[LoadedModel], trusted: Sequence[str]) -> list[Layout]:
    """Return the distinct layouts of the models' training data; print a note about each unusable one."""
    sections = {json.dumps(model.layout, sort_keys=True, default=str): model for model in reversed(models)}
    layouts = []
    for model in reversed(sections.values()):
        try:
            layouts += [] if model.layout is None else [stored_layout(model.layout, trusted)]
        except InputError as error:
            say(f"note: {model.path}: {error}; scans are told apart by their names", style="yellow")
    return layouts


def with_engine(engine: str, model: LoadedModel, settings: WindowSettings) -> LoadedModel:
    """Return the model with its network run by `engine=auto|dense|sparse`, see `select_engine`."""
    network = select_engine(
        model.network,
        engine,
        device=torch.device(settings.device),
        patch_size=model.plan.patch_size,
        amp_dtype=settings.amp_dtype,
    )
    return replace(model, network=network)


def find_checkpoints(config: PredictConfig) -> list[Path]:
    """Return the given checkpoints and run folders; replace a sweep folder by the runs of the selected configuration.

    A model folder of nnU-Net is replaced by its folds.

    Raises:
        InputError: no single configuration is selected, folds are missing, or one is selected but no sweep is given.
    """
    found: list[Path] = []
    for path in config.checkpoint:
        if not is_sweep(path):
            found += nnunet_folds(path, allow_missing=config.allow_missing_folds, say=say) or [path]
            continue
        folds = find_folds(path, config.choice, allow_missing=config.allow_missing_folds)
        found += folds.folders
        for line in folds.left_out:
            say(f"warning: predicted without {line}")
    if config.choice and not any(map(is_sweep, config.checkpoint)):
        named = ", ".join(map(str, config.checkpoint))
        raise InputError(f"experiment, row and seed choose runs of a sweep folder, but checkpoint={named} is none")
    return found


def resolve_postprocessing(given: str, models: list[LoadedModel]) -> Postprocessing | None:
    """Return the postprocessing that `postprocessing=auto|none|FILE` means for these models; None for none.

    Raises:
        InputError: the file holds no choice of postprocessing, or one for other classes.
    """
    if given == "none":
        return None
    if given == "auto":
        # RUN/checkpoints/best.ckpt
        choice = find_postprocessing([model.path.resolve().parent.parent for model in models])
    else:
        choice = read_postprocessing(given)
    if choice is not None:
        require_labels(choice, models[0].scheme)
    return choice


def resolve_device(name: str) -> torch.device:
    """Return the device of a config value; `auto` is a GPU if there is one. InputError if the device does not exist.

    Processes that were started together are spread over the visible GPUs by their local rank: one each if there are
    enough. If a scheduler shows every process a single GPU, each takes that one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launched().world_size > 1 and torch.cuda.is_available():
        name = f"cuda:{launched().local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"device={name}: this machine has {count} CUDA device(s); expected auto, cpu or one of them")
    return device
