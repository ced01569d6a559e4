"""Augmentation on the device gives the same patches as in workers: voxel by voxel, and in distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor, nn

from e2enet.data.augmentation.recipe import Draw, build_augmentation
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.layouts.phantom import PhantomLayout
from e2enet.data.loaders.loading import collate_patches, patch_loader
from e2enet.data.loaders.sampling import EpochSampler, PatchDataset
from e2enet.data.preparation.foreground import sample_coordinates
from e2enet.data.preparation.store import PreparedCase

PATCH = (6, 8, 10)
COUNT = 400


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> PreparedCase:
    """A smooth case of two channels and three classes."""
    folder, shape = tmp_path_factory.mktemp("case"), (20, 24, 28)
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(2, *shape)), (0, 1, 1, 1))
    image = (image / image.std()).astype(np.float32)
    label = np.digitize(image[0], [0.5, 1.0, 1.5]).astype(np.uint8)
    np.save(folder / "a.image.npy", image)
    np.save(folder / "a.label.npy", label)
    coordinates = {str(value): rows for value, rows in sample_coordinates(label).items()}
    np.savez(folder / "a.foreground.npz", **coordinates)  # type: ignore[arg-type]
    return PreparedCase("a", folder / "a.image.npy", folder / "a.label.npy", shape)


def make_dataset(case: PreparedCase, *, augment_here: bool, seed: int = 0) -> PatchDataset:
    augmentation = build_augmentation(PATCH, (0, 1, 2))
    return PatchDataset([case], PATCH, batch_size=2, augmentation=augmentation, seed=seed, augment_here=augment_here)


def augment_batch(dataset: PatchDataset, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor, list[Draw]]:
    batch = collate_patches([dataset[key] for key in keys])
    return *dataset.augmentation.apply(batch["image"], batch["label"], batch["draw"]), batch["draw"]


def test_both_places_give_the_same_voxels(case: PreparedCase) -> None:
    here, there = make_dataset(case, augment_here=True), make_dataset(case, augment_here=False)
    seen: set[str] = set()
    for first in range(0, 60, 4):
        keys = [(1, index) for index in range(first, first + 4)]
        expected = collate_patches([here[key] for key in keys])
        image, label, draws = augment_batch(there, keys)
        torch.testing.assert_close(image, expected["image"], atol=1e-4, rtol=0)
        assert torch.equal(label, expected["label"]) and label.dtype == torch.uint8
        seen |= {name for draw in draws for name in draw.drawn}
    assert seen == set(here.augmentation.steps)


def test_the_worker_sends_no_more_than_the_draw_needs(case: PreparedCase) -> None:
    dataset = make_dataset(case, augment_here=False)
    for index in range(30):
        sample: dict[str, Any] = dataset[(0, index)]
        expected = PATCH if "spatial" not in sample["draw"].drawn else dataset.augmentation.box_size(sample["draw"])
        assert sample["image"].shape == (2, *expected) and sample["label"].shape == expected
        assert sample["label"].dtype == torch.uint8


def describe(image: Tensor, label: Tensor) -> list[float]:
    """Return statistics that augmentation changes: mean, deviation, extremes, roughness and foreground share."""
    roughness = image.diff(dim=-1).abs().mean()
    foreground = (label > 0).float().mean()
    return [float(v) for v in (image.mean(), image.std(), image.min(), image.max(), roughness, foreground)]


@pytest.mark.slow
def test_both_places_agree_in_distribution(case: PreparedCase) -> None:
    # Different seeds make the samples independent: equality cannot come from equal draws.
    here, there = make_dataset(case, augment_here=True, seed=1), make_dataset(case, augment_here=False, seed=2)
    in_worker, on_device, draws, values = [], [], [], ([], [])  # type: ignore[var-annotated]
    for first in range(0, COUNT, 2):
        keys = [(0, first), (0, first + 1)]
        for key in keys:
            sample: dict[str, Any] = here[key]
            in_worker.append(describe(sample["image"], sample["label"]))
            values[0].append(sample["image"][:, ::3, ::3, ::3].flatten())
        images, labels, drawn = augment_batch(there, keys)
        draws += drawn
        for image, label in zip(images, labels, strict=True):
            on_device.append(describe(image, label))
            values[1].append(image[:, ::3, ::3, ::3].flatten())
    for one, other in zip(np.array(in_worker).T, np.array(on_device).T, strict=True):
        assert stats.ks_2samp(one, other).pvalue > 0.01
    bins = np.linspace(-4, 4, 17)
    histograms = [np.histogram(torch.cat(part), bins)[0] / torch.cat(part).numel() for part in values]
    assert np.abs(histograms[0] - histograms[1]).max() < 0.02
    redrawn = [make_dataset(case, augment_here=False, seed=1)[(0, index)]["draw"] for index in range(COUNT)]
    for name in here.augmentation.steps:
        shares = [sum(name in draw.drawn for draw in part) / COUNT for part in (redrawn, draws)]
        assert shares[0] == pytest.approx(shares[1], abs=0.09), name  # three standard deviations at p = 0.3


def test_batches_follow_from_seed_and_epoch_whatever_the_workers(case: PreparedCase) -> None:
    epochs = []
    for workers in (0, 2):
        dataset, sampler = make_dataset(case, augment_here=False), EpochSampler(3, 2)
        sampler.set_epoch(5)
        batches = list(patch_loader(dataset, sampler, num_workers=workers))
        epochs.append([dataset.augmentation.apply(b["image"], b["label"], b["draw"]) for b in batches])
    for (image, label), (other_image, other_label) in zip(*epochs, strict=True):
        assert torch.equal(image, other_image) and torch.equal(label, other_label)


class Collector(pl.LightningModule):
    """Keeps what `training_step` and `validation_step` get."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.training_batches: list[dict[str, Any]] = []
        self.validation_batches: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        self.training_batches.append(batch)
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Any], batch_index: int, dataloader_idx: int = 0) -> None:
        self.validation_batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_training_gets_the_same_batches_from_both_places(tmp_path: Path, precision: Any) -> None:
    runs = []
    for augment_on in ("worker", "device"):
        data = SegmentationDataModule(
            layout=PhantomLayout(num_train=5, num_test=0, shape=(32, 32, 12)), name="phantom",
            root=tmp_path / "raw", prepared_root=tmp_path / "prepared",
            plan={"patch_size": (8, 16, 16), "strides": [(1, 2, 2), (2, 2, 2)], "batch_size": 2},
            steps_per_epoch=4, num_workers=0, augment_on=augment_on,
        )  # fmt: skip
        module = Collector()
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        runs.append(module)
    assert len(runs[0].training_batches) == 8 and runs[0].validation_batches
    for batch, other in zip(runs[0].training_batches, runs[1].training_batches, strict=True):
        assert batch.keys() == other.keys() == {"image", "label", "case"} and batch["case"] == other["case"]
        assert other["image"].shape == (2, 1, 8, 16, 16) and other["image"].dtype == torch.float32
        assert other["label"].dtype == torch.int64 and torch.equal(batch["label"], other["label"])
        torch.testing.assert_close(batch["image"], other["image"], atol=1e-4, rtol=0)
    for batch, other in zip(runs[0].validation_batches, runs[1].validation_batches, strict=True):
        assert torch.equal(batch["image"], other["image"])  # neither augments validation
