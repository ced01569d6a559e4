"""TorchIO transforms from the config: built, checked, applied in the worker, given right affines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.configuration.check import config_problems
from e2enet.data.augmentation.recipe import build_augmentation
from e2enet.data.augmentation.torchio_transforms import apply_transforms, transform_problem
from e2enet.data.loaders.patches import frame_affine
from e2enet.data.loaders.sampling import PatchDataset
from e2enet.data.preparation.foreground import sample_coordinates
from e2enet.data.preparation.store import PreparedCase
from e2enet.training.run import build_datamodule

PATCH = (6, 8, 10)


class Witness(tio.IntensityTransform):
    """Notes the affines it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.affines: list[np.ndarray] = []

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        self.affines += [image.affine for image in subject.get_images(intensity_only=False)]
        return subject


@pytest.fixture
def case(tmp_path: Path) -> PreparedCase:
    """A case whose image tells each voxel's place, and whose label is a block."""
    shape = (16, 18, 20)
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    label = np.zeros(shape, np.uint8)
    label[4:12, 4:12, 4:12] = 3
    np.save(tmp_path / "a.image.npy", image)
    np.save(tmp_path / "a.label.npy", label)
    np.savez(tmp_path / "a.foreground.npz", **{str(v): rows for v, rows in sample_coordinates(label).items()})  # type: ignore[arg-type]
    return PreparedCase("a", tmp_path / "a.image.npy", tmp_path / "a.label.npy", shape)


def make_dataset(
    case: PreparedCase, transforms: list[tio.Transform], recipe: str = "none", **options: Any
) -> PatchDataset:
    affine = frame_affine((3, 1, 1), depth_axis=2)
    augmentation = build_augmentation(PATCH, (0, 1, 2), recipe)
    return PatchDataset(
        [case], PATCH, batch_size=2, augmentation=augmentation, seed=0, transforms=transforms, affine=affine, **options
    )


def test_a_config_entry_becomes_a_transform_of_the_data_module() -> None:
    entry = "{_target_: torchio.RandomBiasField, coefficients: 0.3, p: 0.5}"
    nested = (
        "{_target_: torchio.OneOf, transforms: [{_target_: torchio.RandomBlur}, {_target_: torchio.RandomGhosting}]}"
    )
    config = compose_config([f"data.transforms=[{entry}, {nested}]", "data.augment_on=device"])
    assert config_problems(config) == []
    module = build_datamodule(config)
    bias, one_of = module.transforms
    assert isinstance(bias, tio.RandomBiasField) and bias.probability == 0.5 and bias.coefficients_range == (-0.3, 0.3)
    assert isinstance(one_of, tio.OneOf) and len(one_of.transforms_dict) == 2
    assert module.augment_on == "device"


def test_every_wrong_entry_is_reported_before_anything_starts() -> None:
    entries = (
        "{_target_: torchio.RandomBiasFiel}, {_target_: torchio.RandomBlur, sdt: 3}, {_target_: torch.nn.ReLU}, "
        "{std: 1}, {_target_: torchio.RandomNoise, p: 3}"
    )
    (problem,) = config_problems(compose_config([f"data.transforms=[{entries}]"]))
    for words in ("[0]: torchio.RandomBiasFiel", "'sdt'", "ReLU, a TorchIO", "[3]={'std': 1}", "[0, 1], not 3"):
        assert words in problem
    assert transform_problem([]) is None
    (problem,) = config_problems(compose_config(["data.transforms=3"]))
    assert "data.transforms=3: expected a list" in problem


def test_transforms_see_spacing_directions_and_place_of_the_patch(case: PreparedCase) -> None:
    witness = Witness()
    dataset = make_dataset(case, [witness])
    sample: dict[str, Any] = dataset[(0, 0)]
    start = np.unravel_index(int(sample["image"][0, 0, 0, 0]), case.shape)
    for affine in witness.affines:
        assert tio.ScalarImage(tensor=torch.zeros(1, 1, 1, 1), affine=affine).orientation == ("S", "R", "A")
        np.testing.assert_allclose(affine @ (0, 0, 0, 1), [start[1], start[2], 3 * start[0], 1])
    assert len(witness.affines) == 2  # image and label


def test_anatomical_directions_name_the_right_axis(case: PreparedCase) -> None:
    # Left and right lie along H (axis 1) when D is superior.
    plain: dict[str, Any] = make_dataset(case, [])[(0, 1)]
    flipped: dict[str, Any] = make_dataset(case, [tio.RandomFlip(axes=("Left",), flip_probability=1)])[(0, 1)]
    assert torch.equal(flipped["image"], plain["image"].flip(2))
    assert torch.equal(flipped["label"], plain["label"].flip(1)) and flipped["label"].dtype == torch.uint8


def test_transforms_are_part_of_the_reproducible_sample_in_both_places(case: PreparedCase) -> None:
    transforms = [tio.RandomBiasField(), tio.RandomGamma(), tio.RandomAffine(degrees=20)]
    here = make_dataset(case, transforms, "nnunet")
    there = make_dataset(case, transforms, "nnunet", augment_here=False)
    plain = make_dataset(case, [], "nnunet")
    for index in range(6):
        first: dict[str, Any] = here[(0, index)]
        again: dict[str, Any] = here[(0, index)]
        other: dict[str, Any] = there[(0, index)]
        images, labels = there.augmentation.apply([other["image"]], [other["label"]], [other["draw"]])
        for image, label in ((again["image"], again["label"]), (images[0], labels[0])):
            assert torch.equal(image, first["image"]) and torch.equal(label, first["label"])
        assert not torch.equal(first["image"], plain[(0, index)]["image"])
        assert first["image"].dtype == torch.float32 and first["label"].dtype == torch.uint8
        assert set(first["label"].unique().tolist()) <= {0, 3}


def test_a_transform_that_changes_the_shape_is_an_input_error() -> None:
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.zeros(1, *PATCH)), label=tio.LabelMap(tensor=torch.zeros(1, *PATCH))
    )
    with pytest.raises(InputError, match=r"CropOrPad changes patches from \(6, 8, 10\) voxels to \[\(4, 4, 4\)\]"):
        apply_transforms(subject, [tio.CropOrPad(4)])
