"""Check a dataset: scan its folder, check every case in worker processes, compare the cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2enet.common.console import track
from e2enet.common.errors import InputError
from e2enet.data.cases.choice import CaseChoice
from e2enet.data.cases.sources import DataSource
from e2enet.data.cases.use import judge
from e2enet.data.checking.across import compare_cases
from e2enet.data.checking.case import CaseFacts, CaseTask, examine_case
from e2enet.data.checking.patients import remarks_on_split
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.listing import no_folder, note_companions
from e2enet.data.formats.problems import Problem, case_error
from e2enet.data.formats.stored import read_stored_header
from e2enet.system.memory import available_memory
from e2enet.system.processes import run_in_processes
from e2enet.system.workload import available_cores

# Memory of a worker for its interpreter and libraries (40 MiB measured), and for the pieces of voxels that it checks.
WORKER_BYTES = 256 * 2**20
SHARE_OF_MEMORY = 0.8
SMALL_BYTES = 100 * 2**20  # of all voxels: checked in this process before workers would have started


@dataclass(frozen=True)
class Report:
    """Everything that was found.

    Attributes:
        folder: The dataset's folder.
        dataset: None if the folder cannot be read at all.
        facts: Properties of every case with a readable image, in the dataset's order.
        problems: Errors first, then by case, with their severity for the chosen split.
        raw: The same without a chosen split: every case counts.
        notes: Information that is no problem.
    """

    folder: Path
    dataset: RawDataset | None
    facts: tuple[CaseFacts, ...]
    problems: tuple[Problem, ...]
    raw: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_errors(self) -> int:
        """Problems that make training wrong."""
        return sum(problem.severity == "error" for problem in self.problems)


def check_dataset(source: DataSource, num_workers: int | None = None, choice: CaseChoice | None = None) -> Report:
    """Check a dataset. Problems are collected, not raised, and nothing is written.

    With a `choice` of cases, errors of unused cases become warnings. A split that is impossible or separates scans of
    a patient is reported too. `num_workers=None` starts as many processes as cores and free memory allow, and none for
    a small dataset; 0 works in this process. Raise InputError if there is no such folder.
    """
    if reason := no_folder(source.folder):
        raise InputError(f"{source.folder}: {reason} ({source.layout.hint})")
    problems: list[Problem] = []
    try:
        dataset = source.scan(problems)
    except InputError as error:
        problems.append(_of_folder(error, source.folder))
        return Report(source.folder, None, (), _sorted(problems), _sorted(problems))
    tasks = _tasks(dataset)
    sizes = {task.case: _largest_file(task) for task in track(tasks, f"Reading headers of {dataset.name}")}
    if num_workers is None:
        num_workers = 0 if sum(sizes.values()) <= SMALL_BYTES else affordable_workers(list(sizes.values()))
    largest_first = sorted(tasks, key=lambda task: sizes[task.case], reverse=True)
    found: dict[int, CaseFacts] = {}
    order = {id(task): number for number, task in enumerate(tasks)}
    outcomes = run_in_processes(examine_case, largest_first, num_workers)
    for outcome in track(outcomes, f"Checking {dataset.name}", total=len(tasks)):
        case = outcome.item.case
        if outcome.result is None:
            assert outcome.failure is not None
            # With the traceback, since this is a fault of the program, not of the case.
            text = f"could not be looked through: {outcome.failure.message}\n{outcome.failure.traceback}".rstrip()
            problems.append(case_error(case.id, text, case.images[0]))
            continue
        facts, of_case = outcome.result
        problems += of_case
        if facts is not None:
            found[order[id(outcome.item)]] = facts
    in_order = [found[number] for number in sorted(found)]
    problems += compare_cases(dataset, in_order)
    notes = note_companions(file.parent for task in tasks for file in task.case.files)
    raw = _sorted(problems)
    judged = raw if choice is None else _sorted(_judged(raw, dataset, choice))
    return Report(source.folder, dataset, tuple(in_order), judged, raw, tuple(notes))


def _of_folder(error: InputError, folder: Path) -> Problem:
    """Return an error as a problem. Its message may name a file in the folder."""
    file, _, text = str(error).partition(": ")
    named = bool(text) and Path(file).is_relative_to(folder)
    return Problem(None, "error", text, file) if named else Problem(None, "error", str(error), str(folder))


def _judged(problems: Sequence[Problem], dataset: RawDataset, choice: CaseChoice) -> list[Problem]:
    """Return the problems with their severity for the choice of cases, and the problems of the choice itself."""
    try:
        use = choice.use(dataset)
    except InputError as error:
        # This may be the consequence of a case that could not be listed.
        broken = any(problem.severity == "error" and problem.case is not None for problem in problems)
        return [*problems, *([] if broken else [Problem(None, "error", str(error))])]
    return [*judge(problems, use)[0], *remarks_on_split(dataset, choice)]


def affordable_workers(sizes: Sequence[int]) -> int:
    """Return how many processes cores and free memory allow. `sizes` are the bytes of each case's largest file."""
    needed = WORKER_BYTES + max(sizes, default=0)
    return max(1, min(len(sizes), available_cores(), int(SHARE_OF_MEMORY * available_memory()) // needed))


def _tasks(dataset: RawDataset) -> list[CaseTask]:
    parts = {"training": dataset.training, "validation": dataset.validation, "test": dataset.test}
    return [
        CaseTask(case, part, len(dataset.channels), dataset.scheme, dataset.label_map)  # type: ignore[arg-type]
        for part, cases in parts.items()
        for case in dict.fromkeys(cases)
    ]


def _largest_file(task: CaseTask) -> int:
    """Return the voxel bytes of a case's largest file, 0 if no header can be read: the worker reports why."""
    return max(map(_num_bytes, task.case.files))


def _num_bytes(file: Path) -> int:
    try:
        return read_stored_header(file).num_bytes
    except InputError:
        return 0


def _sorted(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Errors before warnings, those of the dataset before those of its cases; each problem once."""
    unique = dict.fromkeys(problems)
    return tuple(sorted(unique, key=lambda one: (one.severity, one.case is not None, one.case or "", one.file or "")))
