"""Keep the largest component of a class, and read the file that lists the classes to treat so.

A component is a set of voxels of one class joined across faces, edges or corners (26-connected). The file is written by
`python -m e2enet.evaluation.out_of_fold SWEEP_FOLDER --postprocessing`, which chooses the classes. It is found by the
folders of the runs that decided, and serves only the weights that they had then.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from e2enet.common.errors import InputError
from e2enet.common.files import read_json
from e2enet.data.formats.scheme import LabelScheme, class_key
from e2enet.inference.finished import file_digest

POSTPROCESSING_FILE = "postprocessing.json"
# Subfolder of a sweep or run folder: it has a folder per configuration, each with the file above.
OUT_OF_FOLD = "out_of_fold"
BEST = "checkpoints/best.ckpt"  # in a run folder: the weights whose predictions decide
CONNECTIVITY = 26
NEIGHBOURHOOD = np.ones((3, 3, 3), dtype=bool)
# A label, or the labels of a region.
ClassLabels = int | tuple[int, ...]


@dataclass(frozen=True)
class Postprocessing:
    """A stored choice of classes.

    Attributes:
        path: The file.
        classes: Labels, or tuples of a region's labels, of which only the largest component is kept; empty if that
            improves no class.
        labels: Label or region -> name of all classes that could be chosen.
        runs: Folders of the runs whose validation cases decided, relative to `path`'s sweep folder.
        digests: Run -> `file_digest` of its best checkpoint at that time; empty in files of earlier versions.
        command: What makes the file anew.
    """

    path: Path
    classes: tuple[ClassLabels, ...]
    labels: dict[ClassLabels, str]
    runs: tuple[str, ...]
    digests: dict[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def run_folders(self) -> set[Path]:
        """The resolved run folders."""
        return {(_sweep(self.path) / run).resolve() for run in self.runs}

    def describe(self) -> str:
        """Describe the postprocessing in words."""
        names = ", ".join(f"{as_stored(label)} {self.labels[label]}" for label in self.classes)
        return f"largest component of {names}" if names else "none, no class gained by it"


def keep_largest(labels: np.ndarray, classes: Iterable[ClassLabels]) -> np.ndarray:
    """Return a copy of a label map (D, H, W) with only the largest component of each of the classes; the rest is 0.

    A region counts as one class. Overlapping regions are each evaluated on the original label map. If several
    components are equally large, all of them stay, so the result does not depend on the order of the axes.
    """
    united = [(label,) if isinstance(label, int) else label for label in classes]
    if any(label < 1 for region in united for label in region):
        raise ValueError(f"classes must be labels from 1, got {list(classes)}")
    result = labels.copy()
    if not united:
        return result  # find_objects would look for every label
    # Work on bounding boxes: component numbers of a whole CT would take four bytes per voxel.
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
    """Read a stored choice; InputError naming the file if it holds none."""
    path = Path(path)
    content = read_json(path)
    try:
        choice = Postprocessing(
            path,
            classes=tuple(read_class(label) for label in content["keep_largest"]),
            labels={read_class(label): str(entry["name"]) for label, entry in content["classes"].items()},
            runs=tuple(str(run) for run in content["runs"]),
            digests={str(run): str(digest) for run, digest in content.get("checkpoints", {}).items()},
            command=_command(path, content),
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
    """Return the choice stored beside these run folders that all of them (perhaps with other folds) decided, or None.

    Raises:
        InputError: there are several different choices, one cannot be read, or one of the runs has other weights now.
    """
    wanted = {run.resolve() for run in runs}
    folders = {folder for run in wanted for folder in (run, run.parent)}
    paths = sorted(path for folder in folders for path in folder.glob(f"{OUT_OF_FOLD}/*/{POSTPROCESSING_FILE}"))
    found = [choice for choice in map(read_postprocessing, paths) if wanted <= choice.run_folders]
    for choice in found:
        _require_same_weights(choice, wanted)
    if len({choice.classes for choice in found}) > 1:
        named = ", ".join(str(choice.path) for choice in found)
        raise InputError(f"postprocessing=auto: {named} differ; expected one, or postprocessing=FILE")
    return found[0] if found else None


def _require_same_weights(choice: Postprocessing, runs: set[Path]) -> None:
    """Raise InputError if the best checkpoint of one of these runs is not the one that decided."""
    folders = {(_sweep(choice.path) / run).resolve(): digest for run, digest in choice.digests.items()}
    files = {folder / BEST: digest for folder, digest in folders.items() if folder in runs}
    changed = [file for file, digest in files.items() if file.is_file() and file_digest(file) != digest]
    if changed:
        raise InputError(
            f"{choice.path}: was chosen by other weights than those in {', '.join(map(str, changed))}; make it anew "
            f"({choice.command}), or remove it"
        )


def _sweep(path: Path) -> Path:
    """The folder that a choice belongs to: the one above out_of_fold/."""
    return path.resolve().parent.parent.parent


def _command(path: Path, content: Mapping[str, Any]) -> str:
    keys = {key: content.get(key) for key in ("experiment", "row", "seed")}
    chosen = [word for key, value in keys.items() if value is not None for word in (f"--{key}", str(value))]
    words = ["python", "-m", "e2enet.evaluation.out_of_fold", str(_sweep(path)), *chosen, "--postprocessing"]
    return shlex.join(words)


def as_stored(label: ClassLabels) -> int | str:
    """Return a class as stored in files: 1, or "1+2" for a region."""
    return label if isinstance(label, int) else class_key(label)


def read_class(text: int | str) -> ClassLabels:
    """Invert `as_stored`; also for JSON keys ("1"). ValueError for anything else."""
    if isinstance(text, int) or "+" not in text:
        return int(text)
    return tuple(int(label) for label in text.split("+"))


def classes_of(scheme: LabelScheme) -> dict[ClassLabels, str]:
    """Return class -> name for all classes that are scored and can be chosen; a region of one label is that label."""
    if not scheme.regions:
        return {label: name for label, name in scheme.names.items() if label != 0}
    return {united if len(united) > 1 else united[0]: name for name, united in scheme.regions.items()}


def require_labels(choice: Postprocessing, scheme: LabelScheme) -> None:
    """Raise InputError if a choice was made for other classes than a model's."""
    expected = classes_of(scheme)
    if choice.labels != expected:
        raise InputError(f"{choice.path}: chosen for the classes {choice.labels}, the model has {expected}")
