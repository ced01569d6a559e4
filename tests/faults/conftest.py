"""A sound dataset, scans to predict and a trained model, of which each test breaks one part."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.layouts.described import MSDLayout
from e2enet.data.planning.plan import Plan
from e2enet.inference.config import PredictConfig
from e2enet.inference.run import run_prediction
from e2enet.network import E2ENet

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (8, 9, 6)
STRIDES = ((1, 2, 2),)
LABELS = {0: "background", 1: "liver", 2: "spleen"}
PLAN = Plan(2, (3.0, 1.0, 1.0), (4, 8, 8), STRIDES, 2, ({"scheme": "zscore", "nonzero": False},), (6, 8, 9))


@dataclass
class Bench:
    """Five training cases a..e in `raw`, one scan `good` in `scans`, and a checkpoint. Results go to `out`."""

    root: Path

    def __post_init__(self) -> None:
        self.raw, self.scans = self.root / "raw" / "toy", self.root / "scans"
        self.out, self.prepared = self.root / "out", self.root / "prepared"
        self.checkpoint = self.root / "model.ckpt"
        self.random = np.random.default_rng(0)
        for case in "abcde":
            self.write(self.image(case), self.voxels())
            label = np.zeros(SHAPE, np.uint8)
            label[1:4, 1:4], label[5:7, 5:7] = 1, 2
            self.write(self.label(case), label)
        self.describe()
        self.write(self.scans / "good.nii.gz", self.voxels())
        self.save_checkpoint()

    def image(self, case: str) -> Path:
        return self.raw / "imagesTr" / f"{case}.nii.gz"

    def label(self, case: str) -> Path:
        return self.raw / "labelsTr" / f"{case}.nii.gz"

    def voxels(self, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
        return self.random.normal(100, 30, shape).astype(np.float32)

    def write(self, path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    def describe(self, **changes: Any) -> Path:
        content: dict[str, Any] = {
            "modality": {"0": "MRI"},
            "labels": {str(value): name for value, name in LABELS.items()},
            "training": [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in "abcde"],
        }
        path = self.raw / "dataset.json"
        path.write_text(json.dumps(content | changes))
        return path

    def save_checkpoint(self, edit: Callable[[dict[str, Any]], Any] = lambda content: None) -> Path:
        """Save a tiny model with random weights. `edit` changes the checkpoint's content."""
        torch.manual_seed(0)
        network = E2ENet(1, len(LABELS), STRIDES, base_features=2, max_features=4)
        content: dict[str, Any] = {
            "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()},
            "hyper_parameters": {
                "network": {"name": "e2enet", "base_features": 2, "max_features": 4},
                "plan": PLAN.to_dict(),
                "dataset": {"labels": LABELS, "channels": ["MRI"], "mirror_axes": [2], "file_ending": ".nii.gz"},
            },
        }
        edit(content)
        torch.save(content, self.checkpoint)
        return self.checkpoint

    def predict(self, **changes: Any) -> dict[str, str]:
        """Predict the scans; return {case: reason} of failed cases."""
        settings = {"mirror": False, "step": 1.0, "device": "cpu"} | changes
        return run_prediction(PredictConfig((self.checkpoint,), self.scans, self.out, **settings))

    def data(self, **options: Any) -> SegmentationDataModule:
        """Check and prepare the raw dataset as training does."""
        plan = {"patch_size": PLAN.patch_size, "strides": STRIDES}
        settings = {"prepared_root": self.prepared, "plan": plan, "num_workers": 0, "prepare_workers": 0}
        settings |= {"layout": MSDLayout(), "name": self.raw.name, "root": self.raw.parent}
        data = SegmentationDataModule(**(settings | options))
        data.prepare_data()
        return data

    def refusal(self, **options: Any) -> str:
        """Return the error with which training refuses the dataset."""
        with pytest.raises(InputError) as caught:
            self.data(**options)
        return str(caught.value)

    def results(self) -> list[str]:
        """Return every file in `out`, relative to it, including records and partly written files."""
        return sorted(str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file())

    def leftovers(self) -> list[str]:
        """Return every file that preparation left behind, except lock files."""
        files = [path for path in self.prepared.rglob("*") if path.is_file() and "lock" not in path.name]
        return sorted(path.name for path in files)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
