"""AMOS22 as it is downloaded: abdominal CT and MRI in one folder, told apart by the number of the case.

```
amos22/dataset.json   labels {"1": "spleen", ..}, training and validation [{"image", "label"}], test [{"image"}]
       imagesTr/amos_0001.nii.gz   labelsTr/amos_0001.nii.gz
       imagesVa/amos_0008.nii.gz   labelsVa/amos_0008.nii.gz
       imagesTs/amos_0002.nii.gz
```

Numbers to 500 are CT, from 501 on MRI (docs/datasets/amos.md). Both together train one network for MRI. It is trained
on CT cases too, but never validated on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset, build_raw_dataset, warn_unlisted
from e2enet.data.formats.description import Description
from e2enet.data.formats.labels import LabelTable, resolve_labels
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem, case_error

Modality = Literal["CT", "MRI", "both"]
LAST_CT = 500
NAME = re.compile(r"amos_(?P<number>\d{4})")


def scan_amos(
    folder: str | Path, problems: list[Problem], table: LabelTable | None = None, *, modality: Modality = "CT"
) -> RawDataset:
    """Read one modality of an AMOS22 folder as far as possible. Problems are appended to `problems`.

    The cases are those that dataset.json lists; `validation` holds those of imagesVa. The single channel is named
    after the modality, which decides the normalisation. Problems of the other modality are left out.

    `both` is MRI with the CT cases of imagesTr as further training cases. Its channel, "CT or MRI", is normalised as
    MRI: each scan by its own mean and standard deviation, since CT and MRI share no unit.
    """
    if modality not in get_args(Modality):
        raise InputError(f"modality={modality!r}: one of {', '.join(get_args(Modality))} expected")
    folder, table = Path(folder), table or LabelTable()
    description = Description(folder, problems)
    found = description.labels()
    labels = resolve_labels(found, table, problems)
    listed = {
        "Tr": description.listed_cases("training", labels_folder="labelsTr"),
        "Va": description.listed_cases("validation", labels_folder="labelsVa"),
        "Ts": description.listed_cases("test", labels_folder="labelsTs"),
    }
    scored: Modality = "MRI" if modality == "both" else modality
    parts = {
        part: _of_modality(cases, modality if part == "Tr" else scored, problems) for part, cases in listed.items()
    }
    for part, cases in listed.items():
        warn_unlisted(folder / f"images{part}", [case.images[0] for case in cases], problems)
        warn_unlisted(folder / f"labels{part}", [case.label for case in cases], problems)
    for part in ("Tr", "Va"):
        problems += [
            case_error(case.id, "the case has no label", folder / f"labels{part}" / case.images[0].name)
            for case in parts[part]
            if case.label is None
        ]
    return build_raw_dataset(
        f"{description.name} {modality}",
        folder,
        ("CT or MRI" if modality == "both" else modality,),
        labels,
        table,
        training=[case for case in parts["Tr"] if case.label],
        validation=[case for case in parts["Va"] if case.label],
        test=parts["Ts"],
        only_trained=[case.id for case in parts["Tr"] if modality == "both" and modality_of(case.id) == "CT"],
        problems=problems,
    )


def modality_of(case: str) -> Literal["CT", "MRI"] | None:
    """Return the modality by the case's number; None if the id is not like amos_0001."""
    match = NAME.fullmatch(case)
    if match is None:
        return None
    return "CT" if int(match["number"]) <= LAST_CT else "MRI"


def _of_modality(cases: Iterable[Case], modality: Modality, problems: list[Problem]) -> list[Case]:
    """Return the cases of one modality or both. Wrongly named cases belong to neither, so each one reports them."""
    kept = []
    for case in cases:
        found = modality_of(case.id)
        if found is None:
            problems.append(case_error(case.id, "a name like amos_0001.nii.gz expected", case.images[0]))
        elif modality in (found, "both"):
            kept.append(case)
    return kept
