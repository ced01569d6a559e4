"""Forecasts, from headers, the disk space and memory that preparing takes, and refuses what cannot fit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.naming import Case
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.formats.volume import read_geometry
from e2enet.data.planning.case_workers import SMALL_VOXELS, image_voxels
from e2enet.data.planning.plan import Plan, resampled_shape
from e2enet.data.preparation.foreground import MIN_COORDINATES, MIN_SHARE
from e2enet.system.workload import Workload, fit_workers, gigabytes

# A worker's peak memory, as a multiple of its case in float32 (raw or resampled, whichever is larger).
# docs/preparation.md has the measurements. A test keeps them below this value.
PEAK_FACTOR = 5.0
COORDINATE_BYTES = 12


@dataclass(frozen=True)
class Forecast:
    """What the cases need: `disk` of `free_disk` bytes, the largest case in words (`most`), and workers with memory."""

    num_cases: int
    disk: int
    most: str
    free_disk: int
    load: Workload

    def __str__(self) -> str:
        return (
            f"{self.num_cases} cases to prepare: up to {gigabytes(self.disk)} of disk, {self.most} "
            f"({gigabytes(self.free_disk)} free); {self.load}"
        )


def forecast(
    dataset: RawDataset, cases: Sequence[Case], plan: Plan, folder: Path, workers: int | None = None
) -> Forecast:
    """Return what preparing the cases takes at most. The crop to nonzero, which reduces it, is not included.

    Raises InputError if the disk space of `folder` or the memory of this machine is too small.
    """
    total = 0
    sizes: dict[str, int] = {}
    needs: dict[str, int] = {}
    for case in cases:
        try:
            raw, prepared = _voxels(case, plan)
        except InputError:
            raw, prepared = 0, 0  # the worker will report the problem, and the other cases continue
        channels = len(dataset.channels)
        coordinates = _coordinates(prepared, dataset.scheme) * COORDINATE_BYTES
        mask_bytes = prepared if plan.masked_channels else 0
        label_bytes = prepared * (1 if len(dataset.labels) <= 256 else 2) + coordinates + mask_bytes
        sizes[case.id] = prepared * channels * 4 + (label_bytes if case.label is not None else 0)
        needs[case.id] = int(PEAK_FACTOR * 4 * max(raw, prepared * channels))
        total += max(raw, prepared * channels)
    disk, free = sum(sizes.values()), free_disk(folder)
    largest = max(sizes, key=lambda name: sizes[name])
    most = f"{gigabytes(sizes[largest])} of it for case {largest}"
    if disk > free:
        raise InputError(
            f"{folder}: preparing {len(cases)} cases takes up to {gigabytes(disk)}, {most}; {gigabytes(free)} are free "
            "on its disk: free some, or set paths.prepared to a folder on another"
        )
    return Forecast(len(needs), disk, most, free, fit_workers(needs, workers, small=total <= SMALL_VOXELS))


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of the folder, which need not exist yet."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(existing).free


def _coordinates(voxels: int, scheme: LabelScheme) -> int:
    """Return how many coordinates are kept at most, however the voxels are divided among the classes.

    Each class keeps 10 000 or a hundredth of its voxels, whichever is more. Regions, and the annotated voxels of a
    dataset with an ignore label, may contain the same voxels several times.
    """
    lists = len(scheme.class_names) - 1 + (scheme.ignore is not None)
    times = lists if scheme.special else 1
    return min(voxels * times, MIN_COORDINATES * lists + math.ceil(voxels * MIN_SHARE) * times)


def _voxels(case: Case, plan: Plan) -> tuple[int, int]:
    """Voxels of all raw channels, and of one resampled channel."""
    geometry = read_geometry(case.images[0], plan.depth_axis, case.unit)
    return image_voxels(case), math.prod(resampled_shape(geometry.frame_shape, geometry.spacing, plan.spacing))
