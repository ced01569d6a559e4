"""Shared by reading and preparing cases: the size of cases, the work on them and the report of failures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from e2enet.common.console import track
from e2enet.common.errors import raise_problems
from e2enet.data.formats.naming import Case
from e2enet.data.formats.opening import open_image
from e2enet.system.processes import Failure, Outcome, run_in_processes

# Up to this many voxels of all cases together, work is done in this process: it takes some seconds, as long as starting
# worker processes.
SMALL_VOXELS = 40_000_000


def image_voxels(case: Case) -> int:
    """Voxels of all channels of a case's image, from the headers. InputError if a file cannot be opened."""
    return sum(math.prod(open_image(file).shape) for file in case.images)


def work_on_cases(
    work: Callable[[Case], Any], cases: Sequence[Case], workers: int, title: str, heading: Callable[[int], str]
) -> None:
    """Do `work` on every case, the largest files first, showing progress under `title`.

    Args:
        work: A function importable by name. Its return value is dropped, since results of cases belong on disk.
        cases: All are tried, even if some fail.
        workers: Processes; 0 does the work in this process.
        title: Title of the progress bar.
        heading: Returns the heading of the error for the number of failed cases.

    Raises:
        InputError: if the user can correct the cases, or workers were killed, most often for lack of memory. Starting
            again continues with the rest.
        RuntimeError: with the workers' tracebacks, if any case failed because of a bug.
    """
    # Large cases first, so that the last to finish are small ones.
    cases = sorted(cases, key=lambda case: sum(file.stat().st_size for file in case.all_files), reverse=True)
    outcomes: Iterable[Outcome[Case, Any]] = track(run_in_processes(work, cases, workers), title, total=len(cases))
    failures = [(one.item.id, one.failure) for one in outcomes if one.failure is not None]
    _raise_failures(sorted(failures, key=lambda pair: pair[0]), heading(len(failures)))


def _raise_failures(failures: Sequence[tuple[str, Failure]], heading: str) -> None:
    ours = [(name, failure) for name, failure in failures if failure.traceback and not failure.wrong_input]
    if ours:
        raise RuntimeError("\n".join([heading, *(f"case {name}: {failure.traceback}" for name, failure in ours)]))
    raise_problems([f"case {name}: {failure.message}" for name, failure in failures], heading)
