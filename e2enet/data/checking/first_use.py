"""The check at the first use of a dataset. Its result is stored until a file or the label table changes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.common.files import content_key, file_states, read_remembered, write_json
from e2enet.data.cases.choice import CaseChoice
from e2enet.data.cases.sources import DataSource
from e2enet.data.cases.use import judge
from e2enet.data.checking.patients import remarks_on_split
from e2enet.data.formats.problems import Problem, raise_errors
from e2enet.system.locks import locked_folder

if TYPE_CHECKING:
    from e2enet.data.checking.run import Report

RECORD = "checked.json"
CHECK_VERSION = 6  # raise it when the check finds more, so that datasets are checked again

_told: set[Problem] = set()  # in this process: Lightning prepares the data a second time


def check_at_first_use(
    source: DataSource, prepared: Path, num_workers: int | None = None, choice: CaseChoice | None = None
) -> None:
    """Check a dataset at its first use and after a change; raise an error if training cannot use it.

    A change is one of the files (by size and time), the cases, the channels, the labels or the label map. The check
    prints a summary and the warnings, and stores its findings in `prepared`/checked.json. Errors of cases that the
    choice does not use become warnings. Another choice is judged by the stored findings. Warnings of the choice itself
    (`remarks_on_split`) are no findings in files: they are printed at every start, once in a process.

    Args:
        source: Where the raw dataset comes from.
        prepared: Folder of the dataset's prepared cases.
        num_workers: See `check_dataset`.
        choice: The cases that are used; None for all.

    Raises:
        InputError: lists every error of the dataset.
    """
    key = _dataset_key(source)
    if key is None:  # the dataset cannot be read: the check reports why, and nothing is stored
        _look_through(source, num_workers, choice)
        return
    if not _is_sound(source, prepared, key, choice):
        with locked_folder(prepared, f"Checking {source.folder}"):
            if not _is_sound(source, prepared, key, choice):  # the run that held the lock may have checked it
                report = _look_through(source, num_workers, choice)
                found = [asdict(problem) for problem in report.raw]
                warnings = [problem.to_dict() for problem in report.problems]
                write_json(prepared / RECORD, {"key": key, "warnings": warnings, "found": found})
                _told.update(report.problems)
    _tell_of_split(source, choice)


def remembered_problems(source: DataSource, prepared: Path) -> tuple[Problem, ...]:
    """Return the stored findings for the dataset's current state, for all cases; empty if it was not checked."""
    return _remembered(prepared, _dataset_key(source)) or ()


def _tell_of_split(source: DataSource, choice: CaseChoice | None) -> None:
    for remark in [] if choice is None else remarks_on_split(source.scan([]), choice):
        if remark not in _told:
            say(f"warning: {remark}", style="yellow")
            _told.add(remark)


def _look_through(source: DataSource, num_workers: int | None, choice: CaseChoice | None) -> Report:
    """Check the dataset and print the report; raise InputError if there are errors."""
    # Imported here, since a dataset that was checked before does not need them.
    from e2enet.data.checking.report import print_report, verdict
    from e2enet.data.checking.run import check_dataset

    report = check_dataset(source, num_workers, choice)
    raise_errors(report.problems, f"{source.folder}: {verdict(report)}")
    print_report(report)
    return report


def _is_sound(source: DataSource, prepared: Path, key: str, choice: CaseChoice | None) -> bool:
    """Whether the choice is free of errors by the stored findings. If not, the dataset is checked again."""
    found = _remembered(prepared, key)
    if found is None or choice is None:
        return found is not None and not any(problem.severity == "error" for problem in found)
    judged, _ = judge(found, choice.use(source.scan([])))
    return not any(problem.severity == "error" for problem in judged)


def _remembered(prepared: Path, key: str | None) -> tuple[Problem, ...] | None:
    content = read_remembered(prepared / RECORD)
    if key is None or content is None or content.get("key") != key:
        return None
    try:
        return tuple(Problem(**(line | {"alike": tuple(line["alike"])})) for line in content["found"])
    except (KeyError, TypeError):
        return None  # the file was damaged from outside: the dataset is checked again


def _dataset_key(source: DataSource) -> str | None:
    """Return a key of the dataset's current state; None if it cannot be read, which the check reports."""
    problems: list[Problem] = []
    try:
        dataset = source.scan(problems)
        parts = {"training": dataset.training, "validation": dataset.validation, "test": dataset.test}
        # A list, since an id may be in training and in test. Missing files are skipped: the split may not use their
        # case.
        states = [
            [part, case.id, file_states(file for file in case.all_files if file.is_file())]
            for part, cases in parts.items()
            for case in cases
        ]
    except (InputError, OSError):
        return None
    content = {
        "version": CHECK_VERSION,
        "channels": list(dataset.channels),
        "labels": sorted(dataset.labels.items()),
        **dataset.scheme.special,
        "label_map": sorted(dataset.label_map.items()),
        "cases": states,
        "problems": [problem.to_dict() for problem in problems],
    }
    return content_key(content)
