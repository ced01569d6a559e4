"""Triton's kernels, interpreted on the CPU."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


@pytest.fixture(scope="session")
def interpreted() -> Any:
    """The module that starts the kernels; TRITON_INTERPRET is set in tests/conftest.py."""
    pytest.importorskip("triton", reason="needs triton, which torch's CUDA wheels bring")
    return importlib.import_module("e2enet.network.fused.launch")
