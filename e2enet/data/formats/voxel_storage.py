"""Where MetaImage, NRRD and GIPL files keep their voxels, and whether all of them are there.

SimpleITK reads these files with few checks. It accepts voxels that cannot be unpacked, ignores checksums, and reads any
file on the disk that a header names. So these are checked here, before it reads.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

from e2enet.common.errors import InputError
from e2enet.common.files import naming_unreadable
from e2enet.data.formats.nifti import CHUNK_BYTES, MAX_COMPRESSION, cut_off, naming_cut_off

MAX_HEADER = 2**20  # bytes within which a header must end
GIPL_HEADER = 256
META_FILE = re.compile(r"ElementDataFile[ \t]*[=:][ \t]*([^\r\n]*)\r?\n?")
NRRD_FILE = re.compile(r"^data ?file: *(.*)$", re.IGNORECASE | re.MULTILINE)
NRRD_END = re.compile(r"\r?\n\r?\n")
MILLIMETRES = ("mm", "millimeter", "millimetre", "", "???")
# Most bytes of voxels that a byte of a file can hold. A number in text has at least one digit and a blank.
MAX_PER_BYTE = {"raw": 1, "packed": MAX_COMPRESSION, "text": 4}

Encoding = Literal["raw", "packed", "text"]


@dataclass(frozen=True)
class VoxelStorage:
    """Where an image's voxels are: in `file`, at byte `start` or later, in `length` bytes if known."""

    file: Path
    start: int
    encoding: Encoding
    length: int | None = None


def read_storage(path: Path) -> VoxelStorage:
    """Return where the voxels of a .mha, .mhd, .nrrd, .nhdr or .gipl file are, by its header.

    Raise InputError naming the file if it is missing or has no such header, if it names a voxel file that is not
    beside it, or if lengths are not in mm, which SimpleITK assumes.
    """
    try:
        with naming_unreadable(path), path.open("rb") as stream:
            head = stream.read(MAX_HEADER).decode("latin-1")
    except InputError as error:
        raise InputError(f"{path}: no such file") if isinstance(error.__cause__, FileNotFoundError) else error from None
    if path.name.endswith(".gipl"):
        return VoxelStorage(path, GIPL_HEADER, "raw")
    return _of_meta_image(path, head) if path.name.endswith((".mha", ".mhd")) else _of_nrrd(path, head)


def require_whole(path: Path, storage: VoxelStorage, num_bytes: int) -> None:
    """Raise InputError naming the image unless its packed voxels are complete and match the checksum at their end."""
    if storage.encoding != "packed":
        return  # opening the image compared the size of the file
    with naming_cut_off(path), storage.file.open("rb") as stream:
        stream.seek(storage.start)
        found = sum(_unpacked_sizes(stream if storage.length is None else BytesIO(stream.read(storage.length))))
    if found != num_bytes:
        raise cut_off(path, f"{num_bytes} bytes of voxels expected, {found} found")


def require_possible(path: Path, storage: VoxelStorage, num_bytes: int) -> None:
    """Raise InputError naming the image if its file is too small for so many bytes of voxels, however packed."""
    size = storage.file.stat().st_size - storage.start
    if num_bytes > size * MAX_PER_BYTE[storage.encoding]:
        raise cut_off(path, f"{num_bytes} bytes of voxels expected, the file has {max(size, 0)}")


