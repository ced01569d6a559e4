"""How many optimizer steps were taken, where only the device knows which ones a gradient scaler skipped."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from e2enet.system.on_host import OnHost


class StepCount:
    """Counts the optimizer steps that a gradient scaler did not skip.

    Torch does not call an optimizer for a skipped step, unless it is a fused one: its attribute `found_inf`, on the
    device, then tells it to keep the weights. The host would wait for the device to read it. So it is read when the
    next step is counted, or when the number must be known.
    """

    def __init__(self) -> None:
        self._sure = 0
        self._unread: list[OnHost] = []
        self._took_last = True

    def add(self, optimizer: Optimizer) -> None:
        """Count a step for which the optimizer was called."""
        found = getattr(optimizer, "found_inf", None)
        if found is None:
            self._count(taken=True)
            return
        self._unread.append(OnHost(torch.as_tensor(found).reshape(1)))
        while len(self._unread) > 1:
            self._read_first()

    def possible(self) -> range:
        """Return the numbers that the count may have, without reading."""
        return range(self._sure, self._sure + len(self._unread) + 1)

    def read(self) -> int:
        """Return the number of steps taken; wait for the device if it alone knows."""
        while self._unread:
            self._read_first()
        return self._sure

    def took_last(self) -> bool:
        """Return whether the last step was taken; wait as `read` does."""
        self.read()
        return self._took_last

    def set(self, steps: int) -> None:
        """Go on from a number of steps."""
        self._sure, self._unread = steps, []

    def _read_first(self) -> None:
        (found,) = self._unread.pop(0).read()
        self._count(taken=not found)

    def _count(self, *, taken: bool) -> None:
        self._sure += taken
        self._took_last = taken
