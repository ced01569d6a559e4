"""Write the report of a sweep: a Markdown, CSV and LaTeX file per experiment, the jobs, pictures and the HTML page."""

from __future__ import annotations

from pathlib import Path

from rich.console import JustifyMethod
from rich.table import Table as TerminalTable
from rich.text import Text

from e2enet.common.console import console, track
from e2enet.common.errors import printable
from e2enet.common.files import atomic_path
from e2enet.report.costs import count_row
from e2enet.report.html import write_page
from e2enet.report.pictures.gallery import check_compared, draw_pictures
from e2enet.report.results.options import Options
from e2enet.report.results.runs import load_runs
from e2enet.report.tables.markup import joined, markdown_text, to_latex, to_markdown, write_values
from e2enet.report.tables.sections import Report, Section, build_report
from e2enet.report.tables.table import Table
from e2enet.report.viewer import FOLDER as VIEWER
from e2enet.report.viewer import link_viewer
from e2enet.view.write import require_viewer_folder

SHARES = ("best", "dice", "nsd")  # columns of jobs in [0, 1], written in percent as in all tables

FOLDER = "report"
PAGE = "index.html"


def write_report(
    folder: Path,
    options: Options,
    *,
    output: Path | None = None,
    reference: str | None = None,
    compare: tuple[str, str] | None = None,
    viewer: bool = False,
) -> list[Path]:
    """Read a sweep and write its report; return the paths of the tables and, last, of the page.

    Args:
        folder: A folder that `load_runs` reads.
        options: Settings of the statistics.
        output: Where to write; None: `folder`/report.
        reference: The row that others are tested against; None: each experiment's own.
        compare: Two rows to show side by side; None: the reference and the best other.
        viewer: Whether to write output/viewer too, which shows the cases of the pictures in planes and 3D.

    Raises:
        InputError: the folder holds no sweep, no experiment has such rows, or output/viewer is no viewer.
    """
    runs = load_runs(folder)
    output = output or folder / FOLDER
    if viewer:
        require_viewer_folder(output / VIEWER)
    report = build_report(runs, options, count=count_row, reference=reference)
    check_compared(report, compare)
    written = write_tables(report, output)
    for section in report.sections:
        _print(section.accuracy)
    if report.unfinished.lines:
        _print(report.unfinished)
    pictures = draw_pictures(report, output / "figures", compare=compare)
    if viewer:
        pictures = link_viewer(runs, pictures, output)
    return [*written, write_page(output / PAGE, report, pictures)]


def check_rows(folder: Path, *, reference: str | None, compare: tuple[str, str] | None) -> None:
    """Raise InputError as `write_report` would for these rows, before a sweep is watched or measured."""
    fast = Options(resamples=1)
    report = build_report(load_runs(folder), fast, count=lambda overrides, setting: {}, reference=reference)
    check_compared(report, compare)


def write_tables(report: Report, output: Path) -> list[Path]:
    """Write <section>.md, .csv, .tex and -ranks.csv per section, and jobs.csv (shares in percent); return their paths.

    Sections whose rows cannot be ranked have no -ranks.csv.
    """
    written = []
    for section in track(report.sections, "Writing tables"):
        text = joined([f"# {markdown_text(section.title)}", *map(to_markdown, (*section.tables, report.unfinished))])
        latex = "\n".join(to_latex(table, f"{section.name}-{name}") for name, table in _printed(section).items())
        for ending, content in ((".md", text), (".tex", latex)):
            written.append(output / f"{section.name}{ending}")
            with atomic_path(written[-1]) as temporary:
                temporary.write_text(content, encoding="utf-8")
        written.append(output / f"{section.name}.csv")
        write_values(written[-1], section.accuracy)
        ranks = output / f"{section.name}-ranks.csv"
        if section.ranks.lines:
            written.append(ranks)
            write_values(ranks, section.ranks)
        else:
            ranks.unlink(missing_ok=True)  # an earlier report's
    written.append(output / "jobs.csv")
    jobs = report.runs.jobs
    with atomic_path(written[-1]) as temporary:
        jobs.assign(**{column: 100 * jobs[column] for column in SHARES}).to_csv(temporary, index=False)
    return written


def _printed(section: Section) -> dict[str, Table]:
    """The tables of a section that go into a paper."""
    tables = {
        "accuracy": section.accuracy,
        "tests": section.paired,
        "ranks": section.ranks,
        "cost": section.cost,
        "published": section.published,
    }
    return {name: table for name, table in tables.items() if table.lines}


def _print(table: Table) -> None:
    """Print the brief columns of a table to the terminal, and its conclusion."""
    brief = table.brief()
    shown = TerminalTable(title=table.title)
    for column in brief.shown():
        justify: JustifyMethod = "right" if column.numeric else "left"
        shown.add_column(f"{column.group}\n{column.heading}", justify=justify)
    for cells, marks in zip(brief.cells(), brief.emphasised(), strict=True):
        shown.add_row(*(Text(printable(cell), "bold" if best else "") for cell, best in zip(cells, marks, strict=True)))
    console.print(shown)
    if table.conclusion:
        console.print(Text(printable(table.conclusion)))
