"""The fingerprint of a dataset, as nnU-Net's: spacings, cropped shapes and foreground intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2enet.common.console import say
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import content_key, file_states, read_remembered, write_json
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.grid import choose_depth_axis
from e2enet.data.formats.naming import Case
from e2enet.data.formats.volume import read_ras_spacing
from e2enet.data.planning.case_fingerprint import CaseFingerprint, Measuring
from e2enet.data.planning.case_workers import SMALL_VOXELS, image_voxels, work_on_cases
from e2enet.system.locks import locked_folder
from e2enet.system.workload import fit_workers

# Of all cases together. nnU-Net draws 1e8 voxels; their percentiles are the same to the digits that matter.
INTENSITY_SAMPLES = 10_000_000
MAX_SAMPLES_PER_CASE = 2**20
FINGERPRINT_VERSION = 4  # raise it when the fingerprint changes meaning
FINGERPRINT_FILE = "fingerprint.json"
BYTES_PER_VOXEL = 16  # at most, while a case is measured: float32, the file's own type, masks, foreground


@dataclass(frozen=True)
class Fingerprint:
    """A dataset's cases, its depth axis (RAS), the number of network outputs, and intensities per channel.

    Each entry of `intensities` holds mean, std, percentile_00_5 and percentile_99_5 of the labelled voxels.
    """

    depth_axis: int
    num_classes: int
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[dict[str, float], ...]

    @property
    def relative_size(self) -> float:
        """Median share of the voxels that the crop to nonzero keeps."""
        return float(np.median([case.relative_size for case in self.cases]))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Fingerprint:
        cases = tuple(CaseFingerprint.from_dict(case) for case in content["cases"])
        return cls(content["depth_axis"], content["num_classes"], cases, tuple(content["intensities"]))


def cached_fingerprint(dataset: RawDataset, folder: Path, workers: int | None = None) -> Fingerprint:
    """Return the fingerprint of the training cases, from `folder` if it was made from the same raw files.

    Otherwise it is made and stored. Only new and changed cases are read, by `workers` processes (see `fit_workers`).
    """
    key = fingerprint_key(dataset)
    kept = _kept_fingerprint(folder / FINGERPRINT_FILE, key)
    if kept is not None:
        return kept
    with locked_folder(folder, f"Reading {dataset.name}"):
        kept = _kept_fingerprint(folder / FINGERPRINT_FILE, key)  # another run may have made it meanwhile
        if kept is None:
            kept = measure_fingerprint(dataset, dataset.training, folder / "fingerprint", workers)
            write_json(folder / FINGERPRINT_FILE, {"key": key, "fingerprint": kept.to_dict()})
    return kept


def measure_fingerprint(
    dataset: RawDataset, cases: Sequence[Case], folder: Path, workers: int | None = None
) -> Fingerprint:
    """Measure every labelled case that has no measurement in `folder`, and combine all measurements.

    Unreadable cases and wrong labels are all reported in one InputError at the end.
    """
    labelled = [case for case in cases if case.label is not None]
    if not labelled:
        raise InputError(f"{dataset.folder}: no labelled case to plan from")
    depth_axis = dataset_depth_axis(dataset, labelled)
    measuring = Measuring(dataset, depth_axis, samples_per_case(len(labelled)), folder)
    measured = {case.id: measuring.kept(case) for case in labelled}
    waiting = [case for case in labelled if measured[case.id] is None]
    if waiting:
        voxels = {case.id: image_voxels(case) for case in waiting}
        needs = {name: count * BYTES_PER_VOXEL for name, count in voxels.items()}
        load = fit_workers(needs, workers, small=sum(voxels.values()) <= SMALL_VOXELS)
        if load.workers:
            say(f"Reading {len(waiting)} cases of {dataset.name}: {load}")
        work_on_cases(
            measuring.measure,
            waiting,
            load.workers,
            f"Reading {dataset.name}",
            lambda failed: f"{dataset.folder}: {failed} of {len(labelled)} cases cannot be used",
        )
        measured |= {case.id: measuring.kept(case) for case in waiting}
    rows, samples = [], []
    for name, found in measured.items():
        if found is None:
            raise InputError(f"case {name}: its files changed while they were read; start again")
        rows.append(found[0])
        samples.append(found[1])
    merged = np.concatenate(samples, axis=1)
    if merged.shape[1] == 0:
        raise InputError(f"{dataset.folder}: no case has any labelled voxel, foreground expected")
    statistics = tuple(_statistics(values) for values in merged)
    return Fingerprint(depth_axis, dataset.scheme.num_outputs, tuple(rows), statistics)


def fingerprint_key(dataset: RawDataset) -> str:
    """Hash of the channels, the labels with their map, and the state of every training file."""
    cases = [[case.id, file_states(case.all_files)] for case in dataset.training]
    labels = [sorted(dataset.labels.items()), sorted(dataset.label_map.items())]
    labels += [dataset.scheme.special] * bool(dataset.scheme.special)
    return content_key([FINGERPRINT_VERSION, list(dataset.channels), labels, cases])


def samples_per_case(num_cases: int) -> int:
    """Return how many intensities are drawn from each case.

    It is a power of two, so that it seldom changes with the number of cases and kept measurements stay valid.
    """
    wanted = max(1, INTENSITY_SAMPLES // num_cases)
    return min(MAX_SAMPLES_PER_CASE, 1 << (wanted.bit_length() - 1))


def dataset_depth_axis(dataset: RawDataset, cases: Sequence[Case]) -> int:
    """The RAS axis of largest median spacing, from the headers alone. One InputError lists all unreadable headers."""
    spacings, problems = [], []
    for case in cases:
        try:
            spacings.append(read_ras_spacing(case.images[0], case.unit))
        except InputError as error:
            problems.append(f"case {case.id}: {error}")
    raise_problems(problems, f"{dataset.folder}: {len(problems)} of {len(cases)} headers cannot be read")
    return choose_depth_axis(spacings)


def _kept_fingerprint(path: Path, key: str) -> Fingerprint | None:
    content = read_remembered(path)
    if content is None or content.get("key") != key or "fingerprint" not in content:
        return None
    return Fingerprint.from_dict(content["fingerprint"])


def _statistics(values: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(values, (0.5, 99.5))
    wide = values.astype(np.float64)
    return {
        "mean": float(wide.mean()),
        "std": float(wide.std()),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
    }
