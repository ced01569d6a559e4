"""What `trainer.deterministic` means to torch: its flags for the same bits in every run, and no flag that costs more.

On a CPU every operation of a training step gives the same bits each time, with as many threads; nothing has to be set
for it. On a GPU some operations add in an order of their own, and cuDNN may be let measure which of its algorithms is
fastest, which may be another one next time.

Training and benchmarks set their flags here, so that what is measured is what is run. Lightning's own
`Trainer(deterministic=..)` is not used: it has torch fill every new tensor, a seventh of a dense step on a CPU, though
nothing reads a value before it was written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TorchFlags:
    """Flags of torch, for all of a process.

    Args:
        deterministic: take operations that give the same bits each time, where there are any.
        only_warn: warn of others, instead of raising.
        benchmark: let cuDNN measure its algorithms at the first input of a size.
    """

    deterministic: bool
    only_warn: bool
    benchmark: bool


def torch_flags(deterministic: bool | str, *, on_gpu: bool) -> TorchFlags:
    """The flags of `trainer.deterministic`, one of False, True and "warn", on a device."""
    chosen = deterministic is True or (deterministic == "warn" and on_gpu)
    return TorchFlags(deterministic=chosen, only_warn=deterministic == "warn", benchmark=on_gpu and not deterministic)


def set_torch_flags(deterministic: bool | str, accelerator: str) -> TorchFlags:
    """Set them for this process, of an accelerator as the config has it (auto, cpu or gpu), and return them."""
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    flags = torch_flags(deterministic, on_gpu=on_gpu)
    torch.use_deterministic_algorithms(flags.deterministic, warn_only=flags.only_warn)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = flags.benchmark
    if flags.deterministic and on_gpu:  # cuBLAS needs it, before its first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return flags
