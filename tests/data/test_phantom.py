"""The phantom: its files, its reproducibility, and cones that differ only by their context in depth."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.grid import choose_depth_axis
from e2enet.data.synthetic.phantom import phantom_folder_name, phantom_settings, write_phantom
from e2enet.data.synthetic.phantom_anatomy import ORGANS, cone_radii, draw_case

SMALL = {"num_train": 2, "num_test": 1, "shape": (32, 32, 12), "spacing": (1.0, 1.0, 3.0), "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("raw") / "phantom", **SMALL)


def disc_areas(label: np.ndarray, organ: str) -> list[int]:
    """Return the voxels per slice of an organ, from its lowest slice to its highest."""
    areas = (label == ORGANS.index(organ) + 1).sum(axis=(0, 1))
    return areas[areas > 0].tolist()


def test_layout_is_that_of_the_decathlon(folder: Path) -> None:
    description = json.loads((folder / "dataset.json").read_text())
    assert description["modality"] == {"0": "MRI"}
    assert list(description["labels"].values()) == ["background", *ORGANS]
    assert (description["numTraining"], description["numTest"]) == (2, 1)
    assert description["test"] == ["./imagesTs/phantom_003.nii.gz"]
    for entry in description["training"]:
        assert (folder / entry["image"]).is_file() and (folder / entry["label"]).is_file()
    assert (folder / "labelsTs" / "phantom_003.nii.gz").is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["phantom"]


def test_images_and_labels_share_an_anisotropic_flipped_grid(folder: Path) -> None:
    image = nib.load(folder / "imagesTr" / "phantom_001.nii.gz")
    label = nib.load(folder / "labelsTr" / "phantom_001.nii.gz")
    assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
    assert image.shape == label.shape
    np.testing.assert_allclose(image.affine, label.affine)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    x, y, z = image.header.get_zooms()
    assert (x, y) == pytest.approx((1, 1)) and 2.85 <= z <= 3.15
    assert set(np.unique(label.dataobj)) == set(range(len(ORGANS) + 1))


def test_same_seed_same_voxels_other_seed_others() -> None:
    first, again, other = (draw_case(np.random.default_rng(seed), (32, 32, 12), (1, 1, 3)) for seed in (5, 5, 6))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_cones_are_the_same_discs_in_opposite_order() -> None:
    _, label, _ = draw_case(np.random.default_rng(1), (32, 32, 12), (1, 1, 3))
    up, down = disc_areas(label, "cone_up"), disc_areas(label, "cone_down")
    assert len(up) == len(down) == len(cone_radii(label.shape))
    assert all(below < above for below, above in pairwise(up))
    assert all(below > above for below, above in pairwise(down))
    # A disc's area depends slightly on the subvoxel position of its centre.
    np.testing.assert_allclose(up, down[::-1], rtol=0.15)


def test_cones_have_one_intensity_and_neighbouring_organs_overlap() -> None:
    image, label, _ = draw_case(np.random.default_rng(0), (64, 64, 24), (1, 1, 3))
    values = {organ: image[label == number] for number, organ in enumerate(ORGANS, start=1)}
    assert abs(values["cone_up"].mean() - values["cone_down"].mean()) < 0.1 * values["cone_up"].mean()  # the bias field
    for lower, higher in (("ellipsoid", "sphere"), ("sphere", "tube"), ("tube", "cone_up")):
        assert values[lower].mean() < values[higher].mean()
        assert np.percentile(values[lower], 90) > np.percentile(values[higher], 10)


def test_finished_folder_is_kept_and_another_phantom_is_refused(folder: Path) -> None:
    before = (folder / "dataset.json").stat().st_mtime_ns
    assert write_phantom(folder, **SMALL) == folder
    assert (folder / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="does not hold the requested phantom"):
        write_phantom(folder, **SMALL | {"seed": 4})


def test_every_impossible_parameter_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        write_phantom(tmp_path / "p", num_train=0, shape=(8, 32, 12), spacing=(1, 0, 3), seed=-1)
    assert all(
        word in str(error.value) for word in ("num_train=0", "shape=[8, 32, 12]", "spacing=[1, 0, 3]", "seed=-1")
    )
    assert not (tmp_path / "p").exists()


def test_folder_name_tells_phantoms_apart() -> None:
    names = {phantom_folder_name("phantom", phantom_settings(**SMALL | {"seed": seed})) for seed in (0, 1, 1)}
    assert len(names) == 2 and all(name.startswith("phantom_") for name in names)


def test_depth_is_always_the_axis_of_the_cones(tmp_path: Path) -> None:
    """Along any other axis, mirroring (axes 1 and 2 of the frame) would turn one cone into the other."""
    for spacing in ((3.0, 1.0, 1.0), (1.0, 1.2, 1.1)):
        with pytest.raises(InputError, match=r"z of at least .* expected, since depth is the axis of largest spacing"):
            write_phantom(tmp_path / "p", **SMALL | {"spacing": spacing})
    drawn = [draw_case(np.random.default_rng(seed), (32, 32, 12), (1.0, 1.0, 1.0))[2] for seed in range(8)]
    sizes = [np.linalg.norm(affine[:3, :3], axis=0) for affine in drawn]
    assert all(choose_depth_axis([size]) == 2 for size in sizes)
    assert min(size[2] for size in sizes) == 1 and max(size[2] for size in sizes) > 1.01
    # Phantoms that earlier versions may have written otherwise have another folder; the others keep theirs.
    versions = [phantom_settings(**SMALL | {"spacing": (1.0, 1.0, z)})["version"] for z in (1.0, 1.04, 1.06, 3.0)]
    assert versions == [2, 2, 1, 1]
