"""What the processes of a job, and of a launcher that has several, do for the one that started them.

A job's processes tell how it went through a file, and end with their launcher: their stdin is a pipe that ends when it
does. Without a launcher (plain `python train.py`) all of this does nothing.
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

# Set for a job's processes: the file in which they tell how it went.
OUTCOME_VARIABLE = "E2ENET_JOB_OUTCOME"
# Set for the processes of a launcher: the number of the one that the sweep was started as.
SWEEP_VARIABLE = "E2ENET_SWEEP_PROCESS"


def is_job() -> bool:
    """Whether this process is one of a sweep's job."""
    return OUTCOME_VARIABLE in os.environ


def report_score(score: float) -> None:
    """Leave the launcher the job's score (NaN: none); of several processes the first does. Without one, nothing."""
    if is_job() and is_rank_zero():
        write_json(os.environ[OUTCOME_VARIABLE], {"score": None if isnan(score) else score})


@contextmanager
def run_held(folder: Path) -> Iterator[None]:
    """Hold the folder of a run for the block; that of a job, its launcher holds already.

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
    """Leave the launcher the first error of the job's processes, then let it take its way; without one, nothing."""
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
    """Let this process of a job, and those that it started, end when their launcher does, however that ends."""
    if is_job():
        threading.Thread(target=_wait_for_launcher, daemon=True).start()


def end_with_sweep() -> None:
    """Let this process of a launcher (joblib's) end when the sweep was killed, and its job with it.

    A task of a scheduler, which the sweep did not start itself, is the scheduler's to end.
    """
    parent = os.getppid()
    if os.environ.get(SWEEP_VARIABLE) == str(parent):
        threading.Thread(target=_wait_for_parent, args=(parent,), daemon=True).start()


def _wait_for_launcher() -> None:
    # Nothing is ever written: a read returns when the launcher's end of the pipe is closed. Not through sys.stdin,
    # whose lock a thread must not hold when the interpreter ends.
    os.read(0, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)  # the job's session, or, under torchrun, this rank's


def _wait_for_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
