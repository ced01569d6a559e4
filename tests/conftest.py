"""Fixtures shared by the tests of every package."""

from __future__ import annotations

import locale
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

PATIENCE = 300  # seconds; two processes may wait for each other

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # parallel test processes share the cores
    cores = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))


# Triton reads it once, when it is imported: kernels for GPUs are interpreted on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Files that take minutes start first. Otherwise one of two test processes would end up alone with the last of them.
LONG = (
    *("test_real_scans", "test_stopped_runs", "test_lookalikes", "test_one_judgement", "test_ddp_commands"),
    *("test_ddp", "test_train_command", "test_long_runs", "test_trainer_arguments", "test_own_folder"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the others stay in their order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_configure() -> None:
    """Restore Python's handling of Ctrl-C: a shell that starts the tests in the background lets it be ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_of_these_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep measurements of the tests out of the user's cache folder, and do not read from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """Restore the locale: SimpleITK sets "C" when it writes DICOM, and later tests could read no letter beyond ASCII.

    The package only reads DICOM, which leaves the locale alone.
    """
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans and golden files, named by the environment variable E2ENET_SHARED.

    Tests that need it are skipped if the variable is unset. In CI (CI=true) a missing folder is a failure.
    """
    value = os.environ.get("E2ENET_SHARED")
    folder = Path(value) if value else None
    if folder is not None and (folder / "data").is_dir():
        return folder / "data"
    message = f"E2ENET_SHARED={value!r} does not name a folder that holds data/"
    if os.environ.get("CI") == "true" or folder is not None:
        pytest.fail(message)
    pytest.skip("E2ENET_SHARED is unset: this test reads real scans from its data folder")


@pytest.fixture
def recomputed_parts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Parts of networks that are passed to torch's checkpoint, which runs them again."""
    from e2enet.network import recompute

    parts: list[Any] = []
    original = recompute.checkpoint

    def counted(part: Any, *inputs: Any, **options: Any) -> Any:
        parts.append(part)
        return original(part, *inputs, **options)

    monkeypatch.setattr(recompute, "checkpoint", counted)
    return parts


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of the project in two processes of one thread each, on gloo; return when both have ended.

    `launch("torchrun" | "srun" | "lightning", program, *arguments)`. The program is a script ("tests/x.py") or a
    command of `e2enet` ("train"), which is launched as docs/several_gpus.md says. SLURM itself is not needed: for
    "srun" both processes get the variables that it would set. With "lightning" the program starts the second itself.
    """
    return launch_two


def launch_two(launcher: str, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    if name.endswith(".py"):
        called = [str(root / name)]
    else:
        called = ["-m", f"e2enet.commands.{name}"] if launcher == "torchrun" else ["-m", "e2enet", name]
    program = [sys.executable, *called, *arguments]
    plain = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    environments = [plain]
    if launcher == "torchrun":
        program[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    elif launcher == "srun":
        environments = [plain | slurm_variables(task, free_port()) for task in ("0", "1")]
    processes = [subprocess.Popen(program, stdout=PIPE, stderr=PIPE, text=True, env=own) for own in environments]
    try:
        outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.terminate()  # torchrun then ends its two workers; SIGKILL would leave them behind
            process.wait()
    code = max((process.returncode for process in processes), key=abs)
    return subprocess.CompletedProcess(program, code, *map("".join, zip(*outputs, strict=True)))


def slurm_variables(task: str, port: int) -> dict[str, str]:
    """Return the environment of a task of `srun --ntasks-per-node 2`. The job's number decides the port."""
    return {
        "SLURM_JOB_ID": f"7{port - 15000:04d}",
        "SLURM_JOB_NAME": "two",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "SLURM_PROCID": task,
        "SLURM_LOCALID": task,
    }


@cache
def free_port() -> int:
    """Return a free port among those that SLURM jobs use: 15000 plus the last four digits of the job's number."""
    for port in range(15000, 25000):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)) != 0:
                return port
    raise OSError("no free port from 15000 to 24999")
