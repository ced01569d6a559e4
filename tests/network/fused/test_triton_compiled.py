"""Every kernel of a step, compiled for GPUs that are not there: it compiles, and no register is spilled.

Triton decides when it is imported whether kernels are interpreted (as in the other tests here) or compiled, so this is
a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", "3.3", reason="needs triton 3.3, which torch's CUDA wheels bring from 2.7 on")

PROJECT = Path(__file__).parents[3]
KERNELS = {
    *("prepare", "prepare_columns", "moments", "norm_table", "pool", "active_weights"),
    *("gather_gradient", "add_chunks", "norm_gradient", "block_gradient", "weight_gradients"),
}
MULTIPLYING = {"convolve", "merge_moments", "correlate"}
ROW = re.compile(r"^\| (\w+) +\| (\d+) +\| (\w+) +\| +(\d+) \| +(\d+) \| +(\d+) \|$", re.MULTILINE)


def assert_none_spills(
    part: str, kernels: set[str], precisions: list[str], capabilities: list[str], *more: str
) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--parts", part, "--precisions", *precisions]
    command += ["--capabilities", *capabilities, *more]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    rows = ROW.findall(done.stdout)
    assert {row[:3] for row in rows} == {
        (precision, capability, kernel) for precision in precisions for capability in capabilities for kernel in kernels
    }
    assert all(int(variants) > 0 and 0 < int(registers) <= 255 for *_, variants, registers, _ in rows)
    assert [row for row in rows if row[5] != "0"] == []


@pytest.mark.parametrize(
    "precisions", [["float16"], pytest.param(["bfloat16", "float32"], marks=pytest.mark.slow)], ids=str
)
def test_no_kernel_spills(precisions: list[str]) -> None:
    assert_none_spills("compile", KERNELS, precisions, ["80", "90", "100"])


@pytest.mark.parametrize(
    ("precisions", "capabilities", "more"),
    [
        (["float16"], ["90"], ["--small", "--patch", "16", "64", "64"]),  # fewer variants
        pytest.param(["float16", "bfloat16", "float32"], ["80", "90", "100"], [], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_no_kernel_that_multiplies_spills(precisions: list[str], capabilities: list[str], more: list[str]) -> None:
    assert_none_spills("multiply", MULTIPLYING, precisions, capabilities, *more)
