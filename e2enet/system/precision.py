"""`training.precision=auto`: the precision of training by what the device can do."""

from __future__ import annotations

from typing import Any

import torch

AUTO = "auto"


def resolve_precision(precision: Any, accelerator: str) -> Any:
    """Return Lightning's precision for `training.precision` on an accelerator of the config (auto, cpu, gpu, ..).

    `auto` is bf16-mixed on a GPU with bfloat16 (NVIDIA: from compute capability 8.0), 16-mixed on an older one, and 32
    everywhere else. Other values stay as they are.
    """
    if precision != AUTO:
        return precision
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return 32
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
