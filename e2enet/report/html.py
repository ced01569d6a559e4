"""Write the report of a sweep as one self-contained HTML page: embedded pictures, no network, sortable tables."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from e2enet.common.files import atomic_path
from e2enet.report.pictures.gallery import Picture
from e2enet.report.results.runs import FINISHED
from e2enet.report.tables.differences import dataset_names
from e2enet.report.tables.sections import Report, Section
from e2enet.report.tables.table import Column, Table
from e2enet.runs.folders import STATES, job_state

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class PageSection:
    """What the page shows of one experiment, or of the jobs outside of any; `command` runs the experiment again."""

    anchor: str
    title: str
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    command: str = ""


@dataclass(frozen=True)
class JobLine:
    """A job in the page's list: texts by column, and its error."""

    cells: Mapping[str, str]
    state: str
    message: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Page:
    """Everything on the page; `counts` are (state, number of jobs), `facts` are more texts for its header."""

    name: str
    counts: Sequence[tuple[str, int]]
    facts: Sequence[str]
    sections: Sequence[PageSection]
    jobs: Sequence[JobLine]


def write_page(path: Path, report: Report, pictures: Mapping[str, Sequence[Picture]]) -> Path:
    """Write the page of a sweep atomically; return its path.

    Args:
        path: The HTML file.
        report: Its tables.
        pictures: Name of a section -> its pictures, from `draw_pictures`.

    Names, labels and errors come from outside, so the template escapes everything.
    """
    html = render_page(page_of(report, pictures))
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def render_page(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("e2enet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "groups": heading_groups}
    return environment.get_template("page.html.j2").render(page=page)


def page_of(report: Report, pictures: Mapping[str, Sequence[Picture]]) -> Page:
    """Collect what the page of a sweep shows."""
    runs = report.runs
    # A job of several experiments has a line in each.
    jobs = runs.jobs.drop_duplicates("key")
    counts = [(state, int((jobs["state"] == state).sum())) for state in STATES]
    datasets = ", ".join(dict.fromkeys(dataset_names(runs, jobs)))
    facts = [
        f"on {datasets}" if datasets else "",
        f"{duration(jobs['seconds'].sum())} of training in all" if jobs["seconds"].notna().any() else "",
    ]
    return Page(
        name=runs.name,
        counts=[(state, count) for state, count in counts if count],
        facts=[fact for fact in facts if fact],
        sections=[_section(section, pictures.get(section.name, ())) for section in report.sections],
        jobs=[_job_line(job) for job in runs.jobs.to_dict("records")],
    )


def data_uri(path: Path) -> str:
    """Return a picture as a data URI, for the `src` of an `img`."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{content}"


def heading_groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Return (group, number of columns) for neighbours under one heading; empty if no column has a group."""
    if not any(column.group for column in columns):
        return []
    return [(group, len(list(members))) for group, members in groupby(columns, key=lambda column: column.group)]


def duration(seconds: float) -> str:
    """Format seconds as "45 s", "12 min" or "3 h 20 min"; "" if unknown."""
    if not math.isfinite(seconds):
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _section(section: Section, pictures: Sequence[Picture]) -> PageSection:
    """Build a section of the page; tables without lines and notes are left out."""
    return PageSection(
        anchor=f"section-{section.name}",
        title=section.title,
        tables=[table for table in section.tables if table.lines or table.notes],
        pictures=pictures,
        command=f"e2enet train -m experiments={section.experiment}" if section.experiment else "",
    )


def _job_line(job: Mapping[str, Any]) -> JobLine:
    cells = {
        "experiment": _text(job["experiment"]),
        "row": _text(job["label"]),
        "fold": _text(job["fold"]),
        "seed": _text(job["seed"]),
        "state": _text(job["state"]),
        "epochs": _epochs(job),
        "best (%)": _percent(job["best"]),
        "Dice (%)": _percent(job["dice"]),
        "time": duration(job["seconds"]),
        "folder": Path(job["folder"]).name,
    }
    if job["state"] == FINISHED or job["error"] is None:
        return JobLine(cells, job["state"])
    error = job_state(job["folder"]).error  # the table of jobs has only its message
    return JobLine(cells, job["state"], str(job["error"]), error.traceback if error else "")


def _epochs(job: Mapping[str, Any]) -> str:
    return (
        "" if pd.isna(job["epochs"]) else f"{0 if pd.isna(job['epoch']) else job['epoch']:.0f} of {job['epochs']:.0f}"
    )


def _percent(share: float) -> str:
    """Format a share in percent, as the tables and pictures give Dice."""
    return "" if pd.isna(share) else f"{100 * share:.2f}"


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)
