"""Positions of patches, and the boxes cut out of a case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio

from e2enet.data.loaders.patch_sampler import start_range
from e2enet.data.loaders.patches import crop, crop_subject, frame_affine, load_subject, torch_seeded
from tests.data.conftest import make_case

PATCH = (4, 6, 8)


def test_start_range_by_hand() -> None:
    assert start_range(13, 8) == (0, 5)
    assert start_range(8, 8) == (0, 0)
    assert start_range(5, 8) == (-1, -1)
    assert start_range(4, 8) == (-2, -2)


def test_crop_reads_the_box_and_pads_with_zero() -> None:
    tensor = torch.arange(1.0, 25.0).reshape(1, 2, 3, 4)
    assert torch.equal(crop(tensor, (0, 1, 1), (2, 2, 2)), tensor[:, :, 1:3, 1:3])
    padded = crop(tensor, (-1, -1, 2), (4, 4, 4))
    assert torch.equal(padded[:, 1:3, 1:4, :2], tensor[..., 2:])
    assert padded.sum() == tensor[..., 2:].sum()
    assert torch.all(crop(tensor, (5, 0, 0), (2, 2, 2)) == 0)


def test_subject_stays_on_disk_until_cropped(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    subject = load_subject(case)
    assert isinstance(subject, tio.Subject) and subject.spatial_shape == case.shape
    subject["image"].data[0, 0, 0, 0] = 99  # copy on write: neither the file nor another reader sees it
    assert np.load(case.image)[0, 0, 0, 0] == 0
    assert load_subject(case)["image"].data[0, 0, 0, 0] == 0


def test_coordinates_of_cases_are_not_kept(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    assert list(case.foreground) == [1, 2] and len(case.foreground) == 2
    np.testing.assert_array_equal(case.foreground[1], [[0, 0, 0]])
    assert case.foreground[1] is not case.foreground[1]  # not kept: 200 cases would fill a worker's memory


def test_affine_of_a_patch_tells_spacing_directions_and_place(tmp_path: Path) -> None:
    affine = frame_affine((3.0, 0.5, 0.75), depth_axis=2)
    subject = load_subject(make_case(tmp_path), affine)
    patch = crop_subject(subject, (2, -4, 8), PATCH)
    for image in patch.get_images(intensity_only=False):
        # D runs upward, H to the right, W to the front; the first voxel is 2 * 3 mm up, 4 * 0.5 mm to the left, ..
        np.testing.assert_allclose(image.affine @ (0, 0, 0, 1), [-2, 6, 6, 1])
        np.testing.assert_allclose(image.affine @ (1, 1, 1, 1), [-1.5, 6.75, 9, 1])
        assert image.spacing == (3.0, 0.5, 0.75) and image.orientation == ("S", "R", "A")


def test_seeds_of_patches_are_the_hosts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    for device in (torch.cuda, torch.mps, torch.xpu):
        monkeypatch.setattr(device, "manual_seed_all", seeded.append, raising=False)
        monkeypatch.setattr(device, "manual_seed", seeded.append)
    before = torch.get_rng_state()
    with torch_seeded(np.uint64(2**64 - 1)):
        drawn = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before) and seeded == []
    assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(2**63 - 1)), drawn)


@pytest.mark.parametrize(("depth_axis", "orientation"), [(0, "RAS"), (1, "ARS"), (2, "SRA")])
def test_frame_affine_follows_the_depth_axis(depth_axis: int, orientation: str) -> None:
    image = tio.ScalarImage(tensor=torch.zeros(1, 2, 2, 2), affine=frame_affine((1, 2, 3), depth_axis))
    assert "".join(image.orientation) == orientation and image.spacing == (1, 2, 3)
