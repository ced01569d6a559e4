"""A dataset's check: the folder scanned, every case checked in worker processes, the cases compared."""

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

# Interpreter and libraries of a worker (40 MiB measured), and the pieces in which voxels are checked.
WORKER_BYTES = 256 * 2**20
SHARE_OF_MEMORY = 0.8
SMALL_BYTES = 100 * 2**20  # of all voxels: looked through in this process before others have started


@dataclass(frozen=True)
class Report:
    """Everything that was found.

    Attributes:
        folder: The dataset's.
        dataset: None where the folder cannot be read at all.
        facts: Of every case with a readable image, in the dataset's order.
        problems: Errors first, then by case, as the chosen split weighs them.
        raw: The same as no split weighs them: every case counts.
        notes: What is told though nothing is wrong.
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
    """Look through a dataset; problems are collected, never raised, and nothing is written.

    With a `choice` of cases an error of a case that it does not use is a warning, and it is told where there is no such
    split or where it parts patients.
    `num_workers=None` starts as many processes as cores and free memory allow, none for a small dataset; 0 works in
    this process. Raises InputError where there is no folder to look through.
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
            # With the traceback of what went wrong, which is a fault of the program, not of the case.
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
    """The problem that an error is, which may name a file of the folder itself."""
    file, _, text = str(error).partition(": ")
    named = bool(text) and Path(file).is_relative_to(folder)
    return Problem(None, "error", text, file) if named else Problem(None, "error", str(error), str(folder))


def _judged(problems: Sequence[Problem], dataset: RawDataset, choice: CaseChoice) -> list[Problem]:
    """The problems as the choice of cases weighs them, and what is wrong or odd about the choice itself."""
    try:
        use = choice.use(dataset)
    except InputError as error:
        # Where a case could not be listed, this may be the consequence.
        broken = any(problem.severity == "error" and problem.case is not None for problem in problems)
        return [*problems, *([] if broken else [Problem(None, "error", str(error))])]
    return [*judge(problems, use)[0], *remarks_on_split(dataset, choice)]


def affordable_workers(sizes: Sequence[int]) -> int:
    """Processes that cores and free memory allow for cases whose largest files have these sizes in bytes."""
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
    """Bytes of the voxels of a case's largest file, 0 where no header can be read: the worker will say why."""
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
