"""Fixtures shared by every room's tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


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
