"""What planning needs to know of a dataset: spacings, cropped shapes and foreground intensities (as
nnU-Net's)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2enet.common.console import track
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import content_key, file_states, read_json, write_json
from e2enet.data.formats.layout import Case, RawDataset
from e2enet.data.formats.volume import (
    choose_depth_axis,
    crop_to_nonzero,
    read_label,
    read_ras_spacing,
    read_volume,
    require_same_grid,
)

# nnU-Net draws 1e8 voxels; the percentiles of 1e7 are the same to the digits that matter, in a tenth of the
# memory.
INTENSITY_SAMPLES = 10_000_000
SAMPLE_SEED = 1234
FINGERPRINT_VERSION = 1  # raise it when the fingerprint changes meaning


@dataclass(frozen=True)
class CaseFingerprint:
    """One case: spacing in mm and nonzero-cropped shape along the frame's (D, H, W), cropped / whole
    voxels."""

    id: str
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    relative_size: float


@dataclass(frozen=True)
class Fingerprint:
    """A dataset's cases, its depth axis (RAS), number of classes with background, and intensities per
    channel.

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
        cases = tuple(
            CaseFingerprint(case["id"], _triple(case["spacing"]), _triple(case["shape"]), case["relative_size"])
            for case in content["cases"]
        )
        return cls(content["depth_axis"], content["num_classes"], cases, tuple(content["intensities"]))


def compute_fingerprint(dataset: RawDataset, cases: Sequence[Case]) -> Fingerprint:
    """Read every labelled case once. Unreadable cases and wrong labels are all reported in one InputError at
    the end."""
    problems: list[str] = []
    labelled = [case for case in cases if case.label is not None]
    if not labelled:
        raise InputError(f"{dataset.folder}: no labelled case to plan from")
    depth_axis = dataset_depth_axis(dataset, labelled)
    samples_per_case = max(1, INTENSITY_SAMPLES // len(labelled))
    rows: list[CaseFingerprint] = []
    samples: list[np.ndarray] = []
    for case in track(labelled, f"Reading {dataset.name}"):
        try:
            row, intensities = _read_case(dataset, case, depth_axis, samples_per_case)
        except InputError as error:
            problems.append(f"case {case.id}: {error}")
            continue
        rows.append(row)
        samples.append(intensities)
    raise_problems(problems, f"{dataset.folder}: {len(problems)} of {len(labelled)} cases cannot be used")
    merged = np.concatenate(samples, axis=1)
    if merged.shape[1] == 0:
        raise InputError(f"{dataset.folder}: no case has any labelled voxel, foreground expected")
    statistics = tuple(_statistics(values) for values in merged)
    return Fingerprint(depth_axis, len(dataset.labels), tuple(rows), statistics)


def cached_fingerprint(dataset: RawDataset, path: Path) -> Fingerprint:
    """The fingerprint of the training cases, from `path` where it was made from the same raw files, else made
    and kept."""
    key = fingerprint_key(dataset)
    if path.is_file():
        try:
            content = read_json(path)
        except InputError:
            content = {}  # damaged by another hand: made anew, since nothing is lost
        if isinstance(content, dict) and content.get("key") == key:
            return Fingerprint.from_dict(content["fingerprint"])
    fingerprint = compute_fingerprint(dataset, dataset.training)
    write_json(path, {"key": key, "fingerprint": fingerprint.to_dict()})
    return fingerprint


def fingerprint_key(dataset: RawDataset) -> str:
    """Hash of the channels, the labels and the state of every training file."""
    cases = [[case.id, file_states([*case.images, *([case.label] if case.label else [])])] for case in dataset.training]
    labels = sorted(dataset.labels.items())
    return content_key([FINGERPRINT_VERSION, list(dataset.channels), labels, cases])


def dataset_depth_axis(dataset: RawDataset, cases: Sequence[Case]) -> int:
    """The RAS axis of largest median spacing, from the headers alone; all unreadable headers in one
    InputError."""
    spacings, problems = [], []
    for case in cases:
        try:
            spacings.append(read_ras_spacing(case.images[0]))
        except InputError as error:
            problems.append(f"case {case.id}: {error}")
    raise_problems(problems, f"{dataset.folder}: {len(problems)} of {len(cases)} headers cannot be read")
    return choose_depth_axis(spacings)


def check_label_values(path: Path, label: np.ndarray, labels: Mapping[int, str]) -> None:
    """InputError where a label image holds values that the dataset does not name."""
    unknown = [int(value) for value in np.unique(label) if int(value) not in labels]
    if unknown:
        raise InputError(f"{path}: holds label values {unknown}, those of dataset.json expected: 0 to {max(labels)}")


def _read_case(
    dataset: RawDataset, case: Case, depth_axis: int, num_samples: int
) -> tuple[CaseFingerprint, np.ndarray]:
    """The case's row and (C, n) foreground intensities: n drawn with replacement, so that every case weighs
    the same."""
    assert case.label is not None
    volume = read_volume(case.images, depth_axis)
    label, geometry = read_label(case.label, depth_axis)
    if len(volume.array) != len(dataset.channels):
        raise InputError(f"{case.images[0]}: {len(volume.array)} channels, {len(dataset.channels)} expected")
    require_same_grid(volume.geometry, geometry, f"{case.label} and {case.images[0]}")
    check_label_values(case.label, label, dataset.labels)
    box = crop_to_nonzero(volume.array)
    cropped, inside = volume.array[(slice(None), *box)], label[box] > 0
    foreground = cropped[:, inside]
    if foreground.shape[1]:
        picks = np.random.default_rng(SAMPLE_SEED).integers(foreground.shape[1], size=num_samples)
        foreground = foreground[:, picks]
    depth, height, width = cropped.shape[1:]
    row = CaseFingerprint(case.id, volume.spacing, (depth, height, width), inside.size / label.size)
    return row, foreground


def _statistics(values: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(values, (0.5, 99.5))
    wide = values.astype(np.float64)
    return {
        "mean": float(wide.mean()),
        "std": float(wide.std()),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
    }


def _triple(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third
