"""How the process asks the operating system for memory."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let malloc keep what tensors free, instead of giving it back to the system and asking for it anew.

    glibc serves large requests with fresh pages, which the system clears at first touch. A network on the CPU frees and
    takes the same gigabytes at every step, so this clearing is a fifth of its time (docs/performance.md). Call it once
    per process, before large tensors are made. The price: memory once taken stays with the process.

    Returns False where the C library has no such setting (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, largest))
