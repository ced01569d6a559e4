"""Fixtures shared by every room's tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PATIENCE = 300  # seconds for two processes that wait for each other


def pytest_configure() -> None:
    """Take Ctrl-C as Python does: a shell that starts the tests in its background has it ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans and golden files, named by the environment variable E2ENET_SHARED.

    Tests that need it skip visibly where the variable is unset; in CI (CI=true) a missing folder is a failure.
    """
    value = os.environ.get("E2ENET_SHARED")
    folder = Path(value) if value else None
    if folder is not None and (folder / "data").is_dir():
        return folder / "data"
    message = f"E2ENET_SHARED={value!r} does not name a folder that holds data/"
    if os.environ.get("CI") == "true" or folder is not None:
        pytest.fail(message)
    pytest.skip("E2ENET_SHARED is unset: this test reads real scans from its data folder")


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script of the project in two processes of one thread each, on gloo; returns when both have ended."""
    root = Path(__file__).parents[1]

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *launcher, str(root / script), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            try:
                output = process.communicate(timeout=PATIENCE)
            except BaseException:
                process.terminate()  # it ends the two, which SIGKILL would leave behind
                raise
        return subprocess.CompletedProcess(command, process.returncode, *output)

    return run
