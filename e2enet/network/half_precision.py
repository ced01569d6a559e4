"""Where a CPU computes in bfloat16, and where that saves time."""

from __future__ import annotations

from typing import Any

import torch


def half_precision_pays_on_cpu() -> bool:
    """Return whether autocast saves time: with AMX, and on AMD's processors with bfloat16 (Zen 4 and later).

    Others convolve as fast or faster in float32: an Intel Xeon with avx512_bf16 takes 1.5 times as long in bfloat16, an
    AMD EPYC (Zen 5) half as long (docs/performance.md).
    """
    return PAYS


def bfloat16_is_native() -> bool:
    """Return whether the processor has bfloat16 instructions. Without them torch is many times slower in it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pays() -> bool:
    if torch.cpu._is_amx_tile_supported():
        return True
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return bool(known.get("avx512_bf16")) and str(known.get("cpu_name")).startswith("AMD")


PAYS = _pays()  # asked once: torch.compile cannot trace the question
