"""Layout of the Medical Segmentation Decathlon: one file per case, several modalities as a 4D image.

```
Task01_BrainTumour/dataset.json    modality {"0": name}, labels {"0": name}, training [{"image", "label"}], test [path]
                   imagesTr/BRATS_001.nii.gz   labelsTr/BRATS_001.nii.gz   imagesTs/BRATS_485.nii.gz   [labelsTs/]
```
"""

from __future__ import annotations

from pathlib import Path

from e2enet.data.formats.dataset import RawDataset, finish, warn_unlisted
from e2enet.data.formats.description import Description
from e2enet.data.formats.labels import LabelTable, resolve_labels
from e2enet.data.formats.problems import Problem


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
