"""One case as training needs it: image and label on one grid, the right channels, known labels.

`e2enet check` reports by the same rules, so a case that passes the check can be prepared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from e2enet.common.errors import InputError, raise_problems
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.grid import grid_problem
from e2enet.data.formats.labels import apply_label_map, are_consecutive
from e2enet.data.formats.naming import Case
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.formats.volume import ZERO_EVERYWHERE, Volume, crop_to_nonzero, read_label, read_volume

CHUNK_VOXELS = 2**22


@dataclass(frozen=True, eq=False)
class CaseVolumes:
    """A case in memory: `image` (C, D, H, W), and `label` (D, H, W), uint8 or int16, or None."""

    image: Volume
    label: np.ndarray | None


def read_case(dataset: RawDataset, case: Case, depth_axis: int) -> CaseVolumes:
    """Read image and label of a case; raise one InputError with all its errors.

    The label's values are renumbered by `dataset.label_map`, and its axes are ordered by the image's affine. Errors
    are: files that cannot be read, a wrong number of channels, an image of zeros, different grids (`same_grid`),
    unknown label values, and a label entirely outside the box of the image's nonzero voxels.
    """
    problems: list[str] = []
    volume, label = None, None
    try:
        volume = read_volume(case.images, depth_axis, case.unit)
        wrong_count = channel_problem(len(volume.array), len(dataset.channels))
        problems += [f"{case.images[0]}: {wrong_count}"] if wrong_count else []
        if not volume.array.any():
            problems.append(f"{case.images[0]}: {ZERO_EVERYWHERE}")
    except InputError as error:
        problems.append(str(error))
    if case.label is not None:
        try:
            grid = volume.geometry if volume is not None else None
            label, geometry = read_label(case.label, depth_axis, dataset.label_map, on=grid, unit=case.unit)
            off_grid = grid_problem(grid, geometry, ("image", "label"), repair=True) if grid is not None else None
            found = [off_grid, label_problem(count_labels([label]), dataset.scheme)]
            if volume is not None and not any((*problems, *found)):
                foreground = dataset.scheme.foreground(label)
                inside = foreground[crop_to_nonzero(volume.array)]
                found.append(outside_problem(int(np.count_nonzero(inside)), int(np.count_nonzero(foreground))))
            problems += [f"{case.label}: {text}" for text in found if text]
        except InputError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise InputError(problems[0])
    raise_problems(problems, "cannot be used:")
    assert volume is not None
    return CaseVolumes(volume, label)


def channel_problem(found: int, expected: int) -> str | None:
    """Return what is wrong with an image's number of channels, or None.

    `expected` is 0 if it could not be read. That is reported once, not for each case.
    """
    return None if expected in (found, 0) else f"{found} channels, {expected} expected"


def label_problem(counts: Mapping[int, int], scheme: LabelScheme) -> str | None:
    """Return the unknown label values, or None. `counts` is value -> voxels after the label map.

    A scheme that could not be read (background alone) or that has gaps is reported once, not for each case.
    """
    labels = scheme.file_names
    if len(labels) < 2 or not are_consecutive(labels):
        return None
    unknown = {value: count for value, count in sorted(counts.items()) if value not in labels}
    if not unknown:
        return None
    found = ", ".join(f"{value} ({count} voxel{'s' if count > 1 else ''})" for value, count in unknown.items())
    return f"holds label values {found}; those of the dataset expected: {min(labels)} to {max(labels)}"


def outside_problem(inside: int, total: int) -> str | None:
    """Return what is wrong with a label without foreground in the box of the image's nonzero voxels, or None.

    `inside` of its `total` foreground voxels lie in the box. The others are cropped away, never learnt or predicted.
    """
    if inside or not total:
        return None
    return f"all its {total} labelled voxels lie outside of the box of the image's nonzero voxels: is it this image's?"


def count_labels(pieces: Iterable[np.ndarray], label_map: Mapping[int, int] | None = None) -> dict[int, int]:
    """Count voxels per label in arrays of whole numbers from 0, renumbered by `label_map`.

    The result is sorted by label and leaves out absent labels.
    """
    total = np.zeros(1, np.int64)
    for piece in pieces:
        flat = piece.ravel(order="K")
        for start in range(0, flat.size, CHUNK_VOXELS):
            # In chunks, since bincount converts its input to 8-byte integers.
            counts = np.bincount(flat[start : start + CHUNK_VOXELS], minlength=len(total))
            counts[: len(total)] += total
            total = counts
    values = np.flatnonzero(total)
    renumbered = apply_label_map(values, label_map or {})
    found: dict[int, int] = {}
    for label, value in zip(renumbered, values, strict=True):
        found[int(label)] = found.get(int(label), 0) + int(total[value])
    return dict(sorted(found.items()))
