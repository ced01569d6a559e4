"""A tiny trained-model file and scans with awkward geometry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from e2enet.data.planning.plan import Plan
from e2enet.network import E2ENet

STRIDES = ((1, 2, 2), (2, 2, 2))
LABELS = {0: "background", 1: "liver", 2: "spleen"}
NETWORK = {
    "name": "e2enet",
    "base_features": 4,
    "max_features": 16,
    "shift_size": None,
    "shift_input": False,
    "kernel_size": [1, 3, 3],
    "fusion": "grid",
    "deep_supervision": True,
}


def make_plan(num_channels: int = 1) -> Plan:
    return Plan(
        depth_axis=2,
        spacing=(3.0, 1.2, 1.0),
        patch_size=(4, 8, 8),
        strides=STRIDES,
        batch_size=2,
        normalisation=tuple({"scheme": "zscore", "nonzero": False} for _ in range(num_channels)),
        median_shape=(7, 13, 15),
    )


@pytest.fixture
def make_content() -> Callable[..., dict[str, Any]]:
    """Give `checkpoint_content` to tests, which cannot import this file."""
    return checkpoint_content


def checkpoint_content(seed: int = 0, num_channels: int = 1) -> dict[str, Any]:
    """Return the parts of a Lightning checkpoint that prediction reads, with random weights."""
    torch.manual_seed(seed)
    network = E2ENet(num_channels, len(LABELS), STRIDES, base_features=4, max_features=16)
    return {
        "epoch": 3,
        "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()},
        "hyper_parameters": {
            "network": NETWORK,
            "plan": make_plan(num_channels).to_dict(),
            "dataset": {
                "name": "tiny",
                "labels": LABELS,
                "channels": [f"MRI{index}" for index in range(num_channels)],
                "mirror_axes": [2],
                "file_ending": ".nii.gz",
            },
        },
    }


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a tiny checkpoint. `edit` may change its content first."""

    def write(
        name: str = "best.ckpt",
        *,
        seed: int = 0,
        num_channels: int = 1,
        edit: Callable[[dict[str, Any]], Any] | None = None,
    ) -> Path:
        content = checkpoint_content(seed, num_channels)
        if edit is not None:
            edit(content)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        return path

    return write


def oblique_affine() -> np.ndarray:
    """Return an affine of 0.9 x 1.1 x 2.8 mm; axes point left, posterior and superior, rotated by about 10 degrees."""
    angles = np.deg2rad([9.0, -7.0])
    cos, sin = np.cos(angles), np.sin(angles)
    about_z = np.array([[cos[0], -sin[0], 0], [sin[0], cos[0], 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cos[1], -sin[1]], [0, sin[1], cos[1]]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-0.9, -1.1, 2.8])
    affine[:3, 3] = [31.0, -12.5, 400.0]
    return affine


@pytest.fixture
def scan() -> nib.Nifti1Image:
    """16 x 14 x 7 voxels of noise with a ramp on an oblique LPS grid; the unit (mm) and form codes are set."""
    values = np.random.default_rng(5).normal(size=(16, 14, 7)).astype(np.float32)
    values += np.linspace(0, 3, 16, dtype=np.float32)[:, None, None]
    image = nib.Nifti1Image(values, oblique_affine())
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(oblique_affine(), code=1)
    image.set_sform(oblique_affine(), code=2)
    return image
