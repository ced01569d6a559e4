"""BTCV, the abdomen part of "Multi-Atlas Labeling Beyond the Cranial Vault", as Synapse's RawData.zip unpacks.

```
BTCV/RawData/Training/img/img0001.nii.gz   RawData/Training/label/label0001.nii.gz
     RawData/Testing/img/img0061.nii.gz
```

The folder RawData may itself be the root. There is no dataset.json: names of the labels come from the config.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset, finish, require_folder
from e2enet.data.formats.labels import LabelTable, resolve_labels
from e2enet.data.formats.listing import list_scans, no_folder
from e2enet.data.formats.naming import Case, case_id
from e2enet.data.formats.problems import Problem, case_error, dataset_error

NAME = re.compile(r"(?P<kind>img|label)(?P<number>\d{4})")


def scan_btcv(folder: str | Path, problems: list[Problem], table: LabelTable) -> RawDataset:
    """Read a BTCV folder as far as it can be read; what is wrong is added to `problems`.

    Cases are called by their image (img0001). Raises InputError where there is no Training folder, or where
    the table names no labels.
    """
    folder = Path(folder)
    if table.names is None:
        raise InputError("BTCV brings no names of its labels: give them as `labels`")
    require_folder(folder, "BTCV, holding RawData/Training,")
    root = folder / "RawData" if (folder / "RawData").is_dir() else folder
    if not (root / "Training").is_dir():
        raise InputError(f"{folder}: holds neither RawData/Training nor Training (BTCV as downloaded is expected)")
    labels = resolve_labels(None, table, problems)
    images = _numbered(root / "Training" / "img", "img", problems, required=True)
    references = _numbered(root / "Training" / "label", "label", problems, required=True)
    training = []
    for number, image in images.items():
        label = references.pop(number, None)
        if label is None:
            expected = root / "Training" / "label" / image.name.replace("img", "label", 1)
            problems.append(case_error(case_id(image.name), "the case has no label", expected))
        else:
            training.append(Case(case_id(image.name), (image,), label))
    problems += [
        Problem(None, "warning", "is the label of no image", str(file)) for _, file in sorted(references.items())
    ]
    tests = _numbered(root / "Testing" / "img", "img", problems)
    known = _numbered(root / "Testing" / "label", "label", problems)
    test = [Case(case_id(image.name), (image,), known.get(number)) for number, image in tests.items()]
    return finish("BTCV", folder, ("CT",), labels, table, training=training, test=test, problems=problems)


def _numbered(folder: Path, kind: str, problems: list[Problem], *, required: bool = False) -> dict[str, Path]:
    """Number -> file of img0001.nii.gz, .. or label0001.nii.gz, ..; a file of another name is a problem."""
    if required and (reason := no_folder(folder)):
        problems.append(dataset_error(reason, folder))
        return {}
    found: dict[str, Path] = {}
    listing = list_scans(folder)
    problems += listing.problems()
    wrong = []
    for file in sorted(listing.files, key=lambda file: file.suffix):  # .gz first
        name, ending = case_id(file.name), file.name.removeprefix(case_id(file.name))
        match = NAME.fullmatch(name)
        if match is None or match["kind"] != kind:
            wrong.append(case_error(name, f"a name like {kind}0001{ending} expected", file))
        elif match["number"] in found:
            wrong.append(case_error(name, f"is there twice, also as {found[match['number']].name}", file))
        else:
            found[match["number"]] = file
    # Training can do without a test case.
    problems += wrong if required else [replace(one, severity="warning") for one in wrong]
    return dict(sorted(found.items()))
