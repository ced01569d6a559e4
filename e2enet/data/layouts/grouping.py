"""Group the files that match patterns into cases, and report missing, duplicate and misnamed files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from e2enet.data.formats.listing import NAME_WORDS, is_file_name, list_scans, no_folder, told_of
from e2enet.data.formats.naming import Case, case_id
from e2enet.data.formats.problems import Problem, case_error, case_warning, dataset_error
from e2enet.data.layouts.pattern import Pattern
from e2enet.data.layouts.walk import Walk

# required: a case without a label is an error. expected: it becomes a test case, unless a file beside it may be the
# label under another name. optional: a missing label is not reported.
Labels = Literal["required", "expected", "optional"]
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Patterns:
    """The patterns of a layout.

    Attributes:
        image: Pattern of the images.
        label: Pattern of the labels, with the fields of `image` except the modality.
        unused: Patterns of files that belong to the dataset but are not read.
        modalities: Values of the field `modality` in channel order; ("",) without that field.
        case: Format of the id, made of fields.
    """

    image: Pattern
    label: Pattern
    unused: tuple[Pattern, ...]
    modalities: tuple[str, ...]
    case: str


@dataclass
class CaseFiles:
    """The files of a case, with images by modality, and the field values that these files share."""

    values: dict[str, str]
    images: dict[str, Path] = field(default_factory=dict)
    label: Path | None = None

    def files(self) -> list[Path]:
        """Return the images, then the label if there is one."""
        return [*self.images.values(), *([self.label] if self.label else [])]


class Groups:
    """The files of a walk, grouped by case. Files that match no pattern are grouped by folder."""

    def __init__(self, patterns: Patterns, walk: Walk) -> None:
        self.patterns, self.walk = patterns, walk
        self.cases: dict[Key, CaseFiles] = {}
        self.strange: dict[Path, list[Path]] = {}
        self.problems: list[Problem] = []
        for folder in sorted(walk.places):
            for file in sorted(walk.listing(folder).files, key=lambda file: file.suffix):  # .gz first
                self._place(folder, file)
        self._add_folders_of_strange_files()

    @property
    def has_images(self) -> bool:
        """Whether any file is an image of the layout."""
        return any(files.images for files in self.cases.values())

    def read(self, labels: Labels) -> tuple[list[Case], list[Problem]]:
        """Return the complete cases, sorted by id, and the problems of the others."""
        problems = [*self.problems]
        cases = []
        for files in self.cases.values():
            case = self._read_case(files, labels, problems)
            if case is not None and not is_file_name(case.id):
                problems.append(case_error(case.id, f"an id {NAME_WORDS} expected", case.images[0]))
            elif case is not None:
                cases.append(case)
        strangers = [problem for folder in self.strange for problem in self._strangers(folder, cases)]
        problems += strangers if labels != "optional" else as_warnings(strangers)
        return sorted(cases, key=lambda case: case.id), problems

    def lost_folders(self, *, needed: bool) -> list[Problem]:
        """Return a problem for each missing folder that an image or label pattern names.

        It is an error if `needed`. Otherwise only a file or a dead link in its place gives a warning.
        """
        lost = [folder for pattern, folder in self.walk.missing if pattern not in self.patterns.unused]
        if not needed:
            return [problem for folder in dict.fromkeys(lost) for problem in list_scans(folder).problems()]
        return [dataset_error(str(no_folder(folder)), folder) for folder in dict.fromkeys(lost)]

    def _place(self, folder: Path, file: Path) -> None:
        """Assign a file to the matching pattern with the most literal characters."""
        name = case_id(file.name)
        found: list[tuple[Pattern, dict[str, str]]] = []
        order = (*self.patterns.unused, self.patterns.label, self.patterns.image)
        for pattern in order:
            known = self.walk.places[folder].get(pattern)
            fields = None if known is None else pattern.match(len(pattern.segments) - 1, name, known)
            if fields is not None:
                found.append((pattern, fields))
        if not found:
            self.strange.setdefault(folder, []).append(file)
            return
        pattern, fields = max(found, key=lambda pair: pair[0].num_literal)  # the first of equals
        if pattern in self.patterns.unused:
            return
        modality = fields.pop("modality", "")
        files = self.cases.setdefault(tuple(sorted(fields.items())), CaseFiles(fields))
        there = files.label if pattern is self.patterns.label else files.images.get(modality)
        if there is not None:
            text = f"is there twice, also as {there.name}"
            self.problems.append(case_error(self._id(fields), text, file))
        elif pattern is self.patterns.label:
            files.label = file
        else:
            files.images[modality] = file

    def _add_folders_of_strange_files(self) -> None:
        """Add a case for each case folder in which no file has an expected name."""
        for folder in self.strange:
            known = self.walk.places[folder].get(self.patterns.image, {})
            if known.keys() >= self.patterns.label.fields:
                self.cases.setdefault(tuple(sorted(known.items())), CaseFiles(dict(known)))

    def _read_case(self, files: CaseFiles, labels: Labels, problems: list[Problem]) -> Case | None:
        """Return the case, or None if a required file is missing. Problems are appended to `problems`."""
        name = self._id(files.values)
        missing = [one for one in self.patterns.modalities if one not in files.images]
        if len(missing) == len(self.patterns.modalities) and not self.patterns.image.has_own_folders:
            if labels != "optional" and files.label is not None:
                problems.append(told_of(self.walk.root, [files.label], "is the label of no image"))
            return None
        lacking = [self._path(self.patterns.image, files, modality) for modality in missing]
        strange = self._strange_beside(files, lacking)
        if files.label is None and labels != "optional" and strange:
            lacking.append(self._path(self.patterns.label, files))  # such as W39_1998.09.19_Segm.nii of 2020's BraTS
        if lacking:
            problems.append(_lacking(name, lacking, strange))
            for file in strange:
                self.strange[file.parent].remove(file)
            return None
        if files.label is None and labels == "required":
            problems.append(case_error(name, "the case has no label", self._path(self.patterns.label, files)))
            return None
        return Case(name, tuple(files.images[one] for one in self.patterns.modalities), files.label)

    def _strange_beside(self, files: CaseFiles, lacking: Sequence[Path]) -> list[Path]:
        """Return the unmatched files in the case's own folders. One of them may be the missing file."""
        folders = {path.parent for path in (*files.files(), *lacking)} if self.patterns.image.has_own_folders else set()
        return [file for folder in sorted(folders) for file in self.strange.get(folder, [])]

    def _strangers(self, folder: Path, cases: Sequence[Case]) -> list[Problem]:
        """Return the problems of the files in a folder that match no pattern."""
        files = self.strange[folder]
        patterns = [one for one in self.walk.places[folder] if one not in self.patterns.unused]
        if not files or not patterns:
            return []
        inside = [case for case in cases if any(file.parent == folder for file in case.files)]
        if not any(one.has_own_folders for one in patterns):
            return [
                case_error(case_id(file.name), f"a name like {self._example(folder)} expected", file) for file in files
            ]
        names = ", ".join(file.name for file in files)
        if inside:
            return [case_warning(inside[0].id, f"not expected and not used: {names}", folder)]
        return [case_error(folder.name, f"a name like {self._example(folder)} expected; there is {names}", folder)]

    def _example(self, folder: Path) -> str:
        """Return the name of a file used in the folder, or the file pattern if there is none."""
        taken = [file for files in self.cases.values() for file in files.files() if file.parent == folder]
        return taken[0].name if taken else next(iter(self.walk.places[folder])).text.rpartition("/")[2]

    def _path(self, pattern: Pattern, files: CaseFiles, modality: str = "") -> Path:
        """Return where a file is expected, with the ending of the case's other files or of files in its folder."""
        values: Mapping[str, str] = {**files.values, "modality": modality}
        path = self.walk.root / pattern.fill(values)
        others = [*files.files(), *self.walk.listing(path.parent).files]
        if not others:
            return path
        return self.walk.root / pattern.fill(values, others[0].name.removeprefix(case_id(others[0].name)))

    def _id(self, values: Mapping[str, str]) -> str:
        return self.patterns.case.format(**values)


def as_warnings(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems as warnings, for cases that training does not need."""
    return [replace(problem, severity="warning") for problem in problems]


def _lacking(case: str, paths: Sequence[Path], strange: Sequence[Path]) -> Problem:
    """Return the error for the missing files of a case, with the unmatched files as a hint."""
    folders = {path.parent for path in paths}
    folder = folders.pop() if len(folders) == 1 else None
    names = ", ".join(path.name if folder else str(path) for path in paths)
    hint = f"; not expected: {', '.join(file.name for file in strange)} (rename it?)" if strange else ""
    return case_error(case, f"{names} missing{hint}", folder)
