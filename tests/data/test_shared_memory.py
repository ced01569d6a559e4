"""Batches that do not fit into shared memory are reported before a worker starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.augmentation.recipe import build_augmentation
from e2enet.data.loaders.sampling import PatchDataset
from e2enet.data.loaders.shared_memory import batch_bytes, require_shared_memory
from e2enet.data.preparation.store import PreparedCase

PATCH = (8, 40, 40)
VOXELS = 8 * 40 * 40
BATCH = 3 * VOXELS * (2 * 4 + 1)  # three patches, two float32 channels and a uint8 label


@pytest.fixture
def dataset(tmp_path: Path) -> PatchDataset:
    image, label = tmp_path / "a.image.npy", tmp_path / "a.label.npy"
    np.save(image, np.zeros((2, 9, 12, 12), np.float32))
    np.save(label, np.zeros((9, 12, 12), np.uint8))
    np.savez(tmp_path / "a.foreground.npz")
    return PatchDataset(
        [PreparedCase("a", image, label, (9, 12, 12))],
        PATCH,
        batch_size=3,
        augmentation=build_augmentation(PATCH, (), "nnunet"),
        seed=0,
    )


def give(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))


def test_a_batch_is_what_a_worker_hands_over(dataset: PatchDataset) -> None:
    assert batch_bytes(dataset, 3) == BATCH
    dataset.augment_here = False  # some boxes are now larger than their patches
    mean = np.mean([box_voxels(dataset, number) for number in range(200)]) / VOXELS
    assert mean > 1.1 and batch_bytes(dataset, 3) == pytest.approx(mean * BATCH, rel=0.3)


def box_voxels(dataset: PatchDataset, index: int) -> int:
    box = dataset[(0, index)]["image"]
    return box[0].numel()  # type: ignore[index]


def test_just_enough_passes_and_a_byte_less_does_not(
    dataset: PatchDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four workers with two batches each, and the batch in training.
    give(9 * BATCH, monkeypatch)
    require_shared_memory(dataset, 3, 4, folder=tmp_path)
    give(9 * BATCH - 1, monkeypatch)
    with pytest.raises(InputError) as caught:
        require_shared_memory(dataset, 3, 4, folder=tmp_path)
    expected = "data.num_workers=4: 9 batches of 0.3 MB lie in shared memory at once, 3.1 MB"
    for words in (expected, f"{tmp_path} has 3.1 MB free", "at most data.num_workers=3", "--shm-size=1g"):
        assert words in str(caught.value)
    give(18 * BATCH, monkeypatch)
    require_shared_memory(dataset, 3, 4, processes=2, folder=tmp_path)
    with pytest.raises(InputError, match="in each of 3 processes"):
        require_shared_memory(dataset, 3, 4, processes=3, folder=tmp_path)


def test_without_workers_or_such_a_folder_nothing_is_asked(
    dataset: PatchDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(0, monkeypatch)
    require_shared_memory(dataset, 3, 0, folder=tmp_path)
    require_shared_memory(dataset, 3, 4, folder=tmp_path / "none")
    with pytest.raises(InputError, match=r"at most data\.num_workers=0"):
        require_shared_memory(dataset, 3, 1, folder=tmp_path)
