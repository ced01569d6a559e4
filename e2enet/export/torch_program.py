"""A model as a program of torch.export: model.pt2, which torch runs without this package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from e2enet.common.files import write_json
from e2enet.export.description import describe_model
from e2enet.export.plain_network import dynamic_dims, example_input, plain_network
from e2enet.inference.checkpoint import LoadedModel

MODEL_FILE = "model.pt2"
DESCRIPTION_FILE = "model.json"


def write_torch(model: LoadedModel, folder: Path) -> None:
    """Write model.pt2 (`export_program`) and model.json (`describe_model`) into a folder."""
    torch.export.save(export_program(model), folder / MODEL_FILE)
    write_json(folder / DESCRIPTION_FILE, describe_model(model))


def export_program(model: LoadedModel) -> ExportedProgram:
    """Return the network as a program: image (B, C, D, H, W) float32 -> logits (B, K, D, H, W) float32.

    Batch and sizes may vary (`dynamic_dims`).
    """
    plan = model.plan
    example = example_input(plan, len(model.channels))
    with torch.no_grad():
        return torch.export.export(plain_network(model.network), (example,), dynamic_shapes=(dynamic_dims(plan),))
