"""Run a multirun: plan and register its jobs, hand them to Hydra's launcher, and list how they ended."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.table import Table

from e2enet.common.console import console, say
from e2enet.common.errors import ExitCode
from e2enet.runs.folders import MANIFEST, STATES, JobState, job_state, read_sweep
from e2enet.sweeps.command_line import plan_sweep
from e2enet.sweeps.inside import SWEEP_VARIABLE
from e2enet.sweeps.manifest import register_jobs


def launch_sweep(arguments: Sequence[str], run: Callable[[], object]) -> int:
    """Run the sweep of a checked command line; return the exit code, 1 if jobs crashed or were stopped.

    Args:
        arguments: As given to e2enet train, with -m.
        run: The Hydra app, which reads sys.argv and passes each job to `sweeps.job.run_job`.

    Raises:
        InputError: a job cannot run; raised before any job starts.
    """
    planned = plan_sweep(arguments)
    folders = list(register_jobs(planned.folder, planned.name, planned.jobs).values())
    where = planned.folder / MANIFEST
    say(f"{len(planned.jobs)} jobs, listed in {where}")
    sys.argv[1:] = planned.arguments
    os.environ[SWEEP_VARIABLE] = str(os.getpid())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's "stop" is treated as Ctrl-C
    try:
        run()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        if not folders and where.is_file():  # a sweeper that chooses its jobs as it goes has registered them by now
            folders = [job.folder for job in read_sweep(planned.folder).jobs]
        unfinished = list_jobs(planned.folder, folders)
    return ExitCode.UNFINISHED if unfinished else 0


def list_jobs(sweep: Path, folders: Iterable[Path]) -> int:
    """Print the states of a launch's jobs, with the names of those that are not finished.

    Return how many crashed, were interrupted or never started: all but those that finished or run elsewhere.
    """
    states = {folder: job_state(folder) for folder in dict.fromkeys(folders)}
    counts = Counter(state.state for state in states.values())
    numbers = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    say(f"{sweep}: {len(states)} jobs: {numbers}")
    unfinished = {folder: state for folder, state in states.items() if state.state != "finished"}
    if unfinished and console.is_terminal:
        console.print(_table(unfinished))
    elif unfinished:
        for folder, state in unfinished.items():  # a table cut to 80 columns would lose the error
            say(f"  {state.state} {folder.name}{_because(state)}")
    if counts["crashed"]:
        say("tracebacks are in the jobs' job.json, all output in their output.log")
    if unfinished:
        say("the same command line goes on with what is not finished")
    return counts.total() - counts["finished"] - counts["running"]


def _table(states: dict[Path, JobState]) -> Table:
    table = Table("job", "state", "attempts", "seconds", "error")
    for folder, state in states.items():
        error = "" if state.error is None else state.error.message
        table.add_row(folder.name, state.state, str(state.attempts), f"{state.seconds:.0f}", error)
    return table


def _because(state: JobState) -> str:
    return "" if state.error is None else f": {state.error.message}"
