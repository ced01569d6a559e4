"""Channels, labels and cases in dataset.json, in the formats of the Decathlon, AMOS and nnU-Net."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import read_json
from e2enet.data.formats.label_section import read_scheme
from e2enet.data.formats.listing import FILE_ENDINGS, NAME_WORDS, is_companion, is_file_name, no_folder, spell_endings
from e2enet.data.formats.naming import Case, case_id
from e2enet.data.formats.problems import Problem, dataset_error
from e2enet.data.formats.scheme import LabelScheme

FILE_NAME = "dataset.json"


class Description:
    """The content of a folder's dataset.json. Its errors are appended to `problems`, naming the file.

    Raises InputError if the folder or the file is missing, or the file is no JSON object: nothing can be read then.
    """

    def __init__(self, folder: Path, problems: list[Problem]) -> None:
        if reason := no_folder(folder):
            raise InputError(f"{folder}: {reason} (a raw dataset holding {FILE_NAME} is expected)")
        self.folder = folder
        self.file = folder / FILE_NAME
        self.problems = problems
        content = read_json(self.file)
        if not isinstance(content, dict):
            raise InputError(f"{self.file}: holds {type(content).__name__}, an object expected")
        self.content: Mapping[str, Any] = content

    @property
    def name(self) -> str:
        """The dataset's name, else that of its folder."""
        return str(self.content.get("name") or self.folder.name)

    def wrong(self, text: str) -> None:
        """Add a problem of the file."""
        self.problems.append(dataset_error(text, self.file))

    def channels(self) -> tuple[str, ...]:
        """Return the names in order, from `channel_names` (nnU-Net) or `modality` (Decathlon), both {"0": name}.

        Empty if they cannot be read; then the images' numbers of channels are not checked.
        """
        found = self.content.get("channel_names", self.content.get("modality"))
        if not isinstance(found, dict) or not found:
            self.wrong(f"channel_names (or modality) is {found!r}: an object like {{'0': 'CT'}} expected")
            return ()
        if sorted(map(str, found)) != sorted(str(index) for index in range(len(found))):
            self.wrong(f"channel_names has the keys {sorted(map(str, found))}: consecutive numbers from 0 expected")
            return tuple(str(name) for name in found.values())
        return tuple(str(found[str(index)]) for index in range(len(found)))

    def labels(self) -> LabelScheme | None:
        """Return the labels as numbered in the files; None if they cannot be read (`read_scheme`)."""
        scheme, problems = read_scheme(self.content)
        for problem in problems:
            self.wrong(problem)
        return scheme

    def listed_cases(self, section: str, labels_folder: str | None = None) -> list[Case]:
        """Return the cases of a list of {"image", "label"} or of paths, relative to the folder.

        An entry without a label takes the file of the image's name in `labels_folder`, if it exists. Without
        `labels_folder` each entry must name its label. Hidden files are left out with a warning. The `._x` files of
        macOS, which some archives list, are left out without one.
        """
        entries = self.content.get(section, [])
        if not isinstance(entries, list):
            self.wrong(f"{section} is {type(entries).__name__}: a list of cases expected")
            return []
        cases = []
        for entry in entries:
            image = _slashed(entry.get("image") if isinstance(entry, dict) else entry)
            label = _slashed(entry.get("label") if isinstance(entry, dict) else None)
            if not isinstance(image, str) or (labels_folder is None and not isinstance(label, str)):
                self.wrong(
                    f"{section} entry {entry!r}: an image{' and label' if labels_folder is None else ''} expected"
                )
            elif Path(image).name.startswith("."):
                if not is_companion(self.path(image)):
                    text = f"{section} image {image!r}: left out, hidden: its name begins with a dot"
                    self.problems.append(Problem(None, "warning", text, str(self.file)))
            elif not image.endswith(FILE_ENDINGS) or not is_file_name(Path(image).name):
                self.wrong(f"{section} image {image!r}: a name ending in {spell_endings()} expected, {NAME_WORDS}")
            else:
                image_path = self._inside(image)
                label_path = self._inside(label) if label is not None else None
                if label_path is None and labels_folder is not None:
                    beside = self.folder / labels_folder / image_path.name
                    label_path = beside if beside.is_file() else None
                cases.append(Case(case_id(image_path.name), (image_path,), label_path))
        return cases

    def check_count(self, training: list[Case]) -> None:
        """Add a problem if numTraining is another number of cases, unless there are errors already."""
        expected = self.content.get("numTraining")
        broken = any(problem.severity == "error" for problem in self.problems)
        if isinstance(expected, int) and expected != len(training) and not broken:
            self.wrong(f"numTraining is {expected}, but {len(training)} training cases were found")

    def path(self, relative: str) -> Path:
        """Return the path in the folder. Links are not resolved, so folders of links or with .. in their path work."""
        return self.folder / os.path.normpath(_slashed(relative))

    def _inside(self, relative: str) -> Path:
        """Return the path in the folder; add a problem if it lies outside."""
        path = self.path(relative)
        if PureWindowsPath(relative).drive or not Path(os.path.normpath(path)).is_relative_to(
            os.path.normpath(self.folder)
        ):
            self.wrong(f"{relative!r} lies outside the dataset's folder {self.folder}, a path within it expected")
        return path


def _slashed(path: Any) -> Any:
    """Replace the backslashes of a Windows path, `imagesTr\\a.nii.gz`, with slashes, which every system reads."""
    return path.replace("\\", "/") if isinstance(path, str) else path


def read_class_names(labels_folder: Path) -> LabelScheme | None:
    """Read the labels of a dataset.json in a folder of label files or its parent, as numbered in the files.

    Return None if there is no such file or it names no labels. Raise InputError if the names cannot be used.
    """
    for path in (labels_folder / FILE_NAME, labels_folder.resolve().parent / FILE_NAME):
        content = read_json(path) if path.is_file() else None
        if isinstance(content, dict) and content.get("labels") is not None:
            scheme, problems = read_scheme(content)
            raise_problems(problems, f"{path}: its labels cannot be scored:")
            return scheme
    return None
