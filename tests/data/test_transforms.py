"""TorchIO, MONAI and custom transforms in a recipe: in any position, with equal results in workers and on device."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio

from e2enet.common.errors import InputError
from e2enet.data.augmentation.recipe import build_augmentation, read_recipe
from e2enet.data.loaders.loading import collate_patches, patch_loader
from e2enet.data.loaders.patches import frame_affine
from e2enet.data.loaders.sampling import EpochSampler, PatchDataset
from e2enet.data.preparation.foreground import sample_coordinates, write_coordinates
from e2enet.data.preparation.store import PreparedCase
from tests.data.own_steps import HERE, PATCH

BIAS = {"_target_": "torchio.RandomBiasField", "coefficients": 0.3}
AFFINE = {"_target_": "torchio.RandomAffine", "degrees": 20}
SHIFT = {"_target_": "monai.transforms.RandShiftIntensity", "offsets": 0.5, "prob": 1.0}
BOTH = {
    "_target_": "monai.transforms.RandAffined",
    "keys": ["image", "label"],
    "mode": ["bilinear", "nearest"],
    "prob": 1.0,
    "rotate_range": 0.5,
    "padding_mode": "zeros",
}
ONE_OF = {"_target_": "monai.transforms.OneOf", "transforms": [SHIFT, {**SHIFT, "offsets": 3.0}]}
NESTED = {"_target_": "monai.transforms.Compose", "transforms": [ONE_OF]}


@pytest.fixture
def case(tmp_path: Path) -> PreparedCase:
    """A case whose image encodes each voxel's position, and whose label is a block."""
    shape = (16, 18, 20)
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    label = np.zeros(shape, np.uint8)
    label[4:12, 4:12, 4:12] = 3
    np.save(tmp_path / "a.image.npy", image)
    np.save(tmp_path / "a.label.npy", label)
    write_coordinates(tmp_path / "a.foreground.npz", sample_coordinates(label))
    return PreparedCase("a", tmp_path / "a.image.npy", tmp_path / "a.label.npy", shape)


def make_dataset(case: PreparedCase, recipe: Mapping[str, Any] | str, **options: Any) -> PatchDataset:
    augmentation = build_augmentation(PATCH, (0, 1, 2), recipe)
    affine = frame_affine((3, 1, 1), depth_axis=2)
    return PatchDataset([case], PATCH, batch_size=2, augmentation=augmentation, seed=0, affine=affine, **options)


def own(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **options}


def test_steps_stand_where_order_puts_them(case: PreparedCase) -> None:
    nnunet = read_recipe("nnunet")
    assert list(build_augmentation(PATCH, (), {**nnunet, "bias": BIAS}).steps)[-2:] == ["mirror", "bias"]
    names = ["spatial", "bias", *(name for name in nnunet if name not in ("order", "spatial", "blur"))]
    recipe = {**nnunet, "bias": BIAS, "blur": None, "order": names}
    assert list(build_augmentation(PATCH, (), recipe).steps) == names
    # 2 (x + 5) is 5 more than 2 x + 5.
    steps = {
        "double": {"_target_": "monai.transforms.ScaleIntensity", "minv": None, "maxv": None, "factor": 1.0},
        "offset": own("Offset", low=5.0, high=5.0),
    }
    samples: list[Any] = [
        make_dataset(case, {**steps, "order": order})[(0, 0)] for order in (["double", "offset"], ["offset", "double"])
    ]
    torch.testing.assert_close(samples[1]["image"] - samples[0]["image"], torch.full((1, *PATCH), 5.0))


def test_steps_see_spacing_directions_and_place_of_the_patch(case: PreparedCase) -> None:
    dataset = make_dataset(
        case, {"early": own("Offset", high=0.0), "more": own("MiddleOfMore"), "late": own("Offset", high=0.0)}
    )
    sample: dict[str, Any] = dataset[(0, 0)]
    start = np.unravel_index(int(sample["image"][0, 0, 0, 0]), case.shape)
    for name, margin in (("early", 2), ("late", 0)):
        (patch,) = dataset.augmentation.steps[name].seen  # type: ignore[attr-defined]
        assert tuple(patch.image.shape[1:]) == tuple(edge + 2 * margin for edge in PATCH) and patch.label.shape[0] == 1
        image = tio.ScalarImage(tensor=torch.zeros(1, 1, 1, 1), affine=patch.affine)
        assert image.orientation == ("S", "R", "A") and image.spacing == (3, 1, 1)
        d, h, w = (int(first) - margin for first in start)
        np.testing.assert_allclose(patch.affine @ (0, 0, 0, 1), [h, w, 3 * d, 1])


