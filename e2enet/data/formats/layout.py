"""Raw datasets on disk, in Medical Segmentation Decathlon and in nnU-Net layout, read from their
dataset.json.

Everything is checked here, before any voxel is read: every listed file exists, ids are unique, labels are
0..K-1.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import read_json
from e2enet.data.formats.naming import FILE_ENDINGS, Case, case_id, find_cases, group_modalities, visible_files

__all__ = ["Case", "RawDataset", "find_cases", "read_msd", "read_nnunet"]


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its dataset.json describes it.

    `channels[c]` names channel c ("CT", "T1", ..); `labels` maps value -> name, 0 is background. `training`
    cases all have a label; `test` cases have one where the dataset has a labelsTs folder.
    """

    name: str
    folder: Path
    channels: tuple[str, ...]
    labels: dict[int, str]
    file_ending: str
    training: tuple[Case, ...]
    test: tuple[Case, ...]


def read_msd(folder: str | Path) -> RawDataset:
    """Read a Medical Segmentation Decathlon folder: one file per case, several modalities as a 4D image.

    dataset.json: `modality` {"0": name}, `labels` {"0": name}, `training` [{"image", "label"}], `test`
    [path]; nnU-Net's spellings of channels and labels are read too. Paths are relative to the folder. Raises
    InputError listing every problem.
    """
    folder = Path(folder)
    content = _read_description(folder)
    problems: list[str] = []
    channels, labels = _channels(content, problems), _labels(content, problems)
    training = _listed_cases(folder, content.get("training"), "training", problems)
    test = _listed_cases(folder, content.get("test", []), "test", problems)
    endings = {ending for case in training for ending in FILE_ENDINGS if case.images[0].name.endswith(ending)}
    ending = min(endings, key=len) if len(endings) == 1 else ".nii.gz"
    if len(endings) > 1:
        problems.append(f"training images end in {sorted(endings)}: one ending for the whole dataset is expected")
    return _finish(folder, content, channels, labels, ending, training, test, problems)


def read_nnunet(folder: str | Path) -> RawDataset:
    """Read an nnU-Net raw folder: `imagesTr/<case>_0000<ending>` per modality, `labelsTr/<case><ending>`,
    `imagesTs`.

    dataset.json: `channel_names` {"0": name}, `labels` {name: int}, `file_ending`, `numTraining`, and
    optionally a `dataset` section {case: {"images": [..], "label": ..}}, whose paths may lie outside the
    folder, as in nnU-Net. Raises InputError listing every problem.
    """
    folder = Path(folder)
    content = _read_description(folder)
    problems: list[str] = []
    channels, labels = _channels(content, problems), _labels(content, problems)
    ending = content.get("file_ending", ".nii.gz")
    if ending not in FILE_ENDINGS:
        problems.append(f"file_ending is {ending!r}: {' or '.join(FILE_ENDINGS)} expected (NIfTI only)")
        ending = ".nii.gz"
    if "dataset" in content:
        training = _section_cases(folder, content["dataset"], len(channels), problems)
    else:
        training = _folder_cases(folder, "Tr", len(channels), ending, problems)
    test = _folder_cases(folder, "Ts", len(channels), ending, problems) if (folder / "imagesTs").is_dir() else []
    return _finish(folder, content, channels, labels, ending, training, test, problems)


