"""Command that checks a raw dataset: e2enet check data=NAME paths.data=DIR [report=FILE.json]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from e2enet.common.config_rules import flag, optional, text, whole
from e2enet.common.errors import ExitCode, exit_on_input_error
from e2enet.data.command import Option, build_datamodule, compose_data, show_help

HELP = """\
usage: e2enet check data=NAME paths.data=DIR [KEY=VALUE ..]

Reads every file of a raw dataset and reports everything that is wrong with it at once: files missing, cut off or
unreadable, NaN, image and label on different grids, unknown label values, duplicates, and what is odd.
Nothing is written but what report= and repair= name. Exit code: 0 sound (warnings at most), 1 training would be wrong,
2 wrong usage.

example: e2enet check data=msd data.name=Task04_Hippocampus paths.data=FOLDER report=health.json
"""
OPTIONS = {
    "report": Option(None, optional(text), "a JSON file for the problems: [{case, severity, problem, file}, ..]"),
    "repair": Option(None, optional(text), "a new folder for corrected copies of labels off their image's grid"),
    "verbose": Option(False, flag, "true: a row per case"),
    "workers": Option(None, optional(whole(0)), "processes; null: what cores and free memory allow; 0: none"),
}


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> int:
    """Check the dataset named on the command line and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    show_help(arguments, HELP, OPTIONS)
    command = compose_data(arguments, OPTIONS)
    # Imported late, since --help and worker processes do not need these modules.
    from e2enet.data.checking.repair import repair_labels, require_repair_folder
    from e2enet.data.checking.report import print_repairs, print_report, require_report_file, write_report
    from e2enet.data.checking.run import check_dataset

    data = build_datamodule(command.config)
    source = data.source
    report_file, target = (command.options[name] and Path(command.options[name]) for name in ("report", "repair"))
    if report_file is not None:
        require_report_file(report_file)
    if target is not None:
        require_repair_folder(target, source.folder)
    report = check_dataset(source, command.options["workers"], data.choice)
    print_report(report, verbose=command.options["verbose"])
    if report_file is not None:
        write_report(report_file, report)
    if target is not None:
        print_repairs(repair_labels(report.facts, source.folder, target), source.folder, target)
    return ExitCode.UNFINISHED if report.num_errors else 0


if __name__ == "__main__":
    sys.exit(main())
