"""Learning-rate schedules, chosen by `schedule._target_`.

Each takes the optimizer and `total`, the length of the run in epochs or optimizer steps (`schedule.interval`). The
training module supplies both. Torch's schedulers can be used in the same place.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def poly(optimizer: Optimizer, total: int, exponent: float = 0.9) -> LambdaLR:
    """nnU-Net's decay: learning rate times (1 - t / total) ** exponent, t counted from 0.

    Args:
        optimizer: its groups' `lr` is the initial value.
        total: length of the run, in epochs or steps; the learning rate is 0 from there on.
        exponent: 1 decays linearly; a smaller one stays high for longer.
    """
    return LambdaLR(optimizer, lambda t: max(0.0, 1.0 - t / total) ** exponent)


def cosine(optimizer: Optimizer, total: int, warmup: float = 0.0, start: float = 0.01, final: float = 0.0) -> LambdaLR:
    """Cosine decay to `final` times the learning rate, after a linear warm-up.

    Args:
        optimizer: its groups' `lr` is the peak.
        total: length of the run, in epochs or steps.
        warmup: share of `total` spent rising from `start` times the peak to the peak.
        start: factor at the first step of a warm-up.
        final: factor at the end.
    """
    rise = warmup * total

    def factor(t: int) -> float:
        if t < rise:
            return start + (1.0 - start) * t / rise
        progress = min(1.0, (t - rise) / max(total - rise, 1e-9))
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total: int) -> LambdaLR:
    """A constant learning rate: for comparisons and for tests with one batch.

    Args:
        optimizer: its groups' `lr` is kept.
        total: not used.
    """
    return LambdaLR(optimizer, lambda t: 1.0)


def schedule_after(make: Callable[[Optimizer], LRScheduler], optimizer: Optimizer, steps: int) -> LRScheduler:
    """Build a new schedule, advance it by `steps` steps, and set the optimizer's learning rates accordingly.

    The schedule in a checkpoint belongs to the run's length at that time. A new schedule stepped forward equals, bit
    for bit, that of a run with the present length from the beginning (250,000 steps take two seconds).
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    schedule = make(optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # the optimizer has stepped already
        for _ in range(steps):
            schedule.step()
    return schedule
