"""Cases by their file names: `case.nii.gz`, or `case_0000.nii.gz`, `case_0001.nii.gz` for modalities (nnU-Net)."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.dicom import holds_slices
from e2enet.data.formats.grid import Unit
from e2enet.data.formats.listing import (
    FILE_ENDINGS,
    NAME_WORDS,
    SCAN_LIKE,
    Listing,
    find_ending,
    is_file_name,
    list_scans,
    spell_endings,
    told_of,
    unreadable,
)
from e2enet.data.formats.opening import files_of
from e2enet.data.formats.problems import Problem, case_error, raise_errors

MODALITY = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Case:
    """One image with its label, if any.

    `images` holds a file per channel, one file with all channels, or a folder of DICOM slices. Lengths in these files
    are in `unit`. None takes the unit of each header.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    unit: Unit | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The images, then the label if there is one."""
        return self.images if self.label is None else (*self.images, self.label)

    @property
    def all_files(self) -> tuple[Path, ...]:
        """`files` with the separate voxel files of headers, and with slices instead of their folder."""
        return tuple(file for path in self.files for file in files_of(path))


def find_named_cases(
    source: str | Path,
    num_channels: int,
    file_ending: str = ".nii.gz",
    problems: list[Problem] | None = None,
    numbered_ids: bool = False,
) -> list[Case]:
    """Return the cases to predict by file name, sorted by id. `source` is a folder or one file.

    With one channel both `x.nii.gz` and `x_0000.nii.gz` are case x. With several, `x_0000`, `x_0001`, .. are
    one case and a plain `x.nii.gz` is a 4D file. A folder of DICOM slices is a case of the folder's name. If a file
    exists with several endings, the one with `file_ending` is taken. With `numbered_ids` (see `has_numbered_ids`) a
    four-digit end is a modality only after another four-digit end.

    Raise InputError naming what is missing: the path, any case, or modalities. If a list of `problems` is given and
    some cases are usable, problems of other cases and of files not taken are appended to it instead.
    """
    source = Path(source)
    files, series, found = list[Path](), list[Path](), list[Problem]()
    if holds_slices(source):
        series = [source]
    elif source.is_dir():
        listing = list_scans(source)
        files, found = _one_of_each(listing, file_ending)
        series = [path for path in sorted(source.iterdir()) if not path.name.startswith(".") and holds_slices(path)]
        found += [*listing.problems(), *_warn_of_folders(source, series)]
    elif reason := unreadable(source):
        raise InputError(f"{source}: {'no such file or folder' if reason == 'no such file' else reason}")
    elif not source.name.endswith(FILE_ENDINGS) or not is_file_name(source.name):
        raise InputError(f"{source}: a file ending in {spell_endings()} expected, its name {NAME_WORDS}")
    else:
        files = _with_siblings(source, num_channels, numbered_ids)
    cases, of_cases = group_modalities(files, num_channels, file_ending, numbered_ids)
    found += of_cases
    for folder in series:
        name = Path(os.path.abspath(folder)).name  # also of "."
        if is_file_name(name):
            cases.append(Case(name, (folder,)))
        else:
            found.append(told_of(source, [folder], f"not taken: a name {NAME_WORDS} expected"))
    repeated = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    for name in repeated:
        places = " and ".join(case.images[0].name for case in cases if case.id == name)
        found.append(case_error(name, f"is there twice, as {places}; one expected"))
    cases = readable([case for case in cases if case.id not in repeated], found)
    if problems is None or not cases:
        raise_errors(found, f"{source}: these cases cannot be predicted")
    if not cases:
        expected = f"{source}: holds no image; files ending in {spell_endings()} expected"
        raise InputError("\n  - ".join([expected, *map(str, found)]))
    if problems is not None:
        problems += found
    return sorted(cases, key=lambda case: case.id)


def readable(cases: Sequence[Case], problems: list[Problem]) -> list[Case]:
    """Return the cases whose images can be read. Errors of the others are appended to `problems`."""
    broken = [(case.id, reason, file) for case in cases for file in case.images if (reason := _unreadable(file))]
    problems += [case_error(*one) for one in broken]
    return [case for case in cases if case.id not in {name for name, *_ in broken}]


def _unreadable(path: Path) -> str | None:
    return None if holds_slices(path) else unreadable(path)


def case_id(file_name: str) -> str:
    """Return the name without its ending: hippocampus_001.nii.gz -> hippocampus_001."""
    ending = find_ending(file_name)
    return Path(file_name).stem if ending is None else file_name.removesuffix(ending)


def result_ending(case: Case, asked: str | None = None) -> str:
    """Return the ending of a case's result: `asked`, else that of its first image; .nii.gz for DICOM."""
    return asked or find_ending(case.images[0].name) or FILE_ENDINGS[0]


