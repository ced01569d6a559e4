"""Check one case: its properties and all its problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.case import channel_problem, count_labels, label_problem, outside_problem
from e2enet.data.formats.grid import Geometry, Offset, grid_offset, grid_problem
from e2enet.data.formats.labels import whole_labels
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem, case_error, case_warning
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.formats.stored import Extent, StoredHeader, StoredImage, read_stored
from e2enet.data.formats.volume import ZERO_EVERYWHERE

Part = Literal["training", "validation", "test"]


@dataclass(frozen=True)
class CaseTask:
    """A case to check, and what its dataset expects of it. It is sent to a worker process."""

    case: Case
    part: Part
    num_channels: int
    scheme: LabelScheme
    label_map: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """Properties of a case, from its readable files.

    Attributes:
        case: Its id and files.
        part: Part of the dataset.
        geometry: Shape, affine and orientation of its first image.
        num_channels: Sum over all image files.
        dtypes: Of the image files, as stored.
        intensities: Smallest and largest finite value.
        digest: Hash of all image values, see `StoredImage.digest`; None if an image cannot be read.
        label_dtype: As stored; None without a readable label.
        voxels: Label -> number of voxels, after the dataset's label map; None without a readable label.
        label_geometry: The label's geometry if it is not on the image's grid, else None.
        headers: Headers of all readable files.
        offset: Largest offset of the other channels and the label that are on the image's grid; None without any.
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
        """Directions of the file's axes: "LPS" for left, posterior, superior."""
        return "".join(nib.aff2axcodes(self.geometry.affine))


@dataclass(frozen=True)
class _ImageFacts:
    header: StoredHeader
    low: float
    high: float
    extent: Extent
    digest: bytes


def examine_case(task: CaseTask) -> tuple[CaseFacts | None, list[Problem]]:
    """Read every file of a case once. Return its properties (None if no image can be read) and its problems.

    Missing files are skipped: the scan of the folder reports them. Memory: the stored voxels of the largest file, and
    some megabytes.
    """
    case, problems = task.case, list[Problem]()
    images = [_examine_image(case, file, problems) for file in case.images if file.is_file()]
    readable = [image for image in images if image is not None]
    problems += _flat_images(case, readable)
    extent = None
    if len(readable) == len(case.images):
        problems += _channel_problems(task, readable)
        extent = _nonzero_extent(case, readable, problems)
    label, voxels, off_grid = None, None, False
    if case.label is not None and case.label.is_file():
        reference = readable[0].header if readable else None
        label, voxels, off_grid = _examine_label(task, case.label, reference, extent, problems)
    if not readable:
        return None, problems
    headers = [image.header for image in readable]
    for header in headers[1:]:
        problems += _off_grid(case, headers[0], header, ("first channel", "this channel"))
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
    return _ImageFacts(stored.header, low, high, stored.nonzero_extent(), stored.digest())


def _flat_images(case: Case, images: Sequence[_ImageFacts]) -> list[Problem]:
    """Return a warning for each constant image. If all images are zero, another check reports an error instead."""
    flat = [image for image in images if image.low == image.high]
    if not any(image.low or image.high for image in images):
        return []
    return [case_warning(case.id, f"every voxel has the value {one.low:g}", one.header.path) for one in flat]


def _nonzero_extent(case: Case, images: Sequence[_ImageFacts], problems: list[Problem]) -> Extent | None:
    """Return where any channel is nonzero; None if all are zero, which is an error, or if their shapes differ."""
    if len({image.header.geometry.shape for image in images}) > 1:
        return None
    x, y, z = (np.any(axis, axis=0) for axis in zip(*(image.extent for image in images), strict=True))
    if z.any():
        return x, y, z
    problems.append(case_error(case.id, ZERO_EVERYWHERE, case.images[0]))
    return None


