"""One case looked through: what it is like, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.case import channel_problem, count_labels, label_problem
from e2enet.data.formats.grid import Geometry, Offset, grid_offset, grid_problem
from e2enet.data.formats.labels import whole_labels
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem, case_error, case_warning
from e2enet.data.formats.stored import StoredHeader, StoredImage, read_stored

Part = Literal["training", "validation", "test"]


@dataclass(frozen=True)
class CaseTask:
    """A case to look through, and what its dataset expects of it; travels to a worker process."""

    case: Case
    part: Part
    num_channels: int
    labels: Mapping[int, str]
    label_map: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What a case is like, of those of its files that can be read.

    Attributes:
        case: Its id and files.
        part: Of the dataset.
        geometry: Shape, affine and orientation of its first image.
        num_channels: Over all its files.
        dtypes: Of the image files, as stored.
        intensities: Smallest and largest finite value.
        digest: Hash of all image values; None where an image cannot be read.
        label_dtype: As stored; None without a readable label.
        voxels: Label -> voxels, after the dataset's label map; None without a readable label.
        label_geometry: The label's own, where it is not on the image's grid; else None.
        headers: Of every file that can be read.
        offset: The largest of other channels and the label that are on the image's grid; None without any.
    """

    case: Case
    part: Part
    geometry: Geometry
    num_channels: int
    dtypes: tuple[str, ...]
    intensities: tuple[float, float]
    digest: bytes | None
    label_dtype: str | None
    voxels: dict[int, int] | None
    label_geometry: Geometry | None
    headers: tuple[StoredHeader, ...]
    offset: Offset | None

    @property
    def orientation(self) -> str:
        """Where the file's axes point: "LPS" for left, posterior, superior."""
        return "".join(nib.aff2axcodes(self.geometry.affine))


@dataclass(frozen=True)
class _ImageFacts:
    header: StoredHeader
    low: float
    high: float
    digest: bytes


def examine_case(task: CaseTask) -> tuple[CaseFacts | None, list[Problem]]:
    """Read every file of a case once; what it is like (None where no image can be read), and what is wrong.

    Missing files are passed over: they are known from the scan of the folder. Memory: the stored voxels of the
    largest file, and some megabytes.
    """
    case, problems = task.case, list[Problem]()
    images = [_examine_image(case, file, problems) for file in case.images if file.is_file()]
    readable = [image for image in images if image is not None]
    if len(readable) == len(case.images):
        problems += _channel_problems(task, readable)
    label, voxels = None, None
    if case.label is not None and case.label.is_file():
        label, voxels = _examine_label(task, case.label, problems)
    if not readable:
        return None, problems
    headers = [image.header for image in readable]
    for header in headers[1:]:
        problems += _off_grid(case, headers[0], header, ("first channel", "this channel"))
    off_grid = _off_grid(case, headers[0], label, ("image", "label")) if label is not None else []
    problems += off_grid
    headers += [label] if label is not None else []
    facts = CaseFacts(
        case,
        task.part,
        headers[0].geometry,
        sum(image.header.channels for image in readable),
        tuple(str(image.header.dtype.newbyteorder("=")) for image in readable),
        (min(image.low for image in readable), max(image.high for image in readable)),
        b"".join(image.digest for image in readable) if len(readable) == len(case.images) else None,
        str(label.dtype.newbyteorder("=")) if label is not None else None,
        voxels,
        label.geometry if label is not None and off_grid else None,
        tuple(headers),
        _largest_offset(headers),
    )
    return facts, problems


def _examine_image(case: Case, file: Path, problems: list[Problem]) -> _ImageFacts | None:
    stored = _read(case, file, problems)
    if stored is None:
        return None
    low, high, wrong = np.inf, -np.inf, 0
    for piece in stored.values():
        if piece.dtype.kind == "f" and not np.isfinite(piece).all():
            finite = np.isfinite(piece)
            wrong += int(finite.size - np.count_nonzero(finite))
            piece = piece[finite]
        if piece.size:
            low, high = min(low, float(piece.min())), max(high, float(piece.max()))
    if wrong:
        problems.append(case_error(case.id, f"{wrong} voxels are NaN or infinite, finite values expected", file))
    elif low == high == 0 and len(case.images) == 1:
        problems.append(case_error(case.id, "the image is zero everywhere, other values expected", file))
    elif low == high:
        problems.append(case_warning(case.id, f"every voxel has the value {low:g}", file))
    return _ImageFacts(stored.header, low, high, stored.digest())


def _examine_label(
    task: CaseTask, file: Path, problems: list[Problem]
) -> tuple[StoredHeader | None, dict[int, int] | None]:
    """Header and counts of a label file, as far as they can be had."""
    case = task.case
    stored = _read(case, file, problems)
    if stored is None:
        return None, None
    header = stored.header
    if header.channels > 1:
        shape = (*header.geometry.shape, header.channels)
        problems.append(case_error(case.id, f"a label image of shape {shape}, three axes expected", file))
        return header, None
    try:
        voxels = count_labels(_whole_pieces(stored), task.label_map)
    except InputError as error:
        problems.append(case_error(case.id, _without_path(error, file), file))
        return header, None
    unknown = label_problem(voxels, task.labels)
    if unknown:
        problems.append(case_error(case.id, unknown, file))
    if not any(voxels[value] for value in voxels if value > 0):
        problems.append(case_warning(case.id, "no foreground: every voxel is background", file))
    if header.dtype.kind == "f":
        text = f"labels are stored as {header.dtype.name}; they are whole numbers and read as such"
        problems.append(case_warning(case.id, text, file))
    return header, voxels


def _whole_pieces(stored: StoredImage) -> Iterator[np.ndarray]:
    for piece in stored.values():
        yield whole_labels(piece, stored.header.path)


def _channel_problems(task: CaseTask, images: list[_ImageFacts]) -> list[Problem]:
    case = task.case
    if len(images) > 1:
        return [
            case_error(case.id, f"{image.header.channels} channels in a file of one channel", image.header.path)
            for image in images
            if image.header.channels > 1
        ]
    text = channel_problem(images[0].header.channels, task.num_channels)
    return [case_error(case.id, text, case.images[0])] if text else []


def _off_grid(case: Case, reference: StoredHeader, header: StoredHeader, names: tuple[str, str]) -> list[Problem]:
    text = grid_problem(reference.geometry, header.geometry, names, repair=names[1] == "label")
    return [case_error(case.id, f"not on the grid of {reference.path}: {text}", header.path)] if text else []


def _largest_offset(headers: Sequence[StoredHeader]) -> Offset | None:
    """Of the files that are on the grid of the first."""
    first = headers[0].geometry
    others = [header.geometry for header in headers[1:] if header.geometry.shape == first.shape]
    offsets = [grid_offset(first.affine, other.affine, first.shape) for other in others]
    return max((offset for offset in offsets if offset.same_grid), default=None)


def _read(case: Case, file: Path, problems: list[Problem]) -> StoredImage | None:
    try:
        return read_stored(file)
    except InputError as error:
        problems.append(case_error(case.id, _without_path(error, file), file))
        return None


def _without_path(error: InputError, file: Path) -> str:
    """The message alone: a problem names its file elsewhere."""
    return str(error).removeprefix(f"{file}: ")