def test_anatomical_directions_name_the_right_axis(case: PreparedCase) -> None:
    flip = {"_target_": "torchio.RandomFlip", "axes": ["Left"], "flip_probability": 1}  # left and right lie along H
    plain: Any = make_dataset(case, {"same": {"_target_": "torchio.RandomGamma", "log_gamma": 0.0}})[(0, 1)]
    flipped: Any = make_dataset(case, {"flip": flip})[(0, 1)]
    torch.testing.assert_close(flipped["image"], plain["image"].flip(2))
    assert torch.equal(flipped["label"], plain["label"].flip(1)) and flipped["label"].dtype == torch.uint8


@pytest.mark.parametrize("inside", [False, True])
def test_every_kind_of_step_gives_the_same_in_both_places(case: PreparedCase, inside: bool, tmp_path: Path) -> None:
    if inside:
        np.save(tmp_path / "inside.npy", (np.load(case.label) == 0).astype(np.uint8))
        case = PreparedCase(case.id, case.image, case.label, case.shape, tmp_path / "inside.npy")
    more = {"affine": AFFINE, "both": BOTH, "bias": BIAS, "shift": SHIFT, "nested": NESTED, "offset": own("Offset")}
    nnunet = {name: step for name, step in read_recipe("nnunet").items() if name != "order"}
    names = [
        "bias",
        "affine",
        "spatial",
        "both",
        "shift",
        *(name for name in nnunet if name != "spatial"),
        "offset",
        "nested",
    ]
    recipe = {**more, **nnunet, "order": names}
    here, there = make_dataset(case, recipe), make_dataset(case, recipe, augment_here=False)
    keys = [(0, index) for index in range(4)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    samples: list[dict[str, Any]] = [here[key] for key in reversed(keys)][::-1]
    boxes = collate_patches([there[key] for key in keys])
    images, labels = there.augmentation.apply(boxes["image"], boxes["label"], boxes["draw"], boxes.get("inside", ()))
    for sample, image, label in zip(samples, images, labels, strict=True):
        torch.testing.assert_close(image, sample["image"], rtol=1e-4, atol=1e-4 * float(image.abs().max()))
        assert torch.equal(label, sample["label"]) and label.dtype == torch.uint8
        assert set(label.unique().tolist()) <= {0, 3} and image.dtype == torch.float32
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_workers_share_no_generator(case: PreparedCase) -> None:
    epochs = []
    for workers in (0, 2):
        dataset = make_dataset(case, {"nested": NESTED, "shift": SHIFT})
        epochs.append([batch["image"] for batch in patch_loader(dataset, EpochSampler(3, 2), num_workers=workers)])
    assert all(torch.equal(image, other) for image, other in zip(*epochs, strict=True))
    offsets = {round(float(image.min() % 1), 4) for batch in epochs[0] for image in batch}
    assert len(offsets) == 6  # each sample has a draw of its own


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (
            {"_target_": "torchio.CropOrPad", "target_shape": 4},
            r"CropOrPad changes the image from \(1, 6, 8, 10\) to \(1, 4",
        ),
        ({**BOTH, "mode": "bilinear"}, r"RandAffined makes labels \[.*\] that the patch did not hold"),
        ({"_target_": "torchio.RemapLabels", "remapping": {3: 7}}, r"RemapLabels makes labels \[7\]"),
        (
            {"_target_": "monai.transforms.RandSpatialCrop", "roi_size": 4, "random_size": False},
            "RandSpatialCrop changes",
        ),
        (own("Wrong", how="floats"), r"its label is torch.float32 of \(1, 6, 8, 10\); torch.uint8 of"),
        (own("Wrong", how="crops"), r"its image is torch.float32 of \(0, 6, 8, 10\)"),
    ],
)
def test_what_a_step_may_not_give_is_told_with_its_name(case: PreparedCase, step: Any, problem: str) -> None:
    dataset = make_dataset(case, {"mine": step})
    dataset.sampler.foreground_share = 1.0
    with pytest.raises(InputError, match=rf"augmentation.mine: {problem}"):
        for index in range(3):
            dataset[(0, index)]


def test_whatever_else_a_step_raises_is_told_with_its_name(case: PreparedCase) -> None:
    with pytest.raises(RuntimeError, match=r"augmentation.mine: ZeroDivisionError: nothing left"):
        make_dataset(case, {"mine": own("Wrong", how="raises")})[(0, 0)]