def _of_meta_image(path: Path, head: str) -> VoxelStorage:
    place = META_FILE.search(head)
    if place is None or head[: place.start()].rstrip(" \t")[-1:] not in ("", "\n"):
        raise _no_header(path, "a MetaImage", "ElementDataFile")
    entries = [_split(line, "=:") for line in head[: place.start()].splitlines() if line.strip()]
    fields = dict(entries)
    # With these SimpleITK would look elsewhere, or run forever.
    if len(fields) < len(entries):
        raise InputError(f"{path}: its header holds {', '.join(key for key, _ in entries)}: each once expected")
    if not re.fullmatch("[1-9]", fields.get("NDims", "")):
        raise InputError(f"{path}: NDims is {fields.get('NDims')!r}, 3 or 4 expected")
    _require_millimetres(path, "DistanceUnits", [fields.get("DistanceUnits", "")])
    name = place[1].strip()
    is_local = name.lower() == "local"
    file, start = (path, place.end()) if is_local else (_beside(path, "ElementDataFile", name), 0)
    if fields.get("CompressedData", "")[:1] not in ("T", "t", "1"):
        return VoxelStorage(file, start, "raw")
    length = fields.get("CompressedDataSize", "")
    if not re.fullmatch(r"[1-9]\d{,17}", length) or fields.get("HeaderSize", "0") != "0":
        sizes = f"CompressedDataSize is {length!r} and HeaderSize {fields.get('HeaderSize')!r}"
        raise InputError(f"{path}: {sizes}, the packed voxels' number of bytes and 0 expected")
    return VoxelStorage(file, start, "packed", int(length))


def _of_nrrd(path: Path, head: str) -> VoxelStorage:
    if not head.startswith("NRRD"):
        raise _no_header(path, "an NRRD", "NRRD")
    end = NRRD_END.search(head)
    header = head[: end.start()] if end else head
    fields = {name.lower(): value for name, value in (_split(line, ":") for line in header.splitlines())}
    if "nan" in fields.get("spacings", "").lower().split():  # SimpleITK would make it 1 mm
        raise InputError(f"{path}: spacings are {fields['spacings']}, three sizes above 0 expected")
    for key in ("space units", "units"):
        _require_millimetres(path, key, re.findall(r'"([^"]*)"', fields.get(key, "")))
    encodings: dict[str, Encoding] = {"raw": "raw", "gzip": "packed", "gz": "packed"}
    encoding = encodings.get(fields.get("encoding", "").lower(), "text")
    names = NRRD_FILE.findall(header)
    if names:
        return VoxelStorage(_beside(path, "data file", names[0].strip()), 0, encoding)
    if end is None:
        raise _no_header(path, "an NRRD", "an empty line after its header")
    return VoxelStorage(path, end.end(), encoding)


def _beside(path: Path, key: str, name: str) -> Path:
    """Return the file of a name in the header's own folder. A header must not name a file elsewhere."""
    file = path.parent / name
    if len(Path(name).parts) != 1 or name == ".." or not file.is_file():
        raise InputError(f"{path}: {key} is {name!r}, the name of a file beside the header expected")
    return file


def _require_millimetres(path: Path, key: str, units: list[str]) -> None:
    wrong = [unit for unit in units if unit.strip().lower() not in MILLIMETRES]
    if wrong:
        raise InputError(f"{path}: {key} is {wrong[0]!r}, mm expected")


def _split(line: str, separators: str) -> tuple[str, str]:
    name, *value = re.split(f"[{separators}]", line, maxsplit=1)
    return name.strip(), "".join(value).strip()


def _no_header(path: Path, kind: str, expected: str) -> InputError:
    return InputError(
        f"{path}: cannot be read as an image, {kind} file expected: cut off, damaged or of another kind "
        f"({expected} is not in it)"
    )


def _unpacked_sizes(stream: BinaryIO) -> Iterator[int]:
    """Unpack a gzip or zlib stream to its end, where its checksum is compared, and yield the sizes of its pieces."""
    start = stream.tell()
    is_gzip = stream.read(2) == b"\x1f\x8b"
    stream.seek(start)
    if is_gzip:
        with gzip.GzipFile(fileobj=stream) as unpacked:
            while piece := unpacked.read(CHUNK_BYTES):
                yield len(piece)
        return
    unpack = zlib.decompressobj()
    while not unpack.eof:
        packed = unpack.unconsumed_tail or stream.read(CHUNK_BYTES)
        yield len(unpack.decompress(packed, CHUNK_BYTES) if packed else unpack.flush())
        if not packed and not unpack.eof:
            raise EOFError("the stream ends before its checksum")
