"""Cases by their file names: `case.nii.gz`, or `case_0000.nii.gz`, `case_0001.nii.gz` for modalities
(nnU-Net)."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.problems import Problem, case_error, raise_errors

FILE_ENDINGS = (".nii.gz", ".nii")
MOST_NAME_BYTES = 200  # file systems take 255, of which the names that are made of a case's need some
MODALITY = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Case:
    """One patient: an image file per channel (or one 4D file holding all channels), and a label file where
    there is one."""

    id: str
    images: tuple[Path, ...]
    label: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The images, then the label where there is one."""
        return self.images if self.label is None else (*self.images, self.label)


def find_named_cases(
    source: str | Path, num_channels: int, file_ending: str = ".nii.gz", problems: list[Problem] | None = None
) -> list[Case]:
    """Cases to predict by the names of their files, in a folder or given as one file, sorted by id.

    Hidden files are ignored.

    With one channel both `x.nii.gz` and `x_0000.nii.gz` are case x. With several, `x_0000`, `x_0001`, .. are
    one case and a plain `x.nii.gz` is a 4D file. Raises InputError naming what is missing: the path, any
    case, or modalities; a list of `problems` takes those of single cases instead, where there are others.
    """
    source = Path(source)
    if source.is_dir():
        files = visible_files(source, file_ending)
        if not files:
            raise InputError(f"{source}: holds no image; files ending in {file_ending} expected")
        cases, found = group_modalities(files, num_channels, file_ending)
    elif source.is_file():
        if not source.name.endswith(FILE_ENDINGS):
            raise InputError(f"{source}: a file ending in {' or '.join(FILE_ENDINGS)} expected")
        ending = next(ending for ending in FILE_ENDINGS if source.name.endswith(ending))
        cases, found = group_modalities(_with_siblings(source, num_channels, ending), num_channels, ending)
    else:
        raise InputError(f"{source}: no such file or folder")
    repeated = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    found += [case_error(name, "is there twice, with and without a modality number") for name in repeated]
    cases = [case for case in cases if case.id not in repeated]
    if problems is None or not cases:
        raise_errors(found, f"{source}: the cases cannot be told from the file names")
    else:
        problems += found
    return sorted(cases, key=lambda case: case.id)


def case_id(file_name: str) -> str:
    """The name without its ending: hippocampus_001.nii.gz -> hippocampus_001."""
    for ending in FILE_ENDINGS:
        if file_name.endswith(ending):
            return file_name.removesuffix(ending)
    return Path(file_name).stem


def is_file_name(name: str) -> bool:
    """Whether files can be called so on any disk, and be told of on any terminal."""
    return name.isprintable() and Path(name).name == name and len(os.fsencode(name)) <= MOST_NAME_BYTES


def visible_files(folder: Path, file_ending: str) -> list[Path]:
    """Files of this ending, sorted, without the hidden `._x.nii.gz` that macOS archives carry."""
    return sorted(
        p for p in folder.iterdir() if p.name.endswith(file_ending) and not p.name.startswith(".") and p.is_file()
    )


def group_modalities(files: Sequence[Path], num_channels: int, file_ending: str) -> tuple[list[Case], list[Problem]]:
    """Group files into cases; returns the cases and what is wrong with the others.

    A four-digit end is a modality only where `_0000` occurs, or where every number is a possible channel of
    several: amos_0001.nii.gz, amos_0004.nii.gz are two cases of one channel.
    """
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    plain: list[Path] = []
    for file in files:
        match = MODALITY.match(file.name.removesuffix(file_ending))
        if match:
            numbered[match["case"]][int(match["channel"])] = file
        else:
            plain.append(file)
    numbers = {channel for channels in numbered.values() for channel in channels}
    if numbers and 0 not in numbers and (num_channels == 1 or max(numbers) >= num_channels):
        plain, numbered = list(files), defaultdict(dict)
    cases = [Case(file.name.removesuffix(file_ending), (file,)) for file in plain]
    problems = []
    expected = f"({num_channels} channels expected)"
    for name, channels in numbered.items():
        missing = [f"{name}_{c:04d}{file_ending}" for c in range(num_channels) if c not in channels]
        extra = [channels[c].name for c in sorted(channels) if c >= num_channels]
        if missing:
            problems.append(case_error(name, f"{', '.join(missing)} missing {expected}"))
        elif extra:
            problems.append(case_error(name, f"{', '.join(extra)} not expected {expected}"))
        else:
            cases.append(Case(name, tuple(channels[c] for c in range(num_channels))))
    return cases, problems


def _with_siblings(file: Path, num_channels: int, ending: str) -> list[Path]:
    """The file and, where it is one modality of several, the others of its case beside it."""
    match = MODALITY.match(file.name.removesuffix(ending))
    if match is None or num_channels == 1 or int(match["channel"]) >= num_channels:
        return [file]
    return [
        path
        for path in visible_files(file.parent, ending)
        if re.fullmatch(re.escape(match["case"]) + r"_\d{4}" + re.escape(ending), path.name)
    ]
