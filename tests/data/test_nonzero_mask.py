"""If normalisation uses the nonzero mask, voxels outside of it are 0 after every augmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from e2enet.data.augmentation.recipe import build_augmentation, read_recipe
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.formats.layout import read_msd
from e2enet.data.layouts.described import MSDLayout
from e2enet.data.planning.plan import Plan
from e2enet.data.planning.plan_file import plan_dataset
from e2enet.data.preparation.cases import prepare_cases
from e2enet.data.preparation.forecast import forecast
from tests.data.conftest import Toy, save

SIZE = 24
PATCH = (16, 16, 16)


def ball(radius: float) -> np.ndarray:
    distance = np.sqrt(sum((axis - SIZE / 2 + 0.5) ** 2 for axis in np.indices((SIZE,) * 3)))
    return np.asarray(distance < radius, np.uint8)


def write_balls(raw: Path) -> Path:
    """Write five MRI of a ball on zeros, fully labelled (1: shell, 2: core). A hole of zeros counts as inside."""
    rng = np.random.default_rng(0)
    for number in range(5):
        image = (ball(9) * rng.integers(100, 400, (SIZE,) * 3)).astype(np.int16)
        image[11:13, 11:13, 11:13] = 0
        save(raw / f"Balls/imagesTr/{number}.nii.gz", image, np.eye(4))
        save(raw / f"Balls/labelsTr/{number}.nii.gz", ball(9) + ball(5), np.eye(4))
    training = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in range(5)]
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "shell", "2": "core"}, "training": training}
    (raw / "Balls/dataset.json").write_text(json.dumps(content))
    return raw / "Balls"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_balls(root / "raw")
    return root


def module(root: Path, **options: Any) -> SegmentationDataModule:
    plan = {"patch_size": PATCH, "strides": [(2, 2, 2)], "batch_size": 4} | options.pop("plan", {})
    defaults = {"fold": "all", "steps_per_epoch": 10, "num_workers": 0, "prepare_workers": 0, "validate_full": 1}
    roots = {"root": root / "raw", "prepared_root": root / "prepared"}
    data = SegmentationDataModule(layout=MSDLayout(), name="Balls", **roots, plan=plan, **defaults | options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    return data


def batches(data: SegmentationDataModule) -> list[dict[str, Any]]:
    """Return training batches as `training_step` gets them."""
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def test_a_mask_is_applied_as_the_label_is_moved() -> None:
    generator = torch.Generator().manual_seed(0)
    augmentation = build_augmentation((6, 8, 10), (0, 1, 2), masked_channels=(1,))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = [augmentation.draw(channels=2) for _ in range(60)]
    assert all(any(name in draw.drawn for draw in draws) for name in augmentation.steps)
    for draw in draws:
        size = augmentation.box_size(draw)
        image = torch.randn(2, *size, generator=generator) + 3
        label = torch.randint(0, 300, size, generator=generator, dtype=torch.int16)
        inside = torch.randint(0, 2, size, generator=generator, dtype=torch.uint8)
        plain, moved = augmentation.apply([image.clone()], [label.clone()], [draw])
        _, kept = augmentation.apply([image.clone()], [inside.clone()], [draw])
        masked, with_it = augmentation.apply([image.clone()], [label], [draw], [inside])
        assert torch.equal(with_it, moved) and with_it.dtype == torch.int16
        assert torch.equal(masked[:, 0], plain[:, 0])
        assert torch.equal(masked[:, 1], plain[:, 1] * kept) and 0.2 < kept.float().mean() < 0.8


@pytest.mark.parametrize("augment_on", ["worker", "device"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.3, 0.8, 0.9)])
def test_no_draw_leaves_anything_outside(root: Path, augment_on: Any, spacing: tuple[float, ...]) -> None:
    affine = {"_target_": "torchio.RandomAffine", "degrees": 20, "p": 0.5}
    monai = {"_target_": "monai.transforms.RandAffined", "keys": ["image", "label"], "prob": 0.5, "rotate_range": 0.3}
    more = {"move": affine, "turn": {**monai, "mode": ["bilinear", "nearest"], "padding_mode": "zeros"}}
    noise = {"_target_": "torchio.RandomNoise", "mean": 1.0, "p": 0.5}
    recipe = {**more, **read_recipe("nnunet"), "order": None, "noise": noise}
    data = module(root, augment_on=augment_on, plan={"spacing": spacing}, augmentation=recipe)
    assert data.plan.normalisation == ({"scheme": "zscore", "nonzero": True},)
    spread = []
    for batch in batches(data):
        assert batch.keys() == {"image", "label", "case"}
        assert batch["label"].untyped_storage().nbytes() == batch["label"].nbytes  # the mask is not kept in memory
        image, outside = batch["image"][:, 0], batch["label"] == 0  # here every voxel inside is labelled
        assert (image[outside] == 0).all() and 0.05 < outside.float().mean() < 0.95
        spread.append(float(image[~outside].std()))
    assert np.mean(spread) > 0.5


def test_both_places_mask_alike(root: Path) -> None:
    here, there = (batches(module(root, augment_on=place)) for place in ("worker", "device"))
    for batch, other in zip(here, there, strict=True):
        assert torch.equal(batch["label"], other["label"])
        torch.testing.assert_close(batch["image"], other["image"], atol=1e-4, rtol=0)


class Watch(pl.LightningModule):
    """Record the image values that training steps get outside of the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.outside: list[float] = []

    def training_step(self, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        self.outside.append(float(batch["image"][:, 0][batch["label"] == 0].abs().max()))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_mask_travels_through_workers_and_trainer(root: Path) -> None:
    data, watch = module(root, augment_on="device", num_workers=1, steps_per_epoch=6, validate_full=0), Watch()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(watch, datamodule=data)
    assert watch.outside == [0.0] * 6


def test_validation_takes_patches_and_cases_as_prediction_does(root: Path) -> None:
    for loader in module(root, plan={"spacing": (1.3, 0.8, 0.9)}).val_dataloader():
        batch = next(iter(loader))
        assert batch.keys() == {"image", "label", "case"}
        assert (batch["image"][:, 0][batch["label"] == 0] != 0).any()  # ringing of the spline, which prediction has too


def test_the_mask_is_prepared_with_holes_filled_and_labels_inside(tmp_path: Path) -> None:
    folder = write_balls(tmp_path)
    label = np.zeros((SIZE,) * 3, np.uint8)
    label[12, 12, 12] = label[4, 4, 12] = 1  # the second voxel lies in the box, outside of the ball
    save(folder / "labelsTr/0.nii.gz", label, np.eye(4))
    dataset = read_msd(folder)
    plan = plan_dataset(dataset, tmp_path / "prepared")
    first, second = prepare_cases(dataset, dataset.training[:2], plan, tmp_path / "prepared", 0)
    assert first.inside is not None and second.inside is not None
    inside = np.load(second.inside)
    assert inside.dtype == np.uint8 and inside.shape == second.shape == (18, 18, 18)
    np.testing.assert_array_equal(inside, ball(9)[3:21, 3:21, 3:21])
    np.testing.assert_array_equal(np.argwhere(np.load(first.inside) != inside), [[9, 1, 1]])  # depth is the last axis
    second.inside.unlink()  # as in a folder from before masks existed
    (again,) = prepare_cases(dataset, dataset.training[1:2], plan, tmp_path / "prepared", 0)
    assert again.inside is not None and np.array_equal(np.load(again.inside), inside)


def test_no_mask_where_normalisation_goes_by_the_whole_image(toy: Toy, tmp_path: Path) -> None:
    toy.describe(modality={"0": "MRI"})
    dataset = read_msd(toy.folder)
    plan = plan_dataset(dataset, tmp_path / "prepared")
    cases = prepare_cases(dataset, dataset.training, plan, tmp_path / "prepared", 0)
    assert plan.masked_channels == () and [case.inside for case in cases] == [None] * 6
    assert not list((tmp_path / "prepared").rglob("*.inside.npy"))


def test_the_forecast_counts_the_mask(root: Path, tmp_path: Path) -> None:
    dataset = read_msd(root / "raw/Balls")
    masked = plan_dataset(dataset, tmp_path)
    whole = Plan.from_dict(masked.to_dict() | {"normalisation": [{"scheme": "zscore", "nonzero": False}]})
    disk = [forecast(dataset, dataset.training, plan, tmp_path).disk for plan in (masked, whole)]
    assert disk[0] - disk[1] == 5 * SIZE**3
