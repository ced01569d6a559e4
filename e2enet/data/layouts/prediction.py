"""Find the cases to predict: in the layout of the training data, in a flat folder of scans, or one scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.common.files import naming_unreadable
from e2enet.data.formats.naming import Case, find_named_cases, readable
from e2enet.data.formats.problems import Problem, raise_errors
from e2enet.data.layouts.folder import FolderLayout
from e2enet.data.layouts.layout import Layout

# Any model of these four modalities can read folders of BraTS cases, whatever the layout and the order that it was
# trained on: the Decathlon's Task01 is in 4D, nnU-Net numbers its files, and checkpoints of earlier versions store no
# layout.
BRATS = FolderLayout(
    image="{case}/{case}_{modality}.nii.gz",
    label="{case}/{case}_seg.nii.gz",
    channels={"FLAIR": "flair", "T1w": "t1", "T1gd": "t1ce", "T2w": "t2"},
)
# Names of each of its channels, in lower case and without signs: those of BraTS' years, the Decathlon and nnU-Net.
BRATS_NAMES = {
    "FLAIR": ("flair", "t2f", "t2flair"),
    "T1w": ("t1", "t1w", "t1n"),
    "T1gd": ("t1ce", "t1gd", "t1c"),
    "T2w": ("t2", "t2w"),
}


def find_cases(
    source: str | Path,
    channels: Sequence[str],
    file_ending: str = ".nii.gz",
    problems: list[Problem] | None = None,
    numbered_ids: bool = False,
    layouts: Iterable[Layout] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Case]:
    """Return the cases to predict, sorted by id. `say` gets one line about how the source was read.

    `channels` are the names of the models' input channels, in order. `layouts` are those of the models' training data.
    The first one that finds an image is used. Folders of BraTS cases need none: their files are put in the order of
    `channels` by name. Otherwise images are grouped by name (`naming.find_named_cases`).

    Raises:
        InputError: names what is missing, or the channels that the modalities of BraTS cannot be matched to. If a list
            of `problems` is given, problems of single cases are appended to it instead, as long as one case can be
            read.
    """
    source = Path(source)
    with naming_unreadable(source):
        tried = [(layout, "laid out as the training data") for layout in layouts]
        tried += [(BRATS, "folders of BraTS cases")] if len(channels) == len(BRATS.channels) else []
        for layout, words in tried:
            cases = _laid_out(layout, source, problems)
            if cases:
                cases = _in_order(cases, channels, source) if layout is BRATS else cases
                say(f"{source}: {words}, {_count(cases)}")
                return cases
        cases = find_named_cases(source, len(channels), file_ending, problems, numbered_ids)
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


def _in_order(cases: Sequence[Case], channels: Sequence[str], source: Path) -> list[Case]:
    """Return cases of BRATS with their images in the order of a model's channels."""
    plain = ["".join(filter(str.isalnum, name.casefold())) for name in channels]
    places = [next((i for i, own in enumerate(BRATS.channels) if name in BRATS_NAMES[own]), None) for name in plain]
    order = [place for place in places if place is not None]
    if sorted(order) != list(range(len(channels))):
        expected = "; ".join(" or ".join(BRATS_NAMES[own]) for own in BRATS.channels)
        raise InputError(
            f"{source}: folders of BraTS cases, but the model's channels are {', '.join(channels)}; one of each "
            f"expected, in any order: {expected} (or a flat folder of scans x_0000, x_0001, .. in the model's order)"
        )
    return [replace(case, images=tuple(case.images[place] for place in order)) for case in cases]


def _count(cases: list[Case]) -> str:
    return f"{len(cases)} case{'s' * (len(cases) != 1)}"
