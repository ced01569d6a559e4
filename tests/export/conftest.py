"""Tiny models of several kinds, scans with awkward geometry, and the labels that predict gives for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from e2enet.data.planning.plan import Plan
from e2enet.data.synthetic.phantom import write_phantom
from e2enet.inference.config import PredictConfig
from e2enet.inference.run import run_prediction
from e2enet.network import E2ENet
from e2enet.network.dsff import init_masks

STRIDES = ((1, 2, 2), (2, 2, 2))
LABELS = {0: "background", 1: "liver", 2: "spleen", 3: "kidney"}
ZSCORE = {"scheme": "zscore", "nonzero": False}
# Kinds of models: what differs from one channel, four classes and a plan of (2.5, 1.2, 1.0) mm.
KINDS: dict[str, dict[str, Any]] = {
    "classes": {},
    "coarse": {"spacing": (4.0, 1.2, 1.0)},  # the nearest slice is taken along an axis this coarse
    "ct": {"normalisation": [{"scheme": "ct", "lower": -1.0, "upper": 2.5, "mean": 0.7, "std": 1.3}]},
    "two_channels": {"normalisation": [{"scheme": "zscore", "nonzero": True}, {"scheme": "none"}]},
    "regions": {
        "dataset": {
            "trained_regions": {"whole": [1, 2, 3], "core": [2, 3], "inner": [3]},
            "regions_class_order": [1, 2, 3],
        }
    },
    "file_axes": {"depth_axis": 0, "dataset": {"file_axes": True}},
}


def make_checkpoint(
    path: Path,
    *,
    seed: int = 9,
    spacing: tuple[float, float, float] = (2.5, 1.2, 1.0),
    depth_axis: int = 2,
    normalisation: list[dict[str, Any]] | None = None,
    dataset: dict[str, Any] | None = None,
    network: dict[str, Any] | None = None,
    patch_size: tuple[int, int, int] = (8, 16, 16),
) -> Path:
    """Write a checkpoint whose weights are random, with sparse masks, and whose labels vary within a scan."""
    ways = normalisation or [ZSCORE]
    settings = {"base_features": 4, "max_features": 16, **(network or {})}
    described = {
        "name": "tiny",
        "labels": LABELS,
        "channels": [f"MRI{index}" for index in range(len(ways))],
        "mirror_axes": [0, 2],
        "file_ending": ".nii.gz",
        **(dataset or {}),
    }
    plan = Plan(depth_axis, spacing, patch_size, STRIDES, 2, tuple(ways), (11, 31, 33))
    torch.manual_seed(seed)
    model = E2ENet(len(ways), len(described.get("trained_regions", LABELS)), STRIDES, **settings)
    init_masks(model, 0.3, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases of a trained network are not 1 and 0
                parameter += 0.2 * torch.randn(parameter.shape)
    content = {
        "global_step": 500,
        "state_dict": {f"network.{name}": value for name, value in model.state_dict().items()},
        "hyper_parameters": {
            "network": {"_target_": "e2enet.network.E2ENet", **settings},
            "plan": plan.to_dict(),
            "dataset": described,
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a run folder with the checkpoint of a kind of model."""

    def make(kind: str = "classes", **more: Any) -> Path:
        make_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt", **{**KINDS[kind], **more})
        return tmp_path / "run"

    return make


def oblique_affine() -> np.ndarray:
    """Return an affine of 0.8 x 0.9 x 3.4 mm; axes point right, posterior, superior, turned by about 20 degrees."""
    about_z, about_x = np.deg2rad([20.0, -12.0])
    first = np.array([[np.cos(about_z), -np.sin(about_z), 0], [np.sin(about_z), np.cos(about_z), 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]])
    affine = np.eye(4)
    affine[:3, :3] = first @ second @ np.diag([0.8, -0.9, 3.4])
    affine[:3, 3] = [-31.0, 12.5, 400.0]
    return affine


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a phantom scan."""
    folder = write_phantom(tmp_path_factory.mktemp("phantom") / "data", num_train=1, num_test=1, shape=(36, 32, 12))
    return next((folder / "imagesTs").iterdir())


@pytest.fixture
def scans(tmp_path: Path, phantom: Path) -> Callable[[int], Path]:
    """Return a function that makes a folder with a phantom and an oblique anisotropic scan, of so many channels.

    The oblique one has a margin of zeros, which is cropped, and a hole. Its axes are stored in the order S, R, P.
    """

    def make(channels: int = 1) -> Path:
        folder = tmp_path / "scans"
        folder.mkdir()
        source = nib.load(phantom)
        random = np.random.default_rng(5)
        values = random.normal(1, 1, size=(30, 26, 9)).astype(np.float32)
        values += np.linspace(0, 3, 30, dtype=np.float32)[:, None, None]
        values[:4], values[:, -3:], values[12:15, 12:15, 3:5] = 0, 0, 0
        order = (2, 0, 1)
        affine = oblique_affine()[:, [*order, 3]]
        for channel in range(channels):
            ending = f"_{channel:04d}.nii.gz" if channels > 1 else ".nii.gz"
            one = np.asarray(source.dataobj, dtype=np.float32) / 100
            for name, array, grid in (
                ("phantom", np.roll(one, channel, 0), source.affine),
                ("oblique", np.roll(values, channel, 2).transpose(order), affine),
            ):
                image = nib.Nifti1Image(array, grid)
                image.set_sform(grid, code=1)
                image.set_qform(grid, code=1)
                image.header.set_xyzt_units("mm")
                nib.save(image, folder / f"{name}{ending}")
        return folder

    return make


@pytest.fixture
def predicted(tmp_path: Path) -> Callable[..., dict[str, nib.Nifti1Image]]:
    """Return a function that predicts scans with a run by `e2enet predict`: case -> label image."""

    def predict(run: Path, scans: Path, **settings: Any) -> dict[str, nib.Nifti1Image]:
        output = tmp_path / "predicted"
        assert run_prediction(PredictConfig((run,), scans, output, device="cpu", **settings)) == {}
        found = {path.name.removesuffix(".nii.gz"): nib.load(path) for path in output.glob("[!.]*.nii.gz")}
        labels = [set(np.unique(image.dataobj)) for image in found.values()]
        assert len(found) == 2 and min(map(len, labels)) >= 2 and len(set.union(*labels)) >= 3
        return found

    return predict
