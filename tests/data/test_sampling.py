"""Samples: each follows from (seed, epoch, index) alone, and which of them a process draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from e2enet.common.errors import InputError
from e2enet.data.augmentation.recipe import build_augmentation
from e2enet.data.augmentation.spatial import RandomRotateScale
from e2enet.data.preparation.store import PreparedCase
from e2enet.data.sampling import CaseDataset, EpochSampler, PatchDataset, is_foreground_sample
from tests.data.conftest import make_case

PATCH = (4, 6, 8)


def make_dataset(cases: Sequence[PreparedCase], recipe: str, seed: int = 7, batch_size: int = 2) -> PatchDataset:
    augmentation = build_augmentation(PATCH, (0, 1, 2), recipe)
    return PatchDataset(cases, PATCH, batch_size=batch_size, augmentation=augmentation, seed=seed)


@pytest.fixture
def cases(tmp_path: Path) -> list[PreparedCase]:
    return [make_case(tmp_path, name, shape) for name, shape in (("a", (7, 12, 13)), ("b", (5, 10, 9)))]


def test_foreground_rule_of_each_batch() -> None:
    rule = {size: [is_foreground_sample(index, size) for index in range(size)] for size in (1, 2, 3, 4, 6)}
    assert rule[1] == [False]
    assert rule[2] == [False, True]
    assert rule[3] == [False, False, True]
    assert rule[4] == [False, False, False, True]
    assert rule[6] == [False, False, False, False, True, True]
    assert is_foreground_sample(7, 2) and not is_foreground_sample(6, 2)


def test_unaugmented_sample_is_a_box_of_the_image_with_its_label(cases: list[PreparedCase]) -> None:
    dataset = make_dataset(cases, "none")
    for index in range(10):
        sample = dataset[(0, index)]
        case = next(case for case in cases if case.id == sample["case"])
        image, label = sample["image"], sample["label"]
        assert image.dtype == torch.float32 and label.dtype == torch.uint8
        assert image.shape == (1, *PATCH) and label.shape == PATCH
        first = np.unravel_index(int(image[0, 0, 0, 0]), case.shape)
        box = tuple(slice(start, start + size) for start, size in zip(first, PATCH, strict=True))
        np.testing.assert_array_equal(image[0], np.load(case.image)[0][box])
        np.testing.assert_array_equal(label, np.load(case.label)[box])
        if index % 2 == 1:
            assert label.max() > 0


def test_image_smaller_than_the_patch_is_padded_in_its_middle(tmp_path: Path) -> None:
    case = make_case(tmp_path, shape=(4, 4, 4))
    sample = make_dataset([case], "none")[(0, 1)]
    np.testing.assert_array_equal(sample["image"][0, :, 1:5, 2:6], np.load(case.image)[0])
    assert sample["image"].sum() == np.load(case.image).sum()


def test_rotated_sample_keeps_image_and_label_together(tmp_path: Path) -> None:
    case = make_case(tmp_path, shape=(20, 20, 20))
    np.save(case.image, np.load(case.label)[None].astype(np.float32))
    dataset = make_dataset([case], "none")
    dataset.augmentation = replace(dataset.augmentation, spatial=RandomRotateScale(rotation_p=1))
    samples = [dataset[(0, index)] for index in range(1, 20, 2)]
    assert any(len(torch.unique(sample["image"])) > 3 for sample in samples)  # linear interpolation took place
    for sample in samples:
        difference = (sample["image"][0] - sample["label"].float()).abs()
        assert difference.max() <= 1.5 and difference.mean() < 0.1


def test_same_key_same_sample_in_any_order(cases: list[PreparedCase]) -> None:
    keys = [(epoch, index) for epoch in range(2) for index in range(6)]
    first = {key: make_dataset(cases, "nnunet")[key] for key in keys}
    dataset = make_dataset(cases, "nnunet")
    torch.rand(3)  # the state of the global generator must not matter
    for key in reversed(keys):
        again = dataset[key]
        assert again["case"] == first[key]["case"]
        assert torch.equal(again["image"], first[key]["image"]) and torch.equal(again["label"], first[key]["label"])


def test_other_seed_epoch_or_index_gives_another_sample(cases: list[PreparedCase]) -> None:
    dataset, other = make_dataset(cases, "nnunet"), make_dataset(cases, "nnunet", seed=8)
    images = [dataset[(0, 0)], dataset[(1, 0)], dataset[(0, 2)], dataset[(2, 0)], other[(0, 0)]]
    sums = {round(float(sample["image"].sum()), 3) for sample in images}
    assert len(sums) == len(images)


def test_sampling_leaves_the_global_generator_alone(cases: list[PreparedCase]) -> None:
    dataset = make_dataset(cases, "nnunet")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    dataset[(0, 1)]
    assert torch.equal(torch.rand(2), expected)


def test_worker_count_does_not_change_the_batches(cases: list[PreparedCase]) -> None:
    epochs = []
    for workers in (0, 2):
        sampler = EpochSampler(3, 2)
        loader = DataLoader(make_dataset(cases, "nnunet"), batch_size=2, sampler=sampler, num_workers=workers)
        sampler.set_epoch(4)
        epochs.append(list(loader))
    for here, there in zip(*epochs, strict=True):
        assert torch.equal(here["image"], there["image"]) and torch.equal(here["label"], there["label"])
        assert here["case"] == there["case"]
        assert here["image"].shape == (2, 1, *PATCH) and here["label"].shape == (2, *PATCH)


def test_epoch_sampler_yields_keys_of_its_epoch() -> None:
    sampler = EpochSampler(2, 3)
    assert len(sampler) == 6 and list(sampler) == [(0, index) for index in range(6)]
    sampler.set_epoch(5)
    assert list(sampler) == [(5, index) for index in range(6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_sampler_goes_on_at_its_batch(workers: int, cases: list[PreparedCase]) -> None:
    sampler = EpochSampler(3, 2, start=(4, 1))
    sampler.set_epoch(0)  # as Lightning does before it knows better, and workers begin at once
    loader = DataLoader(
        make_dataset(cases, "none"), batch_size=2, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
    )
    under_way = iter(loader)
    sampler.set_epoch(4)
    expected = [make_dataset(cases, "none")[4, index]["image"] for index in range(2, 6)]
    assert torch.equal(torch.cat([batch["image"] for batch in under_way]), torch.stack(expected))  # type: ignore[arg-type]
    assert len(loader) == 3
    sampler.set_epoch(5)
    assert list(sampler) == [(5, index) for index in range(6)] and len(list(loader)) == 3


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_samples_of_one_process_with_the_larger_batch(world_size: int) -> None:
    whole = list(EpochSampler(4, 2 * world_size))
    parts = [list(EpochSampler(4, 2, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [len(part) for part in parts] == [8] * world_size
    batches = [key for step in range(4) for part in parts for key in part[2 * step : 2 * step + 2]]
    assert batches == whole == [(0, index) for index in range(8 * world_size)]


def drawn_cases(number: int, shares: int, epoch: int) -> list[set[str]]:
    """The cases that each of so many processes draws from in an epoch of 20 batches."""
    cases = [PreparedCase(f"case_{index}", Path("image.npy"), None, (8, 8, 8)) for index in range(number)]
    dataset = make_dataset(cases, "none", batch_size=2 * shares)
    dataset = PatchDataset(
        cases, PATCH, batch_size=2 * shares, augmentation=dataset.augmentation, seed=3, shares=shares
    )
    dataset._sample = lambda case, *_: {"case": case.id}  # type: ignore[method-assign]
    samplers = [EpochSampler(20, 2, rank=rank, world_size=shares, start=(epoch, 0)) for rank in range(shares)]
    return [{str(dataset[key]["case"]) for key in sampler} for sampler in samplers]


@pytest.mark.parametrize(("number", "shares"), [(7, 2), (7, 3), (8, 8), (20, 4)])
def test_processes_draw_from_cases_of_their_own(number: int, shares: int) -> None:
    met: list[set[str]] = [set() for _ in range(shares)]
    for epoch in range(100):
        found = drawn_cases(number, shares, epoch)
        assert [len(cases) for cases in found] == [number // shares] * shares
        assert len(set.union(*found)) == number // shares * shares
        met = [before | now for before, now in zip(met, found, strict=True)]
    assert [len(cases) for cases in met] == [number] * shares


def test_fewer_cases_than_processes_are_drawn_by_all() -> None:
    assert [len(cases) for cases in drawn_cases(3, 4, epoch=0)] == [3] * 4


def test_case_dataset_gives_whole_cases(cases: list[PreparedCase]) -> None:
    dataset = CaseDataset(cases)
    assert len(dataset) == 2
    sample = dataset[1]
    np.testing.assert_array_equal(sample["image"], np.load(cases[1].image))
    np.testing.assert_array_equal(sample["label"], np.load(cases[1].label))
    assert sample["case"] == "b" and sample["label"].dtype == torch.int64


def test_no_cases_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no training cases"):
        make_dataset([], "none")
