"""The cases of an input of prediction: laid out as the training data, a flat folder of scans, or one scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from e2enet.common.files import naming_unreadable
from e2enet.data.formats.naming import Case, find_named_cases, readable
from e2enet.data.formats.problems import Problem, raise_errors
from e2enet.data.layouts.folder import FolderLayout
from e2enet.data.layouts.layout import Layout

# Folders of BraTS cases are read by any model of four channels: the Decathlon's Task01 has the same order, and
# checkpoints of earlier versions say nothing of a layout.
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
    """Cases to predict, sorted by id; `say` is told in a line what the source was taken for.

    That is the first of `layouts`, those of the models' training data, by which an image is found in it. Else images
    are told apart by name (`naming.find_named_cases`). InputError naming what is missing; a list of `problems`
    takes what is wrong with single cases instead, as long as there is a case without.
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
    """The cases by a layout; none where the source is not laid out so."""
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
