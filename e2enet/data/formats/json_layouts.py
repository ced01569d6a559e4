"""The two layouts that a dataset.json describes.

Medical Segmentation Decathlon: one file per case, several modalities as a 4D image, every file listed.

```
Task01_BrainTumour/dataset.json    modality {"0": name}, labels {"0": name}, training [{"image", "label"}], test [path]
                   imagesTr/BRATS_001.nii.gz   labelsTr/BRATS_001.nii.gz   imagesTs/BRATS_485.nii.gz   [labelsTs/]
```

nnU-Net's raw layout: one file per case and channel, numbered from 0000. File names tell the cases.

```
Dataset001_BrainTumour/dataset.json    channel_names {"0": name}, labels {name: int}, file_ending, numTraining
                       imagesTr/BRATS_001_0000.nii.gz, BRATS_001_0001.nii.gz   labelsTr/BRATS_001.nii.gz
                       [imagesTs/] [labelsTs/]
```
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from e2enet.data.formats.dataset import RawDataset, build_raw_dataset, warn_unlisted
from e2enet.data.formats.description import Description
from e2enet.data.formats.labels import LabelTable, resolve_labels
from e2enet.data.formats.listing import FILE_ENDINGS, is_file_name, list_scans, no_folder, spell_endings
from e2enet.data.formats.naming import Case, group_modalities
from e2enet.data.formats.problems import Problem, case_error, dataset_error


def scan_msd(folder: str | Path, problems: list[Problem], table: LabelTable | None = None) -> RawDataset:
    """Read a Decathlon folder as far as possible. Problems are appended to `problems`.

    nnU-Net's spellings of channels and labels are read too. Paths are relative to the folder. Test cases take
    labels from labelsTs if it exists. Raise InputError if there is no dataset.json to read.
    """
    folder, table = Path(folder), table or LabelTable()
    description = Description(folder, problems)
    channels, found = description.channels(), description.labels()
    labels = resolve_labels(found, table, problems)
    training = description.listed_cases("training")
    test = description.listed_cases("test", labels_folder="labelsTs")
    description.check_count(training)
    for part, cases in (("Tr", training), ("Ts", test)):
        warn_unlisted(folder / f"images{part}", [case.images[0] for case in cases], problems)
        warn_unlisted(folder / f"labels{part}", [case.label for case in cases], problems)
    return build_raw_dataset(
        description.name, folder, channels, labels, table, training=training, test=test, problems=problems
    )


def scan_nnunet(folder: str | Path, problems: list[Problem], table: LabelTable | None = None) -> RawDataset:
    """Read an nnU-Net raw folder as far as possible. Problems are appended to `problems`.

    An optional `dataset` section {case: {"images": [..], "label": ..}} lists the training cases. Its paths may
    lie outside the folder, as in nnU-Net. Raise InputError if there is no dataset.json to read.
    """
    folder, table = Path(folder), table or LabelTable()
    description = Description(folder, problems)
    channels, found = description.channels(), description.labels()
    labels = resolve_labels(found, table, problems)
    ending = _file_ending(description)
    training, test = list[Case](), list[Case]()
    if "dataset" in description.content:
        training = _section_cases(description, len(channels))
        warn_unlisted(folder / "imagesTr", [image for case in training for image in case.images], problems)
        warn_unlisted(folder / "labelsTr", [case.label for case in training], problems)
    elif ending is not None:
        training = _folder_cases(folder, "Tr", len(channels), ending, problems)
    if ending is not None:
        test = _folder_cases(folder, "Ts", len(channels), ending, problems)
    description.check_count(training)
    return build_raw_dataset(
        description.name,
        folder,
        channels,
        labels,
        table,
        training=training,
        test=test,
        file_ending=ending or FILE_ENDINGS[0],
        problems=problems,
    )


def _section_cases(description: Description, num_channels: int) -> list[Case]:
    section: Any = description.content["dataset"]
    if not isinstance(section, dict):
        description.wrong(f"dataset is {type(section).__name__}: an object of cases expected")
        return []
    cases = []
    for name, entry in section.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not isinstance(label, str) or not all(isinstance(i, str) for i in images):
            description.wrong(f"dataset entry {name!r}: a list of images and a label expected")
        elif num_channels not in (0, len(images)):
            description.wrong(
                f"dataset entry {name!r} has {len(images)} images, one per channel ({num_channels}) expected"
            )
        elif not name or name.startswith(".") or not is_file_name(name):
            description.wrong(f"dataset entry {name!r}: an id that can be a file's name expected")
        else:
            cases.append(Case(name, tuple(map(description.path, images)), description.path(label)))
    return cases


def _file_ending(description: Description) -> str | None:
    """Return `file_ending` if training images have it; otherwise add a problem and return None."""
    ending = description.content.get("file_ending", FILE_ENDINGS[0])
    listing = list_scans(description.folder / "imagesTr")
    there = f"; {listing.folder} holds {listing.endings()}" if listing.endings() else ""
    if ending not in FILE_ENDINGS:
        description.wrong(f"file_ending is {ending!r}: {spell_endings()} expected{there}")
        return None
    if "dataset" not in description.content and there and not any(f.name.endswith(ending) for f in listing.files):
        description.wrong(f"file_ending is {ending!r}, of which there is no training image{there}")
        return None
    return str(ending)


def _folder_cases(folder: Path, part: str, num_channels: int, ending: str, problems: list[Problem]) -> list[Case]:
    """Return the cases of imagesTr or imagesTs by their names. Training labels must exist, test labels may.

    A test case that lacks a modality is only a warning.
    """
    images, labels = list_scans(folder / f"images{part}", [ending]), list_scans(folder / f"labels{part}", [ending])
    lost = [dataset_error(reason, one.folder) for one in (images, labels) if (reason := no_folder(one.folder))]
    if part == "Tr" and lost:
        problems += lost
        return []
    cases, found = group_modalities(images.files, num_channels, ending)
    found += [
        case_error(case.id, f"a name like <case>_0000{ending} expected", case.images[0])
        for case in cases
        if not case.images[0].name.endswith(f"_0000{ending}")
    ]
    problems += found if part == "Tr" else [replace(one, severity="warning") for one in found]
    problems += images.problems()
    if part == "Tr" and labels.num_left and not labels.files:
        expected = f"labels ending in {ending} expected, as the images do; there are {labels.endings()}"
        problems.append(dataset_error(expected, labels.folder))
        return []
    labelled = [Case(case.id, case.images, labels.folder / f"{case.id}{ending}") for case in cases]
    warn_unlisted(labels.folder, [case.label for case in labelled], problems, [ending])
    if part == "Tr":
        return labelled
    return [case if case.label in labels.files else Case(case.id, case.images) for case in labelled]
