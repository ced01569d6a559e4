"""Validation reads the same patches every time, whatever was drawn before, and whole cases only when they are due."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.data.loaders.validation import PeriodicSampler, ValidationPatches
from e2enet.data.preparation.foreground import sample_coordinates
from e2enet.data.preparation.store import PreparedCase

PATCH = (4, 6, 8)


@pytest.fixture
def cases(tmp_path: Path) -> list[PreparedCase]:
    """Three cases whose voxels are numbered from 0, 10 000 and 20 000. Class 1 is one voxel, class 2 eight."""
    found = []
    for number, shape in enumerate(((7, 12, 13), (9, 10, 11), (6, 14, 12))):
        image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape) + 10_000 * number
        label = np.zeros(shape, np.uint8)
        label[1, 2, 3] = 1
        label[4:6, 6:8, 6:8] = 2
        paths = tmp_path / f"{number}.image.npy", tmp_path / f"{number}.label.npy"
        np.save(paths[0], image)
        np.save(paths[1], label)
        coordinates = {str(value): rows for value, rows in sample_coordinates(label).items()}
        np.savez(tmp_path / f"{number}.foreground.npz", **coordinates)  # type: ignore[arg-type]
        found.append(PreparedCase(str(number), *paths, shape=shape))
    return found


def patches_of(cases: list[PreparedCase], count: int = 12, batch_size: int = 2, seed: int = 0) -> ValidationPatches:
    return ValidationPatches(cases, PATCH, count=count, batch_size=batch_size, seed=seed)


def test_cases_take_turns_and_every_one_begins_with_foreground(cases: list[PreparedCase]) -> None:
    patches = patches_of(cases)
    samples = [patches[index] for index in range(len(patches))]
    assert [sample["case"] for sample in samples] == ["0", "1", "2"] * 4
    foreground = [bool(sample["label"].any()) for sample in samples]  # type: ignore[attr-defined]
    assert foreground[:3] == foreground[6:9] == [True] * 3
    drawn = torch.stack([sample["label"] for sample in patches_of(cases, 60)])  # type: ignore[arg-type]
    assert {1, 2} <= set(drawn.unique().tolist())


def test_every_second_patch_of_a_case_lies_anywhere(cases: list[PreparedCase]) -> None:
    # Patches of one voxel: foreground patches lie on a class, the others do so once in a hundred times.
    patches = ValidationPatches(cases, (1, 1, 1), count=300, batch_size=1, seed=0)
    labels = np.array([int(patches[index]["label"]) for index in range(300)]).reshape(50, 2, 3)  # type: ignore[call-overload]
    places = np.array([float(patches[index]["image"]) for index in range(300)]).reshape(50, 2, 3)  # type: ignore[arg-type]
    assert (labels[:, 0] > 0).all() and (labels[:, 1] > 0).mean() < 0.1
    for case in range(3):
        assert len(np.unique(places[:, 0, case])) > 5  # of the nine foreground voxels
        assert len(np.unique(places[:, 1, case])) > 40


def test_a_patch_is_an_untouched_box_of_its_case(cases: list[PreparedCase]) -> None:
    patches = patches_of(cases)
    for index in range(len(patches)):
        sample, case = patches[index], cases[index % 3]
        image, label = sample["image"], sample["label"]
        assert isinstance(image, torch.Tensor) and isinstance(label, torch.Tensor)
        assert image.dtype == torch.float32 and label.dtype == torch.int64
        first = np.unravel_index(int(image[0, 0, 0, 0]) % 10_000, case.shape)
        box = tuple(slice(start, start + size) for start, size in zip(first, PATCH, strict=True))
        np.testing.assert_array_equal(image[0], np.load(case.image)[0][box])
        np.testing.assert_array_equal(label, np.load(str(case.label))[box])


def test_patches_follow_from_seed_and_index_alone(cases: list[PreparedCase]) -> None:
    def images(seed: int, order: range) -> dict[int, float]:
        patches = patches_of(cases, seed=seed)
        return {index: float(patches[index]["image"].sum()) for index in order}  # type: ignore[attr-defined]

    torch.manual_seed(3)
    first = images(0, range(12))
    torch.rand(5)  # the global generator's state does not matter and is not changed
    state = torch.get_rng_state()
    assert images(0, range(11, -1, -1)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert images(1, range(12)) != first


@pytest.mark.parametrize(("count", "batch_size", "expected"), [(1, 2, 4), (7, 2, 8), (8, 4, 8), (3, 1, 3)])
def test_every_case_is_there_and_batches_are_whole(
    cases: list[PreparedCase], count: int, batch_size: int, expected: int
) -> None:
    patches = patches_of(cases, count, batch_size)
    assert len(patches) == expected
    with pytest.raises(IndexError):
        patches[expected]


def test_no_cases_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no validation cases"):
        patches_of([])


def test_whole_passes_come_every_so_many_epochs_and_last() -> None:
    sampler = PeriodicSampler(2, every=3, epochs=8)
    passes = []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        passes.append(list(sampler))
    assert passes == [[], [], [0, 1], [], [], [0, 1], [], [0, 1]]
    assert len(sampler) == 2


@pytest.mark.parametrize(("length", "parts"), [(5, [[0, 2, 4], [1, 3]]), (1, [[0], []])])
def test_processes_share_the_positions_and_repeat_none(length: int, parts: list[list[int]]) -> None:
    samplers = [PeriodicSampler(length, every=1, epochs=None, rank=rank, world_size=2) for rank in (0, 1)]
    assert [list(sampler) for sampler in samplers] == parts
    assert [len(sampler) for sampler in samplers] == [len(part) for part in parts]