def _read_description(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (a raw dataset holding dataset.json is expected)")
    content = read_json(folder / "dataset.json")
    if not isinstance(content, dict):
        raise InputError(f"{folder / 'dataset.json'}: holds {type(content).__name__}, an object expected")
    return content


def _channels(content: Mapping[str, Any], problems: list[str]) -> tuple[str, ...]:
    found = content.get("channel_names", content.get("modality"))
    if not isinstance(found, dict) or not found:
        problems.append(f"channel_names (or modality) is {found!r}: an object like {{'0': 'CT'}} expected")
        return ("unknown",)
    if sorted(map(str, found)) != sorted(str(index) for index in range(len(found))):
        problems.append(f"channel_names has the keys {sorted(map(str, found))}: consecutive numbers from 0 expected")
        return tuple(str(name) for name in found.values())
    return tuple(str(found[str(index)]) for index in range(len(found)))


def _labels(content: Mapping[str, Any], problems: list[str]) -> dict[int, str]:
    """Value -> name from either dialect: MSD writes {"1": "liver"}, nnU-Net {"liver": 1}."""
    found = content.get("labels")
    if not isinstance(found, dict) or not found:
        problems.append(f"labels is {found!r}: an object of names and values expected")
        return {0: "background"}
    value_first = all(str(key).isdigit() for key in found)
    pairs = [(key, name) if value_first else (name, key) for key, name in found.items()]
    wrong = [f"{name!r}: {value!r}" for value, name in pairs if isinstance(value, bool) or not str(value).isdigit()]
    if wrong:
        problems.append(f"labels {', '.join(wrong)}: one integer per label expected (no regions, no ignore label)")
        return {0: "background"}
    labels = {int(value): str(name) for value, name in sorted(pairs, key=lambda pair: int(pair[0]))}
    if len(labels) < len(pairs):
        counts = Counter(int(value) for value, _ in pairs)
        problems.append(f"labels give the values {[v for v, n in counts.items() if n > 1]} to more than one name")
    elif list(labels) != list(range(len(labels))):
        missing = sorted(set(range(max(labels) + 1)) - set(labels))
        problems.append(f"label values are {list(labels)}: consecutive integers from 0 expected, {missing} missing")
    if len(labels) < 2:
        problems.append("labels name no foreground class: background and at least one other expected")
    return labels


def _listed_cases(folder: Path, entries: Any, section: str, problems: list[str]) -> list[Case]:
    """Cases of MSD's `training` and `test` lists; test labels are looked for in labelsTs."""
    if not isinstance(entries, list):
        problems.append(f"{section} is {type(entries).__name__}: a list of cases expected")
        return []
    cases = []
    for entry in entries:
        image = entry.get("image") if isinstance(entry, dict) else entry
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(image, str) or (section == "training" and not isinstance(label, str)):
            problems.append(
                f"{section} entry {entry!r}: an image{' and label' if section == 'training' else ''} expected"
            )
            continue
        if Path(image).name.startswith("."):
            continue  # some archives list the ._ files that macOS leaves
        if not image.endswith(FILE_ENDINGS):
            problems.append(f"{section} image {image}: a name ending in {' or '.join(FILE_ENDINGS)} expected")
            continue
        image_path = _inside(folder, image, problems)
        if label is not None:
            label_path: Path | None = _inside(folder, label, problems)
        else:
            beside = folder / "labelsTs" / image_path.name
            label_path = beside if beside.is_file() else None
        cases.append(Case(case_id(image_path.name), (image_path,), label_path))
    return cases


def _inside(folder: Path, relative: str, problems: list[str]) -> Path:
    """The path in the folder; compared as written, so that a folder of symbolic links still works."""
    path = Path(os.path.normpath(folder / relative))
    if not path.is_relative_to(os.path.normpath(folder)):
        problems.append(f"{relative} lies outside the dataset's folder {folder}")
    return path


def _section_cases(folder: Path, section: Any, num_channels: int, problems: list[str]) -> list[Case]:
    if not isinstance(section, dict):
        problems.append(f"dataset is {type(section).__name__}: an object of cases expected")
        return []
    cases = []
    for name, entry in section.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not isinstance(label, str) or not all(isinstance(i, str) for i in images):
            problems.append(f"dataset entry {name!r}: a list of images and a label expected")
        elif len(images) != num_channels:
            problems.append(
                f"dataset entry {name!r} has {len(images)} images, one per channel ({num_channels}) expected"
            )
        elif Path(name).name != name or name.startswith("."):
            problems.append(f"dataset entry {name!r}: an id that can be a file's name expected")
        else:
            paths = tuple(Path(os.path.normpath(folder / image)) for image in images)
            cases.append(Case(name, paths, Path(os.path.normpath(folder / label))))
    return cases


def _folder_cases(folder: Path, split: str, num_channels: int, ending: str, problems: list[str]) -> list[Case]:
    """Cases of imagesTr or imagesTs by their names; training labels must exist, test labels may."""
    images, labels = folder / f"images{split}", folder / f"labels{split}"
    if not images.is_dir():
        problems.append(f"{images}: no such folder")
        return []
    files = visible_files(images, ending)
    cases, found = group_modalities(files, num_channels, ending)
    problems.extend(found)
    unnumbered = [case for case in cases if not case.images[0].name.endswith(f"_0000{ending}")]
    problems.extend(f"{case.images[0]}: a name like <case>_0000{ending} expected" for case in unnumbered)
    labelled = [Case(case.id, case.images, labels / f"{case.id}{ending}") for case in cases]
    if split == "Tr":
        return labelled
    return [case if case.label and case.label.is_file() else Case(case.id, case.images, None) for case in labelled]


def _finish(
    folder: Path,
    content: Mapping[str, Any],
    channels: tuple[str, ...],
    labels: dict[int, str],
    ending: str,
    training: Sequence[Case],
    test: Sequence[Case],
    problems: list[str],
) -> RawDataset:
    """The checks common to both layouts; raises all problems at once."""
    for section, cases in (("training", training), ("test", test)):
        repeated = sorted(name for name, count in Counter(case.id for case in cases).items() if count > 1)
        problems.extend(f"{section} lists case {name} more than once" for name in repeated)
    expected = content.get("numTraining")
    if isinstance(expected, int) and expected != len(training) and not problems:
        problems.append(f"numTraining is {expected}, but {len(training)} training cases were found")
    if not training and not problems:
        problems.append("there is no training case")
    files = [file for case in (*training, *test) for file in (*case.images, case.label) if file is not None]
    problems.extend(f"{file}: no such file" for file in dict.fromkeys(files) if not file.is_file())
    raise_problems(problems, f"{folder / 'dataset.json'}: the dataset cannot be used")
    name = str(content.get("name") or folder.name)
    return RawDataset(name, folder, channels, labels, ending, tuple(training), tuple(test))
