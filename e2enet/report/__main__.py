"""The report of a sweep: e2enet report FOLDER [--watch] [--reference ROW] [--compare ROW ROW] .."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from e2enet.common.configs import explained_keys
from e2enet.common.console import say
from e2enet.common.errors import exit_on_input_error
from e2enet.report.results.options import read_options

DESCRIPTION = """\
Tables, statistics and pictures of the runs in a sweep folder, beside the numbers that the paper published.

FOLDER is what `e2enet train -m ..` wrote; the folder of one run, or a folder of runs, is read as well. Jobs that
are not finished have their lines too, so that the report can be made at any time.
"""
EPILOG = """\
Writes into FOLDER/report: per experiment NAME.md, NAME.csv (every number, unrounded), NAME-ranks.csv (ranks
over cases, p of every pair) and NAME.tex; jobs.csv (a line per job), index.html (everything on one page that needs no
network), figures/.
Exit code: 0 written, 2 wrong input.

Examples:
  e2enet report runs/sparsity --watch
  e2enet report runs/sparsity --reference s80 --compare s80 s00 resamples=2000

Settings (key=value):
"""


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Watch if asked, then write the report of the folder named on the command line."""
    given = _parser().parse_intermixed_args(arguments)  # key=value may stand anywhere
    options = read_options(given.settings)
    compare = tuple(given.compare) if given.compare else None
    if (given.watch or given.measure) and (given.reference or compare):
        from e2enet.report.write import check_rows

        check_rows(given.folder, reference=given.reference, compare=compare)
    if given.watch:
        from e2enet.report.watch import watch_sweep

        if not watch_sweep(given.folder, options.refresh):
            return
    # These import torch; watching starts at once without them.
    from e2enet.report.measure import measure_runs
    from e2enet.report.write import write_report

    if given.measure:
        measure_runs(given.folder)
    written = write_report(
        given.folder,
        options,
        output=given.output,
        reference=given.reference,
        compare=compare,
        viewer=given.viewer,
    )
    for path in written:
        say(f"written: {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="e2enet report",
        description=DESCRIPTION,
        epilog=EPILOG + explained_keys("report"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", type=Path, help="folder of a sweep, of a run, or of runs")
    add("settings", metavar="key=value", nargs="*", help="settings, e.g. resamples=2000 (below)")
    add("--watch", action="store_true", help="show a live table of the jobs until all have ended, then report")
    add("--output", metavar="DIR", type=Path, help="where to write (default: FOLDER/report)")
    add("--reference", metavar="ROW", help="the row that others are tested against (default: the experiment's)")
    add(
        "--compare",
        metavar="ROW",
        nargs=2,
        help="two rows to show side by side on the same slices (default: the reference and the best other)",
    )
    add("--viewer", action="store_true", help="also write a viewer of the cases in the pictures, linked from the page")
    add("--measure", action="store_true", help="first measure latency and memory of networks not yet measured here")
    return parser


if __name__ == "__main__":
    main()
