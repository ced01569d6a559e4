"""The processes of one job: a session of their own, which knows nothing of other jobs' and ends with its launcher."""

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

from e2enet.common.configs import ROOT, as_plain
from e2enet.common.overrides import quoted
from e2enet.sweeps.inside import OUTCOME_VARIABLE
from e2enet.sweeps.records import OUTCOME_FILE
from e2enet.system.ranks import planned_processes

OUTPUT_FILE = "output.log"
OUTPUT_WIDTH = "110"  # characters of a table of scores: a pipe has no width to find out
TAIL = 40  # lines of output that are kept for a job that dies without a word
GRACE = 60.0  # seconds to end in, after SIGTERM: of a step and a checkpoint
DRAIN = 5.0  # seconds for output that is still on its way when the last process has ended
# Of other process groups, of a scheduler that started this process once for its own, and of a seed of another job.
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
    """The command line of a job's processes: this Python with train.py, under torchrun where there are several."""
    program = [str(ROOT / "train.py"), f"resume={quoted(str(folder))}"]
    processes = planned_processes(as_plain(config.trainer))
    if processes == 1 and config.trainer.strategy == "auto":
        return [sys.executable, *program]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, *program]


def run_process_group(command: list[str], folder: Path, show: Callable[[str], None]) -> tuple[int, Sequence[str]]:
    """Run a job's processes to their end; exit code (negative: the signal that ended it) and last lines of output.

    Output goes to `show`, line by line, and is added to the job's output.log.

    Raises:
        KeyboardInterrupt: on Ctrl-C, and for whatever else a signal's handler raises while this waits (a scheduler's
            end of time); the processes have ended by then.
    """
    with _ignoring_scheduler():
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # ends with this process, whatever ends it: inside.exit_with_launcher
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is the launcher's, which ends the session as a whole
            env=job_environment(os.environ) | {OUTCOME_VARIABLE: str((folder / OUTCOME_FILE).resolve())},
        )
    tail: deque[str] = deque(maxlen=TAIL)
    reader = threading.Thread(target=_forward, args=(process, folder / OUTPUT_FILE, show, tail), daemon=True)
    reader.start()
    try:
        return process.wait(), tail
    except Exception as error:
        raise KeyboardInterrupt(str(error)) from error
    finally:
        _end(process)
        reader.join(DRAIN)


@contextmanager
def _ignoring_scheduler() -> Iterator[None]:
    """Let processes that are started in the block ignore SIGUSR1 and SIGUSR2, which would end them.

    SLURM announces the end of a job's time to all of its processes; the launcher is the one that acts on it.
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
    """The environment without what would make a job think that it belongs to another group of processes."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)
    }
    return kept | {"HYDRA_FULL_ERROR": "1", "COLUMNS": OUTPUT_WIDTH}


def _forward(process: subprocess.Popen[bytes], log: Path, show: Callable[[str], None], tail: deque[str]) -> None:
    """Pass on the processes' output; it is read to its end even where it can no longer be shown or kept, or they would
    wait for ever to be read."""
    assert process.stdout is not None
    for raw in process.stdout:
        line = raw.decode("utf-8", errors="replace").rstrip("\n")
        tail.append(line)
        with suppress(OSError, ValueError, SystemExit):  # a closed terminal, which rich exits for, or one without UTF-8
            show(line)
        with suppress(OSError), log.open("ab") as stream:  # a full disk
            stream.write(raw)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the session: asked first, then killed; the closed pipe reaches sessions of torchrun's own."""
    assert process.stdin is not None
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    process.stdin.close()
    _signal(process, signal.SIGKILL)  # helpers that outlived their leader too
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS: nobody but the dead
        os.killpg(process.pid, number)
