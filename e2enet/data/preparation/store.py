"""Prepared cases on disk: one float32 image, one label and the foreground's coordinates each, memory-mapped
when read.

Folder: `<folder>/cases_<key>/<case>.{image.npy,label.npy,foreground.npz,json}`, where the key names the
spacing, depth axis and normalisation, so that plans that differ only in patch or batch share their cases and
others never mix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from e2enet.common.console import track
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import atomic_path, content_key, file_states, read_json, write_json
from e2enet.data.formats.layout import Case, RawDataset
from e2enet.data.formats.volume import read_label, read_volume, require_same_grid
from e2enet.data.planning.fingerprint import check_label_values
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.preprocess import preprocess, preprocess_label

PREPARATION_VERSION = 1  # raise it when preprocessing changes, so that older caches are made anew
MAX_COORDINATES = 10_000
COORDINATE_SEED = 1234


@dataclass(frozen=True)
class PreparedCase:
    """A case at the plan's spacing, in the frame (depth first).

    `image` is a .npy of float32 (C, D, H, W), `label` a .npy of uint8 or int16 (D, H, W) or None, `shape` is
    (D, H, W). Only paths are held: a case travels to a worker process for nothing.
    """

    id: str
    image: Path
    label: Path | None
    shape: tuple[int, int, int]

    def open_image(self) -> np.ndarray:
        """The image (C, D, H, W) float32, memory-mapped read-only: a crop reads only its own pages."""
        return np.load(self.image, mmap_mode="r")

    def open_label(self) -> np.ndarray:
        """The label (D, H, W), memory-mapped read-only; InputError where the case has none."""
        if self.label is None:
            raise InputError(f"case {self.id} has no label")
        return np.load(self.label, mmap_mode="r")

    @cached_property
    def foreground(self) -> dict[int, np.ndarray]:
        """Class -> (n, 3) int32 voxel coordinates, at most 10 000 drawn at random; classes that are absent
        are left out."""
        if self.label is None:
            return {}
        with np.load(self.label.with_name(f"{self.id}.foreground.npz")) as stored:
            return {int(value): stored[value] for value in stored.files}


def prepare_cases(dataset: RawDataset, cases: Iterable[Case], plan: Plan, folder: str | Path) -> list[PreparedCase]:
    """Preprocess the cases that are not yet in the folder and return all, in the given order.

    A case counts as finished when its record holds the same key (plan, and size and time of the raw files);
    it is written last, so an interrupted run goes on where it stopped. Every unreadable case is reported in
    one InputError, after the others are done.
    """
    target = Path(folder) / f"cases_{plan_key(plan)[:10]}"
    prepared: list[PreparedCase] = []
    problems: list[str] = []
    to_do = list(cases)
    waiting = [case for case in to_do if _finished(case, plan, target) is None]
    for case in track(waiting, f"Preparing {dataset.name}") if waiting else ():
        try:
            _prepare_case(dataset, case, plan, target)
        except InputError as error:
            problems.append(f"case {case.id}: {error}")
        except Exception as error:
            error.add_note(f"while preparing case {case.id} of {dataset.name}")
            raise
    raise_problems(problems, f"{dataset.folder}: {len(problems)} of {len(to_do)} cases cannot be prepared")
    for case in to_do:
        finished = _finished(case, plan, target)
        if finished is None:
            raise InputError(f"case {case.id}: its raw files changed while they were prepared; start again")
        prepared.append(finished)
    return prepared


def plan_key(plan: Plan) -> str:
    """Hash of what of a plan changes a prepared case: depth axis, spacing and normalisation."""
    content = plan.to_dict()
    return content_key(
        {name: content[name] for name in ("depth_axis", "spacing", "normalisation")} | {"v": PREPARATION_VERSION}
    )


def sample_coordinates(label: np.ndarray, limit: int = MAX_COORDINATES) -> dict[int, np.ndarray]:
    """Class -> (n, 3) int32 coordinates of at most `limit` of its voxels, drawn without replacement by a
    fixed seed."""
    generator = np.random.default_rng(COORDINATE_SEED)
    found = {}
    for value in np.unique(label):
        if value == 0:
            continue
        flat = np.flatnonzero(label == value)
        if len(flat) > limit:
            flat = np.sort(generator.choice(flat, limit, replace=False))
        found[int(value)] = np.stack(np.unravel_index(flat, label.shape), axis=1).astype(np.int32)
    return found


def _prepare_case(dataset: RawDataset, case: Case, plan: Plan, target: Path) -> None:
    key = _case_key(case, plan)
    volume = read_volume(case.images, plan.depth_axis)
    if len(volume.array) != len(dataset.channels):
        raise InputError(f"{case.images[0]}: {len(volume.array)} channels, {len(dataset.channels)} expected")
    result = preprocess(volume, plan)
    if case.label is not None:
        label, geometry = read_label(case.label, plan.depth_axis)
        require_same_grid(volume.geometry, geometry, f"{case.label} and {case.images[0]}")
        check_label_values(case.label, label, dataset.labels)
        prepared_label = preprocess_label(label, result)
        _save_array(target / f"{case.id}.label.npy", prepared_label)
        with atomic_path(target / f"{case.id}.foreground.npz") as temporary:
            coordinates = {str(value): rows for value, rows in sample_coordinates(prepared_label).items()}
            np.savez(temporary, **coordinates)  # type: ignore[arg-type]
    _save_array(target / f"{case.id}.image.npy", result.image)
    write_json(
        target / f"{case.id}.json",
        {"key": key, "shape": result.image.shape[1:], "labelled": case.label is not None},
    )


def _save_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, np.ascontiguousarray(array))


def _finished(case: Case, plan: Plan, target: Path) -> PreparedCase | None:
    record = target / f"{case.id}.json"
    if not record.is_file():
        return None
    content = read_json(record)
    image, label = target / f"{case.id}.image.npy", target / f"{case.id}.label.npy"
    if content.get("key") != _case_key(case, plan) or not image.is_file() or (case.label and not label.is_file()):
        return None
    depth, height, width = content["shape"]
    return PreparedCase(case.id, image, label if case.label else None, (depth, height, width))


def _case_key(case: Case, plan: Plan) -> str:
    files = [*case.images, *([case.label] if case.label else [])]
    return content_key({"plan": plan_key(plan), "files": file_states(files)})
