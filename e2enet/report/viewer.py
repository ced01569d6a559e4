"""The viewer of a report: the cases of its pictures, one by one or two rows side by side, in planes and 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from e2enet.common.console import say
from e2enet.report.pictures.gallery import Picture, ShownCase
from e2enet.report.pictures.scans import ScanReader
from e2enet.report.results.runs import Runs
from e2enet.view.case_script import Entry, Pane
from e2enet.view.find import probabilities_of
from e2enet.view.meaning import Meaning
from e2enet.view.write import PAGE, write_viewer

FOLDER = "viewer"


def link_viewer(runs: Runs, pictures: Mapping[str, Sequence[Picture]], output: Path) -> dict[str, list[Picture]]:
    """Write output/viewer with every case of the pictures; return the pictures with links to their cases.

    A case that two pictures show alike, such as the worst of a row and one that is compared, is there once for each.
    Pictures that could not be drawn have no cases, so nothing is written if the scans are on another machine.
    """
    reader = ScanReader(runs)
    entries: list[Entry] = []
    linked: dict[str, list[Picture]] = {}
    for section, own in pictures.items():
        linked[section] = []
        for picture in own:
            links = []
            for shown in picture.cases:
                links.append((_spell(shown), f"{FOLDER}/{PAGE}#case={len(entries)}"))
                entries.append(_entry(shown, reader))
            linked[section].append(replace(picture, links=tuple(links)))
    if entries:
        say(f"viewer: {write_viewer(output / FOLDER, runs.name, entries).describe()}")
    return linked


def _entry(shown: ShownCase, reader: ScanReader) -> Entry:
    first = shown.predictions[0][1]
    files = [(name, reader.prediction_file(score.key, score.case)) for name, score in shown.predictions]
    panes = tuple(Pane(name, path, probabilities_of(path, first.case)) for name, path in files)
    rows = " and ".join(name for name, _ in files)
    meaning = Meaning.of_dataset(reader.dataset(first.key))
    return Entry(reader.case(first.key, first.case), panes, meaning, f"{rows}: {shown.title}")


def _spell(shown: ShownCase) -> str:
    return f"{shown.predictions[0][1].case} ({shown.title})"
