"""The check at the first use of a dataset, remembered until a file or the label table changes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from e2enet.common.errors import InputError
from e2enet.common.files import content_key, file_states, read_remembered, write_json
from e2enet.data.cases.choice import CaseChoice
from e2enet.data.cases.sources import DataSource
from e2enet.data.cases.use import judge
from e2enet.data.formats.problems import Problem, raise_errors
from e2enet.system.locks import locked_folder

if TYPE_CHECKING:
    from e2enet.data.checking.run import Report

RECORD = "checked.json"
CHECK_VERSION = 4  # raise it when the check finds more, so that datasets are checked anew


def check_at_first_use(
    source: DataSource, prepared: Path, num_workers: int | None = None, choice: CaseChoice | None = None
) -> None:
    """Let a dataset pass that training can use; it is checked at its first use, and after a change.

    A change is one of the files (by size and time), of the cases, or of channels, labels and their map. What the
    dataset is like and warnings are printed; `prepared`/checked.json remembers what was found. Errors of cases that
    the choice does not use are warnings: another choice is judged by what is remembered.

    Args:
        source: Where the raw dataset comes from.
        prepared: Folder of the dataset's prepared cases.
        num_workers: See `check_dataset`.
        choice: The cases that are used; None for all.

    Raises:
        InputError: with every error of the dataset.
    """
    key = _dataset_key(source)
    if key is None:  # the check says why; nothing is remembered of what cannot be read
        _look_through(source, num_workers, choice)
    elif not _is_sound(source, prepared, key, choice):
        with locked_folder(prepared, f"Checking {source.folder}"):
            if not _is_sound(source, prepared, key, choice):  # by the run that held the lock before
                report = _look_through(source, num_workers, choice)
                found = [asdict(problem) for problem in report.raw]
                warnings = [problem.to_dict() for problem in report.problems]
                write_json(prepared / RECORD, {"key": key, "warnings": warnings, "found": found})


def remembered_problems(source: DataSource, prepared: Path) -> tuple[Problem, ...]:
    """What the check found in the dataset as it is now, as no choice weighs it; nothing where it was not checked."""
    return _remembered(prepared, _dataset_key(source)) or ()


def _look_through(source: DataSource, num_workers: int | None, choice: CaseChoice | None) -> Report:
    """Check the dataset and print what was found; InputError where there are errors."""
    # Imported here: a dataset that has been checked is opened without them.
    from e2enet.data.checking.report import print_report, verdict
    from e2enet.data.checking.run import check_dataset

    report = check_dataset(source, num_workers, choice)
    raise_errors(report.problems, f"{source.folder}: {verdict(report)}")
    print_report(report)
    return report


def _is_sound(source: DataSource, prepared: Path, key: str, choice: CaseChoice | None) -> bool:
    """Whether what is remembered lets the choice pass; where it does not, the dataset is checked anew."""
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
        return None  # damaged by another hand: the dataset is checked anew


def _dataset_key(source: DataSource) -> str | None:
    """What tells this state of the dataset from another; None where it cannot be read, which the check reports."""
    problems: list[Problem] = []
    try:
        dataset = source.scan(problems)
        cases = [*dataset.training, *dataset.validation, *dataset.test]
        # A case whose files are not there may be one that the split does not use.
        states = {case.id: file_states(file for file in case.all_files if file.is_file()) for case in cases}
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
