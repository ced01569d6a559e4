"""The two layouts that a dataset.json describes.

Medical Segmentation Decathlon: one file per case, several modalities as a 4D image, every file listed.

```
Task01_BrainTumour/dataset.json    modality {"0": name}, labels {"0": name}, training [{"image", "label"}], test [path]
                   imagesTr/BRATS_001.nii.gz   labelsTr/BRATS_001.nii.gz   imagesTs/BRATS_485.nii.gz   [labelsTs/]
```

nnU-Net's raw layout: one file per case and channel, numbered from 0000, cases told from the files' names.

```
Dataset001_BrainTumour/dataset.json    channel_names {"0": name}, labels {name: int}, file_ending, numTraining
                       imagesTr/BRATS_001_0000.nii.gz, BRATS_001_0001.nii.gz   labelsTr/BRATS_001.nii.gz
                       [imagesTs/] [labelsTs/]
```
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from e2enet.data.formats.dataset import RawDataset, finish, warn_unlisted
from e2enet.data.formats.description import Description
from e2enet.data.formats.labels import LabelTable, resolve_labels
from e2enet.data.formats.naming import FILE_ENDINGS, Case, group_modalities, is_file_name, visible_files
from e2enet.data.formats.problems import Problem, case_error, dataset_error


def scan_msd(folder: str | Path, problems: list[Problem], table: LabelTable | None = None) -> RawDataset:
    """Read a Decathlon folder as far as it can be read; what is wrong is added to `problems`.

    nnU-Net's spellings of channels and labels are read too. Paths are relative to the folder. Test cases take
    labels from labelsTs where that exists. Raises InputError where there is no dataset.json to read.
    """
    folder, table = Path(folder), table or LabelTable()
    description = Description(folder, problems)
    channels, found = description.channels(), description.labels()
    labels = resolve_labels(found, table, problems) if found or table.names else {0: "background"}
    training = description.listed_cases("training")
    test = description.listed_cases("test", labels_folder="labelsTs")
    description.check_count(training)
    for part, cases in (("Tr", training), ("Ts", test)):
        warn_unlisted(folder / f"images{part}", [case.images[0] for case in cases], problems)
    warn_unlisted(folder / "labelsTr", [case.label for case in training if case.label], problems)
    return finish(description.name, folder, channels, labels, table, training=training, test=test, problems=problems)


def scan_nnunet(folder: str | Path, problems: list[Problem], table: LabelTable | None = None) -> RawDataset:
    """Read an nnU-Net raw folder as far as it can be read; what is wrong is added to `problems`.

    An optional `dataset` section {case: {"images": [..], "label": ..}} lists the training cases; its paths may
    lie outside the folder, as in nnU-Net. Raises InputError where there is no dataset.json to read.
    """
    folder, table = Path(folder), table or LabelTable()
    description = Description(folder, problems)
    channels, found = description.channels(), description.labels()
    labels = resolve_labels(found, table, problems) if found or table.names else {0: "background"}
    ending = description.content.get("file_ending", ".nii.gz")
    if ending not in FILE_ENDINGS:
        description.wrong(f"file_ending is {ending!r}: {' or '.join(FILE_ENDINGS)} expected (NIfTI only)")
        ending = ".nii.gz"
    if "dataset" in description.content:
        training = _section_cases(description, len(channels))
    else:
        training = _folder_cases(folder, "Tr", len(channels), ending, problems)
        warn_unlisted(folder / "labelsTr", [case.label for case in training if case.label], problems, ending)
    has_test = (folder / "imagesTs").is_dir()
    test = _folder_cases(folder, "Ts", len(channels), ending, problems) if has_test else []
    description.check_count(training)
    return finish(
        description.name,
        folder,
        channels,
        labels,
        table,
        training=training,
        test=test,
        file_ending=ending,
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
        elif len(images) != num_channels:
            description.wrong(
                f"dataset entry {name!r} has {len(images)} images, one per channel ({num_channels}) expected"
            )
        elif not name or name.startswith(".") or not is_file_name(name):
            description.wrong(f"dataset entry {name!r}: an id that can be a file's name expected")
        else:
            paths = tuple(description.folder / os.path.normpath(image) for image in images)
            cases.append(Case(name, paths, description.folder / os.path.normpath(label)))
    return cases


def _folder_cases(folder: Path, part: str, num_channels: int, ending: str, problems: list[Problem]) -> list[Case]:
    """Cases of imagesTr or imagesTs by their names; training labels must exist, test labels may."""
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    if not images.is_dir():
        problems.append(dataset_error("no such folder", images))
        return []
    cases, found = group_modalities(visible_files(images, ending), num_channels, ending)
    problems.extend(found)
    problems.extend(
        case_error(case.id, f"a name like <case>_0000{ending} expected", case.images[0])
        for case in cases
        if not case.images[0].name.endswith(f"_0000{ending}")
    )
    labelled = [Case(case.id, case.images, labels / f"{case.id}{ending}") for case in cases]
    if part == "Tr":
        return labelled
    return [case if case.label and case.label.is_file() else Case(case.id, case.images) for case in labelled]