def _examine_label(
    task: CaseTask, file: Path, reference: StoredHeader | None, extent: Extent | None, problems: list[Problem]
) -> tuple[StoredHeader | None, dict[int, int] | None, bool]:
    """Return header and voxel counts of a label file (None if unreadable), and whether it is off its image's grid.

    `reference` is the image's header and `extent` its nonzero extent; None if unknown.
    """
    case = task.case
    stored = _read(case, file, problems)
    if stored is None:
        return None, None, False
    off_grid = _off_grid(case, reference, stored.header, ("image", "label")) if reference is not None else []
    voxels = _count_label(task, stored, None if off_grid else extent, problems)
    problems += off_grid
    return stored.header, voxels, bool(off_grid)


def _count_label(
    task: CaseTask, stored: StoredImage, extent: Extent | None, problems: list[Problem]
) -> dict[int, int] | None:
    case, header = task.case, stored.header
    file = header.path
    if header.channels > 1:
        shape = (*header.geometry.shape, header.channels)
        problems.append(case_error(case.id, f"a label image of shape {shape}, three axes expected", file))
        return None
    try:
        voxels = count_labels(_whole_pieces(stored), task.label_map)
    except InputError as error:
        problems.append(case_error(case.id, _without_path(error, file), file))
        return None
    unknown = label_problem(voxels, task.scheme)
    if unknown:
        problems.append(case_error(case.id, unknown, file))
    total = _foreground(task, voxels)
    if not total:
        others = " or ignored" * (task.scheme.ignore in voxels)
        problems.append(case_warning(case.id, f"no foreground: every voxel is background{others}", file))
    elif extent is not None:
        problems += _outside_problems(task, stored, extent, total)
    scaled = (header.slope, header.intercept) != (1, 0)
    if header.dtype.kind == "f" or scaled:
        scale = f" with a scale of {header.slope:.9g} and an offset of {header.intercept:.9g}" if scaled else ""
        text = f"labels are stored as {header.dtype.name}{scale}; they are whole numbers and read as such"
        problems.append(case_warning(case.id, text, file))
    return voxels


def _foreground(task: CaseTask, voxels: Mapping[int, int]) -> int:
    """Return the number of voxels that are neither background nor ignored."""
    return sum(count for value, count in voxels.items() if value > 0 and value != task.scheme.ignore)


def _outside_problems(task: CaseTask, stored: StoredImage, extent: Extent, total: int) -> list[Problem]:
    """Report foreground of a label that is cropped away with the zeros around its image."""
    if all(places[0] and places[-1] for places in extent):
        return []  # nothing is cropped, as in every CT: no second pass over the label is needed
    x, y, z = (slice(int(places[0]), int(places[-1]) + 1) for places in map(np.flatnonzero, extent))
    path = stored.header.path
    pieces = (whole_labels(plane[y, x], path) for plane in islice(stored.planes(), z.start, z.stop))
    inside = _foreground(task, count_labels(pieces, task.label_map))
    wrong = outside_problem(inside, total)
    if wrong:
        return [case_error(task.case.id, wrong, path)]
    text = f"{total - inside} of {total} labelled voxels lie where the image is cropped away, as zero: never predicted"
    return [case_warning(task.case.id, text, path)] if inside < total else []


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
    """Return the largest offset from the first file among the files on its grid."""
    first = headers[0].geometry
    others = [header.geometry for header in headers[1:] if header.geometry.shape == first.shape]
    offsets = [grid_offset(first.affine, other.affine, first.shape) for other in others]
    return max((offset for offset in offsets if offset.same_grid), default=None)


def _read(case: Case, file: Path, problems: list[Problem]) -> StoredImage | None:
    try:
        return read_stored(file, case.unit)
    except InputError as error:
        problems.append(case_error(case.id, _without_path(error, file), file))
        return None


def _without_path(error: InputError, file: Path) -> str:
    """Return the message alone: a problem holds its file separately."""
    return str(error).removeprefix(f"{file}: ")
