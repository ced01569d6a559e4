"""Every config of a public dataset reads its look-alike: cases, geometry, channels, label values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.data.cases.splits import split_dataset
from e2enet.data.command import build_datamodule
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.formats.case import read_case
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.volume import read_volume
from e2enet.data.synthetic.__main__ import CONFIGS, main
from e2enet.data.synthetic.lookalikes import LOOKALIKES, write_amos, write_btcv
from e2enet.data.synthetic.stored import Encoding, Grid, save_image

# Config -> look-alike; number of training, validation and test cases, channels, classes.
EXPECTED: dict[str, tuple[str, tuple[int, int, int], int, int]] = {
    "data=amos_ct": ("amos", (5, 2, 1), 1, 16),
    "data=amos_mri": ("amos", (5, 2, 1), 1, 16),
    "data=amos_both": ("amos", (10, 2, 1), 1, 16),
    "data=btcv": ("btcv", (5, 0, 2), 1, 14),
    "data=brats": ("brats", (5, 0, 2), 4, 4),
    "data=brats_2021": ("brats_cases", (5, 0, 1), 4, 4),
    "data=brats_2023": ("brats_2023", (5, 0, 1), 4, 4),
    "data=kits": ("kits", (5, 0, 1), 1, 4),
    "data=acdc": ("acdc", (10, 0, 2), 1, 4),
    "data=msd data.name=Task05_Prostate": ("msd", (5, 0, 2), 2, 3),
    "data=nnunet data.name=Dataset005_Prostate": ("nnunet", (5, 0, 2), 2, 3),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lookalikes")
    for write, name in LOOKALIKES.values():
        write(folder / name, 5, 0)
    return folder


def read(root: Path, line: str) -> RawDataset:
    return build_datamodule(compose_config([*line.split(), f"paths.data={root}"])).source.read()


def load(path: Path) -> Any:
    return nib.load(path)


@pytest.mark.parametrize("line", EXPECTED)
def test_the_config_finds_its_cases(root: Path, line: str) -> None:
    _, counts, channels, classes = EXPECTED[line]
    dataset = read(root, line)
    assert (len(dataset.training), len(dataset.validation), len(dataset.test)) == counts
    assert len(dataset.channels) == channels and len(dataset.labels) == classes


def test_the_publishers_split_of_amos(root: Path, tmp_path: Path) -> None:
    """imagesVa is the validation set. CT and MRI of one folder are prepared separately."""
    folders = []
    for data, first in (("amos_ct", 6), ("amos_mri", 512)):
        paths = (f"paths.data={root}", f"paths.prepared={tmp_path}", "data.prepare_workers=0")
        module = build_datamodule(compose_config([f"data={data}", "data.split=official", *paths]))
        module.prepare_data()
        module.setup("fit")
        assert [case.id for case in module.train_cases] == [f"amos_{first - 5 + index:04d}" for index in range(5)]
        assert [case.id for case in module.val_cases] == [f"amos_{first:04d}", f"amos_{first + 1:04d}"]
        assert [case.id for case in module.test_cases] == [f"amos_{first + 2:04d}"]
        assert module.plan.depth_axis == 2
        folders.append(module.source.prepared_name)
    assert folders == ["amos22_ct", "amos22_mri"] == sorted(path.name for path in tmp_path.iterdir())


def test_both_modalities_train_and_mri_alone_is_scored(root: Path, tmp_path: Path) -> None:
    def module(data: str, *more: str) -> SegmentationDataModule:
        paths = (f"paths.data={root}", f"paths.prepared={tmp_path}", "data.prepare_workers=0")
        return build_datamodule(compose_config([f"data={data}", *paths, *more]))

    def ids(data: str, fold: int, part: str, split: str = "five_fold") -> list[str]:
        return [case.id for case in getattr(split_dataset(module(data).source.read(), split, fold), part)]

    for fold in range(5):
        assert ids("amos_both", fold, "train") == ids("amos_ct", fold, "train") + ids("amos_mri", fold, "train")
        for part in ("validation", "test"):  # no CT case of another fold becomes a test case
            assert ids("amos_both", fold, part) == ids("amos_mri", fold, part) != []
    assert len(ids("amos_both", 0, "train", "official")) == 10
    assert ids("amos_both", 0, "validation", "official") == ids("amos_mri", 0, "validation", "official")
    both = module("amos_both", "data.split=official")
    both.prepare_data()
    both.setup("fit")
    assert both.source.prepared_name == "amos22_both" and both.dataset.channels == ("CT or MRI",)
    assert [scheme["scheme"] for scheme in both.plan.normalisation] == ["zscore"]
    assert {case.id[:6] for case in both.train_cases} == {"amos_0"} and len(both.train_cases) == 10
    image = both._prepared_cases()[0][0].open_image()
    assert abs(float(image.mean())) < 0.2 and 0.5 < float(image.std()) < 1.5  # CT, with its own mean and deviation


@pytest.mark.parametrize("line", EXPECTED)
def test_every_voxel_lands_where_the_affine_says(root: Path, line: str) -> None:
    """Compare image and label of each case with nibabel's reorientation to RAS, depth moved to the front."""
    dataset = read(root, line)
    seen: set[int] = set()
    for case in (*dataset.training, *dataset.validation):
        assert case.label is not None
        volumes = read_case(dataset, case, depth_axis=2)
        canonical = [nib.as_closest_canonical(load(path)) for path in case.images]
        arrays = [np.asarray(image.get_fdata()) for image in canonical]
        stacked = np.moveaxis(arrays[0], 3, 0) if arrays[0].ndim == 4 else np.stack(arrays)
        np.testing.assert_allclose(volumes.image.array, np.moveaxis(stacked, 3, 1), atol=1e-3)
        x, y, z = (1.56, 1.56, 8.0) if "acdc" in line else nib.affines.voxel_sizes(canonical[0].affine)
        assert volumes.image.spacing == pytest.approx((z, x, y))
        values = np.asarray(nib.as_closest_canonical(load(case.label)).dataobj)
        expected = np.vectorize(lambda value: dataset.label_map.get(int(value), int(value)))(values)
        assert volumes.label is not None
        np.testing.assert_array_equal(volumes.label, np.moveaxis(expected, 2, 0))
        seen |= set(np.unique(volumes.label).tolist())
    assert seen == set(dataset.labels)


