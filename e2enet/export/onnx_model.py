"""A model as ONNX: model.onnx, model.json, and a script that predicts scans with numpy, SimpleITK and onnxruntime."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxscript  # noqa: F401  torch's exporter needs it: where it is missing, this says so before any work
import torch

from e2enet.common.errors import InputError
from e2enet.common.files import write_json
from e2enet.export.description import describe_model
from e2enet.export.plain_network import dynamic_dims, example_input, plain_network
from e2enet.inference.checkpoint import LoadedModel

MODEL_FILE = "model.onnx"
DESCRIPTION_FILE = "model.json"
SCRIPTS = {"onnx_predict.py": "predict.py", "scan_grid.py": "scan_grid.py"}  # file here -> its copy
OPSET = 18  # of 2022: onnxruntime reads it from version 1.14 on


def write_onnx(model: LoadedModel, folder: Path) -> None:
    """Write model.onnx (`export_onnx`), model.json (`describe_model`) and predict.py (`onnx_predict`) into a folder.

    Raises:
        InputError: lengths in the model's scans do not count in mm, as the script reads them.
    """
    if model.spacing_unit not in (None, "mm"):
        raise InputError(f"{model.path}: its scans' lengths count in {model.spacing_unit}; mm expected by predict.py")
    export_onnx(model, folder / MODEL_FILE)
    write_json(folder / DESCRIPTION_FILE, describe_model(model))
    for name, copy in SCRIPTS.items():
        shutil.copyfile(Path(__file__).with_name(name), folder / copy)


def export_onnx(model: LoadedModel, path: Path) -> None:
    """Write the network as ONNX: `image` (B, C, D, H, W) float32 -> `logits` (B, K, D, H, W) float32.

    Batch and sizes may vary (`dynamic_dims`).
    """
    plan = model.plan
    example = example_input(plan, len(model.channels))
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            plain_network(model.network),
            (example,),
            dynamo=True,
            dynamic_shapes=(dynamic_dims(plan),),
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch's exporter warns of: packages that are not needed, and its own use of older functions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
