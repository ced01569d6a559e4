"""A tiny labelled dataset with predictions of it: awkward axes, oblique affine, names that try to be HTML."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from omegaconf import OmegaConf

from e2enet.common.configs import compose_config

MARKUP = "<script>document.title = 'hacked'</script>"
LABELS = {"background": 0, "liver": 1, MARKUP: 2, "spleen": 3}
SHAPE = (20, 24, 12)  # x, y, z of the file


def awkward_affine() -> np.ndarray:
    """Return an affine of 1.5 x 1 x 2 mm whose axes point to the front, to the left and to the feet, turned by 8."""
    turn = np.deg2rad(8)
    axes = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1]]) @ np.diag([1.5, 1.0, 2.0])
    affine = np.eye(4)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine[:3, :3] = rotation @ axes
    affine[:3, 3] = (12.0, -30.0, 55.5)
    return affine


def scan_values(seed: int = 0) -> np.ndarray:
    """Return whole numbers from -500 to 1000, one of them at each end."""
    values = np.random.default_rng(seed).integers(-500, 1001, SHAPE).astype(np.int16)
    values[0, 0, 0], values[-1, -1, -1] = -500, 1000
    return values


def reference_values() -> np.ndarray:
    """Return three boxes of classes 1, 2, 3, none of them a mirror image of another."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:10, 3:11, 2:8] = 1
    labels[12:18, 4:9, 3:10] = 2
    labels[5:16, 14:22, 4:7] = 3
    return labels


def predicted_values() -> np.ndarray:
    """Return the reference with a missed strip, an extra one and a part of the wrong class."""
    labels = reference_values()
    labels[2:4, 3:11, 2:8] = 0  # missed: 96 voxels
    labels[12:18, 9:11, 3:10] = 2  # extra: 84 voxels
    labels[5:8, 14:22, 4:7] = 1  # another class: 72 voxels
    return labels


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, awkward_affine() if affine is None else affine), path)
    return path


def as_ras(values: np.ndarray, affine: np.ndarray | None = None) -> nib.Nifti1Image:
    """Reorder by nibabel's own rule."""
    return nib.as_closest_canonical(nib.Nifti1Image(values, awkward_affine() if affine is None else affine))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder with imagesTs, labelsTs and dataset.json of two cases, and predictions: one right, one with errors."""
    for seed, case in enumerate(("good", "poor")):
        save(tmp_path / "imagesTs" / f"{case}.nii.gz", scan_values(seed))
        save(tmp_path / "labelsTs" / f"{case}.nii.gz", reference_values())
    save(tmp_path / "predictions" / "good.nii.gz", reference_values())
    save(tmp_path / "predictions" / "poor.nii.gz", predicted_values())
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    return tmp_path


def handed_over(path: Path) -> Any:
    """Return what a script of a viewer hands to the page: the last argument of its only call."""
    text = path.read_text(encoding="ascii")
    line = text.splitlines()[-1]
    assert line.startswith("e2enet.") and line.endswith(");")
    return json.loads("[" + line[line.index("(") + 1 : -2] + "]")[-1]


def decoded(text: str) -> nib.Nifti1Image:
    """Return the image that a page decodes from base64 text."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as training leaves it, and its dataset: Task09_Tiny with five cases, two of them validated."""
    dataset = tmp_path / "raw" / "Task09_Tiny"
    names = [f"case_{index}" for index in range(5)]
    for index, name in enumerate(names):
        save(dataset / "imagesTr" / f"{name}.nii.gz", scan_values(index))
        save(dataset / "labelsTr" / f"{name}.nii.gz", reference_values())
    content: dict[str, Any] = {"name": "tiny", "modality": {"0": "CT"}, "numTraining": 5, "test": []}
    content["labels"] = {"0": "background", "1": "liver", "2": MARKUP, "3": "spleen"}
    content["training"] = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names
    ]
    (dataset / "dataset.json").write_text(json.dumps(content))
    folder = tmp_path / "runs" / "first"
    save(folder / "validation" / "case_1.nii.gz", predicted_values())
    save(folder / "validation" / "case_3.nii.gz", reference_values())
    config = compose_config(["data=msd", "data.name=Task09_Tiny", f"paths.data={tmp_path / 'raw'}"])
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    return folder


def means_of(viewer: Path) -> dict[str, list[float | None]]:
    """Return {case: mean Dice of each prediction}."""
    content = handed_over(viewer / "list.js")
    return {one["case"]: [pane["mean"] for pane in one["panes"]] for one in content["cases"]}


@pytest.fixture
def read_script() -> Callable[[Path], Any]:
    return handed_over


@pytest.fixture
def decode() -> Callable[[str], nib.Nifti1Image]:
    return decoded
