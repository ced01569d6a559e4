"""A layout described by file name patterns."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset, build_raw_dataset, require_folder
from e2enet.data.formats.labels import LabelTable, resolve_labels
from e2enet.data.formats.listing import list_scans, told_of
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem
from e2enet.data.layouts.grouping import Groups, Labels, Patterns, as_warnings
from e2enet.data.layouts.layout import Layout
from e2enet.data.layouts.pattern import Pattern, parse_pattern
from e2enet.data.layouts.walk import Walk

PARTS = ("training", "validation", "test")


class FolderLayout(Layout):
    """Files whose names follow patterns, such as `{case}/{case}_{modality}.nii.gz`.

    A field in braces matches any text between slashes, or its own regular expression (`img{number:\\d{4}}`). A
    repeated field matches the same text each time. The ending may be any supported one; a dataset uses a single
    ending. If two patterns match a file, the one with more literal characters is used.

    Args:
        image: Pattern of the images. With the field `{modality}` there is one file per modality, else one per case.
        label: Pattern of the labels, with the fields of `image` except `{modality}`. If `folders` names no `test`,
            cases without a label become test cases.
        channels: Channel name -> the text that `{modality}` matches. In a list each name is also that text. Without
            `{modality}` the list names the channels in the one file. A channel named CT is normalised as CT.
        case: Format of the id, such as "{patient}_{frame}".
        folders: Part ("training", "validation", "test") -> the folder that its patterns are relative to. A list of
            folders takes the first that exists. Without `folders` all cases lie in the dataset's folder.
        unused: Patterns of files that belong to the dataset but are not read.

    Raises:
        InputError: lists every error in the patterns.
    """

    def __init__(
        self,
        image: str,
        label: str,
        channels: Mapping[str, str] | Sequence[str],
        case: str = "{case}",
        folders: Mapping[str, Any] | None = None,
        unused: Sequence[str] = (),
    ) -> None:
        named = channels if isinstance(channels, Mapping) else {name: name for name in channels}
        problems = _channel_problems(channels, image)
        modalities = tuple(map(str, named.values()))
        read: dict[str, Pattern] = {}
        texts = {"image": image, "label": label, **{f"unused[{number}]": text for number, text in enumerate(unused)}}
        for key, text in texts.items():
            try:
                read[key] = parse_pattern(text, modalities if key == "image" else ())
            except InputError as error:
                problems.append(f"{key}={error}")
        if "image" in read and "label" in read:
            problems += _field_problems(read["image"], read["label"], case)
        problems += _folder_problems(folders or {})
        if problems:
            raise InputError("; ".join(problems))
        self.channels = tuple(map(str, named))
        self.patterns = Patterns(
            read.pop("image"),
            read.pop("label"),
            tuple(read.values()),
            modalities if "{modality}" in image else ("",),
            case,
        )
        self.folders = {
            part: (value,) if isinstance(value, str) else tuple(value)
            for part, value in (folders or {"training": ""}).items()
        }

    def scan(self, folder: Path, problems: list[Problem], table: LabelTable) -> RawDataset:
        """Read as much of a folder as possible. Problems are appended to `problems`.

        Raises:
            InputError: a folder of training or validation cases, all images or the label names are missing.
        """
        folder = Path(folder)
        like = f"a dataset of images like {self.patterns.image.text}"
        if table.names is None:
            raise InputError(f"{folder}: {like} brings no names of its labels: give them as data.labels")
        require_folder(folder, like)
        labels = resolve_labels(None, table, problems)
        roots = {part: self._root(folder, part) for part in self.folders}
        parts: dict[str, list[Case]] = {part: [] for part in PARTS}
        for part, root in roots.items():
            if root is None and part != "test":
                raise InputError(f"{folder}: {_lacks_all(self.folders[part])} ({like} is expected)")
            if root is not None:
                others = [other for other in roots.values() if other is not None]
                parts[part] = self._read_part(part, root, others, problems)
            else:
                problems += [one for name in self.folders[part] for one in list_scans(folder / name).problems()]
        if not any(parts.values()) and not any(problem.severity == "error" for problem in problems):
            raise InputError("\n  - ".join([f"{folder}: holds no image like {self._spelled()}", *map(str, problems)]))
        training = [case for case in parts["training"] if case.label is not None]
        unlabelled = [case for case in parts["training"] if case.label is None]
        if unlabelled:
            files = [case.images[0] for case in unlabelled]
            problems.append(told_of(folder, files, "has no label: a test case"))
        dataset = build_raw_dataset(
            folder.name,
            folder,
            self.channels,
            labels,
            table,
            training=training,
            validation=parts["validation"],
            test=[*parts["test"], *unlabelled],
            problems=problems,
        )
        patterns = (self.patterns.image.text, self.patterns.label.text, self.patterns.case, *self.patterns.modalities)
        return replace(dataset, patterns=(*patterns, str(sorted(self.folders.items()))))

    def find_cases(self, source: Path, problems: list[Problem]) -> list[Case] | None:
        """Return the cases to predict in `source`; None if it does not follow the layout.

        `source` is the folder of a dataset, of one part or of one case, or one file of a case with several files.
        """
        if source.is_file():
            if len(self.patterns.modalities) == 1:
                return None
            cases = self._find_in(source.parent, [])
            return [case for case in cases or () if source.name in [file.name for file in case.images]] or None
        return self._find_in(source, problems) if source.is_dir() else None

    def _find_in(self, source: Path, problems: list[Problem]) -> list[Case] | None:
        parts = [root for part in self.folders if (root := self._root(source, part)) is not None]
        walks = [(root, parts, None) for root in parts]
        found = [self._groups(*walk) for walk in walks]
        if not any(groups.has_images for groups in found):
            found = [self._groups(source, (), None)]
        depth = len(self.patterns.image.folders)
        if not any(groups.has_images for groups in found) and depth and self.patterns.image.has_own_folders:
            place = source.absolute()
            found = [self._groups(place.parents[depth - 1], (), place)] if len(place.parents) >= depth else []
        if not any(groups.has_images for groups in found):
            return None
        cases: list[Case] = []
        for groups in found:
            of_part, wrong = groups.read("optional")
            problems += [*groups.walk.problems(), *wrong]
            cases += of_part
        return cases

    def _read_part(self, part: str, root: Path, roots: Sequence[Path], problems: list[Problem]) -> list[Case]:
        labels: Labels = "required" if part == "validation" or "test" in self.folders else "expected"
        groups = self._groups(root, roots, None)
        cases, found = groups.read("optional" if part == "test" else labels)
        lost = groups.lost_folders(needed=part != "test")
        if part == "test":  # training does not need test cases
            found = as_warnings(found)
        problems += [*groups.walk.problems(), *lost, *found]
        return cases

    def _groups(self, root: Path, elsewhere: Sequence[Path], only: Path | None) -> Groups:
        patterns = (self.patterns.image, self.patterns.label, *self.patterns.unused)
        return Groups(self.patterns, Walk(root, patterns, elsewhere, only))

    def _root(self, folder: Path, part: str) -> Path | None:
        """Return the first existing folder of a part."""
        return next((folder / name for name in self.folders[part] if (folder / name).is_dir()), None)

    def _spelled(self) -> str:
        return f"{self.folders['training'][0]}/{self.patterns.image.text}".lstrip("/")


def _lacks_all(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"holds no folder {names[0]}"
    return f"holds neither {' nor '.join(name or 'files itself' for name in names)}"


def _channel_problems(channels: Any, image: str) -> list[str]:
    values = list(channels.values()) if isinstance(channels, Mapping) else list(channels)
    if not values or isinstance(channels, str):
        return [f"channels={channels!r}: at least one name expected, such as [CT]"]
    problems = [
        f"channels={channels}: {value!r} is no text; quotes around it expected"
        for value in values
        if not isinstance(value, str)
    ]
    if len(set(map(str, values))) < len(values):
        problems.append(f"channels={channels}: another value for each expected")
    if isinstance(channels, Mapping) and "{modality}" not in image:
        problems.append(f"image={image!r}: has no {{modality}}, whose values channels={dict(channels)} gives")
    return problems


def _field_problems(image: Pattern, label: Pattern, case: str) -> list[str]:
    """Return the mismatches between the fields of image, label and id."""
    fields = sorted(image.fields - {"modality"})
    problems = []
    if label.segments == image.segments:
        problems.append(f"label={label.text!r}: the pattern of the images; another expected")
    if sorted(label.fields) != fields:
        problems.append(
            f"label={label.text!r}: has the fields {sorted(label.fields)}, those of image, {fields}, expected"
        )
    try:
        pieces = [piece for piece in string.Formatter().parse(case) if piece[1] is not None]
    except ValueError as error:
        return [*problems, f"case={case!r}: is no format of fields ({error})"]
    used = [name for _, name, _, _ in pieces if name is not None]
    if any(form or conversion for _, _, form, conversion in pieces):
        problems.append(f"case={case!r}: fields alone expected in braces")
    if not used or not set(used) <= set(fields):
        problems.append(f"case={case!r}: has the fields {used}, some of image, {fields}, expected; set `case` to them")
    if "/" in case:
        problems.append(f"case={case!r}: an id without a slash expected")
    return problems


def _folder_problems(folders: Mapping[str, Any]) -> list[str]:
    problems = [f"folders.{part}: no such part; {' | '.join(PARTS)} expected" for part in folders if part not in PARTS]
    if folders and "training" not in folders:
        problems.append("folders: `training` expected among them")
    for part, value in folders.items():
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            problems.append(f"folders.{part}={value}: a folder, or a list of them, expected")
        elif any(name.startswith("/") or ".." in Path(name).parts for name in names):
            problems.append(f"folders.{part}={value}: folders below the dataset's expected")
    return problems
