"""Find the cases to predict: in the layout of the training data, in a flat folder of scans, or one scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from e2enet.common.files import naming_unreadable
from e2enet.data.formats.naming import Case, find_named_cases, readable
from e2enet.data.formats.problems import Problem, raise_errors
from e2enet.data.layouts.folder import FolderLayout
from e2enet.data.layouts.layout import Layout

# Any model of four channels can read folders of BraTS cases: the Decathlon's Task01 has the same channel order, and
# checkpoints of earlier versions store no layout.
BRATS = FolderLayout(
    image="{case}/{case}_{modality}.nii.gz",
    label="{case}/{case}_seg.nii.gz",
    channels={"FLAIR": "flair", "T1w": "t1", "T1gd": "t1ce", "T2w": "t2"},
)


def find_cases(
    source: str | Path,
    num_channels: int,
    file_ending: str = ".nii.gz",
    problems: list[Problem] | None = None,
    numbered_ids: bool = False,
    layouts: Iterable[Layout] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Case]:
    """Return the cases to predict, sorted by id. `say` gets one line about how the source was read.

    `layouts` are those of the models' training data. The first one that finds an image is used. Otherwise images are
    grouped by name (`naming.find_named_cases`). Raise InputError naming what is missing. If a list of `problems` is
    given, problems of single cases are appended to it instead, as long as one case can be read.
    """
    source = Path(source)
    with naming_unreadable(source):
        tried = [(layout, "laid out as the training data") for layout in layouts]
        tried += [(BRATS, "folders of BraTS cases")] if num_channels == len(BRATS.channels) else []
        for layout, words in tried:
            cases = _laid_out(layout, source, problems)
            if cases:
                say(f"{source}: {words}, {_count(cases)}")
                return cases
        cases = find_named_cases(source, num_channels, file_ending, problems, numbered_ids)
    one = source.is_file() or (len(cases) == 1 and cases[0].images == (source,))
    say(f"{source}: {'one scan' if one else f'a flat folder of scans, {_count(cases)}'}")
    return cases


def _laid_out(layout: Layout, source: Path, problems: list[Problem] | None) -> list[Case]:
    """Return the cases that a layout finds; none if the source does not follow it."""
    found: list[Problem] = []
    cases = layout.find_cases(source, found)
    if cases is None:
        return []
    kept = readable(cases, found)
    if problems is None or not kept:
        raise_errors(found, f"{source}: these cases cannot be predicted")
    if problems is not None:
        problems += found
    return sorted(kept, key=lambda case: case.id)


def _count(cases: list[Case]) -> str:
    return f"{len(cases)} case{'s' * (len(cases) != 1)}"
