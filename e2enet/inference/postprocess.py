"""Keeping the largest component of a class, and the file that says for which classes that is done.

A component is a set of voxels of one class joined across faces, edges or corners (26-connected). The file is written by
`python -m e2enet.evaluation.out_of_fold SWEEP_FOLDER --postprocessing`, which chooses the classes, and found again by
the runs that it was chosen on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from e2enet.common.errors import InputError
from e2enet.common.files import read_json

POSTPROCESSING_FILE = "postprocessing.json"
# Below a sweep or run folder: a folder per configuration, with the file above.
OUT_OF_FOLD = "out_of_fold"
CONNECTIVITY = 26
NEIGHBOURHOOD = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Postprocessing:
    """A stored choice.

    Attributes:
        path: The file.
        classes: Labels whose largest component is kept; empty where that helped none.
        labels: Foreground classes that there were to choose from, label -> name.
        runs: Folders of the runs whose validation cases decided, relative to `path`'s sweep folder.
    """

    path: Path
    classes: tuple[int, ...]
    labels: dict[int, str]
    runs: tuple[str, ...]

    @property
    def run_folders(self) -> set[Path]:
        """The runs, resolved; they lie in the folder above out_of_fold/."""
        sweep = self.path.resolve().parent.parent.parent
        return {(sweep / run).resolve() for run in self.runs}

    def describe(self) -> str:
        """What is done, for people."""
        names = ", ".join(f"{label} {self.labels[label]}" for label in self.classes)
        return f"largest component of {names}" if names else "none, no class gained by it"


def keep_largest(labels: np.ndarray, classes: Iterable[int]) -> np.ndarray:
    """A copy of a label map (D, H, W) in which each of the classes has only its largest component; the rest becomes 0.

    Where several components are the largest, all of them stay: the result does not depend on how the axes lie.
    """
    classes = sorted(set(classes))
    if any(label < 1 for label in classes):
        raise ValueError(f"classes must be labels from 1, got {classes}")
    result = labels.copy()
    if not classes:
        return result  # find_objects would look for every label
    # Work on bounding boxes: the numbered components of a whole CT would take four bytes a voxel.
    boxes = ndimage.find_objects(labels, max_label=classes[-1])
    for label in classes:
        box = boxes[label - 1]
        if box is None:
            continue
        components, count = ndimage.label(labels[box] == label, structure=NEIGHBOURHOOD)
        if count > 1:
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            small = (sizes < sizes.max()) & (sizes > 0)
            result[box][small[components]] = 0
    return result


def read_postprocessing(path: str | Path) -> Postprocessing:
    """Read a stored choice; InputError naming the file where it is none."""
    path = Path(path)
    content = read_json(path)
    try:
        choice = Postprocessing(
            path,
            classes=tuple(int(label) for label in content["keep_largest"]),
            labels={int(label): str(entry["name"]) for label, entry in content["classes"].items()},
            runs=tuple(str(run) for run in content["runs"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not a choice of postprocessing ({type(error).__name__}: {error}); expected the file that "
            "python -m e2enet.evaluation.out_of_fold --postprocessing writes"
        ) from error
    unknown = [label for label in choice.classes if label not in choice.labels]
    if unknown:
        raise InputError(f"{path}: keep_largest names {unknown}; expected labels out of {list(choice.labels)}")
    return choice


def find_postprocessing(runs: Sequence[Path]) -> Postprocessing | None:
    """The choice stored beside these run folders, made on all of them (and perhaps further folds); None without one.

    Raises:
        InputError: there are several that differ, or one that cannot be read.
    """
    wanted = {run.resolve() for run in runs}
    folders = {folder for run in wanted for folder in (run, run.parent)}
    paths = sorted(path for folder in folders for path in folder.glob(f"{OUT_OF_FOLD}/*/{POSTPROCESSING_FILE}"))
    found = [choice for choice in map(read_postprocessing, paths) if wanted <= choice.run_folders]
    if len({choice.classes for choice in found}) > 1:
        named = ", ".join(str(choice.path) for choice in found)
        raise InputError(f"postprocessing=auto: {named} differ; expected one, or postprocessing=FILE")
    return found[0] if found else None


def require_labels(choice: Postprocessing, labels: Mapping[int, Any]) -> None:
    """InputError where a choice was made for other classes than a model's (background among them or not)."""
    expected = {label: str(name) for label, name in labels.items() if label != 0}
    if choice.labels != expected:
        raise InputError(f"{choice.path}: chosen for the classes {choice.labels}, the model has {expected}")
