"""Prepared cases on disk: a float32 image, a label and coordinates of foreground; arrays are memory-mapped when read.

Folder: `<folder>/cases_<key>/<case>.{image.npy,label.npy,inside.npy,foreground.npz,json}`. The key is a hash of
spacing, depth axis and normalisation, and of a label map, an ignore label and regions. So plans that differ only in
patch or batch share their cases. Others never mix, even while another run reads its cases. For the same reason, a
second raw folder of the same name and a second choice of its files have their own key (`claim`). The record (json) is
removed first and written last: if it exists, the case is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path, content_key, file_states, read_remembered, write_json
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.naming import Case
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.foreground import StoredCoordinates, sample_coordinates, write_coordinates

PREPARATION_VERSION = 3  # raise it when preprocessing changes, so that older caches are remade
OWNER_FILE = "raw_folder.json"


@dataclass(frozen=True)
class PreparedCase:
    """A case at the plan's spacing, in the frame (depth first).

    `image` is a .npy of float32 (C, D, H, W), `label` a .npy of uint8 or int16 (D, H, W) or None, `shape` is
    (D, H, W). If the plan normalises by the nonzero mask, `inside` is a .npy of uint8 (D, H, W), 1 inside the mask and
    0 outside. Only paths are held, so that sending a case to a worker process costs nothing.
    """

    id: str
    image: Path
    label: Path | None
    shape: tuple[int, int, int]
    inside: Path | None = None

    def open_image(self) -> np.ndarray:
        """The image (C, D, H, W) float32, memory-mapped read-only: a crop reads only its own pages."""
        return np.load(self.image, mmap_mode="r")

    def open_label(self) -> np.ndarray:
        """The label (D, H, W), memory-mapped read-only; InputError if the case has none."""
        if self.label is None:
            raise InputError(f"case {self.id} has no label")
        return np.load(self.label, mmap_mode="r")

    @property
    def foreground(self) -> Mapping[int, np.ndarray]:
        """Class -> (n, 3) int32 voxel coordinates from `sample_coordinates`, without absent classes.

        With an ignore label, ANNOTATED is a key too.
        """
        return {} if self.label is None else StoredCoordinates(self.label.with_name(f"{self.id}.foreground.npz"))


@dataclass(frozen=True)
class CaseStore:
    """The prepared cases of a dataset for one plan, in `folder`."""

    folder: Path
    dataset: RawDataset
    plan: Plan

    @classmethod
    def of(cls, folder: str | Path, dataset: RawDataset, plan: Plan) -> CaseStore:
        """The store in the dataset's prepared folder."""
        owner = _owner(Path(folder))
        own = {} if owner in (None, _origin(dataset)) else _origin(dataset)
        content = {**_label_content(dataset), **own}
        key = content_key({"plan": plan_key(plan), **content}) if content else plan_key(plan)
        return cls(Path(folder) / f"cases_{key[:10]}", dataset, plan)

    def find(self, case: Case) -> PreparedCase | None:
        """Return the prepared case if it is complete and was made from the present raw files; else None."""
        content = read_remembered(self._file(case, ".json"))
        if content is None or "shape" not in content:
            return None
        image, label = self._file(case, ".image.npy"), self._file(case, ".label.npy")
        inside = self._file(case, ".inside.npy") if case.label and self.plan.masked_channels else None
        files = [image, *([label, self._file(case, ".foreground.npz")] if case.label else []), *filter(None, [inside])]
        if content.get("key") != self.key(case) or not all(file.is_file() for file in files):
            return None
        depth, height, width = content["shape"]
        return PreparedCase(case.id, image, label if case.label else None, (depth, height, width), inside)

    def key(self, case: Case) -> str:
        """Hash of everything a prepared case depends on; raw files are compared by size and time."""
        label_map, special = sorted(self.dataset.label_map.items()), self.dataset.scheme.special
        content = {"plan": plan_key(self.plan), "files": file_states(case.all_files), "label_map": label_map}
        return content_key({**content, **special} if case.label else content)

    def forget(self, case: Case) -> None:
        """Remove the record: until `finish` the case counts as incomplete, even if the process is killed."""
        self._file(case, ".json").unlink(missing_ok=True)

    def write_image(self, case: Case, image: np.ndarray) -> None:
        """Write the image, float32 (C, D, H, W)."""
        _save_array(self._file(case, ".image.npy"), image)

    def write_label(self, case: Case, label: np.ndarray) -> None:
        """Write a label map (D, H, W) and the coordinates of its foreground."""
        _save_array(self._file(case, ".label.npy"), label)
        write_coordinates(self._file(case, ".foreground.npz"), sample_coordinates(label, scheme=self.dataset.scheme))

    def write_inside(self, case: Case, inside: np.ndarray | None) -> None:
        """Write the nonzero mask, uint8 (D, H, W), if there is one."""
        if inside is not None:
            _save_array(self._file(case, ".inside.npy"), inside)

    def finish(self, case: Case, key: str, shape: tuple[int, int, int]) -> None:
        """Write the record; `key` must be the key from before the raw files were read."""
        write_json(self._file(case, ".json"), {"key": key, "shape": shape, "labelled": case.label is not None})

    def stored_ids(self) -> set[str]:
        """Ids of all cases with a record, also of those that the raw dataset no longer has."""
        return {path.stem for path in self.folder.glob("*.json") if not path.name.startswith(".")}

    def _file(self, case: Case, ending: str) -> Path:
        return self.folder / f"{case.id}{ending}"


def is_claimed(folder: Path) -> bool:
    """Whether it is recorded whose cases the prepared folder holds, and that raw folder still exists."""
    return _owner(folder) is not None


def claim(folder: Path, dataset: RawDataset) -> None:
    """Record whose cases the prepared folder holds, unless a raw folder that still exists has been recorded.

    The recorded one keeps the key of earlier versions. Call it while the folder is locked.
    """
    if not is_claimed(folder):
        write_json(folder / OWNER_FILE, _origin(dataset))


def plan_key(plan: Plan) -> str:
    """Hash of the plan's values that change a prepared case: depth axis, spacing and normalisation."""
    content = plan.to_dict()
    return content_key(
        {name: content[name] for name in ("depth_axis", "spacing", "normalisation")} | {"v": PREPARATION_VERSION}
    )


def _label_content(dataset: RawDataset) -> dict[str, Any]:
    """What changes prepared labels beside the plan; empty for labels as the files have them."""
    label_map = sorted(dataset.label_map.items())
    regions = {"order": list(dataset.scheme.regions)} if dataset.scheme.regions else {}
    return {**({"label_map": label_map} if label_map else {}), **dataset.scheme.special, **regions}


def _origin(dataset: RawDataset) -> dict[str, Any]:
    return {"folder": str(dataset.folder.resolve()), "patterns": list(dataset.patterns)}


def _owner(folder: Path) -> dict[str, Any] | None:
    """The origin of the cases in a prepared folder; None if there is none, or its raw folder was moved or deleted."""
    owner = read_remembered(folder / OWNER_FILE)
    return owner if owner is not None and Path(str(owner.get("folder"))).is_dir() else None


def _save_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, np.ascontiguousarray(array))
