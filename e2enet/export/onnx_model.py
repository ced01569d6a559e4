"""A model as ONNX: model.onnx, model.json, and a script that predicts scans with numpy, SimpleITK and onnxruntime."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import onnxscript  # torch's exporter needs it: if it is missing, this says so before any work
import torch
from torch.torch_version import TorchVersion

from e2enet.common.errors import InputError
from e2enet.common.files import write_json
from e2enet.export.description import describe_model
from e2enet.export.plain_network import dynamic_dims, example_input, plain_network
from e2enet.inference.checkpoint import LoadedModel

MODEL_FILE = "model.onnx"
DESCRIPTION_FILE = "model.json"
SCRIPTS = {"onnx_predict.py": "predict.py", "scan_grid.py": "scan_grid.py"}  # file here -> its copy
# Of 2022: onnxruntime reads both from version 1.14 on. Exporters mark their files with newer formats than they use.
OPSET, IR_VERSION = 18, 8


def write_onnx(model: LoadedModel, folder: Path) -> None:
    """Write model.onnx (`export_onnx`), model.json (`describe_model`) and predict.py (`onnx_predict`) into a folder.

    Raises:
        InputError: torch and onnxscript do not fit.
    """
    _require_versions_that_fit()
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
            optimize=True,  # torch 2.6 leaves it out by itself
            verbose=False,
        )
    assert program is not None
    program.model.ir_version = IR_VERSION
    program.save(path)


def _require_versions_that_fit() -> None:
    # From 0.3 on, onnxscript needs onnx-ir, whose later versions fail on the functions in torch 2.6's graphs.
    if torch.__version__ < "2.7" and TorchVersion(onnxscript.__version__) >= "0.3":
        found = f"torch {torch.__version__} writes no ONNX with onnxscript {onnxscript.__version__}"
        raise InputError(f"{found}; torch 2.7 or later expected, or: pip install 'onnxscript<0.3'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch's exporter tells: packages that are not needed, its own use of older functions, its rewriting.

    Torch 2.6 warns of sizes beyond 2**31 voxels, too.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
