"""Being told to stop: by SIGTERM, as schedulers end and pre-empt jobs, or by SIGUSR1, as SLURM announces the end of a
job's time (`#SBATCH --signal=SIGUSR1@120`).

Lightning's own answers write a checkpoint in the middle of a step, or none, and talk to other processes from within the
signal's handler. Here the handler makes a note, and training looks at it where it can be resumed exactly.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from e2enet.common.console import say

# What schedulers count in when they start a job's command line again after it was ended.
RESTART_COUNTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


class StopSignals:
    """Notes the signals that tell a run to stop. SIGUSR1 is one of them in a SLURM job only."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Note signals from now on, in Lightning's place.

        One that is ignored already stays so: that is how the launcher of a sweep keeps to itself what a scheduler
        announces to all processes.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # handlers can be set in the main thread only
        numbers = [signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def leave(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def received_by_any(self, trainer: pl.Trainer, number: signal.Signals | None = None) -> bool:
        """Whether any of the processes, each of which has to ask, was told to stop, or by this signal."""
        told = self.received is not None if number is None else self.received == number
        return told if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(told, all=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)


def requeue() -> None:
    """Have SLURM start this job again, with the command line that it was submitted with.

    A job that is pre-empted, SLURM queues by itself; one whose time ends has to ask.
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
    """Whether a scheduler has started this command line before, and it was ended."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTS)
