"""The largest batch whose training step fits on the GPU."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu_networks import CONTENDERS, make_contender, noise, run_step
from benchmarks.gpu_options import Work
from benchmarks.gpu_report import Report

RUNS = ("plain", "fused")


def run(work: Work, report: Report) -> None:
    """Tell the largest batch of plain and fused in half precision."""
    precision = next((name for name in ("bfloat16", "float16") if name in work.precisions), work.precisions[0])
    most = work.sizes.largest_batch
    patch = " x ".join(map(str, work.sizes.patch))
    for name in RUNS:
        largest = largest_fitting(partial(fits, work, name, precision), most)
        value = f"{largest}{' or more' * (largest == most)} of {patch}"
        report.require(f"{CONTENDERS[name]}, {precision}", value, "at least 1", held=largest > 0)
        report.keep(name, {"precision": precision, "largest": largest, "tried_to": most})


def largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest size from 1 to `most` that fits, by bisection; 0 if none does."""
    return bisect_left(range(1, most + 1), True, key=lambda size: not fits(size))


def fits(work: Work, name: str, precision: str, size: int) -> bool:
    """Return whether a step of `size` patches has enough memory.

    Raises:
        RuntimeError: it fails for another reason; the message names the size.
    """
    try:
        _step(work, name, precision, size)
    except torch.OutOfMemoryError:
        return False
    except RuntimeError as error:
        raise RuntimeError(f"{CONTENDERS[name]}, a step of {size} patches: {error}") from error
    finally:
        gc.collect()
        if work.on_gpu:
            torch.cuda.empty_cache()
    return True


def _step(work: Work, name: str, precision: str, size: int) -> None:
    network, run_by = make_contender(name, work.sizes.network, work.device)
    x = noise(1, 1, *work.sizes.patch, device=work.device).repeat(size, 1, 1, 1, 1)
    run_step(network, run_by, x, None, precision)
    if work.on_gpu:
        torch.cuda.synchronize()
