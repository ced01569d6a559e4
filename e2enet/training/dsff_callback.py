"""DSFF in Lightning: calls `network.DSFF`, which does the work, and logs its state."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from e2enet.common.console import say
from e2enet.network import DSFF, dsff
from e2enet.system.ranks import is_rank_zero


def mask_callbacks(trainer: pl.Trainer) -> list[DSFFCallback]:
    """Return the trainer's callbacks that hold masks: one in a sparse run, none in a dense one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, DSFFCallback)]


class DSFFCallback(pl.Callback):
    """Masks the fusion layers of a LightningModule during training; checkpoints hold the callback's state.

    It takes a `DSFF`, or the arguments of one. Attributes of that object (`step`, `num_updates`, `growth`, ..) can be
    read from the callback.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.dsff = args[0] if args and isinstance(args[0], DSFF) else DSFF(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        if name == "dsff":  # a copy in progress has no attributes yet
            raise AttributeError(name)
        return getattr(self.dsff, name)

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Draw the masks before a checkpoint restores others and before DDP broadcasts them."""
        if stage == "fit":
            self.dsff.draw(pl_module)
            if self.dsff.density_initial is not None:
                pl_module.final_density = self.dsff.density

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach to weights and optimizer, after a resumed checkpoint was restored."""
        steps = int(trainer.estimated_stepping_batches)
        self.dsff.attach(pl_module, trainer.optimizers[0], total_steps=steps, epochs=max(1, trainer.max_epochs or 1))
        if self.dsff.updates and self.dsff.schedule.last == 0 and is_rank_zero():
            say(f"warning: the masks stay as they were drawn, without an update: {self.dsff.schedule.why_none}")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Request gradients of inactive kernels in the batches of a step that grows by the largest gradient."""
        pl_module.needs_dense_gradients = self.dsff.wants_dense_gradients

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the state of the masks once per epoch."""
        values = {
            "dsff/density": dsff.density(pl_module),
            "dsff/fraction": self.dsff.fraction(self.dsff.step),
            "dsff/ever_active": self.dsff.share_ever_active(),
        }
        values |= {f"dsff/share_{flow}": share for flow, share in dsff.flow_shares(pl_module).items()}
        values |= {f"dsff/density_{flow}": share for flow, share in dsff.flow_densities(pl_module).items()}
        if self.dsff.last_churn is not None:
            values["dsff/churn"] = self.dsff.last_churn
        for name, value in values.items():
            pl_module.log(name, float(value), rank_zero_only=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell if the density has not fallen to its end: updates were left out, with the steps that were skipped."""
        excess = self.excess(pl_module)
        if excess > 0 and is_rank_zero():
            say(
                f"warning: training ends with {excess} more active kernels than dsff.density={self.dsff.density:g} "
                f"means: {self.dsff.step} steps were taken, and the last update would have followed step "
                f"{self.dsff.schedule.last}"
            )

    def excess(self, pl_module: pl.LightningModule) -> int:
        """Return how many more kernels are active than at the end of the run (`density_initial`)."""
        masks = self.dsff
        if masks.density_initial is None:
            return 0
        last = dsff.active_kernels(pl_module, masks.density, start=masks.start, density_by_dim0=masks.density_by_dim0)
        active = sum(int(layer.kernel_mask.sum()) for layer in dsff.fusion_layers(pl_module).values())
        return active - sum(last.values())

    def state_dict(self) -> dict[str, Any]:
        """Counters and ever-active masks of the `DSFF`."""
        return self.dsff.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self.dsff.load_state_dict(state_dict)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Detach from weights and optimizer: no teardown follows an exception."""
        self.dsff.remove()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Detach from weights and optimizer."""
        self.dsff.remove()
