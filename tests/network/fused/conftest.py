"""What runs the fused operations on a CPU: compiled loops, and Triton's kernels, interpreted."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

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


@pytest.fixture
def implicit(interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that starts the convolutions that prepare what they read, without TF32.

    The interpreter holds bfloat16 as 16 bit integers and multiplies these; here they are widened first.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    language = importlib.import_module("triton.language")
    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(factor: Any) -> Any:
        if factor.data.dtype != np.uint16:
            return factor
        return interpreter.TensorHandle((factor.data.astype(np.uint32) << 16).view(np.float32), language.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *given: multiply(self, widened(a), widened(b), *given),
    )
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return importlib.import_module("e2enet.network.fused.launch_implicit")
