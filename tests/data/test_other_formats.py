"""MetaImage, NRRD and GIPL files are read like NIfTI files of the same volume: voxels, affine, channels, checks."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from e2enet.common.errors import InputError
from e2enet.data.cases.sources import DataSource
from e2enet.data.checking.repair import repair_labels
from e2enet.data.checking.run import check_dataset
from e2enet.data.formats.layout import read_msd, read_nnunet
from e2enet.data.formats.naming import Case
from e2enet.data.formats.opening import open_image
from e2enet.data.formats.stored import read_stored
from e2enet.data.formats.volume import read_geometry, read_label, read_volume, to_native, write_image, write_label_image
from e2enet.data.layouts.described import MSDLayout
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.cases import prepare_cases
from e2enet.data.preparation.store import CaseStore

SHAPE = (4, 5, 6)
RNG = np.random.default_rng(0)
ENDINGS = (".mha", ".mhd", ".nrrd", ".nhdr")


def orientations() -> list[np.ndarray]:
    """Return affines with all 48 axis orders and directions (1, 2 and 3 mm), and an oblique one."""
    found = []
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order] * (np.array(order) + 1) * signs
        affine[:3, 3] = (10.5, -20, 30)
        found.append(affine)
    turn = SimpleITK.VersorTransform((1.0, 2.0, 3.0), 0.4).GetMatrix()
    oblique = np.eye(4)
    oblique[:3] = np.column_stack([np.reshape(turn, (3, 3)) * (0.9, 1.1, 2.5), (1, 2, 3)])
    return [*found, oblique]


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Save a NIfTI file with sform and qform, in mm."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def convert(path: Path, ending: str, packed: bool = True) -> Path:
    """Save the same volume in another format by SimpleITK alone, which reads the NIfTI file by its own rules."""
    target = path.with_name(path.name.removesuffix(".nii.gz").removesuffix(".nii") + ending)
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(target), useCompression=packed)
    return target


@pytest.mark.parametrize("affine", orientations())
def test_every_orientation_is_that_of_nifti(tmp_path: Path, affine: np.ndarray) -> None:
    nifti = save(tmp_path / "a.nii", RNG.integers(-9, 9, SHAPE, dtype=np.int16), affine)
    nrrd = convert(nifti, ".nrrd")
    for depth_axis in (None, 0, 1, 2):
        expected, found = (read_volume([path], depth_axis) for path in (nifti, nrrd))
        np.testing.assert_array_equal(found.array, expected.array)
        np.testing.assert_allclose(found.geometry.affine, expected.geometry.affine, atol=1e-5)
        np.testing.assert_allclose(found.spacing, expected.spacing, rtol=1e-6)
        assert found.geometry.depth_axis == expected.geometry.depth_axis
    label = np.abs(found.array[0]).astype(np.uint8)
    write_label_image(tmp_path / "b.nrrd", label, found.geometry)
    written = SimpleITK.ReadImage(str(tmp_path / "b.nrrd"))
    original = SimpleITK.ReadImage(str(nifti))
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(written, name)(), getattr(original, name)(), atol=1e-5)
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(written), np.abs(SimpleITK.GetArrayFromImage(original)).astype(np.uint8)
    )


@pytest.mark.parametrize("ending", [*ENDINGS, ".gipl"])
@pytest.mark.parametrize("packed", [True, False])
def test_every_ending_is_read_as_nifti_is(tmp_path: Path, ending: str, packed: bool) -> None:
    affines = [np.diag([-1.0, -2, 3, 1])] if ending == ".gipl" else orientations()[7::14]  # .gipl stores no directions
    for number, affine in enumerate(affines):
        nifti = save(tmp_path / f"{number}.nii.gz", RNG.normal(size=SHAPE).astype(np.float32), affine)
        other = convert(nifti, ending, packed)
        expected, found = read_stored(nifti), read_stored(other)
        np.testing.assert_array_equal(found.voxels, expected.voxels)
        np.testing.assert_allclose(found.header.geometry.affine, expected.header.geometry.affine, atol=1e-5)
        assert (found.header.channels, found.header.dtype) == (1, np.dtype(np.float32))
        assert (found.header.unit, found.header.forms, found.digest()) == ("mm", None, expected.digest())
        assert read_geometry(other).spacing == pytest.approx(read_geometry(nifti).spacing)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_types_stay_as_stored(tmp_path: Path, dtype: str) -> None:
    array = RNG.integers(0, 100, SHAPE).astype(dtype)
    for ending in (".mha", ".nrrd"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.T), str(tmp_path / f"a{ending}"))
        image = open_image(tmp_path / f"a{ending}")
        assert image.dtype == np.dtype(dtype) and image.num_bytes == array.nbytes
        np.testing.assert_array_equal(image.read_values(), array)


def test_channels_are_components_or_a_fourth_axis(tmp_path: Path) -> None:
    array = RNG.normal(size=(*SHAPE, 3)).astype(np.float32)
    nifti = save(tmp_path / "a.nii.gz", array, np.diag([-1.0, -1, 4, 1]))
    for ending in ENDINGS:
        axis = convert(nifti, f".axis{ending}")
        components = tmp_path / f"a{ending}"
        volume = read_volume([nifti])
        write_image(components, volume.array, volume.geometry)
        assert SimpleITK.ReadImage(str(components)).GetNumberOfComponentsPerPixel() == 3
        for path in (axis, components):
            found = read_volume([path])
            np.testing.assert_array_equal(found.array, volume.array)
            np.testing.assert_allclose(found.geometry.affine, volume.geometry.affine)
            assert read_stored(path).header.channels == 3 and read_stored(path).digest() == read_stored(nifti).digest()


@pytest.mark.parametrize("ending", [*ENDINGS, ".gipl"])
def test_written_labels_are_read_back_and_hold_nothing_of_the_scan(tmp_path: Path, ending: str) -> None:
    affine = np.diag([-1.0, -2, 3, 1]) if ending == ".gipl" else orientations()[-1]
    scan = convert(save(tmp_path / "a.nii", RNG.normal(size=SHAPE).astype(np.float32), affine), ending)
    if ending in (".nrrd", ".nhdr"):  # a custom field, which must come before the end of the header
        content = scan.read_bytes()
        scan.write_bytes(content.replace(b"\nencoding", b"\nPatient:=Doe^Jane\nencoding", 1))
    label, geometry = RNG.integers(0, 400, SHAPE), read_geometry(scan)
    out = tmp_path / "out" / f"a{ending}"
    frame, _ = read_label(save(tmp_path / "l.nii", label.astype(np.int16), affine), None, on=geometry)
    write_label_image(out, frame, geometry)
    found, on = read_label(out, None)
    np.testing.assert_array_equal(found, frame)
    np.testing.assert_array_equal(to_native(found, on), label)
    np.testing.assert_allclose(on.affine, geometry.affine, atol=1e-6)
    assert all(b"Doe" not in file.read_bytes() for file in out.parent.iterdir())
    assert all(not file.name.startswith(".") for file in out.parent.iterdir())


def test_gipl_is_no_format_for_turned_axes(tmp_path: Path) -> None:
    geometry = read_geometry(save(tmp_path / "a.nii", np.zeros(SHAPE, np.uint8), np.eye(4)))
    with pytest.raises(InputError, match=r"a\.gipl: \.gipl keeps no directions of axes; another file_ending expected"):
        write_label_image(tmp_path / "a.gipl", np.zeros(geometry.frame_shape, np.uint8), geometry)
    assert not (tmp_path / "a.gipl").exists()


def test_a_header_and_its_voxels_are_one_image(tmp_path: Path) -> None:
    nifti = save(tmp_path / "a.nii", RNG.normal(size=SHAPE).astype(np.float32), np.eye(4))
    case = Case("a", (convert(nifti, ".mhd", packed=False),), convert(nifti, ".nhdr"))
    assert [path.name for path in case.all_files] == ["a.mhd", "a.raw", "a.nhdr", "a.raw.gz"]
    assert Case("b", (nifti,)).all_files == (nifti,) and Case("c", (tmp_path / "no.mha",)).all_files[0].name == "no.mha"


def converted(toy: Any, folder: Path, ending: str) -> Path:
    """Write the toy dataset in another format."""
    for path in sorted(toy.folder.rglob("*.nii.gz")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        convert(path, ending).rename(folder / path.parent.name / path.name.replace(".nii.gz", ending))
    (folder / "dataset.json").write_text((toy.folder / "dataset.json").read_text().replace(".nii.gz", ending))
    return folder


def test_a_dataset_is_checked_and_prepared_as_that_of_nifti_is(toy: Any, tmp_path: Path) -> None:
    plan = Plan(2, (3.0, 1.5, 1.0), (4, 8, 8), ((1, 2, 2),), 2, ({"scheme": "zscore", "nonzero": False},), (6, 8, 9))
    other = converted(toy, tmp_path / "other", ".nrrd")
    reports = [check_dataset(DataSource(folder, MSDLayout()), 0) for folder in (toy.folder, other)]
    assert [report.problems for report in reports] == [(), ()]
    datasets = [read_msd(folder) for folder in (toy.folder, other)]
    assert [dataset.file_ending for dataset in datasets] == [".nii.gz", ".nrrd"]
    stores = [
        prepare_cases(dataset, dataset.training, plan, tmp_path / f"prepared{number}", 0)
        for number, dataset in enumerate(datasets)
    ]
    for first, second in zip(*stores, strict=True):
        np.testing.assert_array_equal(first.open_image(), second.open_image())
        np.testing.assert_array_equal(first.open_label(), second.open_label())


def test_changed_voxels_of_a_header_are_prepared_again(toy: Any, tmp_path: Path) -> None:
    plan = Plan(2, (3.0, 1.5, 1.0), (4, 8, 8), ((1, 2, 2),), 2, ({"scheme": "none"},), (6, 8, 9))
    folder = tmp_path / "other"
    case = "a"
    headers = [convert(path, ".mhd", packed=False) for path in (toy.image(case), toy.label(case))]
    dataset = read_msd(toy.folder)
    store = CaseStore(folder, dataset, plan)
    before = store.key(Case(case, (headers[0],), headers[1]))
    voxels = headers[0].with_suffix(".raw")
    os.utime(voxels, ns=(1, 1))
    assert store.key(Case(case, (headers[0],), headers[1])) != before


def test_labels_off_the_grid_are_told_and_repaired(toy: Any, tmp_path: Path) -> None:
    shifted = nib.load(toy.label("a"))
    affine = shifted.affine.copy()
    affine[0, 3] += 1.5
    toy.write_label("a", np.asarray(shifted.dataobj), affine)
    folder = converted(toy, tmp_path / "other", ".mha")
    # A NIfTI image with a MetaImage label, and the reverse, are checked and repaired alike.
    images, labels = folder / "imagesTr", folder / "labelsTr"
    for name in ("b", "c"):
        toy.write_label(name, np.asarray(shifted.dataobj), affine)
    (images / "b.nii.gz").write_bytes(toy.image("b").read_bytes())
    convert(toy.label("b"), ".mha").rename(labels / "b.mha")
    (labels / "c.nii.gz").write_bytes(toy.label("c").read_bytes())
    text = (folder / "dataset.json").read_text().replace("imagesTr/b.mha", "imagesTr/b.nii.gz")
    (folder / "dataset.json").write_text(text.replace("labelsTr/c.mha", "labelsTr/c.nii.gz"))
    report = check_dataset(DataSource(folder, MSDLayout()), 0)
    wrong = {one.case: one.problem for one in report.problems if one.severity == "error" and one.case}
    assert sorted(wrong) == ["a", "b", "c"]
    assert all("the affines differ by up to 1.5 mm" in text for text in wrong.values())
    for repair in repair_labels(report.facts, folder, tmp_path / "repaired"):
        assert repair.copy is not None and repair.copy.name == repair.label.name
        np.testing.assert_array_equal(open_image(repair.copy).read_values(), np.asarray(shifted.dataobj))
        image = next(case.images[0] for case in report.dataset.training if case.id == repair.case)
        np.testing.assert_allclose(open_image(repair.copy).affine, open_image(image).affine, atol=1e-5)


def test_nnunets_file_ending(tmp_path: Path) -> None:
    for part, names in (("imagesTr", ("a_0000", "b_0000")), ("labelsTr", ("a", "b")), ("imagesTs", ("c_0000",))):
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / f"{name}.mhd").touch()
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".mhd"}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"numTraining": 2}))
    dataset = read_nnunet(tmp_path)
    assert dataset.file_ending == ".mhd" and [case.id for case in (*dataset.training, *dataset.test)] == ["a", "b", "c"]
