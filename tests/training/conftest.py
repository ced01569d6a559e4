"""A tiny sparse module trained on random numbers, a tiny run, and the differences of two runs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from e2enet.network.dsff import fusion_layers, register_fusion_layer

# A run of some seconds on generated data. Tests add the folders.
SMALL_RUN = [
    "data.num_train=5",
    "data.shape=[40,40,16]",
    "plan.patch_size=[8,16,16]",
    "plan.strides=[[1,2,2],[2,2,2]]",
    "plan.batch_size=2",
    "network.base_features=4",
    "training.validation_patches=4",
    "trainer.accelerator=cpu",
    "trainer.probe=false",
    "callbacks.validation_picture=null",
    "final.predict=false",
]


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Return the keys at which two checkpoints differ. Tensors are compared bit for bit, times are ignored."""
    if isinstance(expected, Mapping):
        keys = [key for key in {**expected, **found} if key != "TimeKeeper"]
        missing = [f"{path}.{key}" for key in keys if (key in found) != (key in expected)]
        return missing or [line for key in keys for line in differences(found[key], expected[key], f"{path}.{key}")]
    if isinstance(expected, list | tuple) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for index, (own, other) in pairs for line in differences(own, other, f"{path}.{index}")]
    if isinstance(expected, Tensor):
        return [] if found.dtype == expected.dtype and torch.equal(found, expected) else [path]
    return [] if found == expected else [f"{path}: {found}, expected {expected}"]


def numbers(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without the columns of times."""
    with (folder / "metrics.csv").open() as stream:
        return [
            {name: cell for name, cell in row.items() if not name.startswith("time/")} for row in csv.DictReader(stream)
        ]


class TinySparse(pl.LightningModule):
    """Two fusion convs (6, 4) and (5, 6) with (1, 3, 3) kernels, and a dense head."""

    def __init__(self, make_optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make_optimizer = make_optimizer
        self.first = nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 1))
        self.second = nn.Conv3d(6, 5, (1, 3, 3), padding=(0, 1, 1))
        self.head = nn.Conv3d(5, 2, 1)
        register_fusion_layer(self.first, flows={"forward": 2, "up": 1, "down": 1})
        register_fusion_layer(self.second, flows={"forward": 3, "up": 3, "down": 0})
        self.spoil_step: int | None = None
        self.seen: list[int] = []

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        self.seen.append(batch_index)
        loss: Tensor = self.head(self.second(torch.relu(self.first(batch[0])))).square().mean()
        return loss * float("inf") if batch_index == self.spoil_step else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


def first_gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return a dict that the first backward pass fills with the fusion weights' gradients, of inactive kernels too."""
    found: dict[str, Tensor] = {}

    def keep(name: str, gradient: Tensor) -> None:
        found.setdefault(name, gradient.clone())

    for name, layer in fusion_layers(module).items():
        layer.weight.register_hook(partial(keep, name))
    return found


@pytest.fixture
def tiny_sparse() -> type[TinySparse]:
    return TinySparse


def quiet_trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """Return a trainer of one epoch on the CPU without logs, checkpoints and pictures. `options` override this."""
    quiet: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return pl.Trainer(callbacks=list(callbacks), **(quiet | options))


@pytest.fixture
def fit_tiny(tmp_path: Any) -> Callable[..., pl.Trainer]:
    """Return a function that fits a module on batches of random patches (2, 4, 2, 5, 5) on the CPU."""

    def fit(module: pl.LightningModule, *callbacks: pl.Callback, batches: int = 6, **options: Any) -> pl.Trainer:
        images = torch.randn(2 * batches, 4, 2, 5, 5, generator=torch.Generator().manual_seed(1))
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=2)
        ckpt_path = options.pop("ckpt_path", None)
        trainer = quiet_trainer(tmp_path, *callbacks, **options)
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return trainer

    return fit
