"""Weight averaging with masks: in Lightning's own callback, averages of pruned kernels would not be zero."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from e2enet.common.console import say
from e2enet.network.dsff import apply_masks

try:
    from lightning.pytorch.callbacks import EMAWeightAveraging
except ImportError as error:
    raise ImportError("weight averaging needs Lightning 2.6 or later") from error

LARGEST_INITIAL_SHARE = 0.05  # of the average at the end of a run


class MaskedWeightAveraging(EMAWeightAveraging):
    """Exponential moving average of the weights: it is validated and saved instead of the latest weights.

    Masks are not averaged. The average has the masks of its latest update, and zeros where they are zero. A pruned
    kernel loses its average. One that regrows in the same update starts from its old average.

    Args:
        decay: share of the average that an update keeps, in (0, 1).
        update_every_n_steps: optimizer steps between updates, >= 1.
        update_starting_at_step: the first step that is averaged; None for the very first. Until then the average is the
            latest weights.
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
        self._exchanged = False
        self._decay = decay

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell if the run is too short for this decay: the average would be that of untrained weights."""
        super().on_train_start(trainer, pl_module)
        steps = max(0.0, trainer.estimated_stepping_batches - (self.update_starting_at_step or 0))
        share = self._decay ** (steps / self.update_every_n_steps)
        if share > LARGEST_INITIAL_SHARE and trainer.is_global_zero:
            say(
                f"warning: after {steps:g} averaged steps {share:.0%} of the average is still the weights before them; "
                f"a smaller decay than {self._decay:g} forgets them sooner (callbacks.weight_averaging.decay)"
            )

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Exchange latest weights and average."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)
        self._exchanged = True

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Exchange them back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._exchanged = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save latest weights and average by their names, also within a validation (a stop signal)."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._exchanged and "current_model_state" in checkpoint:
            latest, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint.update(state_dict=average, current_model_state=latest)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the latest weights in the module: checkpoints hold both, and a prolonged run continues with these."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the average of pruned kernels to zero after an update."""
        before = self._latest_update_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._latest_update_step != before and self._average_model is not None:
            apply_masks(self._average_model)

    def _follow(self, pl_module: pl.LightningModule) -> None:
        """Copy the latest weights to an average that has had no update."""
        if self._average_model is not None and not self._average_model.n_averaged:
            self._average_model.module.load_state_dict(pl_module.state_dict())
