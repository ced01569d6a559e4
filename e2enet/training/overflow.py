"""Steps that training in float16 leaves out, since their gradients overflowed: counted, and told once per epoch.

The gradient scaler starts with a large scale and halves it at every overflow, so some steps are left out at the start
and a few later. A run that leaves out more trains less than it says.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.training.nonfinite_record import gradient_scaler

WIDER = "training.precision=bf16-mixed (on GPUs that have it) and 32 hold larger numbers"


class OverflowCounter(pl.Callback):
    """Counts the optimizer steps that a gradient scaler leaves out, logs `train/overflows` and prints a line per epoch.

    Without a gradient scaler it does nothing. Counting reads no value of the device within an epoch.
    """

    def __init__(self) -> None:
        self._tried = 0  # optimizer steps of this epoch
        self._taken: int | Tensor = 0
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hook into the optimizer: it is called for taken steps only, or skips a step itself if it is a fused one."""
        if gradient_scaler(trainer) is not None:
            self._hook = trainer.optimizers[0].register_step_post_hook(self._count_taken)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tried, self._taken = 0, 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Count a step before the scaler decides on it."""
        self._tried += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log and print how many steps were left out.

        Raises:
            InputError: all of them, although gradients are not even scaled up any more.
        """
        scaler = gradient_scaler(trainer)
        if scaler is None or not self._tried:
            return
        left_out, scale = self._tried - int(self._taken), scaler.get_scale()
        pl_module.log("train/overflows", float(left_out), rank_zero_only=True)
        if not left_out:
            return
        message = (
            f"epoch {trainer.current_epoch + 1}: {left_out} of {self._tried} optimizer steps left out, their gradients "
            f"overflowed float16 (the loss scale is now {scale:g})"
        )
        if left_out == self._tried and scale < 1:
            raise InputError(f"{message}. Finite gradients are expected: lower optimizer.lr; {WIDER}")
        if trainer.is_global_zero:
            more = f"; nothing was trained in this epoch. {WIDER}" if left_out == self._tried else ""
            say(message + more, style="yellow" if more else None)

    def state_dict(self) -> dict[str, Any]:
        """The counts of a begun epoch."""
        return {"tried": self._tried, "taken": int(self._taken)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tried, self._taken = state_dict["tried"], state_dict["taken"]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Detach from the optimizer."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _count_taken(self, optimizer: Optimizer, *_: Any) -> None:
        found = getattr(optimizer, "found_inf", None)  # on the device: 1 if a fused optimizer skips this step
        self._taken = self._taken + (1 if found is None else 1 - torch.as_tensor(found))
