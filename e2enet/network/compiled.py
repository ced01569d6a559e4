"""Loops over a tensor's voxels, compiled by numba and run by as many threads as torch uses.

A chain of tensor operations reads and writes the whole volume at every step. A compiled loop does all steps while a
voxel is in registers. numba brings its own compiler, so users need no toolchain. It caches compiled code on disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e2enet.network.loop_cache import CHECK_BOUNDS, compile_cached

VALUES_PER_PART = 2**19  # 2 MiB in float32: a part takes much longer than the microseconds of handing it out


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop at its first call, for the types it gets. It runs without holding Python's lock.

    Compiled code is kept on disk, see `loop_cache`.
    """
    import numba  # here: importing it takes longer than the rest of the network, and only the CPU path needs it

    # Fused multiply-adds are allowed: the product is not rounded. NaN, infinity and the order of sums are kept.
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "boundscheck": CHECK_BOUNDS}
    return compile_cached(partial(numba.njit, **options), function)


def use_compiled_loops(x: Tensor) -> bool:
    """Return whether compiled loops can run on a tensor: float32 or float64 on a CPU."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def parts(rows: int, columns: int) -> list[tuple[int, int]]:
    """Cut `rows` of `columns` values into (start, stop) of about VALUES_PER_PART values.

    The cuts depend on the size alone, so sums over parts are the same with any number of threads.
    """
    size = max(1, VALUES_PER_PART // columns)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def run_parts(work: Callable[[int, int, int], None], rows: int, columns: int) -> None:
    """Call `work(index, start, stop)` for each part, in threads if there are several; return when all are done."""
    run_in_threads(work, [(index, start, stop) for index, (start, stop) in enumerate(parts(rows, columns))])


def run_in_threads(work: Callable[..., Any], pieces: Sequence[tuple[int, ...]]) -> None:
    """Call `work(*piece)` for each piece, on as many threads as torch uses; return when all are done.

    The calling thread works too, so short work need not wait for others to wake up. A call from within a piece runs in
    that piece's thread only.
    """
    if len(pieces) == 1:
        work(*pieces[0])
        return
    left = iter(pieces)  # shared: each thread takes the next piece when it is done with one

    def take_pieces() -> None:
        outside, _thread.in_piece = in_piece(), True
        try:
            for piece in left:
                work(*piece)
        finally:
            _thread.in_piece = outside

    threads = 1 if in_piece() else torch.get_num_threads()
    others = [_pool(os.getpid(), threads).submit(take_pieces) for _ in range(min(threads, len(pieces)) - 1)]
    take_pieces()
    for other in others:
        if not other.cancel():  # no piece is left for a thread that has not begun
            other.result()


_thread = threading.local()


def in_piece() -> bool:
    """Return whether the caller runs within one of several simultaneous pieces of `run_in_threads`."""
    return getattr(_thread, "in_piece", False)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return the tensor's memory as a NumPy array, outside autograd."""
    return tensor.detach().numpy()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # One per process: threads do not survive a fork.
    return ThreadPoolExecutor(threads, thread_name_prefix="e2enet")
