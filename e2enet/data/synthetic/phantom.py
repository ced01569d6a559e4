"""A small labelled phantom dataset, so that everything can run without real data.

Files are written in the layout of the Medical Segmentation Decathlon, test labels (`labelsTs`) included.
`phantom_anatomy` draws the organs. This file numbers the cases, writes the files and reuses a finished folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import atomic_path, read_json, write_json
from e2enet.data.synthetic.phantom_anatomy import MINIMUM_SHAPE, ORGANS, draw_case

# A finished folder of another version is not reused. Raise it when the same parameters no longer give the same voxels.
GENERATOR_VERSION = 1


def write_phantom(
    folder: Path,
    *,
    num_train: int = 20,
    num_test: int = 4,
    shape: Sequence[int] = (64, 64, 24),
    spacing: Sequence[float] = (1.0, 1.0, 3.0),
    seed: int = 0,
) -> Path:
    """Write the phantom dataset to `folder` and return the folder.

    The folder appears only when it is complete; a folder that already holds this phantom is left as it is.

    Args:
        folder: Dataset folder to create.
        num_train: Number of labelled training cases.
        num_test: Number of test cases; their labels go to `labelsTs`.
        shape: Mean image size in voxels, in file axes (x, y, z); single cases differ by a few voxels.
        spacing: Voxel size in mm, in file axes; z differs by up to 5 % between cases. z must be at least x and y, and
            is so in each case: the cones stand along depth, the axis of largest spacing.
        seed: Determines every voxel.

    Raises:
        InputError: an impossible parameter, or `folder` holds something else.
    """
    settings = phantom_settings(num_train=num_train, num_test=num_test, shape=shape, spacing=spacing, seed=seed)
    folder = Path(folder)
    if _holds_phantom(folder, settings):
        return folder
    try:
        with atomic_path(folder) as unfinished:
            _write_dataset(unfinished, settings)
    except OSError:  # another process finished first: its folder is used if it holds the same phantom
        if not _holds_phantom(folder, settings):
            raise
    return folder


def phantom_settings(
    *, num_train: int, num_test: int, shape: Sequence[int], spacing: Sequence[float], seed: int
) -> dict[str, Any]:
    """Check the parameters and return them as plain values, as `dataset.json` stores them under "phantom".

    Raises:
        InputError: lists every impossible parameter.
    """
    problems = []
    if num_train < 1 or num_test < 0:
        problems.append(f"num_train={num_train} must be at least 1 and num_test={num_test} at least 0")
    if len(shape) != 3 or any(size < least for size, least in zip(shape, MINIMUM_SHAPE, strict=False)):
        problems.append(f"shape={list(shape)} must be three sizes (x, y, z) of at least {list(MINIMUM_SHAPE)} voxels")
    if len(spacing) != 3 or any(size <= 0 for size in spacing):
        problems.append(f"spacing={list(spacing)} must be three positive sizes (x, y, z) in mm")
    elif spacing[2] < max(spacing[:2]):
        problems.append(
            f"spacing={list(spacing)}: z of at least {max(spacing[:2])} expected, since depth is the axis of largest "
            "spacing, and two organs differ along z"
        )
    if seed < 0:
        problems.append(f"seed={seed} must not be negative")
    raise_problems(problems, "The phantom cannot be generated:")
    return {
        "version": GENERATOR_VERSION + _may_lose_depth(spacing),
        "num_train": int(num_train),
        "num_test": int(num_test),
        "shape": [int(size) for size in shape],
        "spacing": [float(size) for size in spacing],
        "seed": int(seed),
    }


def _may_lose_depth(spacing: Sequence[float]) -> bool:
    """Whether a z 5 % smaller would be below x or y. Such phantoms of version 1 may have another depth axis."""
    return 0.95 * spacing[2] < max(spacing[:2])


def phantom_folder_name(name: str, settings: dict[str, Any]) -> str:
    """`name` with a short hash of the settings, so that different phantoms never share a folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{name}_{digest[:8]}"


def _holds_phantom(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether `folder` exists and is this phantom; raise InputError if it is another dataset."""
    if not folder.exists():
        return False
    description = folder / "dataset.json"
    found = read_json(description).get("phantom") if description.exists() else None
    if found != settings:
        raise InputError(
            f"{folder} exists and does not hold the requested phantom: found parameters {found}, "
            f"expected {settings}. Remove the folder or choose another one."
        )
    return True


def _write_dataset(folder: Path, settings: dict[str, Any]) -> None:
    num_train, num_test = settings["num_train"], settings["num_test"]
    names = [f"phantom_{number:03d}.nii.gz" for number in range(1, num_train + num_test + 1)]
    for subfolder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / subfolder).mkdir(parents=True)
    for index, name in enumerate(names):
        part = "Tr" if index < num_train else "Ts"
        rng = np.random.default_rng((settings["seed"], index))
        image, label, affine = draw_case(rng, tuple(settings["shape"]), tuple(settings["spacing"]))
        _write_nifti(folder / f"images{part}" / name, image, affine)
        _write_nifti(folder / f"labels{part}" / name, label, affine)
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:num_train]]
    description = {
        "name": "Phantom",
        "description": "Synthetic organs, among them two cones that only neighbouring slices tell apart.",
        "licence": "Apache-2.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background"} | {str(number): organ for number, organ in enumerate(ORGANS, start=1)},
        "numTraining": num_train,
        "numTest": num_test,
        "training": training,
        "test": [f"./imagesTs/{name}" for name in names[num_train:]],
        "phantom": settings,
    }
    write_json(folder / "dataset.json", description)


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
