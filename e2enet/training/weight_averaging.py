"""Averages of weights under masks: Lightning's callback, whose averages of pruned kernels would not be zero."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EMAWeightAveraging

from e2enet.network.dsff import apply_masks


class MaskedWeightAveraging(EMAWeightAveraging):
    """An exponential moving average of the weights, which is validated, saved and kept in the place of the last ones.

    Masks are never averaged: the average has the masks of its latest update, and zeros where they have. A kernel that
    is pruned loses its average, one that regrows begins at zero, as its weights do.

    Args:
        decay: share of the average that an update keeps, in (0, 1).
        update_every_n_steps: optimizer steps between updates, >= 1.
        update_starting_at_step: the first step that is averaged; None: the first of all.
    """

    def __init__(
        self, decay: float = 0.999, update_every_n_steps: int = 1, update_starting_at_step: int | None = None
    ) -> None:
        super().__init__(
            use_buffers=False,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the weights as they are: checkpoints hold both, and a run that is made longer goes on with these."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Zero what an update brought into pruned kernels."""
        before = self._latest_update_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._latest_update_step != before and self._average_model is not None:
            apply_masks(self._average_model)
