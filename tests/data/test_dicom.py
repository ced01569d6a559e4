"""A folder of DICOM slices is read as the volume it was cut from; anything else is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from e2enet.common.errors import InputError
from e2enet.data.formats.dicom import holds_slices
from e2enet.data.formats.naming import Case
from e2enet.data.formats.opening import open_image
from e2enet.data.formats.problems import Problem
from e2enet.data.formats.volume import read_volume
from e2enet.data.layouts.prediction import find_cases

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5), dtype=np.int16)  # (z, y, x)
TURNS = [
    (1, 0, 0, 0, 1, 0, 0, 0, 1),
    (0, 1, 0, 0, 0, -1, -1, 0, 0),
    SimpleITK.VersorTransform((1, 2, 3), 0.3).GetMatrix(),
]
Tags = Callable[[int, dict[str, str]], Any]


def volume(turn: tuple[float, ...] = TURNS[0], voxels: np.ndarray = VOXELS) -> Any:
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((10, -20, 30))
    image.SetDirection(turn)
    return image


def write_slices(
    folder: Path, image: Any, change: Tags | None = None, name: Callable[[int], str] = "IM_{:03d}.dcm".format
) -> Path:
    """Write a series as a scanner does: a file per slice, here named in the reverse order of their positions.

    `change(number, tags)` may change the tags of a slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    direction = image.GetDirection()
    for number in range(image.GetDepth()):
        piece = image[:, :, number]
        tags = {
            "0008|0060": "CT",
            "0010|0010": "Doe^Jane",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{folder.name.encode().hex()[:8]}.{number}".replace("a", "1"),
            "0020|0013": str(number),
            "0020|0032": "\\".join(map(repr, image.TransformIndexToPhysicalPoint((0, 0, number)))),
            "0020|0037": "\\".join(map(repr, direction[0::3] + direction[1::3])),
        }
        if change is not None:
            change(number, tags)
        if "0028|1053" in tags:  # integers cannot have this scale
            piece = SimpleITK.Cast(piece, SimpleITK.sitkFloat64)
        for key, value in tags.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / name(image.GetDepth() - 1 - number)))
        writer.Execute(piece)
    return folder


@pytest.mark.parametrize("turn", TURNS)
def test_it_is_the_volume_that_it_was_cut_from(tmp_path: Path, turn: tuple[float, ...]) -> None:
    image = volume(turn)
    SimpleITK.WriteImage(image, str(tmp_path / "a.nii.gz"))
    folder = write_slices(tmp_path / "case", image)
    expected, found = (read_volume([path]) for path in (tmp_path / "a.nii.gz", folder))
    np.testing.assert_allclose(found.geometry.affine, expected.geometry.affine, atol=1e-4)
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.spacing == pytest.approx(expected.spacing, abs=1e-4) and found.header is None
    assert open_image(folder).dtype == np.int16


def test_slices_of_several_scales_are_floating_numbers(tmp_path: Path) -> None:
    def scale(number: int, tags: dict[str, str]) -> None:
        stored = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
        tags |= {"0028|1053": "0.5", "0028|1052": "3"} | stored if number % 2 else {}

    folder = write_slices(tmp_path / "pet", volume(), scale)
    # The writer applies the requested scale, so the original values come back.
    np.testing.assert_array_equal(open_image(folder).read_values().T, VOXELS)
    assert open_image(folder).dtype == np.float32


def test_a_tilted_gantry_keeps_its_slices_where_they_were(tmp_path: Path) -> None:
    def tilt(number: int, tags: dict[str, str]) -> None:
        x, y, z = map(float, tags["0020|0032"].split("\\"))
        tags["0020|0032"] = f"{x}\\{y + 0.4 * number}\\{z}"

    image = open_image(write_slices(tmp_path / "case", volume(), tilt))
    np.testing.assert_allclose(image.affine[:3, 2], (0, -0.4, 2.5), atol=1e-6)  # RAS: posterior is -y
    np.testing.assert_array_equal(image.read_values().T, VOXELS)


def test_one_slice_is_a_volume_of_one(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "case", volume(voxels=VOXELS[:1]))
    assert open_image(folder).shape == (5, 6, 1)
    np.testing.assert_array_equal(open_image(folder).read_values().T, VOXELS[:1])


def two_series(folder: Path) -> None:
    write_slices(folder, volume())
    write_slices(folder, volume(), lambda _, tags: tags.update({"0020|000e": "9.9"}), "B_{:03d}.dcm".format)


