"""A learning rate that rises from zero for the kernels that an update of the masks regrew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class RegrownWarmup:
    """Shortens the optimizer's steps of regrown kernels: step i of `steps` after an update has i / steps of its length.

    An adaptive optimizer divides by averages of past gradients, which are zero for a regrown kernel. So its first
    steps are several times as long as those of other kernels (AdamW, betas 0.9 and 0.999: up to six times).

    Call `begin` after an update of the masks, `before` and `after` around each optimizer step.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._age = steps  # optimizer steps since the last update; `steps` and more: nothing to do
        self._kernels: dict[str, Tensor] = {}  # layer name -> (number, 2), indices of the regrown kernels
        self._old: dict[str, Tensor] = {}

    @property
    def active(self) -> bool:
        """Whether steps are shortened."""
        return self._age < self.steps

    def begin(self, grown: Mapping[str, Tensor]) -> None:
        """Take over the kernels that an update regrew, bool (dim 0, dim 1) by layer."""
        if self.steps:
            self._kernels = {name: kernels.nonzero() for name, kernels in grown.items()}
            self._age = 0

    @torch.no_grad()
    def before(self, layers: Mapping[str, Any]) -> None:
        """Remember the regrown kernels' weights."""
        if self.active:
            self._old = {name: layers[name].weight[tuple(where.T)] for name, where in self._kernels.items()}

    @torch.no_grad()
    def after(self, layers: Mapping[str, Any]) -> None:
        """Shorten what the optimizer did to them."""
        if not self.active:
            return
        self._age += 1
        for name, where in self._kernels.items():
            weight, rows = layers[name].weight, tuple(where.T)
            weight[rows] = torch.lerp(self._old[name], weight[rows], self._age / self.steps)
        self._old = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the regrown kernels and how long ago they were."""
        return {"age": self._age, "kernels": dict(self._kernels)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._age, self._kernels = state["age"], dict(state["kernels"])