def has_numbered_ids(cases: Sequence[Case]) -> bool:
    """Whether ids of a dataset end in four digits, as their file names do. Such digits are no modality.

    For example, img_0000.nii.gz and img_0001.nii.gz of a Decathlon folder are two cases.
    """
    return any(MODALITY.match(case.id) and case_id(case.images[0].name) == case.id for case in cases)


def group_modalities(
    files: Sequence[Path], num_channels: int, file_ending: str, numbered_ids: bool = False
) -> tuple[list[Case], list[Problem]]:
    """Group files into cases; return the cases and the problems of the others.

    A four-digit end is a modality only if `_0000` occurs, or if there are several channels and every number is one of
    them. So amos_0001.nii.gz and amos_0004.nii.gz are two cases of one channel. `num_channels=0` takes the number of
    channels from the files.
    """
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    plain: list[Path] = []
    for file in files:
        match = _modality(file, numbered_ids)
        if match:
            numbered[match["case"]][int(match["channel"])] = file
        else:
            plain.append(file)
    numbers = {channel for channels in numbered.values() for channel in channels}
    num_channels = num_channels or 1 + max(numbers, default=0)
    if numbers and 0 not in numbers and (num_channels == 1 or max(numbers) >= num_channels):
        plain, numbered = list(files), defaultdict(dict)
    cases = [Case(case_id(file.name), (file,)) for file in plain]
    problems = []
    expected = f"({num_channels} channels expected)"
    for name, channels in numbered.items():
        ending = find_ending(min(channels.values()).name) or file_ending
        missing = [f"{name}_{c:04d}{ending}" for c in range(num_channels) if c not in channels]
        extra = [channels[c].name for c in sorted(channels) if c >= num_channels]
        if missing:
            problems.append(case_error(name, f"{', '.join(missing)} missing {expected}"))
        elif extra:
            problems.append(case_error(name, f"{', '.join(extra)} not expected {expected}"))
        else:
            cases.append(Case(name, tuple(channels[c] for c in range(num_channels))))
    return cases, problems


def _one_of_each(listing: Listing, file_ending: str) -> tuple[list[Path], list[Problem]]:
    """Return the files with each name once, and warnings for those whose name is taken with another ending."""
    chosen: dict[str, Path] = {}
    for file in sorted(listing.files, key=lambda file: not file.name.endswith(file_ending)):
        chosen.setdefault(case_id(file.name), file)
    spare: dict[str | None, list[Path]] = {}
    for file in listing.files:
        taken = chosen[case_id(file.name)]
        if taken != file:
            spare.setdefault(find_ending(taken.name), []).append(file)
    reason = "not taken: beside it is the same name with"
    problems = [told_of(listing.folder, files, f"{reason} {ending}") for ending, files in spare.items()]
    return sorted(chosen.values()), problems


def _warn_of_folders(source: Path, series: Sequence[Path]) -> list[Problem]:
    """Warn of dead links, and of folders with scans, which are not searched. `series` holds DICOM folders in use."""
    others = [path for path in sorted(source.iterdir()) if not SCAN_LIKE.search(path.name) and path not in series]
    holding = [path for path in others if path.is_dir() and list_scans(path).holds_scans]
    dead = [path for path in others if path.is_symlink() and not path.exists()]
    problems = [told_of(source, holding, "not taken: a folder that holds scans")] if holding else []
    return problems + [told_of(source, [path], f"not taken: {unreadable(path)}") for path in dead]


def _modality(file: Path, numbered_ids: bool) -> re.Match[str] | None:
    match = MODALITY.match(case_id(file.name))
    return None if match and numbered_ids and not MODALITY.match(match["case"]) else match


def _with_siblings(file: Path, num_channels: int, numbered_ids: bool) -> list[Path]:
    """Return the file, and if it is one modality of several, the others of its case beside it."""
    match = _modality(file, numbered_ids)
    if match is None or num_channels == 1 or int(match["channel"]) >= num_channels:
        return [file]
    ending = file.name.removeprefix(case_id(file.name))
    pattern = re.compile(re.escape(match["case"]) + r"_\d{4}" + re.escape(ending))
    return [path for path in list_scans(file.parent, [ending]).files if pattern.fullmatch(path.name)]
