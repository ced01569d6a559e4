"""Measurements of one case for planning, made once and kept beside the fingerprint.

`<folder>/fingerprint/<case>.npz` holds the case's row and its sampled intensities. So an interrupted measurement of
hundreds of cases resumes where it stopped, and one changed file costs one reading.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from e2enet.common.files import atomic_path, content_key, file_states
from e2enet.data.formats.case import read_case
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.naming import Case
from e2enet.data.formats.volume import crop_to_nonzero

SAMPLE_SEED = 1234
MEASUREMENT_VERSION = 3  # raise it when a measurement changes meaning


@dataclass(frozen=True)
class CaseFingerprint:
    """One case: spacing in mm and shape after the crop to nonzero, both along the frame's (D, H, W).

    `relative_size` is the share of voxels that the crop keeps.
    """

    id: str
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    relative_size: float

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> CaseFingerprint:
        """Inverse of `asdict`, from JSON."""
        (depth, height, width), (thick, tall, wide) = content["shape"], content["spacing"]
        return cls(content["id"], (thick, tall, wide), (depth, height, width), content["relative_size"])


@dataclass(frozen=True)
class Measuring:
    """Measures the cases of a dataset in the frame of `depth_axis` and keeps the results in `folder`.

    `num_samples` intensities of labelled voxels are drawn from each case.
    """

    dataset: RawDataset
    depth_axis: int
    num_samples: int
    folder: Path

    def measure(self, case: Case) -> None:
        """Read and measure a labelled case and store the result. InputError if it cannot be used."""
        key = self._key(case)
        volumes = read_case(self.dataset, case, self.depth_axis)
        image, label = volumes.image, volumes.label
        assert label is not None
        box = crop_to_nonzero(image.array)
        of_all_channels = (slice(None), *box)
        cropped, inside = image.array[of_all_channels], self.dataset.scheme.foreground(label[box])
        depth, height, width = inside.shape
        row = CaseFingerprint(case.id, image.spacing, (depth, height, width), inside.size / label.size)
        with atomic_path(self._path(case)) as temporary:
            np.savez(temporary, key=key, row=json.dumps(asdict(row)), samples=self._samples(cropped, inside))

    def kept(self, case: Case) -> tuple[CaseFingerprint, np.ndarray] | None:
        """Return the case's stored row and intensities (C, n), n = 0 without foreground.

        None if they are missing or its files have changed.
        """
        try:
            with np.load(self._path(case)) as stored:
                if str(stored["key"]) != self._key(case):
                    return None
                return CaseFingerprint.from_dict(json.loads(str(stored["row"]))), stored["samples"]
        except (OSError, KeyError, ValueError, BadZipFile):
            return None  # absent or damaged: the case is measured again

    def _samples(self, cropped: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Draw intensities of foreground with replacement, so that every case has the same weight."""
        foreground = cropped[:, inside]
        if foreground.shape[1] == 0:
            return foreground
        picks = np.random.default_rng(SAMPLE_SEED).integers(foreground.shape[1], size=self.num_samples)
        return foreground[:, picks]

    def _path(self, case: Case) -> Path:
        return self.folder / f"{case.id}.npz"

    def _key(self, case: Case) -> str:
        assert case.label is not None
        labels = [sorted(self.dataset.labels), sorted(self.dataset.label_map.items())]
        labels += [self.dataset.scheme.special] * bool(self.dataset.scheme.special)
        how = [MEASUREMENT_VERSION, len(self.dataset.channels), labels, self.depth_axis, self.num_samples]
        return content_key([*how, file_states(case.all_files)])
