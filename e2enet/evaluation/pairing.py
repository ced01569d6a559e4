"""Which file of predictions belongs to which file of references, by the case in their names.

Names are given without ending, with `*` for the case: `*` in one folder, `img*` with `label*` where a dataset
calls its files so (BTCV), `*/*_seg` where each case has a folder (BraTS; both `*` are the same text).
"""

from __future__ import annotations

import re
from glob import escape
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.listing import FILE_ENDINGS, no_folder, sort_out, told_of, unreadable

ENDINGS = (*FILE_ENDINGS, ".mgz", ".mgh", ".mnc", ".hdr")
DEFAULT_NAMES = "*"


def pair_files(
    predictions: Path, labels: Path, *, prediction_names: str = DEFAULT_NAMES, label_names: str = DEFAULT_NAMES
) -> tuple[dict[str, tuple[Path, Path]], list[str], list[str]]:
    """{case: (prediction, reference)} of all references, problems, and warnings.

    A reference without a prediction is a problem, a prediction without a reference a warning.
    """
    problems: list[str] = []
    warnings: list[str] = []
    predicted = find_label_images(predictions, problems, prediction_names, warnings)
    references = find_label_images(labels, problems, label_names, warnings)
    if not references and not problems:
        problems.append(f"{labels}: holds no label image" + _named_like(label_names))
    if predictions.is_dir():
        lost = {case: file for case, file in references.items() if case not in predicted}
        problems += [f"{case}: no prediction for {reference}" for case, reference in lost.items()]
    both = {case: (predicted[case], file) for case, file in references.items() if case in predicted}
    pairs = {case: pair for case, pair in both.items() if not any(map(unreadable, pair))}  # which is a problem already
    extra = sorted(predicted.keys() - references.keys())
    return pairs, problems, warnings + [f"{predicted[case]}: has no reference and is not scored" for case in extra]


def find_label_images(
    folder: Path, problems: list[str], names: str = DEFAULT_NAMES, warnings: list[str] | None = None
) -> dict[str, Path]:
    """{case: path} of the images of a folder, sorted; the case is what `*` stands for in `names`.

    Adds to `problems`: no such folder, two files of one case, and files that are not there to be read (links whose
    target is gone); to `warnings` what looks like a scan and is not taken, with the reason (hidden, another ending).
    InputError for names without `*`, or that leave the folder.
    """
    pattern = _pattern(names)
    if reason := no_folder(folder):
        problems.append(f"{folder}: {reason}")
        return {}
    listing = sort_out(folder, folder.glob(_shell_pattern(names)), ENDINGS)
    found: dict[str, Path] = {}
    strange = []
    for path in listing.files:
        relative = path.relative_to(folder).as_posix()
        ending = next(ending for ending in ENDINGS if path.name.endswith(ending))
        match = pattern.fullmatch(relative.removesuffix(ending))
        if match is None:
            strange.append(path)
        elif match["case"] in found:
            problems.append(f"{match['case']}: two files, {found[match['case']]} and {path.name}; expected one")
        else:
            found[match["case"]] = path
            if reason := unreadable(path):
                problems.append(f"{match['case']}: {path}: {reason}")
    if warnings is not None:
        left = listing.problems() + [told_of(folder, strange, f"not taken: not named like {names}")] * bool(strange)
        warnings += map(str, left)
    return found


def _shell_pattern(names: str) -> str:
    """`img[1]*` so that `*` alone stands for something else than itself."""
    return "*".join(escape(part) for part in f"{names}.*".split("*"))


def _pattern(names: str) -> re.Pattern[str]:
    """`*/*_seg` as a regular expression whose later `*` repeat the first."""
    first, *others = names.split("*")
    if not others or names.startswith("/") or ".." in names.split("/"):
        raise InputError(f"file names {names!r}: a name within the folder with * for the case expected, e.g. img*")
    parts = [re.escape(first), "(?P<case>[^/]+)", re.escape(others[0])]
    parts += [f"(?P=case){re.escape(other)}" for other in others[1:]]
    return re.compile("".join(parts))


def _named_like(names: str) -> str:
    return "" if names == DEFAULT_NAMES else f" named like {names}"
