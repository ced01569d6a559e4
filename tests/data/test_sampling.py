"""Samples depend on (seed, epoch, index) alone; the sampler decides which of them a process draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from e2enet.common.errors import InputError
from e2enet.data.augmentation.recipe import build_augmentation
from e2enet.data.augmentation.spatial import RotationScaling
from e2enet.data.loaders.patch_sampler import PatchSampler, foreground_count
from e2enet.data.loaders.sampling import CaseDataset, EpochSampler, PatchDataset
from e2enet.data.preparation.store import PreparedCase
from tests.data.conftest import make_case

PATCH = (4, 6, 8)


def make_dataset(cases: Sequence[PreparedCase], recipe: str, seed: int = 7, batch_size: int = 2) -> PatchDataset:
    augmentation = build_augmentation(PATCH, (0, 1, 2), recipe)
    return PatchDataset(cases, PATCH, batch_size=batch_size, augmentation=augmentation, seed=seed)


@pytest.fixture
def cases(tmp_path: Path) -> list[PreparedCase]:
    return [make_case(tmp_path, name, shape) for name, shape in (("a", (7, 12, 13)), ("b", (5, 10, 9)))]


def on_foreground(cases: Sequence[PreparedCase], samples: int = 60, share: float = 0.33, **options: Any) -> list[bool]:
    """Return for each of the first samples whether it is centred on foreground."""
    augmentation, asked = build_augmentation(PATCH, (), "none"), []
    dataset = PatchDataset(cases, PATCH, augmentation=augmentation, seed=3, sampler=PatchSampler(share), **options)
    dataset._sample = lambda case, foreground: asked.append(foreground)  # type: ignore
    for index in range(samples):
        dataset[(0, index)]
    return asked


def test_large_batches_hold_nnu_nets_number_of_foreground_patches(cases: list[PreparedCase]) -> None:
    for size in range(3, 40):
        assert foreground_count(size, 0.33) == size - round(2 * size / 3), size
    assert on_foreground(cases, 8, batch_size=4) == [False, False, False, True] * 2
    assert on_foreground(cases, 12, batch_size=6) == [False, False, False, False, True, True] * 2
    assert on_foreground(cases, 8, batch_size=4, share=0.5) == [False, False, True, True] * 2


@pytest.mark.parametrize("share", [0.33, 0.1, 0.5])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_small_and_accumulated_batches_draw_the_share_that_is_asked_for(
    cases: list[PreparedCase], batch_size: int, accumulate: int, share: float
) -> None:
    assert foreground_count(batch_size, share, accumulate) is None
    drawn = on_foreground(cases, 900, batch_size=batch_size, share=share, accumulate=accumulate)
    assert np.mean(drawn) == pytest.approx(share, abs=0.05)  # three standard deviations at 0.5
    if batch_size == 2:
        assert set(np.add.reduceat(drawn, np.arange(0, 900, 2))) == {0, 1, 2}  # the number per batch is not fixed


@pytest.mark.parametrize("share", np.linspace(0.02, 0.98, 25))
def test_no_batch_is_further_than_a_tenth_from_the_share(share: float) -> None:
    counts = {size: foreground_count(size, share) for size in range(1, 30)}
    assert all(abs(count / size - share) <= 0.1 for size, count in counts.items() if count is not None)
    assert 0 not in counts.values() and all(counts[size] != size for size in counts)  # never none, never all
    assert all(counts[size] is not None for size in range(6, 30) if 1 / size < share < 1 - 1 / size)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_no_or_only_foreground_patches_where_that_is_asked_for(cases: list[PreparedCase], batch_size: int) -> None:
    assert not any(on_foreground(cases, batch_size=batch_size, share=0.0))
    assert all(on_foreground(cases, batch_size=batch_size, share=1.0))


def test_whether_a_sample_is_on_foreground_follows_from_its_own_seed(cases: list[PreparedCase]) -> None:
    first = on_foreground(cases, batch_size=2)
    assert on_foreground(cases, batch_size=1) == on_foreground(cases, batch_size=4, accumulate=2) == first
    assert 10 < sum(first) < 30


def test_foreground_patches_are_centred_on_every_voxel_of_a_class(tmp_path: Path) -> None:
    case = make_case(tmp_path, shape=(20, 20, 20))  # class 1 is a voxel, class 2 a block of eight
    augmentation = build_augmentation((1, 1, 1), (), "none")
    dataset = PatchDataset(
        [case], (1, 1, 1), batch_size=1, augmentation=augmentation, seed=0, sampler=PatchSampler(1.0)
    )
    samples = [dataset[(0, index)] for index in range(200)]
    labels = np.bincount([int(sample["label"]) for sample in samples])  # type: ignore
    assert labels[0] == 0 and labels[1] == pytest.approx(100, abs=25)
    assert len({float(sample["image"]) for sample in samples}) == 1 + 8  # type: ignore


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


def test_image_smaller_than_the_patch_is_padded_in_its_middle(tmp_path: Path) -> None:
    case = make_case(tmp_path, shape=(4, 4, 4))
    sample = make_dataset([case], "none")[(0, 1)]
    np.testing.assert_array_equal(sample["image"][0, :, 1:5, 2:6], np.load(case.image)[0])
    assert sample["image"].sum() == np.load(case.image).sum()


def test_rotated_sample_keeps_image_and_label_together(tmp_path: Path) -> None:
    case = make_case(tmp_path, shape=(20, 20, 20))
    np.save(case.image, np.load(case.label)[None].astype(np.float32))
    dataset = make_dataset([case], "none")
    dataset.augmentation = replace(
        dataset.augmentation, steps={"turn": RotationScaling(1, 30.0, 0.2, (0.7, 1.4), 180.0, 3.0, PATCH)}
    )
    samples = [dataset[(0, index)] for index in range(1, 20, 2)]
    assert any(len(torch.unique(sample["image"])) > 3 for sample in samples)  # values were interpolated linearly
    for sample in samples:
        difference = (sample["image"][0] - sample["label"].float()).abs()
        assert difference.max() <= 1.75 and difference.mean() < 0.1


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
    sampler.set_epoch(0)  # as Lightning does before it restores the epoch; workers start at once
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


@pytest.mark.parametrize("options", [{}, {"sampler": PatchSampler(0.5)}, {"accumulate": 2}])
def test_two_processes_draw_what_one_with_twice_the_batch_draws(
    cases: list[PreparedCase], options: dict[str, Any]
) -> None:
    augmentation = build_augmentation(PATCH, (0, 1, 2))
    dataset = PatchDataset(cases, PATCH, batch_size=4, augmentation=augmentation, seed=3, **options)
    alone, both = EpochSampler(10, 4), [EpochSampler(10, 2, rank=rank, world_size=2) for rank in (0, 1)]
    expected = [dataset[key]["image"] for key in alone]
    first, second = ([dataset[key]["image"] for key in sampler] for sampler in both)
    together = [image for step in range(0, 20, 2) for image in first[step : step + 2] + second[step : step + 2]]
    assert len(together) == len(expected) == 40
    assert all(torch.equal(image, other) for image, other in zip(together, expected, strict=True))  # type: ignore


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


def test_the_threads_of_the_training_process_change_no_bit(tmp_path: Path) -> None:
    """A worker has one thread, this process any number. Some sums of the recipe are split among threads."""
    patch = (10, 128, 128)
    image = np.random.default_rng(0).normal(size=(1, 12, 150, 150)).astype(np.float32)
    case = make_case(tmp_path, "a", image.shape[1:])
    np.save(case.image, image)
    recipe = build_augmentation(patch, (0, 1, 2), "nnunet")
    dataset = PatchDataset([case], patch, batch_size=2, augmentation=recipe, seed=7)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append([dataset[(0, index)]["image"] for index in range(16)])
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    for one, several in zip(*found, strict=True):
        assert torch.equal(one, several)  # type: ignore[arg-type]
