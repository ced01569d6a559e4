"""Keeping the largest component of a class, and the file that says for which classes that is done.

A component is a set of voxels of one class joined across faces, edges or corners (26-connected). The file is written by
`python -m e2enet.evaluation.out_of_fold SWEEP_FOLDER --postprocessing`, which chooses the classes, and found again by
the runs that it was chosen on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from e2enet.common.errors import InputError
from e2enet.common.files import read_json
from e2enet.data.formats.scheme import LabelScheme, class_key

POSTPROCESSING_FILE = "postprocessing.json"
# Below a sweep or run folder: a folder per configuration, with the file above.
OUT_OF_FOLD = "out_of_fold"
CONNECTIVITY = 26
NEIGHBOURHOOD = np.ones((3, 3, 3), dtype=bool)
# A class by its label, or a region by the labels that it unites.
ClassLabels = int | tuple[int, ...]


@dataclass(frozen=True)
class Postprocessing:
    """A stored choice.

    Attributes:
        path: The file.
        classes: Labels, or regions by the labels that they unite, whose largest component is kept; empty where that
            helped none.
        labels: What there was to choose from, label or region -> name.
        runs: Folders of the runs whose validation cases decided, relative to `path`'s sweep folder.
    """

    path: Path
    classes: tuple[ClassLabels, ...]
    labels: dict[ClassLabels, str]
    runs: tuple[str, ...]

    @property
    def run_folders(self) -> set[Path]:
        """The runs, resolved; they lie in the folder above out_of_fold/."""
        sweep = self.path.resolve().parent.parent.parent
        return {(sweep / run).resolve() for run in self.runs}

    def describe(self) -> str:
        """What is done, for people."""
        names = ", ".join(f"{as_stored(label)} {self.labels[label]}" for label in self.classes)
        return f"largest component of {names}" if names else "none, no class gained by it"


def keep_largest(labels: np.ndarray, classes: Iterable[ClassLabels]) -> np.ndarray:
    """A copy of a label map (D, H, W) in which each of the classes has only its largest component; the rest becomes 0.

    A region is one class, whatever labels it unites; where regions overlap, each is judged as it was at first.
    Where several components are the largest, all of them stay: the result does not depend on how the axes lie.
    """
    united = [(label,) if isinstance(label, int) else label for label in classes]
    if any(label < 1 for region in united for label in region):
        raise ValueError(f"classes must be labels from 1, got {list(classes)}")
    result = labels.copy()
    if not united:
        return result  # find_objects would look for every label
    # Work on bounding boxes: the numbered components of a whole CT would take four bytes a voxel.
    boxes = ndimage.find_objects(labels, max_label=max(map(max, united)))
    for region in united:
        parts = [boxes[label - 1] for label in region if boxes[label - 1] is not None]
        if not parts:
            continue
        box = tuple(
            slice(min(part.start for part in axis), max(part.stop for part in axis))
            for axis in zip(*parts, strict=True)
        )
        inside = labels[box] == region[0] if len(region) == 1 else np.isin(labels[box], region)
        components, count = ndimage.label(inside, structure=NEIGHBOURHOOD)
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
            classes=tuple(read_class(label) for label in content["keep_largest"]),
            labels={read_class(label): str(entry["name"]) for label, entry in content["classes"].items()},
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


def as_stored(label: ClassLabels) -> int | str:
    """A class as files spell it: 1, or "1+2" of a region."""
    return label if isinstance(label, int) else class_key(label)


def read_class(text: int | str) -> ClassLabels:
    """Inverse of `as_stored`, of keys too; ValueError for anything else."""
    if isinstance(text, int) or "+" not in text:
        return int(text)
    return tuple(int(label) for label in text.split("+"))


def classes_of(scheme: LabelScheme) -> dict[ClassLabels, str]:
    """The classes that are scored and may be kept to their largest component, and their names; a region of one label
    is that label."""
    if not scheme.regions:
        return {label: name for label, name in scheme.names.items() if label != 0}
    return {united if len(united) > 1 else united[0]: name for name, united in scheme.regions.items()}


def require_labels(choice: Postprocessing, scheme: LabelScheme) -> None:
    """InputError where a choice was made for other classes than a model's."""
    expected = classes_of(scheme)
    if choice.labels != expected:
        raise InputError(f"{choice.path}: chosen for the classes {choice.labels}, the model has {expected}")
