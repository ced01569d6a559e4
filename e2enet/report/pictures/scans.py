"""Read a scored case as its run saw it: the scan, the reference and the prediction, in the frame (D, H, W)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.command import dataset_of_run
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.grid import Geometry
from e2enet.data.formats.naming import Case
from e2enet.data.formats.volume import read_label_on, read_volume
from e2enet.report.results.runs import Runs
from e2enet.runs.folders import CONFIG_FILE


@dataclass(frozen=True, eq=False)
class Scan:
    """One case of a dataset.

    Attributes:
        case: Its id.
        image: Channel 0, float32 (D, H, W).
        reference: Labels (D, H, W), numbered as in training; ignored voxels are background.
        ignored: True for voxels with the ignore label, bool (D, H, W).
        geometry: The scan's grid; `geometry.spacing` is in mm along (D, H, W).
        labels: Label -> name, 0 is background.
    """

    case: str
    image: np.ndarray
    reference: np.ndarray
    ignored: np.ndarray
    geometry: Geometry
    labels: dict[int, str]


class ScanReader:
    """Reads the cases of a sweep's runs. `dataset(key)` lists the files of a job's raw dataset, once.

    Every method raises InputError for missing files: the raw data may lie on another machine than the report.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.dataset = cache(self._read_dataset)

    def case(self, key: str, case: str) -> Case:
        """Return the files of a case that the job `key` validated on."""
        dataset = self.dataset(key)
        found = {item.id: item for item in (*dataset.training, *dataset.validation, *dataset.test)}.get(case)
        if found is None or found.label is None:
            raise InputError(f"{dataset.folder}: has no labelled case {case}, which {self.runs.job_folder(key)} scored")
        return found

    def scan(self, key: str, case: str) -> Scan:
        """Read image and reference of a case that the job `key` validated on."""
        dataset, found = self.dataset(key), self.case(key, case)
        assert found.label is not None
        volume = read_volume(found.images, unit=found.unit)
        reference = read_label_on(volume.geometry, found.label, dataset.label_map, found.unit)
        ignored = reference == (-1 if dataset.scheme.ignore is None else dataset.scheme.ignore)
        reference = dataset.scheme.without_ignored(reference)
        return Scan(case, volume.array[0], reference, ignored, volume.geometry, dataset.labels)

    def prediction(self, key: str, scan: Scan) -> np.ndarray:
        """Read the prediction of the job `key` for the case: labels (D, H, W) on the scan's grid."""
        return read_label_on(scan.geometry, self.prediction_file(key, scan.case))

    def prediction_file(self, key: str, case: str) -> Path:
        """Return the label image that the job `key` predicted of a case."""
        path = self.runs.job_folder(key) / "validation" / f"{case}{self.dataset(key).file_ending}"
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected the prediction that was scored")
        return path

    def _read_dataset(self, key: str) -> RawDataset:
        """List the raw dataset of a job's config.yaml; relative paths start from the working directory."""
        path = self.runs.job_folder(key) / CONFIG_FILE
        config: Mapping[str, Any] | None = self.runs.configs.get(key)
        if config is None:
            raise InputError(f"{path}: no such file; expected the config of a run")
        return dataset_of_run(config, path)
