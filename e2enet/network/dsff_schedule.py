"""When masks are updated in a run, and what changes from update to update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from e2enet.network.dsff import prune_fraction


@dataclass(frozen=True)
class UpdateSchedule:
    """The updates of a run.

    Attributes:
        total: optimizer steps of the run.
        period: steps between two updates.
        until: share of the steps after which masks stay as they are.
        updates: False: there are none.
    """

    total: int
    period: int
    until: float = 1.0
    updates: bool = True

    @classmethod
    def of(cls, settings: Any, total: int, epochs: float | None) -> UpdateSchedule:
        """Return the schedule of a `DSFF` with these settings; `epochs` of the run are needed for periods in epochs."""
        every, unit = settings.update_every, settings.update_unit
        if unit == "auto":
            unit = "run" if every < 1 else "steps"
        steps = {"steps": 1.0, "epochs": total / (epochs or 1), "run": total}[unit]
        period = max(1, round(every * steps))
        return cls(total, period, settings.update_until, settings.updates)

    def due(self, step: int) -> bool:
        """Return whether masks are updated after this optimizer step, counted from 1.

        There is no update after the very last step: kernels that it regrows would never be trained.
        """
        return self.updates and step % self.period == 0 and step <= self._end

    @property
    def last(self) -> int:
        """The step of the last update; 0 without updates."""
        return self._end // self.period * self.period if self.updates else 0

    @property
    def why_none(self) -> str:
        """Say in words why a run without updates has none."""
        if not self.updates:
            return "updates is False"
        return f"the first would follow step {self.period}, and the last may follow step {self._end} of {self.total}"

    @property
    def _end(self) -> int:
        # 0.29 of 100 steps are 29, though floating point multiplies to 28.999999999999996.
        return min(math.floor(round(self.until * self.total, 9)), self.total - 1)

    def fraction(self, step: int, initial: float, final: float) -> float:
        """Return a share that falls by a cosine from `initial` to `final`, which it has from `until` on."""
        end = max(1, round(self.until * self.total))
        return prune_fraction(step, end, initial=initial, final=final)

    def density(self, step: int, initial: float, final: float) -> float:
        """Return the density after this step: a cosine from `initial` to `final`, which the last update brings."""
        if self.last == 0:
            return initial
        return prune_fraction(step, self.last, initial=initial, final=final)
