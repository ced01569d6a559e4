"""Draw, save and caption all pictures of a sweep: a list per experiment."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from e2enet.common.console import track
from e2enet.common.errors import InputError
from e2enet.report.pictures.cases import CaseScore, best_other, telling_pairs, worst_and_best
from e2enet.report.pictures.classes import draw_class_dice
from e2enet.report.pictures.connections import draw_connections
from e2enet.report.pictures.curves import draw_learning_curves, draw_topology
from e2enet.report.pictures.overlays import draw_side_by_side, draw_worst_and_best
from e2enet.report.pictures.ranks import draw_ranks
from e2enet.report.pictures.repetitions import draw_repetitions
from e2enet.report.pictures.rows import Row, picture_rows
from e2enet.report.pictures.scans import ScanReader
from e2enet.report.pictures.style import save_figure
from e2enet.report.pictures.tradeoff import draw_tradeoff
from e2enet.report.results.runs import Runs
from e2enet.report.tables.sections import Report, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ShownCase:
    """A case in a picture: why it is shown, and the predictions beside its reference by the name of their row."""

    title: str
    predictions: tuple[tuple[str, CaseScore], ...]


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        title: What it shows.
        caption: How to read it.
        path: Its file for the page, SVG or PNG; an SVG has a PDF beside it. None if it could not be drawn.
        problem: Why it could not be drawn.
        folded: Hidden on the page until it is opened.
        cases: The cases that it shows.
        links: (text, address relative to the page) of these cases in the viewer, if one was written.
    """

    title: str
    caption: str
    path: Path | None = None
    problem: str = ""
    folded: bool = False
    cases: tuple[ShownCase, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


def draw_pictures(report: Report, folder: Path, *, compare: tuple[str, str] | None = None) -> dict[str, list[Picture]]:
    """Draw the pictures of each section into a folder; return {name of the section: pictures}.

    Args:
        report: Tables of a sweep, which hold the plotted values.
        folder: Folder of the files; their names begin with the section's.
        compare: Rows, by name or label, to show side by side; None: the reference and the best other.

    Raises:
        InputError: no section has both rows of `compare`. Raw data missing on this machine is no error: the picture's
            `problem` reports it.
    """
    check_compared(report, compare)
    rows = _rows(report)
    return {
        section.name: _draw_section(report.runs, section, rows[section.name], folder, compare)
        for section in track(report.sections, "Drawing pictures")
    }


def find_row(rows: Sequence[Row], name: str) -> Row | None:
    """Return the row of this name or label; None if there is none."""
    return next((row for row in rows if name in (row.label, row.line.get("row"))), None)


def check_compared(report: Report, compare: tuple[str, str] | None) -> None:
    """Raise InputError if no section has both rows of `compare`, with scores of validation cases."""
    if compare is None:
        return
    rows = [[row for row in own if row.is_validated] for own in _rows(report).values()]
    if any(all(find_row(own, name) for name in compare) for own in rows):
        return
    known = dict.fromkeys(str(row.line.get("row") or row.label) for own in rows for row in own)
    raise InputError(f"compare {' '.join(compare)}: no section has both rows; expected two of {' | '.join(known)}")


def _rows(report: Report) -> dict[str, list[Row]]:
    return {section.name: picture_rows(report.runs, section.experiment, section.lines) for section in report.sections}


def _draw_section(
    runs: Runs, section: Section, rows: Sequence[Row], folder: Path, compare: tuple[str, str] | None
) -> list[Picture]:
    name = section.name
    validated = [row for row in rows if row.is_validated]
    plots: tuple[tuple[str, str, Callable[[], Figure | None], str], ...] = (
        ("tradeoff", "Accuracy against cost", lambda: draw_tradeoff(validated), TRADEOFF),
        ("classes", "Dice by class", lambda: draw_class_dice(validated, runs.cases), CLASSES),
        ("ranks", "Ranks over cases: critical distances", lambda: draw_ranks(section.rankings, validated), RANKS),
        (
            "repetitions",
            "Runs against the reference's",
            lambda: draw_repetitions(runs, validated, section.experiment),
            REPETITIONS,
        ),
        ("curves", "Learning curves", lambda: draw_learning_curves(runs, rows), CURVES),
        ("topology", "Masks over time", lambda: draw_topology(runs, rows), TOPOLOGY),
        ("connections", "Learned connections", lambda: draw_connections(runs, rows), CONNECTIONS),
    )
    pictures: list[Picture] = []
    for stem, title, draw, caption in plots:
        figure = draw()
        if figure is not None:
            path = save_figure(figure, folder / f"{_file_name(name, stem)}.svg")
            save_figure(figure, path.with_suffix(".pdf"))
            pictures.append(Picture(title, caption, path))
    return pictures + _draw_cases(runs, validated, folder, name, compare)


def _draw_cases(
    runs: Runs, rows: Sequence[Row], folder: Path, name: str, compare: tuple[str, str] | None
) -> list[Picture]:
    """Draw worst and best cases of each row, the reference's first, the others folded; then two rows side by side."""
    reader = ScanReader(runs)
    ordered = sorted(rows, key=lambda row: not row.is_reference)
    pictures: list[Picture] = []
    for number, row in enumerate(ordered, start=1):
        chosen = worst_and_best(row, runs.cases)
        if chosen:
            picture = _save_cases(
                folder / f"{_file_name(name, 'cases', str(number), row.label)}.png",
                Picture(
                    f"Worst and best case: {row.label}",
                    WORST_AND_BEST,
                    folded=bool(pictures),
                    cases=tuple(ShownCase(score.title, ((row.label, score),)) for score in chosen),
                ),
                lambda chosen=chosen: draw_worst_and_best(reader, chosen),  # type: ignore[misc]
            )
            pictures.append(picture)
    first, second = _compared(rows, compare)
    pairs = telling_pairs(first, second, runs.cases) if first and second else []
    if first and second and pairs:
        names = (first.label, second.label)
        picture = _save_cases(
            folder / f"{_file_name(name, 'side-by-side')}.png",
            Picture(
                f"Side by side: {first.label} and {second.label}",
                SIDE_BY_SIDE,
                cases=tuple(
                    ShownCase(pair.title, tuple(zip(names, (pair.first, pair.second), strict=True))) for pair in pairs
                ),
            ),
            lambda: draw_side_by_side(reader, names, pairs),
        )
        pictures.append(picture)
    return _said_once(pictures)


def _save_cases(path: Path, picture: Picture, draw: Callable[[], Figure]) -> Picture:
    """Draw and save a picture, or record why it could not be drawn: scans may lie on another machine."""
    try:
        figure = draw()
    except InputError as error:
        return replace(picture, problem=str(error), cases=())
    return replace(picture, path=save_figure(figure, path))


def _said_once(pictures: Sequence[Picture]) -> list[Picture]:
    """Drop pictures that failed for a reason that an earlier one gives already."""
    reasons: set[str] = set()
    kept = []
    for picture in pictures:
        if not picture.problem or picture.problem not in reasons:
            kept.append(picture)
        reasons.add(picture.problem)
    return kept


def _compared(rows: Sequence[Row], compare: tuple[str, str] | None) -> tuple[Row | None, Row | None]:
    if compare is not None:
        return find_row(rows, compare[0]), find_row(rows, compare[1])
    return next((row for row in rows if row.is_reference), None), best_other(rows)


def _file_name(*parts: str) -> str:
    """Make a file name of labels: `S = 0.9` of sparsity becomes `sparsity-cases-2-S-0.9`; long parts are cut off."""
    return "-".join(re.sub(r"[^\w.]+", "-", part)[:40].strip("-.") or "row" for part in parts)


TRADEOFF = (
    "Mean Dice over active parameters and FLOPs of one patch. Filled: obtained, mean over runs, with the bootstrap "
    "interval over cases of the table. Hollow: published, on axes of their own, since the scale is another. Rows of "
    "other datasets, classes or cases have their own axes. Dashed: the best at this cost or less."
)
CLASSES = (
    "A case counts once, with its mean over the runs that scored it. A number with an arrow counts the cases left of "
    "the axis; a missed structure counts 0, one that is in neither image is left out."
)
RANKS = (
    "Each case ranks the rows by its mean Dice; a row stands at its mean rank. A bar joins rows that are not told "
    "apart: their mean ranks are less than Nemenyi's critical distance apart, or Friedman's test finds no difference "
    "at all. That does not show that they are equal."
)
REPETITIONS = (
    "Each run's mean Dice minus that of the reference's run of the same fold, seed and length; a bar is the mean. The "
    "grey band is as wide as seeds of the reference differ: within it a row is neither better nor worse. A number with "
    "an arrow is the mean of a row outside of the axis."
)
CURVES = (
    "Mean over the finished runs of a row, to the last epoch that all of them have; the band is their range. A row "
    "without a finished run is marked unfinished and shows what its runs have so far."
)
TOPOLOGY = (
    "Mean over the runs of a row, to the last epoch that all of them have; the band is their range. Rows without a "
    "finished run are marked unfinished; rows with dense fusion have no masks. Ever active is the share of kernels "
    "that were active at any time so far."
)
CONNECTIONS = (
    "Density of active kernels in the first convolution of each fusion node, by the flow whose channels it reads, over "
    "the row's own density in all of them: at 1 a flow kept the row's share of its kernels, at 2 twice as many. All "
    "rows have one scale. Levels go down from full resolution (0), columns from the encoder's side to the heads; a "
    "dash: the flow does not reach that node. The best checkpoints of a row's runs are added up."
)
WORST_AND_BEST = (
    "Of all predictions of validation cases by the row's runs, those of lowest and highest mean Dice, in the slice "
    "with most wrong voxels. White: the reference's contours."
)
SIDE_BY_SIDE = (
    "The same validation cases predicted by both, in the slice with most wrong voxels of the two: where the second "
    "model gains most on the first, the middle one, and where it gains least or loses most (in points of Dice, beside "
    "the case). White: the reference's contours."
)
