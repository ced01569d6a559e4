"""The check at the first use of a dataset, remembered until a file or the label table changes."""

from __future__ import annotations

from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.common.files import content_key, file_states, read_remembered, write_json
from e2enet.common.locks import locked_folder
from e2enet.data.formats.problems import Problem, raise_errors
from e2enet.data.sources import DataSource

RECORD = "checked.json"
CHECK_VERSION = 2  # raise it when the check finds more, so that datasets are looked through anew


def require_sound(source: DataSource, prepared: Path, num_workers: int | None = None) -> None:
    """Let a dataset pass that training can use; looked through at its first use, and after a change.

    A change is one of the files (by size and time), of the cases, or of channels, labels and their map. What the
    dataset is like and warnings are printed; `prepared`/checked.json remembers that it was sound.

    Args:
        source: Where the raw dataset comes from.
        prepared: Folder of the dataset's prepared cases.
        num_workers: See `check_dataset`.

    Raises:
        InputError: with every error of the dataset.
    """
    key = _dataset_key(source)
    if key is None:  # the check says why; nothing is remembered of what cannot be read
        _look_through(source, num_workers)
    elif not _is_remembered(prepared, key):
        with locked_folder(prepared, f"Checking {source.folder}"):
            if not _is_remembered(prepared, key):  # by the run that held the lock before
                warnings = _look_through(source, num_workers)
                write_json(prepared / RECORD, {"key": key, "warnings": [problem.to_dict() for problem in warnings]})


def _look_through(source: DataSource, num_workers: int | None) -> tuple[Problem, ...]:
    """Check the dataset and print what was found; its warnings, InputError where there are errors."""
    # Imported here: a dataset that has been checked is opened without them.
    from e2enet.data.checking.report import print_report, verdict
    from e2enet.data.checking.run import check_dataset

    report = check_dataset(source, num_workers)
    raise_errors(report.problems, f"{source.folder}: {verdict(report)}")
    print_report(report)
    return report.problems


def _is_remembered(prepared: Path, key: str) -> bool:
    content = read_remembered(prepared / RECORD)
    return content is not None and content.get("key") == key


def _dataset_key(source: DataSource) -> str | None:
    """What tells this state of the dataset from another; None where it cannot be read, which the check reports."""
    problems: list[Problem] = []
    try:
        dataset = source.scan(problems)
        cases = [*dataset.training, *dataset.validation, *dataset.test]
        states = {case.id: file_states(case.files) for case in cases}
    except (InputError, OSError):
        return None
    content = {
        "version": CHECK_VERSION,
        "channels": list(dataset.channels),
        "labels": sorted(dataset.labels.items()),
        "label_map": sorted(dataset.label_map.items()),
        "cases": states,
        "problems": [problem.to_dict() for problem in problems],
    }
    return content_key(content)
