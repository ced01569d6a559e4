"""For any shape, patch, step and spacing: patches lie inside, windows cover every voxel, resampling is reversible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from e2enet.data.augmentation.recipe import build_augmentation
from e2enet.data.formats.volume import Geometry, Volume
from e2enet.data.loaders.patch_sampler import PatchSampler, start_range
from e2enet.data.loaders.sampling import EpochSampler, PatchDataset
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.foreground import sample_coordinates, write_coordinates
from e2enet.data.preparation.preprocess import preprocess, preprocess_label
from e2enet.data.preparation.restore import restore_labels
from e2enet.data.preparation.store import PreparedCase
from e2enet.inference.sliding_window import count_windows, predict_probabilities

few = settings(max_examples=12, deadline=None, derandomize=True)
edges = st.integers(1, 9)
shapes = st.tuples(edges, edges, edges)
Triple = tuple[int, int, int]


def numbered_case(folder: Path, shape: Triple) -> PreparedCase:
    """Write a case whose voxels are numbered from 1. The last voxel is foreground."""
    image = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(1, *shape)
    label = np.zeros(shape, np.uint8)
    label[-1, -1, -1] = 1
    np.save(folder / "a.image.npy", image)
    np.save(folder / "a.label.npy", label)
    write_coordinates(folder / "a.foreground.npz", sample_coordinates(label))
    return PreparedCase("a", folder / "a.image.npy", folder / "a.label.npy", shape)


@few
@given(
    shape=shapes,
    patch=shapes,
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 999),
    order=st.permutations(range(4)),
    share=st.sampled_from([0.0, 1.0]),
)
def test_a_sample_is_a_box_of_its_case_and_follows_from_its_key_alone(
    shape: Triple, patch: Triple, seed: int, epoch: int, order: list[int], share: float
) -> None:
    with TemporaryDirectory() as folder:
        case = numbered_case(Path(folder), shape)
        recipe = build_augmentation(patch, (), "none")
        options: dict[str, Any] = {"augmentation": recipe, "seed": seed, "sampler": PatchSampler(share)}
        first, second = (PatchDataset([case], patch, batch_size=2, **options) for _ in range(2))
        samples = {index: first[epoch, index] for index in range(4)}
        again = {index: second[epoch, index] for index in order}
        whole = case.open_image()[0]
        for index, sample in samples.items():
            image, label = sample["image"], sample["label"]
            assert isinstance(image, Tensor) and isinstance(label, Tensor)
            assert image.shape == (1, *patch) and label.shape == patch
            assert torch.equal(image, again[index]["image"]) and torch.equal(label, again[index]["label"])
            inside = image[image > 0].numpy()
            assert len(inside) == np.prod(np.minimum(shape, patch))  # as much of the case as fits, without repetition
            assert len(np.unique(inside)) == len(inside) and np.isin(inside, whole).all()
            if share:  # centred on the one foreground voxel
                assert int(label.sum()) == 1 and float(image[0][label == 1]) == whole.max()


@few
@given(shape=shapes, patch=shapes, foreground=st.booleans(), seed=st.integers(0, 99))
def test_patches_start_within_their_range(shape: Triple, patch: Triple, foreground: bool, seed: int) -> None:
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        case = numbered_case(Path(folder), shape)
        torch.manual_seed(seed)
        start = PatchSampler().draw_start(case, patch, foreground)
    for first, size, edge in zip(start, shape, patch, strict=True):
        low, high = start_range(size, edge)
        assert low <= first <= high
        assert (first >= 0 and first + edge <= size) if edge <= size else (first <= 0 and first + edge >= size)


@few
@given(steps=st.integers(1, 5), batch=st.integers(1, 4), ranks=st.integers(1, 4), epoch=st.integers(0, 9))
def test_ranks_share_an_epoch_without_overlap_or_gap(steps: int, batch: int, ranks: int, epoch: int) -> None:
    samplers = [EpochSampler(steps, batch, rank=rank, world_size=ranks) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    keys = [list(sampler) for sampler in samplers]
    assert {len(own) for own in keys} == {steps * batch}
    assert sorted(key for own in keys for key in own) == [(epoch, index) for index in range(steps * batch * ranks)]


class VoxelWise(nn.Module):
    """Logits (x, -x): the result for a voxel does not depend on its window."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1)


