"""What runs the fused operations on a CPU: compiled loops, and Triton's kernels, interpreted."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from e2enet.network.fused import cpu


@pytest.fixture(scope="session")
def interpreted() -> Any:
    """The module that starts the kernels; TRITON_INTERPRET is set in tests/conftest.py."""
    pytest.importorskip("triton", reason="needs triton, which torch's CUDA wheels bring")
    return importlib.import_module("e2enet.network.fused.launch")


@pytest.fixture(scope="session", params=["cpu", "launch"])
def kernels(request: pytest.FixtureRequest) -> Any:
    """Each module that starts loops or kernels."""
    return request.getfixturevalue("interpreted") if request.param == "launch" else cpu
