"""Inside the processes of a job, or of a launcher such as joblib: report to the parent process, and end with it.

The processes of a job report its outcome in a file. They end with their launcher: their stdin is a pipe that closes
when it ends. Without a launcher (plain `e2enet train`) only `run_held` has an effect.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.common.files import write_json
from e2enet.system.locks import claimed_folder
from e2enet.system.ranks import is_rank_zero

# Set for a job's processes: the file in which they report its outcome.
OUTCOME_VARIABLE = "E2ENET_JOB_OUTCOME"
# Set for the processes of a launcher: the id of the process in which the sweep was started.
SWEEP_VARIABLE = "E2ENET_SWEEP_PROCESS"


def is_job() -> bool:
    """Whether this process belongs to a job of a sweep."""
    return OUTCOME_VARIABLE in os.environ


def report_score(score: float) -> None:
    """Report the job's score (NaN: none) to the launcher, from rank 0 only; without a launcher do nothing."""
    if is_job() and is_rank_zero():
        write_json(os.environ[OUTCOME_VARIABLE], {"score": None if isnan(score) else score})


@contextmanager
def run_held(folder: Path) -> Iterator[None]:
    """Hold the folder of a run for the block; the launcher already holds the folder of a job.

    Raises:
        InputError: another process is at work in it.
    """
    if is_job() or not is_rank_zero():
        yield
        return
    with claimed_folder(folder) as held:
        if not held:
            raise InputError(f"{folder}: another process is at work in this run; wait for it, or end it")
        yield


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Report the first error of the job's processes to the launcher, if there is one; the error is raised again."""
    try:
        yield
    except Exception as error:
        if is_job() and not Path(os.environ[OUTCOME_VARIABLE]).is_file():
            message = (
                str(error) if isinstance(error, InputError) else traceback.format_exception_only(error)[-1].strip()
            )
            write_json(
                os.environ[OUTCOME_VARIABLE], {"error": {"message": message, "traceback": traceback.format_exc()}}
            )
        raise


def exit_with_launcher() -> None:
    """Make this process of a job, and those that it started, end when their launcher ends, however it ends."""
    if is_job():
        threading.Thread(target=_wait_for_launcher, daemon=True).start()


def end_with_sweep() -> None:
    """Make this process of a launcher (joblib's), and its job, end when the sweep is killed.

    A scheduler's task, which the sweep did not start itself, is left to the scheduler.
    """
    parent = os.getppid()
    if os.environ.get(SWEEP_VARIABLE) == str(parent):
        threading.Thread(target=_wait_for_parent, args=(parent,), daemon=True).start()


def _wait_for_launcher() -> None:
    # Nothing is ever written, so the read returns when the launcher's end of the pipe closes. sys.stdin would not do:
    # a thread must not hold its lock when the interpreter ends.
    os.read(0, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)  # the job's session, or, under torchrun, this rank's


def _wait_for_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