def test_brats_regions_are_the_same_tissue_in_both_layouts(root: Path) -> None:
    """The core is necrosis plus enhancing rim, whatever their label values. Both layouts use one seed."""
    cases = read(root, "data=brats_2021")
    decathlon = read(root, "data=brats")
    assert cases.regions["tumour core"] == (1, 3) and decathlon.regions["tumour core"] == (2, 3)
    for first, second in zip(cases.training, decathlon.training, strict=True):
        labels = [read_case(dataset, case, 2).label for dataset, case in ((cases, first), (decathlon, second))]
        for region in ("whole tumour", "tumour core", "enhancing tumour"):
            united = [np.isin(label, d.regions[region]) for label, d in zip(labels, (cases, decathlon), strict=True)]  # type: ignore[arg-type]
            np.testing.assert_array_equal(*united)
    images = [read_volume(case.images, 2).array for case in (cases.training[0], decathlon.training[0])]
    np.testing.assert_array_equal(*images)  # the modalities have the same order, too


@pytest.mark.parametrize("orientation", ["".join(codes) for codes in itertools.product("LR", "AP", "IS")])
def test_a_landmark_stays_in_its_place(tmp_path: Path, orientation: str) -> None:
    grid = Grid((0.7, 0.8, 5.0), orientation, tilt=12.0, origin=(-30.0, 20.0, 500.0))
    array = np.zeros((6, 7, 4))
    array[4, 1, 2] = 100
    save_image(tmp_path / "a.nii.gz", [array], grid, Encoding("int16", 0.5, -20.0))
    image = load(tmp_path / "a.nii.gz")
    data = np.asarray(image.get_fdata())
    voxel = np.unravel_index(int(data.argmax()), data.shape)
    np.testing.assert_allclose(
        nib.affines.apply_affine(image.affine, voxel), grid.affine()[:3] @ [4, 1, 2, 1], atol=1e-4
    )
    assert "".join(nib.aff2axcodes(image.affine)) == orientation
    assert (data.max(), data.min()) == (100, 0) and image.get_data_dtype() == np.int16


def test_downloads_are_not_all_alike(root: Path) -> None:
    files = [path for path in root.rglob("*.nii.gz") if path.stat().st_size]
    images = [load(path) for path in files]
    assert {"".join(nib.aff2axcodes(image.affine)) for image in images} == {"LPS", "RAS", "LAS", "IPL"}
    assert {str(image.get_data_dtype()) for image in images} == {"int16", "uint16", "float32", "uint8"}
    assert {len(image.shape) for image in images} == {3, 4}
    assert {(image.dataobj.slope, image.dataobj.inter) for image in images} >= {(1.0, -1024.0), (0.5, 0.0), (1.0, 0.0)}
    assert any(np.count_nonzero(np.abs(image.affine[:3, :3]) > 1e-3) > 3 for image in images)  # oblique


@pytest.mark.parametrize("line", EXPECTED)
def test_intensities_give_the_labels_away(root: Path, line: str) -> None:
    """Nine voxels in ten lie nearest to the mean intensities of their own label."""
    dataset = read(root, line)
    case = dataset.training[0]
    volumes = read_case(dataset, case, depth_axis=2)
    assert volumes.label is not None
    foreground = volumes.label > 0
    voxels, labels = volumes.image.array[:, foreground].T, volumes.label[foreground]
    means = np.stack([voxels[labels == label].mean(axis=0) for label in list(dataset.labels)[1:]])
    nearest = 1 + ((voxels[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == labels).mean() > 0.9


@pytest.mark.parametrize("write", [write_amos, write_btcv])
def test_the_seed_decides_every_byte(tmp_path: Path, write: Callable[..., Path]) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    first = content(write(tmp_path / "a", 1, seed=3))
    assert first == content(write(tmp_path / "b", 1, seed=3)) != content(write(tmp_path / "c", 1, seed=4))


def test_a_folder_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "amos22").mkdir()
    (tmp_path / "amos22" / "mine.txt").touch()
    with pytest.raises(InputError, match="amos22: is there and not empty; a new or empty folder expected"):
        write_amos(tmp_path / "amos22")
    with pytest.raises(InputError, match="num_cases=0"):
        write_btcv(tmp_path / "x", 0)
    assert list(tmp_path.iterdir()) == [tmp_path / "amos22"]


def test_the_command_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["brats_cases", str(tmp_path), "--cases", "1"])
    assert f"e2enet train data=brats_2021 paths.data={tmp_path}" in capsys.readouterr().out
    assert set(CONFIGS) == set(LOOKALIKES) and {line for line in CONFIGS.values()} < set(EXPECTED)
