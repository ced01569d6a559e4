"""Signals that stop a run: SIGTERM, by which schedulers end and pre-empt jobs, and SIGUSR1.

SLURM sends SIGUSR1 before a job's time limit (`#SBATCH --signal=SIGUSR1@120`). Lightning's own handlers write a
checkpoint in the middle of a step, or none, and communicate with other processes inside the handler. The handler here
only stores the signal. Training checks it at points from which it can be resumed exactly.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from e2enet.common.console import say
from e2enet.common.errors import ExitCode
from e2enet.system.ranks import is_rank_zero

# Environment variables in which schedulers count the restarts of a job's command line.
RESTART_COUNTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


class StopSignals:
    """Stores received stop signals: SIGTERM, and in a SLURM job SIGUSR1."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Install the handlers in place of Lightning's.

        A signal that is already ignored stays ignored. The launcher of a sweep relies on this: a scheduler signals all
        processes, and only the launcher may react.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # handlers can only be set in the main thread
        numbers = [signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def leave(self) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def received_by_any(self, trainer: pl.Trainer, number: signal.Signals | None = None) -> bool:
        """Whether any process received a stop signal (or the signal `number`); every process must call this."""
        told = self.received is not None if number is None else self.received == number
        return told if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(told, all=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)


@contextmanager
def requeued_at_once() -> Iterator[None]:
    """Answer SIGUSR1 in a SLURM job at once: queue the job again and exit as a run stopped by SIGTERM does.

    It is for what comes before and after training: preparation and prediction go on from the files that are there.
    Within training, `StopSignals` takes its place. A signal that is ignored stays ignored.
    """
    listens = threading.current_thread() is threading.main_thread() and "SLURM_JOB_ID" in os.environ
    if not listens or signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGUSR1, _requeue_and_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _requeue_and_exit(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # once is enough
    if is_rank_zero():
        say("stopped by SIGUSR1 outside of training")
        requeue()
    raise SystemExit(ExitCode.TERMINATED)


def requeue() -> None:
    """Ask SLURM to start this job again with the command line of its submission.

    SLURM requeues a pre-empted job by itself. A job at its time limit must ask.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()
        say(f"warning: SLURM job {job} was not queued again: {reason}", style="yellow")
    else:
        say(f"SLURM job {job} is queued again")


def is_restarted() -> bool:
    """Whether a scheduler has started this command line again after it was ended."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTS)
