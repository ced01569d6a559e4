"""Which classes are scored and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2enet.common.errors import InputError
from e2enet.common.files import read_json


def read_class_names(labels_folder: Path) -> dict[int, str] | None:
    """Names of the foreground classes, from dataset.json in `labels_folder` or in the folder above it.

    Reads both dialects: {"1": "liver"} (Medical Segmentation Decathlon) and {"liver": 1} (nnU-Net).
    None where there is no such file or it names no labels. Raises InputError where the names cannot be used.
    """
    for folder in (labels_folder, labels_folder.resolve().parent):
        path = folder / "dataset.json"
        if path.is_file():
            content = read_json(path)
            if isinstance(content, Mapping) and isinstance(content.get("labels"), Mapping):
                return parse_class_names(content["labels"], str(path))
    return None


def parse_class_names(labels: Mapping[str, Any], origin: str) -> dict[int, str]:
    """Foreground classes {value: name}, sorted, from a `labels` section.

    Args:
        labels: In either dialect; the background (value 0) is left out.
        origin: The dataset.json that holds it, for messages.

    Raises:
        InputError: for a region, an ignore label, a value that is no whole number, or one that has two names.
    """
    names: dict[int, str] = {}
    for key, value in labels.items():
        key_is_number = str(key).strip().isdecimal()
        number, name = (key, value) if key_is_number else (value, key)
        if isinstance(number, (list, tuple)) or name == "ignore":
            raise InputError(
                f"{origin}: label {key!r}: {value!r} is a region or an ignore label, which are not scored; "
                "expected one whole number per class"
            )
        try:
            label = int(number)
        except (TypeError, ValueError):
            raise InputError(
                f'{origin}: label {key!r}: {value!r} is neither {{"1": "name"}} nor {{"name": 1}}'
            ) from None
        if label in names:
            raise InputError(f"{origin}: label {label} is named twice: {names[label]!r} and {name!r}")
        names[label] = str(name)
    return {label: names[label] for label in sorted(names) if label != 0}
