"""Odd but legal scans are predicted on their own grid, prepared, and trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from e2enet.common.errors import InputError

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (8, 9, 6)


def noise(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 100, shape).astype(dtype)


def scaled(path: Path) -> None:
    image = nib.Nifti1Image(noise(SHAPE, np.int16), AFFINE)
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, path)


def big_endian(path: Path) -> None:
    image = nib.Nifti1Image(noise(SHAPE, ">i2"), AFFINE, nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(">i2")
    nib.save(image, path)


def plain(array: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    return lambda path: nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)


def one_voxel(path: Path) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[3, 4, 5] = 7
    plain(array)(path)


LEGAL: dict[str, tuple[Callable[[Path], None], tuple[int, ...]]] = {
    "constant": (plain(np.full(SHAPE, 5, np.int16)), SHAPE),
    "one-voxel-thick-in-depth": (plain(noise((8, 9, 1))), (8, 9, 1)),
    "one-voxel-thick-in-plane": (plain(noise((1, 9, 6))), (1, 9, 6)),
    "a-single-voxel": (plain(noise((1, 1, 1))), (1, 1, 1)),
    "smaller-than-a-patch": (plain(noise((3, 4, 2))), (3, 4, 2)),
    "nonzero-in-one-voxel": (one_voxel, SHAPE),
    "very-thick-slices": (plain(noise(SHAPE), np.diag([1.0, 1, 40, 1])), SHAPE),
    "very-thin-slices": (plain(noise((8, 9, 12)), np.diag([1.0, 1, 0.2, 1])), (8, 9, 12)),
    "trailing-axis-of-one": (plain(noise((*SHAPE, 1))), SHAPE),
    "unsigned-bytes": (plain(noise(SHAPE, np.uint8)), SHAPE),
    "double-precision": (plain(noise(SHAPE, np.float64)), SHAPE),
    "long-integers": (plain(noise(SHAPE, np.int64)), SHAPE),
    "scaled-integers": (scaled, SHAPE),
    "big-endian": (big_endian, SHAPE),
    "second-version-of-the-format": (lambda path: nib.save(nib.Nifti2Image(noise(SHAPE), AFFINE), path), SHAPE),
}


@pytest.mark.parametrize("name", LEGAL)
def test_it_is_predicted_on_its_own_grid(bench: Any, name: str) -> None:
    save, shape = LEGAL[name]
    save(bench.scans / "odd.nii.gz")
    assert bench.predict() == {}
    result: Any = nib.load(bench.out / "odd.nii.gz")
    scan: Any = nib.load(bench.scans / "odd.nii.gz")
    assert result.shape == shape and result.get_data_dtype() == np.uint8
    np.testing.assert_allclose(result.affine, scan.affine, atol=1e-6)
    assert set(np.unique(result.dataobj)) <= {0, 1, 2}


def first_batch(data: Any) -> dict[str, torch.Tensor]:
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def test_training_takes_constant_scans_empty_labels_and_whole_numbers_stored_as_floats(bench: Any) -> None:
    for case in "abcde":
        bench.write(bench.image(case), np.full(SHAPE, ord(case), np.int16))
    bench.write(bench.label("b"), np.zeros(SHAPE, np.uint8))
    label = np.zeros(SHAPE, np.float32)
    label[2:4] = 2.0
    bench.write(bench.label("c"), label)
    batch = first_batch(bench.data(fold="all"))
    assert batch["image"].abs().max() == 0  # a constant image has deviation 0
    assert set(batch["label"].unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("shape", [(8, 9, 1), (3, 4, 2), (1, 1, 1)])
def test_training_pads_scans_smaller_than_the_patch(bench: Any, shape: tuple[int, ...]) -> None:
    for case in "abcde":
        bench.write(bench.image(case), bench.voxels(shape))
        bench.write(bench.label(case), np.ones(shape, np.uint8))
    batch = first_batch(bench.data(plan={"patch_size": (16, 32, 32), "strides": ((2, 2, 2),), "batch_size": 2}))
    assert batch["image"].shape == (2, 1, 16, 32, 32) and torch.isfinite(batch["image"]).all()
    # The whole scan lies in the patch, and padding is background.
    assert (batch["label"] == 1).sum() <= 2 * np.prod(shape) * 9 and (batch["label"] > 1).sum() == 0
    assert (batch["label"] == 1).any()


def test_a_case_that_lacks_a_modality_does_not_stop_the_others(bench: Any) -> None:
    (bench.scans / "good.nii.gz").rename(bench.scans / "good_0000.nii.gz")
    bench.write(bench.scans / "more_0000.nii.gz", bench.voxels())
    bench.write(bench.scans / "more_0001.nii.gz", bench.voxels())
    bench.write(bench.scans / "less_0001.nii.gz", bench.voxels())
    failures = bench.predict()
    assert failures == {
        "less": "case less: less_0000.nii.gz missing (1 channels expected)",
        "more": "case more: more_0001.nii.gz not expected (1 channels expected)",
    }
    assert bench.results() == [".predicted/good.json", "good.nii.gz"]
    for path in bench.scans.glob("good*"):
        path.unlink()
    with pytest.raises(InputError, match=r"(?s)these cases cannot be predicted\n.*less_0000\.nii\.gz missing"):
        bench.predict()
