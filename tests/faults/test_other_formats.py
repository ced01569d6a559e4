"""Unusable MetaImage, NRRD and GIPL files of every kind are reported, like those of NIfTI."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from e2enet.common.errors import InputError
from e2enet.data.formats.stored import read_stored
from e2enet.data.formats.volume import read_geometry, read_volume

SHAPE = (8, 9, 6)
VOXELS = np.random.default_rng(0).integers(-500, 500, SHAPE, dtype=np.int16)
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "ElementSpacing": "1 1 2",
    "DimSize": "8 9 6",
    "ElementType": "MET_SHORT",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "8 9 6",
    "space directions": "(1,0,0) (0,1,0) (0,0,2)",
    "encoding": "raw",
    "endian": "little",
    "space origin": "(0,0,0)",
}
RAW = VOXELS.tobytes(order="F")
Spoil = Callable[[Path], Any]


def meta(place: str = "LOCAL", content: bytes = RAW, **changes: str) -> Spoil:
    """Write a MetaImage with a changed header."""
    lines = [f"{key} = {value}" for key, value in {**META, **changes, "ElementDataFile": place}.items()]
    return lambda path: path.write_bytes("\n".join(lines).encode() + b"\n" + content)


def nrrd(content: bytes = RAW, without: str = "", **changes: str) -> Spoil:
    """Write an NRRD file with a changed header. An underscore in a key stands for a blank."""
    fields = {**NRRD, **{key.replace("_", " "): value for key, value in changes.items()}}
    lines = ["NRRD0005", *(f"{key}: {value}" for key, value in fields.items() if key != without)]
    return lambda path: path.write_bytes("\n".join(lines).encode() + b"\n\n" + content)


def packed_and(change: Callable[[bytearray], Any]) -> Spoil:
    """Write a sound compressed file and change its bytes."""

    def spoil(path: Path) -> None:
        image = SimpleITK.GetImageFromArray(VOXELS.T)
        SimpleITK.WriteImage(image, str(path), useCompression=True)
        content = bytearray(path.read_bytes())
        path.write_bytes(change(content) or content)

    return spoil


def flip(content: bytearray, place: int) -> None:
    content[place] ^= 0xFF


def voxels_cut(ending: str, packed: bool) -> Spoil:
    """Write a header with a separate voxel file, and cut off the end of the voxels."""

    def spoil(path: Path) -> None:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS.T), str(path), useCompression=packed)
        voxels = path.with_suffix(ending)
        voxels.write_bytes(voxels.read_bytes()[:-3])

    return spoil


def complex_numbers(path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS.T.astype(np.complex64)), str(path))


CUT_OFF = r"the voxels cannot be read, the file may be cut off \(.*\): a whole file expected"
BESIDE = "the name of a file beside the header expected"
BROKEN: dict[str, tuple[str, Spoil, str]] = {
    "cut-off": (".mha", meta(content=RAW[:-1]), r"864 bytes of voxels expected, the file has 863.*whole file expected"),
    "cut-off-nrrd": (".nrrd", nrrd(RAW[:-1]), r"864 bytes of voxels expected, the file has 863.*whole file expected"),
    "cut-off-gipl": (".gipl", packed_and(lambda c: c[:-1]), r"864 bytes of voxels expected, the file has 863"),
    "cut-off-packed": (".mha", packed_and(lambda c: c[:-200]), CUT_OFF),
    "cut-off-in-its-checksum": (".nrrd", packed_and(lambda c: c[:-1]), CUT_OFF),
    "cut-off-beside": (".mhd", voxels_cut(".raw", False), r"864 bytes of voxels expected, the file has 861"),
    "cut-off-beside-packed": (".mhd", voxels_cut(".zraw", True), CUT_OFF),
    "cut-off-beside-packed-nrrd": (".nhdr", voxels_cut(".raw.gz", True), CUT_OFF),
    "damaged-packed": (".mha", packed_and(lambda c: flip(c, -300)), CUT_OFF),
    "damaged-packed-nrrd": (".nrrd", packed_and(lambda c: flip(c, -300)), CUT_OFF),
    "damaged-checksum": (".mha", packed_and(lambda c: flip(c, -2)), CUT_OFF),
    "damaged-checksum-nrrd": (".nrrd", packed_and(lambda c: flip(c, -6)), CUT_OFF),
    "packed-with-fewer-voxels": (
        ".nrrd",
        nrrd(gzip.compress(RAW[:400]), encoding="gzip"),
        r"864 bytes of voxels expected, 400 found",
    ),
    "packed-with-more-voxels": (
        ".nrrd",
        nrrd(gzip.compress(RAW + b"12"), encoding="gzip"),
        r"864 bytes of voxels expected, 866 found",
    ),
    "packed-of-another-size": (
        ".mha",
        meta(content=zlib.compress(RAW), CompressedData="True", CompressedDataSize="90"),
        CUT_OFF,
    ),
    "packed-of-no-size": (
        ".mha",
        meta(content=zlib.compress(RAW), CompressedData="True"),
        r"CompressedDataSize is '' and HeaderSize None, the packed voxels' number of bytes and 0 expected",
    ),
    "packed-elsewhere-in-the-file": (
        ".mha",
        meta(content=zlib.compress(RAW), CompressedData="True", CompressedDataSize="90", HeaderSize="5"),
        "CompressedDataSize is '90' and HeaderSize '5', ",
    ),
    "axes-below-zero": (".mha", meta(NDims="-1"), "NDims is '-1', 3 or 4 expected"),
    "key-twice": (".mha", meta(**{" NDims": "3"}), "its header holds .*NDims.*: each once expected"),
    "no-image": (".mha", lambda path: path.write_text("not an image"), "a MetaImage file expected: .*of another kind"),
    "no-nrrd": (".nrrd", lambda path: path.write_text("not an image"), "an NRRD file expected: .*of another kind"),
    "no-gipl": (".gipl", lambda path: path.write_text("not an image"), "one that SimpleITK reads expected"),
    "empty": (".nrrd", lambda path: path.write_bytes(b""), "an NRRD file expected"),
    "header-alone": (
        ".nrrd",
        lambda path: path.write_bytes(b"NRRD0005\ntype: short"),
        "an empty line after its header",
    ),
    "one-format-in-the-name-of-another": (".mha", nrrd(), "a MetaImage file expected"),
    "more-than-the-file-can-hold": (
        ".mha",
        meta(DimSize="30000 30000 30000"),
        r"54000000000000 bytes of voxels expected",
    ),
    "more-than-can-be-packed": (
        ".nrrd",
        nrrd(gzip.compress(RAW), sizes="3000 3000 3000", encoding="gzip"),
        r"54000000000 bytes of voxels expected",
    ),
    "zero-size": (".nrrd", nrrd(sizes="8 0 6"), r"axis 1 size is zero"),
    "two-axes": (".mha", meta(NDims="2", DimSize="24 18", ElementSpacing="1 1"), r"shape \(24, 18\), a 3D image"),
    "five-axes": (
        ".mha",
        meta(NDims="5", DimSize="8 9 2 3 1", ElementSpacing="1 1 1 1 1", ElementNumberOfChannels="2"),
        "shape .*, a 3D image or a 4D one with channels last expected|864 bytes|1728 bytes",
    ),
    "zero-spacing": (".mha", meta(ElementSpacing="1 0 2"), r"voxels of \[1\.0, 0\.0, 2\.0\] mm, three sizes above 0"),
    "negative-spacing": (
        ".mha",
        meta(ElementSpacing="1 -3 2"),
        r"voxels of \[1\.0, -3\.0, 2\.0\] mm, three sizes above",
    ),
    "spacing-that-is-no-number": (
        ".nrrd",
        nrrd(without="space directions", space="", spacings="1 nan 2"),
        "spacings are 1 nan 2, three sizes above 0 expected",
    ),
    "singular-directions": (
        ".nrrd",
        nrrd(space_directions="(1,0,0) (1,0,0) (0,0,2)"),
        "the affine .* cannot be inverted, three different axes expected",
    ),
    "direction-of-no-length": (
        ".nrrd",
        nrrd(space_directions="(1,0,0) (0,0,0) (0,0,2)"),
        "three sizes above 0 expected",
    ),
    "microns": (".mha", meta(DistanceUnits="um"), r"DistanceUnits is 'um', mm expected"),
    "microns-nrrd": (".nrrd", nrrd(space_units='"um" "um" "um"'), r"space units is 'um', mm expected"),
    "no-voxels-beside": (".mhd", meta("none.raw", b""), f"ElementDataFile is 'none.raw', {BESIDE}"),
    "voxels-elsewhere": (".mhd", meta("../voxels.raw", b""), f"ElementDataFile is '../voxels.raw', {BESIDE}"),
    "voxels-at-a-path": (".mha", meta("/etc/hostname", b""), f"ElementDataFile is '/etc/hostname', {BESIDE}"),
    "list-of-files": (".mhd", meta("LIST", b"/etc/hostname"), f"ElementDataFile is 'LIST', {BESIDE}"),
    "voxels-at-a-path-nrrd": (".nrrd", nrrd(data_file="/etc/hostname"), f"data file is '/etc/hostname', {BESIDE}"),
    "hidden-in-a-comment": (
        ".mha",
        meta("/etc/hostname", b"", Comment="ElementDataFile = LOCAL"),
        "MetaImage file expected",
    ),
    "unknown-type": (".mha", meta(ElementType="MET_NOTHING"), "one that SimpleITK reads expected"),
    "unknown-encoding": (".nrrd", nrrd(encoding="bzip2"), "one that SimpleITK reads expected.*bzip2"),
    "complex-numbers": (".nrrd", complex_numbers, "voxels of type complex64, numbers expected"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_it_is_told(tmp_path: Path, name: str) -> None:
    ending, spoil, message = BROKEN[name]
    path = tmp_path / "in" / f"bad{ending}"
    path.parent.mkdir()
    (tmp_path / "voxels.raw").write_bytes(RAW)
    spoil(path)
    for read in (lambda: read_volume([path]), lambda: read_stored(path)):
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: ") and re.search(message, str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("ending", "spoil"),
    [
        *[(".mha", meta()), (".nrrd", nrrd())],
        (".mha", meta(ElementSpacing="1 1 2\n\nComment : two\n")),
        (
            ".mha",
            meta(content=zlib.compress(RAW), CompressedData="True", CompressedDataSize=str(len(zlib.compress(RAW)))),
        ),
        (".nrrd", nrrd(gzip.compress(RAW[:500]) + gzip.compress(RAW[500:]), encoding="gzip")),
        (".nrrd", nrrd("\n".join(map(str, VOXELS.ravel(order="F"))).encode(), encoding="ascii")),
    ],
)
def test_sound_ones_are_read(tmp_path: Path, ending: str, spoil: Spoil) -> None:
    spoil(tmp_path / f"good{ending}")
    np.testing.assert_array_equal(read_stored(tmp_path / f"good{ending}").voxels, VOXELS.ravel(order="F"))
    assert read_geometry(tmp_path / f"good{ending}").spacing == (2, 1, 1)


def test_the_others_are_predicted(bench: Any) -> None:
    for name in ("cut-off-packed", "damaged-packed", "voxels-at-a-path"):
        BROKEN[name][1](bench.scans / f"{name}{BROKEN[name][0]}")
    failures = bench.predict()
    assert list(failures) == ["cut-off-packed", "damaged-packed", "voxels-at-a-path"]
    assert bench.results() == [".predicted/good.json", "good.nii.gz"]


def test_a_missing_file_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.mha: no such file"):
        read_geometry(tmp_path / "none.mha")
