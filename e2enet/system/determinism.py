"""Torch's flags for `trainer.deterministic`: bit-identical results in every run, without flags that only cost time.

On a CPU every operation of a training step gives the same bits each time, with the same number of threads; no flag is
needed. On a GPU some operations add in a varying order. cuDNN may also measure which of its algorithms is fastest, and
the choice may differ between runs.

Training and benchmarks both set their flags here, so that benchmarks measure what runs. Lightning's own
`Trainer(deterministic=..)` is not used: it makes torch fill every new tensor. That takes a seventh of a dense step on a
CPU, although no value is read before it is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TorchFlags:
    """Flags of torch for the whole process.

    Args:
        deterministic: use operations that give the same bits each time, if they exist.
        only_warn: warn about other operations instead of raising.
        benchmark: let cuDNN measure its algorithms at the first input of each size.
        tf32: let tensor cores round the factors of float32 products to 10 bits, as cuDNN's convolutions do anyway.
    """

    deterministic: bool
    only_warn: bool
    benchmark: bool
    tf32: bool


def torch_flags(deterministic: bool | str, *, on_gpu: bool) -> TorchFlags:
    """Return the flags for `trainer.deterministic` (False, True or "warn") on a device."""
    chosen = deterministic is True or (deterministic == "warn" and on_gpu)
    benchmark = on_gpu and not deterministic
    return TorchFlags(deterministic=chosen, only_warn=deterministic == "warn", benchmark=benchmark, tf32=on_gpu)


def set_torch_flags(deterministic: bool | str, accelerator: str) -> TorchFlags:
    """Set and return the flags of this process, for an accelerator of the config (auto, cpu or gpu)."""
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    flags = torch_flags(deterministic, on_gpu=on_gpu)
    torch.use_deterministic_algorithms(flags.deterministic, warn_only=flags.only_warn)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = flags.benchmark
    if flags.tf32:
        torch.set_float32_matmul_precision("high")
    if flags.deterministic and on_gpu:  # cuBLAS needs it, before its first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return flags


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 products with all bits of their factors meanwhile, in cuBLAS, cuDNN and the fused kernels."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def set_prediction_flags(device: torch.device) -> None:
    """Set this process's flags for prediction: on a GPU, windows of one size pay for measuring cuDNN's algorithms."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
