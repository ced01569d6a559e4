"""Pair prediction files with reference files by the case in their names.

Names are given without ending, with `*` for the case. Examples: `*` for files in one folder; `img*` and `label*` for
BTCV; `*/*_seg` for a folder per case (BraTS; both `*` stand for the same text).
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
    """Return {case: (prediction, reference)}, problems, and warnings.

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
    pairs = {case: pair for case, pair in both.items() if not any(map(unreadable, pair))}  # a problem already
    extra = sorted(predicted.keys() - references.keys())
    return pairs, problems, warnings + [f"{predicted[case]}: has no reference and is not scored" for case in extra]


def find_label_images(
    folder: Path, problems: list[str], names: str = DEFAULT_NAMES, warnings: list[str] | None = None
) -> dict[str, Path]:
    """Return {case: path} of a folder's images, sorted by path; the case is the text that `*` matches in `names`.

    Appended to `problems`: a missing folder, two files of one case, unreadable files (links whose target is gone).
    Appended to `warnings`: files that look like scans but are not taken, with the reason (hidden, another ending or
    name). Raises InputError if `names` has no `*` or leaves the folder.
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
    """Escape a name such as `img[1]*`, so that only `*` is a wildcard."""
    return "*".join(escape(part) for part in f"{names}.*".split("*"))


def _pattern(names: str) -> re.Pattern[str]:
    """Return a name such as `*/*_seg` as a regular expression in which every later `*` repeats the first."""
    first, *others = names.split("*")
    if not others or names.startswith("/") or ".." in names.split("/"):
        raise InputError(f"file names {names!r}: a name within the folder with * for the case expected, e.g. img*")
    parts = [re.escape(first), "(?P<case>[^/]+)", re.escape(others[0])]
    parts += [f"(?P=case){re.escape(other)}" for other in others[1:]]
    return re.compile("".join(parts))


def _named_like(names: str) -> str:
    return "" if names == DEFAULT_NAMES else f" named like {names}"
