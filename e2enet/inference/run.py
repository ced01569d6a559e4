"""From the settings of predict.py to files: load the checkpoints, find the cases, predict them, report."""

from __future__ import annotations

import torch

from e2enet.common.console import console
from e2enet.common.errors import InputError
from e2enet.data.formats.layout import find_cases
from e2enet.inference.checkpoint import load_ensemble
from e2enet.inference.config import PredictConfig
from e2enet.inference.predictor import WindowSettings, predict_cases

AMP_TYPES = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


def run_prediction(config: PredictConfig) -> dict[str, str]:
    """Predict as configured; returns {case: reason} of the cases that failed.

    Raises InputError before the first prediction where the device, the checkpoints or the input are unusable.
    """
    device = resolve_device(config.device)
    if config.precision == "16" and device.type == "cpu":
        raise InputError("precision=16: float16 needs a GPU; on the CPU expected 32 or bf16")
    if config.output.exists() and not config.output.is_dir():
        raise InputError(f"output={config.output}: is a file, expected a folder")
    models = load_ensemble(config.checkpoint)
    cases = find_cases(config.input, len(models[0].channels), models[0].file_ending)
    names = f"{len(models)} models" if len(models) > 1 else str(models[0].path)
    console.print(f"{len(cases)} cases, {names}, on {device}", highlight=False, markup=False, soft_wrap=True)
    settings = WindowSettings(
        mirror=config.mirror,
        step=config.step,
        batch_size=config.batch_size,
        device=device,
        amp_dtype=AMP_TYPES[config.precision],
    )
    failures = predict_cases(
        models,
        cases,
        config.output,
        settings,
        overlay=config.overlay,
        probabilities=config.probabilities,
        overwrite=config.overwrite,
    )
    if failures:
        lines = "\n".join(f"  - {case}: {reason}" for case, reason in failures.items())
        text = f"{len(failures)} of {len(cases)} cases failed:\n{lines}"
    else:
        text = f"all {len(cases)} cases are in {config.output}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return failures


def resolve_device(name: str) -> torch.device:
    """The device of a config value; `auto` is a GPU where there is one. InputError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"device={name}: this machine has {count} CUDA device(s); expected auto, cpu or one of them")
    return device
