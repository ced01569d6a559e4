"""Run the processes of one job in a session of their own, isolated from other jobs, which ends with its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig

from e2enet.common.configs import as_plain
from e2enet.common.overrides import quoted
from e2enet.sweeps.inside import OUTCOME_VARIABLE
from e2enet.sweeps.records import OUTCOME_FILE
from e2enet.system.ranks import planned_processes

OUTPUT_FILE = "output.log"
OUTPUT_WIDTH = "110"  # characters, enough for a table of scores: a pipe has no width of its own
TAIL = 40  # last lines of output, kept for a job that dies without reporting an error
GRACE = 60.0  # seconds to end after SIGTERM: enough for a step and a checkpoint
DRAIN = 5.0  # seconds to wait for remaining output when the last process has ended
# Variables of other process groups, of the scheduler that started this process, and of another job's seed.
FOREIGN = (
    "RANK",
    "LOCAL_RANK",
    "GLOBAL_RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
)
FOREIGN_PREFIXES = ("TORCHELASTIC_", "ROLE_")


def job_command(config: DictConfig, folder: Path) -> list[str]:
    """Return a job's command line: `train` in this Python, by torchrun unless one process with `auto` strategy."""
    program = ["-m", "e2enet.commands.train", f"resume={quoted(str(folder))}"]
    processes = planned_processes(as_plain(config.trainer))
    if processes == 1 and config.trainer.strategy == "auto":
        return [sys.executable, *program]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, *program]


def run_process_group(command: list[str], folder: Path, show: Callable[[str], None]) -> tuple[int, Sequence[str]]:
    """Run a job's processes to their end; return the exit code (negative: a signal's number) and last lines of output.

    Output goes to `show`, line by line, and is added to the job's output.log.

    Raises:
        KeyboardInterrupt: on Ctrl-C, or if a signal handler raises an exception meanwhile (a scheduler's time limit).
            The processes have ended by then.
    """
    with _ignoring_scheduler():
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closes when this process ends: see inside.exit_with_launcher
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the launcher, which ends the whole session
            env=job_environment(os.environ) | {OUTCOME_VARIABLE: str((folder / OUTCOME_FILE).resolve())},
        )
    tail: deque[str] = deque(maxlen=TAIL)
    reader = threading.Thread(target=_forward, args=(process, folder / OUTPUT_FILE, show, tail), daemon=True)
    try:
        reader.start()  # takes a while on a busy machine: Ctrl-C meanwhile ends the job, too
        return process.wait(), tail
    except Exception as error:
        raise KeyboardInterrupt(str(error)) from error
    finally:
        _end(process)
        if reader.is_alive():
            reader.join(DRAIN)


@contextmanager
def _ignoring_scheduler() -> Iterator[None]:
    """Make processes that are started in the block ignore SIGUSR1 and SIGUSR2, which would end them.

    SLURM announces a job's time limit to all of its processes; only the launcher acts on it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers can be set in the main thread only
        return
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def job_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a job's environment, without variables that would make it join another process group."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)
    }
    return kept | {"HYDRA_FULL_ERROR": "1", "COLUMNS": OUTPUT_WIDTH}


def _forward(process: subprocess.Popen[bytes], log: Path, show: Callable[[str], None], tail: deque[str]) -> None:
    """Pass the processes' output to `show` and the log.

    It is read to its end even if it can no longer be shown or logged. Otherwise the processes would block on the pipe.
    """
    assert process.stdout is not None
    for raw in process.stdout:
        line = raw.decode("utf-8", errors="replace").rstrip("\n")
        tail.append(line)
        with suppress(OSError, ValueError, SystemExit):  # a closed terminal (rich exits), or one without UTF-8
            show(line)
        with suppress(OSError), log.open("ab") as stream:  # a full disk
            stream.write(raw)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the session: SIGTERM first, then SIGKILL. The closed pipe ends torchrun's own sessions."""
    assert process.stdin is not None
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    process.stdin.close()
    _signal(process, signal.SIGKILL)  # also helpers that outlived their leader
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # no process is left; macOS: only zombies
        os.killpg(process.pid, number)
