"""Labels and channels on an image's grid take the image's axis order; one tolerance holds everywhere."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.checking.case import CaseTask, examine_case
from e2enet.data.checking.repair import repair_labels
from e2enet.data.formats.case import read_case
from e2enet.data.formats.grid import Geometry, grid_offset, same_directions, same_grid
from e2enet.data.formats.layout import Case, read_msd
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.formats.volume import read_label, read_label_on, read_volume, write_label_image
from e2enet.evaluation.images import grid_problems

SPACING = np.diag((0.5, 0.5, 3.0))
VOXELS = np.random.default_rng(0).integers(0, 3, (6, 6, 6), dtype=np.uint8)


def turned(axis: int, degrees: float) -> np.ndarray:
    """Return an affine of 0.5 x 0.5 x 3 mm voxels, rotated about a RAS axis."""
    a, b = (other for other in range(3) if other != axis)
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.eye(4)
    affine[a, a], affine[a, b], affine[b, a], affine[b, b] = cosine, -sine, sine, cosine
    affine[:3, :3] = affine[:3, :3] @ SPACING
    affine[:3, 3] = (12.5, -30.0, 71.0)
    return affine


def save(path: Path, voxels: np.ndarray, sform: np.ndarray | None, qform: np.ndarray | None) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = nib.Nifti1Image(voxels, sform)
    image.set_sform(sform, 0 if sform is None else 1)
    image.set_qform(qform, 0 if qform is None else 1)
    nib.save(image, path)
    return path


def oblique_headers() -> list[np.ndarray]:
    """Return affines rotated by 45 and 135 degrees about each axis, exactly and by 1e-5 degrees more or less."""
    angles = itertools.product(range(3), (45, 135), (-1e-5, 0, 1e-5))
    return [turned(axis, angle + hair) for axis, angle, hair in angles]


def test_two_forms_of_one_grid_can_lead_to_other_axes(tmp_path: Path) -> None:
    """The cause of the tests below exists: a label ordered by its own affine would be turned against its image."""
    differ = 0
    for number, affine in enumerate(oblique_headers()):
        first = nib.load(save(tmp_path / f"{number}_s.nii", VOXELS, affine, None)).affine
        second = nib.load(save(tmp_path / f"{number}_q.nii", VOXELS, None, affine)).affine
        differ += nib.aff2axcodes(first) != nib.aff2axcodes(second)
    assert differ >= 3


def test_labels_and_channels_are_ordered_by_their_image(toy: Any, tmp_path: Path) -> None:
    dataset = read_msd(toy.folder)
    for affine in oblique_headers():
        for forms in ((affine, None), (None, affine)):
            for other in ((None, affine), (affine + 1e-7 * np.eye(4, k=1), None)):
                save(toy.image("a"), VOXELS.astype(np.int16), *forms)
                save(toy.label("a"), VOXELS, *other)
                volumes = read_case(dataset, dataset.training[0], depth_axis=2)
                np.testing.assert_array_equal(volumes.label, volumes.image.array[0])
                np.testing.assert_array_equal(read_label_on(volumes.image.geometry, toy.label("a")), volumes.label)
                channels = read_volume([toy.image("a"), toy.label("a")]).array
                np.testing.assert_array_equal(channels[0], channels[1])


def test_what_is_written_lies_on_the_scans_grid_for_readers_of_either_form(tmp_path: Path) -> None:
    for affine in oblique_headers():
        other = affine.copy()
        other[0, 3] += 7  # a second form that differs is kept
        for forms in ((affine, None), (None, affine), (affine, other)):
            scan = save(tmp_path / "scan.nii", VOXELS, *forms)
            volume = read_volume([scan])
            write_label_image(tmp_path / "out.nii", volume.array[0].astype(np.uint8), volume.geometry, volume.header)
            written, original = nib.load(tmp_path / "out.nii"), nib.load(scan)
            np.testing.assert_array_equal(np.asarray(written.dataobj), VOXELS)
            for form in ("get_sform", "get_qform"):
                for theirs, ours in zip(
                    getattr(original.header, form)(coded=True), getattr(written.header, form)(coded=True), strict=True
                ):
                    np.testing.assert_array_equal(theirs, ours)


def geometry(affine: np.ndarray, shape: tuple[int, int, int] = (6, 6, 6)) -> Geometry:
    return Geometry(shape, affine, 2)


def moved(affine: np.ndarray, mm: float) -> np.ndarray:
    result = affine.copy()
    result[1, 3] += mm
    return result


@pytest.mark.parametrize(("mm", "same"), [(0.0, True), (0.049, True), (0.05, True), (0.051, False), (3.0, False)])
def test_the_tolerance_is_a_tenth_of_the_smallest_voxel_size(mm: float, same: bool) -> None:
    affine = turned(0, 20)
    assert same_grid(geometry(affine), geometry(moved(affine, mm))) is same
    assert grid_offset(affine, moved(affine, mm), (6, 6, 6)).share == pytest.approx(mm / 0.5)
    assert not same_grid(geometry(affine), geometry(affine, (6, 6, 7)))


def test_it_is_the_outermost_corner_that_counts() -> None:
    wider = turned(0, 0)
    wider[0, 0] *= 1.01  # 0.005 mm per voxel: the far corner of 6 voxels lies 5.5 voxels from the first centre
    assert grid_offset(turned(0, 0), wider, (6, 6, 6)).mm == pytest.approx(0.0275)
    thicker = turned(0, 0)
    thicker[2, 2] *= 2  # a single slice of another thickness
    assert not same_grid(geometry(turned(0, 0), (6, 6, 1)), geometry(thicker, (6, 6, 1)))
    assert not same_grid(geometry(turned(0, 0)), geometry(np.full((4, 4), np.nan)))


@pytest.mark.parametrize(("share", "same"), [(0.09, True), (0.11, False)])
def test_every_stage_judges_alike(toy: Any, tmp_path: Path, share: float, same: bool) -> None:
    affine = nib.load(toy.image("a")).affine  # voxels of 1 x 1 x 3 mm
    toy.write_label("a", affine=moved(affine, share))
    second = save(tmp_path / "channel.nii.gz", np.zeros((8, 9, 6), np.int16), moved(affine, share), None)
    dataset = read_msd(toy.folder)
    errors = [problem for problem in toy.problems() if problem[1] == "error"]
    assert (errors == []) is same
    assert (grid_problems("a", toy.image("a"), toy.label("a")) == []) is same
    grid = read_volume([toy.image("a")]).geometry
    for read in (
        lambda: read_case(dataset, dataset.training[0], 2),
        lambda: read_volume([toy.image("a"), second]),
        lambda: read_label_on(grid, toy.label("a")),
    ):
        if same:
            read()
        else:
            with pytest.raises(InputError, match=r"differ by up to 0\.11 mm, at most 0\.1 mm expected"):
                read()
    if not same:
        offer = "e2enet check .. repair=FOLDER"
        assert offer in errors[0][2] and offer in grid_problems("a", toy.image("a"), toy.label("a"))[0]


def test_small_offsets_are_one_line_with_their_count_and_the_largest(toy: Any) -> None:
    affine = nib.load(toy.image("a")).affine
    for case, mm in {"a": 0.03, "b": 0.0625, "c": 0.0005, "d": 0.01}.items():  # the offset of c is rounding
        toy.write_label(case, affine=moved(affine, mm))
    ((case, severity, text, file),) = toy.problems()
    assert (case, severity, file) == (None, "warning", None)
    assert text == (
        "in 3 of 7 cases a label or channel lies beside its image's grid, by up to 0.0625 mm (0.062 of the smallest "
        "voxel size) in case b: taken for the same grid, as all up to 0.1 are"
    )
    near, far = (toy.write_image(name, affine=moved(affine, mm)) for name, mm in (("y", 0.01), ("z", 0.05)))
    scheme = LabelScheme({0: "background", 1: "liver"})
    for images in ((toy.image("a"), near, far), (toy.image("a"), far, near)):
        facts, _ = examine_case(CaseTask(Case("a", images), "training", 3, scheme, {}))
        assert facts is not None and facts.offset is not None and facts.offset.mm == pytest.approx(0.05, abs=1e-5)


def test_a_label_is_repaired_by_where_its_axes_point_beside_the_image(toy: Any, tmp_path: Path) -> None:
    """At 45 degrees the names of axes say nothing: those of image and label may differ though one order holds."""
    for degrees, mended in ((-0.2, True), (0.2, True), (90, False), (180, False)):
        save(toy.image("a"), np.zeros((9, 9, 9), np.int16), turned(2, 45 + 0.1), None)
        save(toy.label("a"), np.ones((9, 9, 9), np.uint8), moved(turned(2, 45 + degrees), 0.2), None)
        facts = [case for case in toy.check().facts if case.case.id == "a"]
        (repair,) = repair_labels(facts, toy.folder, tmp_path / str(degrees))
        assert (repair.copy is not None) is mended
    assert same_directions(geometry(turned(2, 44)), geometry(turned(2, 46)))
    assert not same_directions(geometry(turned(2, 0)), geometry(turned(2, 46)))


def test_a_label_off_the_grid_is_ordered_by_its_own_affine(tmp_path: Path) -> None:
    image = read_volume([save(tmp_path / "image.nii", VOXELS, np.eye(4), None)]).geometry
    other = np.array([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    path = save(tmp_path / "label.nii", VOXELS, other, None)
    label, own = read_label(path, 2, on=image)
    np.testing.assert_array_equal(label, read_label(path, 2)[0])
    np.testing.assert_array_equal(own.affine, other)
    with pytest.raises(InputError, match=r"label\.nii: not on the grid of its image: the affines differ"):
        read_label_on(image, path)
