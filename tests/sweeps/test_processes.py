"""A job's processes: their own session and environment, and an end with their launcher."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
from rich.console import Console

from e2enet.sweeps import process_group
from e2enet.sweeps.process_group import job_environment, run_process_group

ENVIRONMENT = """
import os, signal, sys
print(os.getsid(0) == os.getpid(), sorted(name for name in os.environ if "RANK" in name or "TORCHELASTIC" in name))
print(signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
sys.stdout.buffer.write(b"bytes \\xff\\n")
sys.stderr.write("and errors")
raise SystemExit(5)
"""
# A launcher whose job ends with it, as train.py does. The job prints the ids of itself and its helper.
LAUNCHER = """
import sys
from pathlib import Path
from e2enet.sweeps.process_group import run_process_group
JOB = '''
import subprocess, sys, time, os
from e2enet.sweeps.inside import exit_with_launcher
exit_with_launcher()
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.DEVNULL)
print(os.getpid(), helper.pid, flush=True)
time.sleep(60)
'''
run_process_group([sys.executable, "-c", JOB], Path(sys.argv[1]), lambda line: print(line, flush=True))
"""


def wait_until_gone(pid: int) -> bool:
    """Return whether a process that is no child of this one ends. A zombie counts as ended."""
    for _ in range(600):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_environment_is_the_jobs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "3")
    before = signal.getsignal(signal.SIGUSR2)
    shown: list[str] = []
    code, tail = run_process_group([sys.executable, "-c", ENVIRONMENT], tmp_path, shown.append)
    assert code == 5 and signal.getsignal(signal.SIGUSR2) is before
    assert shown == ["True []", "True True", "bytes \ufffd", "and errors"] and list(tail) == shown
    assert (tmp_path / "output.log").read_bytes() == b"True []\nTrue True\nbytes \xff\nand errors"


def test_what_is_kept_and_what_is_not() -> None:
    given = {
        "PATH": "p",
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
        "WORLD_SIZE": "2",
        "MASTER_PORT": "1",
        "ROLE_RANK": "0",
    }
    kept = job_environment(given)
    assert {name: kept[name] for name in given if name in kept} == {"PATH": "p", "SLURM_JOB_ID": "7"}


class _Closed(io.StringIO):
    """A closed terminal."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


@pytest.mark.parametrize("terminal", [_Closed(), io.TextIOWrapper(io.BytesIO(), encoding="ascii")])
def test_output_that_cannot_be_shown_does_not_stop_the_job(
    terminal: TextIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "DRAIN", 300)  # on a busy machine rich takes longer for this line than that
    # More than a pipe holds: the job would block for ever if the output were not read.
    program = "print('\\u2502' * 99 * 10000); print('end')"
    code, tail = run_process_group(
        [sys.executable, "-X", "utf8", "-c", program], tmp_path, Console(file=terminal).print
    )
    assert code == 0 and tail[-1] == "end" and (tmp_path / "output.log").stat().st_size > 900_000


def test_ctrl_c_while_its_reader_starts_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def start_process(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(*arguments, **options))
        return made[0]

    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    # The module's name for subprocess alone is replaced: asyncio and others use it, too.
    stand_in = SimpleNamespace(**{name: getattr(subprocess, name) for name in ("PIPE", "STDOUT", "TimeoutExpired")})
    stand_in.Popen = start_process
    monkeypatch.setattr(process_group, "subprocess", stand_in)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "start", interrupted)
        run_process_group([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, print)
    assert made[0].poll() == -signal.SIGTERM


def test_a_helper_that_outlives_its_job_keeps_nobody(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(helper.pid)"
    )
    code, tail = run_process_group([sys.executable, "-c", program], tmp_path, lambda line: None)
    assert code == 0 and wait_until_gone(int(tail[0]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_job_ends_with_its_launcher_however_that_ends(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert launcher.stdout is not None
    job, helper = map(int, launcher.stdout.readline().split())
    os.kill(job, 0)
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    assert wait_until_gone(job) and wait_until_gone(helper)


def test_what_a_signals_handler_raises_ends_the_job_first(tmp_path: Path) -> None:
    def out_of_time(*_: object) -> None:
        raise RuntimeError("out of time")  # as submitit does if a job may not be requeued

    before = signal.signal(signal.SIGUSR2, out_of_time)
    try:
        program = f"import os, time\nprint(os.getpid(), flush=True)\nos.kill({os.getpid()}, {int(signal.SIGUSR2)})\n"
        shown: list[str] = []
        with pytest.raises(KeyboardInterrupt, match="out of time"):
            run_process_group([sys.executable, "-c", program + "time.sleep(60)"], tmp_path, shown.append)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert wait_until_gone(int((tmp_path / "output.log").read_text()))
