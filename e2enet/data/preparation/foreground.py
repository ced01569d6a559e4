"""Coordinates of voxels of each class, drawn once, so that foreground patches need no search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from e2enet.common.files import atomic_path
from e2enet.data.formats.scheme import LabelScheme

MIN_COORDINATES = 10_000
MIN_SHARE = 0.01  # of a class's voxels: of a large class, 10 000 would be too few
COORDINATE_SEED = 1234
# The key of all annotated voxels, background included. No class has it.
ANNOTATED = -1


def num_coordinates(voxels: int, least: int = MIN_COORDINATES) -> int:
    """Return how many coordinates are kept of a class of `voxels` voxels, as in nnU-Net.

    It is `least` or a hundredth, whichever is more, or all voxels of a smaller class.
    """
    return min(voxels, max(least, math.ceil(voxels * MIN_SHARE)))


def sample_coordinates(
    label: np.ndarray, least: int = MIN_COORDINATES, scheme: LabelScheme | None = None
) -> dict[int, np.ndarray]:
    """Return class -> (n, 3) int32 coordinates, `num_coordinates` of them, drawn without replacement by a fixed seed.

    Classes are the labels from 1, or the regions of `scheme` by number (`LabelScheme.class_names`). An ignore label is
    no class. With one, ANNOTATED holds the voxels of every other label, background included. The label map (D, H, W) is
    read plane by plane, since the list of all foreground voxels could be larger than the image.
    """
    planes = [np.bincount(plane.ravel()) for plane in label]
    values = max(map(len, planes), default=1)
    counts = np.stack([np.pad(found, (0, values - len(found))) for found in planes])  # (D, values)
    generator = np.random.default_rng(COORDINATE_SEED)
    found = {}
    for number, united in _classes(values, scheme).items():
        own = counts[:, united].sum(axis=1)
        total = int(own.sum())
        if total:
            kept = num_coordinates(total, least)
            ranks = generator.choice(total, kept, replace=False) if total > kept else np.arange(total)
            found[number] = _coordinates(label, united, own, np.sort(ranks))
    return found


def _classes(values: int, scheme: LabelScheme | None) -> dict[int, list[int]]:
    """Number of a class -> its labels below `values`."""
    ignore = None if scheme is None else scheme.ignore
    labels = [label for label in range(values) if label != ignore]
    if scheme is not None and scheme.regions:
        united = enumerate(scheme.regions.values(), 1)
        classes = {number: [label for label in labels if label in region] for number, region in united}
    else:
        classes = {label: [label] for label in labels if label > 0}
    return classes if ignore is None else {**classes, ANNOTATED: labels}


def write_coordinates(path: Path, coordinates: Mapping[int, np.ndarray]) -> None:
    """Write class -> (n, 3) coordinates to an .npz, whole or not at all."""
    with atomic_path(path) as temporary:
        np.savez(temporary, **{str(value): rows for value, rows in coordinates.items()})  # type: ignore[arg-type]


class StoredCoordinates(Mapping[int, np.ndarray]):
    """Coordinates in a file of `write_coordinates`, read class by class.

    They are not cached, since workers would end up holding those of every case.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, value: int) -> np.ndarray:
        with np.load(self.path) as stored:
            return stored[str(value)]

    def __iter__(self) -> Iterator[int]:
        with np.load(self.path) as stored:
            return iter([int(name) for name in stored.files])

    def __len__(self) -> int:
        return len(list(iter(self)))


def _coordinates(label: np.ndarray, united: Sequence[int], counts: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return the coordinates (n, 3) of the voxels with these ascending `ranks` among all voxels of the united labels.

    `counts` holds the number of these voxels in each plane.
    """
    ends = np.cumsum(counts)
    pieces = []
    for depth in np.flatnonzero(counts):
        first = ends[depth] - counts[depth]
        within = ranks[np.searchsorted(ranks, first) : np.searchsorted(ranks, ends[depth])] - first
        if len(within):
            plane = label[depth]
            flat = np.flatnonzero(plane == united[0] if len(united) == 1 else np.isin(plane, united))[within]
            row, column = np.unravel_index(flat, label.shape[1:])
            pieces.append(np.stack([np.full(len(flat), depth), row, column], axis=1))
    return np.concatenate(pieces).astype(np.int32)