@few
@given(shape=shapes, patch=shapes, step=st.floats(0.2, 1), batch=st.integers(1, 3), axes=st.sets(st.integers(0, 2)))
def test_every_voxel_is_covered_and_a_constant_stays_one(
    shape: Triple, patch: Triple, step: float, batch: int, axes: set[int]
) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    done: list[int] = []
    result = predict_probabilities(
        [VoxelWise()], image, patch, step=step, batch_size=batch, mirror_axes=sorted(axes), on_window=done.append
    )
    torch.testing.assert_close(result, torch.cat([image, -image]).softmax(0), atol=1e-5, rtol=0)
    assert sum(done) == count_windows(shape, patch, step)
    constant = predict_probabilities([VoxelWise()], torch.full((1, *shape), 0.5), patch, step=step)
    expected = torch.tensor([0.5, -0.5]).softmax(0).view(2, 1, 1, 1).expand(2, *shape)
    torch.testing.assert_close(constant, expected, atol=1e-6, rtol=0)


def volume_of(shape: Triple, spacing: Sequence[float]) -> Volume:
    """Return noise without zeros, in RAS order with depth first."""
    depth, height, width = shape
    affine = np.diag([spacing[1], spacing[2], spacing[0], 1.0])
    values = np.random.default_rng(0).uniform(1, 2, (1, *shape)).astype(np.float32)
    thick, tall, wide = (float(size) for size in spacing)
    return Volume(values, (thick, tall, wide), Geometry((height, width, depth), affine, 2))


def plan_at(spacing: Sequence[float]) -> Plan:
    thick, tall, wide = (float(size) for size in spacing)
    return Plan(2, (thick, tall, wide), (4, 4, 4), ((2, 2, 2),), 2, ({"scheme": "none"},), (4, 4, 4))


millimetres = st.floats(0.3, 6)


@few
@given(
    shape=shapes,
    spacing=st.tuples(millimetres, millimetres, millimetres),
    finer=st.tuples(*[st.sampled_from([1, 3])] * 3),
    seed=st.integers(0, 99),
)
def test_labels_come_back_exactly_from_a_grid_that_holds_their_own(
    shape: Triple, spacing: tuple[float, float, float], finer: Triple, seed: int
) -> None:
    # If three voxels replace one, the middle one keeps its centre, so resampling back loses nothing.
    prepared = preprocess(
        volume_of(shape, spacing), plan_at([old / many for old, many in zip(spacing, finer, strict=True)])
    )
    assert prepared.image.shape == (1, *(edge * many for edge, many in zip(shape, finer, strict=True)))
    label = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
    there = preprocess_label(label, prepared)
    one_hot = np.stack([there == value for value in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(restore_labels(torch.from_numpy(one_hot).unbind(1), prepared), label)


@few
@given(shape=shapes, old=st.tuples(*[millimetres] * 3), new=st.tuples(*[millimetres] * 3), value=st.integers(0, 2))
def test_any_grid_keeps_constants_and_the_range_of_an_image(
    shape: Triple, old: tuple[float, float, float], new: tuple[float, float, float], value: int
) -> None:
    volume = volume_of(shape, old)
    prepared = preprocess(volume, plan_at(new))
    assert volume.array.min() - 1e-6 <= prepared.image.min() and prepared.image.max() <= volume.array.max() + 1e-6
    there = preprocess_label(np.full(shape, value, np.uint8), prepared)
    assert there.shape == prepared.image.shape[1:] and (there == value).all()
    one_hot = np.stack([there == other for other in range(3)]).astype(np.float32)
    back = restore_labels(torch.from_numpy(one_hot).unbind(1), prepared)
    assert back.shape == shape and (back == value).all()
