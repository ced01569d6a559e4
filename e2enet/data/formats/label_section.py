"""The `labels` of a dataset.json as a scheme, in the formats of the Decathlon and of nnU-Net."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from e2enet.data.formats.labels import MAX_LABEL, is_ignore, name_problems
from e2enet.data.formats.scheme import LabelScheme

BACKGROUND = "background"


def read_scheme(content: Mapping[str, Any]) -> tuple[LabelScheme | None, list[str]]:
    """Return the scheme of a dataset.json, numbered as in the files, and its errors.

    Both {"1": "liver"} (Decathlon) and {"liver": 1} (nnU-Net) are read. A label may be called "ignore". In nnU-Net's
    form a value may be a list, which makes every label a region. If the labels cannot be used, the scheme is None and
    there is an error. The check, training and evaluation all use this function.
    """
    section = content.get("labels")
    if not isinstance(section, Mapping) or not section:
        return None, [f"labels is {section!r}: an object of names and values expected"]
    value_first = all(map(_is_label, section))
    pairs = [(str(name), value) for value, name in section.items()] if value_first else list(section.items())
    wrong = [f"{name!r}: {value!r}" for name, value in pairs if _labels(value) is None]
    if wrong:
        expected = f"one integer per label expected, from 0 to {MAX_LABEL}, or a list of them for a region"
        return None, [f"labels {', '.join(wrong)}: {expected}"]
    read = [(str(name), united) for name, value in pairs if (united := _labels(value))]
    ignored = [united for name, united in read if is_ignore(name)]
    if len(ignored) > 1 or any(len(united) > 1 for united in ignored):
        return None, ["labels: one integer expected for the label 'ignore'"]
    classes = [(name, united) for name, united in read if not is_ignore(name)]
    ignore = ignored[0][0] if ignored else None
    if any(len(united) > 1 for _, united in classes):
        return _by_regions(classes, ignore, content.get("regions_class_order"))
    return _by_labels([(name, united[0]) for name, united in classes], ignore)


def _by_labels(classes: Sequence[tuple[str, int]], ignore: int | None) -> tuple[LabelScheme | None, list[str]]:
    values = [value for _, value in classes] + [ignore] * (ignore is not None)
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        return None, [f"labels give the values {repeated} to more than one name"]
    names = {value: name for name, value in sorted(classes, key=lambda pair: pair[1])}
    return LabelScheme(names, ignore), name_problems(names)


def _by_regions(
    classes: Sequence[tuple[str, tuple[int, ...]]], ignore: int | None, order: Any
) -> tuple[LabelScheme | None, list[str]]:
    """Make every label but the background a region.

    Such files do not name single labels, so a region also names the label that it is written as.
    """
    background = next((name for name, united in classes if united == (0,)), BACKGROUND)
    regions = {name: united for name, united in classes if united != (0,)}
    if not isinstance(order, list) or not all(map(_is_label, order)) or len(order) != len(regions):
        expected = f"one label for each region expected, in the order of {list(regions)}"
        return None, [f"regions_class_order is {order!r}: {expected}"]
    values = {value for united in regions.values() for value in united}
    if ignore in values:
        return None, [f"labels give the value {ignore} to 'ignore' and to a region"]
    written = dict(zip(map(int, order), regions, strict=True))
    names = {0: background, **{value: written.get(value, f"label {value}") for value in sorted(values - {0})}}
    scheme = LabelScheme(names, ignore, regions, tuple(map(int, order)))
    return scheme, name_problems(scheme.class_names)


def _labels(value: Any) -> tuple[int, ...] | None:
    """Return the labels in a value of nnU-Net's section, one or a list of them; None for anything else."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(int(one) for one in dict.fromkeys(values)) if values and all(map(_is_label, values)) else None


def _is_label(value: Any) -> bool:
    """Whether a JSON value is a label: 3 or "3". Digits of other scripts and superscripts ("\u00b2") are not."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LABEL)) and int(text) <= MAX_LABEL