def without_a_slice(folder: Path) -> None:
    write_slices(folder, volume())
    (folder / "IM_004.dcm").unlink()


def twice(folder: Path) -> None:
    write_slices(folder, volume())
    (folder / "copy.dcm").write_bytes((folder / "IM_004.dcm").read_bytes())


def turned_once(folder: Path) -> None:
    write_slices(folder, volume(), lambda n, tags: tags.update({"0020|0037": "0\\1\\0\\1\\0\\0"} if n == 3 else {}))


def other_size(folder: Path) -> None:
    write_slices(folder, volume())
    write_slices(folder, volume(voxels=VOXELS[:1, :4]), None, lambda _: "IM_009.dcm")


def text_among_them(folder: Path) -> None:
    write_slices(folder, volume())
    (folder / "notes.dcm").write_text("no slice")


def text_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.dcm").write_text("no slice")


def cut_off(folder: Path) -> None:
    write_slices(folder, volume())
    path = folder / "IM_002.dcm"
    path.write_bytes(path.read_bytes()[:-20])


def without_places(folder: Path) -> None:
    write_slices(folder, volume(), lambda _, tags: tags.pop("0020|0032"))


NO_VOLUME: dict[str, tuple[Callable[[Path], Any], str]] = {
    "two-series": (
        two_series,
        r"holds 2 series, 1\.2\.3\.4 \(7 slices\), 9\.9 \(7 slices\); a folder for each expected",
    ),
    "missing-slice": (
        without_a_slice,
        r"gaps between slices are 2\.5 to 5 mm, the widest after IM_005\.dcm; even ones",
    ),
    "slice-twice": (twice, r"(IM_004|copy)\.dcm and (IM_004|copy)\.dcm lie at one place, one slice at each expected"),
    "slice-turned": (turned_once, r"IM_00\d\.dcm is of another orientation than IM_000\.dcm; slices that are alike"),
    "slice-of-another-size": (other_size, r"IM_009\.dcm is of 5 x 4 x 1 and IM_000\.dcm of 5 x 6 x 1 pixels; slices"),
    "text-among-slices": (text_among_them, r"notes\.dcm: no DICOM image that can be read, a folder of one series"),
    "text-called-dcm": (text_alone, r"notes\.dcm: no DICOM image that can be read, a folder of one series expected"),
    "slice-cut-off": (cut_off, "cannot be read as an image|no DICOM image that can be read"),
    "slices-without-places": (without_places, "lie at one place, one slice at each expected"),
}


@pytest.mark.parametrize("name", NO_VOLUME)
def test_what_is_no_volume_is_told(tmp_path: Path, name: str) -> None:
    make, message = NO_VOLUME[name]
    folder = tmp_path / "case"
    make(folder)
    with pytest.raises(InputError, match=message) as caught:
        read_volume([folder])
    assert str(caught.value).startswith(f"{folder}: ")


def test_folders_of_slices_are_cases_of_their_names(tmp_path: Path) -> None:
    first = write_slices(tmp_path / "first", volume())
    bare = write_slices(tmp_path / "second", volume(), name="slice{}".format)
    (first / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (first / ".DS_Store").touch()
    SimpleITK.WriteImage(volume(), str(tmp_path / "a.nii.gz"))
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "mixed" / "b.nii.gz", tmp_path / "mixed" / "c.dcm"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    problems: list[Problem] = []
    cases = find_cases(tmp_path, ["MRI"], ".nii.gz", problems)
    assert cases == [Case("a", (tmp_path / "a.nii.gz",)), Case("first", (first,)), Case("second", (bare,))]
    assert [str(problem) for problem in problems] == [f"{tmp_path / 'mixed'}: not taken: a folder that holds scans"]
    assert find_cases(first, ["MRI"]) == [Case("first", (first,))] and holds_slices(bare)
    assert len(cases[1].all_files) == 7 and not holds_slices(tmp_path / "empty") and not holds_slices(tmp_path)


def test_a_folder_and_a_file_of_one_name_are_no_two_cases(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", volume())
    SimpleITK.WriteImage(volume(), str(tmp_path / "a.nii.gz"))
    with pytest.raises(InputError, match=r"case a: is there twice, as a\.nii\.gz and a; one expected"):
        find_cases(tmp_path, ["MRI"])
