"""When DSFF's pure functions are called during training (spec section 3; mechanism: e2enet.network.dsff)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from e2enet.network import dsff
from e2enet.network.granularity import chosen_group_size
from e2enet.network.mask_agreement import require_equal_masks


class DSFFCallback(pl.Callback):
    """Draws kernel masks, holds them through every optimizer step and updates them every so many steps.

    Invariants after every optimizer step: inactive weights and their optimizer moments are exactly zero, and
    each layer's (each group's) active count is the one drawn at the start. Steps that a gradient scaler skips count for
    nothing. In data-parallel training all processes have the same masks, which is compared at the start and at every
    update.

    Args:
        density: active kernels / all kernels per layer at the start.
        start: "uniform" (the same density everywhere) or "erk" (Erdos-Renyi-kernel).
        density_by_dim0: densities of layers whose weight has this first dimension, e.g. {48: 0.2} (released
            code).
        granularity: "kernel" (every kernel by itself) or "group" (groups of output channels share their inputs).
        group_size: output channels of a group.
        updates: False keeps the first masks for ever (static).
        update_every: period of prune and regrow, in `update_unit`.
        update_unit: "steps" (optimizer steps) or "epochs" (4.8 epochs of 250 steps = 1200 steps).
        update_until: share of the run's optimizer steps after which masks stay as they are.
        growth: "random" or "gradient" (largest gradient magnitude).
        fraction_schedule: "cosine" (from `fraction_initial` to `fraction_final` at `update_until`) or
            "constant".
        fraction_initial: share of active kernels pruned at the first update.
        fraction_final: share at the end of the updates.
        seed: random draws are a function of it and the update's number alone, so all ranks draw the same.
    """

    def __init__(
        self,
        density: float = 0.2,
        *,
        start: str = "uniform",
        density_by_dim0: Mapping[int, float] | None = None,
        granularity: str = "kernel",
        group_size: int = 16,
        updates: bool = True,
        update_every: float = 1200,
        update_unit: str = "steps",
        update_until: float = 1.0,
        growth: str = "random",
        fraction_schedule: str = "cosine",
        fraction_initial: float = 0.5,
        fraction_final: float = 0.001,
        seed: int = 0,
    ) -> None:
        self.density = density
        self.start = start
        self.density_by_dim0 = dict(density_by_dim0) if density_by_dim0 else None
        self.group_size = chosen_group_size(granularity, group_size)
        self.updates = updates
        self.update_every = update_every
        self.update_unit = update_unit
        self.update_until = update_until
        self.growth = growth
        self.fraction_schedule = fraction_schedule
        self.fraction_initial = fraction_initial
        self.fraction_final = fraction_final
        self.seed = seed
        self.step = 0  # real optimizer steps; Lightning's global_step also counts skipped ones
        self.num_updates = 0
        self.last_churn: float | None = None
        self.ever_active: dict[str, Tensor] = {}
        self._period = 0
        self._total = 0
        self._scores: dict[str, Tensor] | None = None
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Draw the masks, unless the model already has some (a checkpoint to go on from)."""
        if stage != "fit":
            return
        layers = dsff.fusion_layers(pl_module)
        if not layers:
            raise ValueError("DSFFCallback: the network has no fusion layers to mask; train it with dsff=dense")
        dsff.set_group_size(pl_module, self.group_size)
        if all(bool(layer.kernel_mask.all()) for layer in layers.values()):
            dsff.init_masks(
                pl_module,
                self.density,
                generator=seeded_generator(self.seed, 0),
                start=self.start,
                density_by_dim0=self.density_by_dim0,
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the run's steps and hook into the optimizer (after a resumed checkpoint was restored)."""
        dsff.set_group_size(pl_module, self.group_size)  # refuses a checkpoint's masks of another structure
        self._total = int(trainer.estimated_stepping_batches)
        steps = self.update_every
        if self.update_unit == "epochs":
            steps = self.update_every * self._total / max(1, trainer.max_epochs or 1)
        self._period = max(1, round(steps))
        self._remember_active(pl_module)
        require_equal_masks(pl_module, "when training starts")
        optimizer = trainer.optimizers[0]
        hold_masks(pl_module, optimizer)
        self._unhook()
        # A post hook and no Lightning hook: it fires once per real step, neither on accumulated batches nor
        # on steps that the gradient scaler skips.
        self._hook = optimizer.register_step_post_hook(lambda opt, args, kwargs: self._after_step(pl_module, opt))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Ask for gradients of inactive kernels in the batches of a step that grows the largest of them."""
        pl_module.needs_dense_gradients = self.growth == "gradient" and self._update_due(self.step + 1)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep growth scores when an update is next, then zero dead gradients, so that none is clipped.

        Gradients are averaged over processes by now, accumulated ones too: the scores are the same on all.
        """
        layers = dsff.fusion_layers(pl_module)
        self._scores = None
        if self.growth == "gradient" and self._update_due(self.step + 1):
            self._scores = {
                name: dsff.kernel_scores(layer.weight.grad)
                for name, layer in layers.items()
                if layer.weight.grad is not None
            }
        for layer in layers.values():
            if layer.weight.grad is not None:
                zero_kernels(layer.weight.grad, ~layer.kernel_mask)

    def _after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.step += 1
        if self._update_due(self.step):
            self.num_updates += 1
            churn = dsff.update_masks(
                model,
                self.fraction(self.step),
                scores=self._scores,
                generator=seeded_generator(self.seed, self.num_updates),
            )
            self.last_churn = sum(churn.values()) / len(churn)
            self._remember_active(model)
            require_equal_masks(model, f"after update {self.num_updates} at step {self.step}")
        hold_masks(model, optimizer)

    def _update_due(self, step: int) -> bool:
        # Kernels regrown by an update after the very last step would never be trained: there is none.
        last = min(self.update_until * self._total, self._total - 1)
        return self.updates and step <= last and step % self._period == 0

    def fraction(self, step: int) -> float:
        """Share of each layer's active kernels that an update at this optimizer step prunes."""
        if self.fraction_schedule == "constant":
            return self.fraction_initial
        end = max(1, round(self.update_until * self._total))
        return dsff.prune_fraction(min(step, end), end, initial=self.fraction_initial, final=self.fraction_final)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the state of the masks once per epoch."""
        values = {
            "dsff/density": dsff.density(pl_module),
            "dsff/fraction": self.fraction(self.step),
            "dsff/ever_active": self.share_ever_active(),
        }
        values |= {f"dsff/share_{flow}": share for flow, share in dsff.flow_shares(pl_module).items()}
        values |= {f"dsff/density_{flow}": share for flow, share in dsff.flow_densities(pl_module).items()}
        if self.last_churn is not None:
            values["dsff/churn"] = self.last_churn
        for name, value in values.items():
            pl_module.log(name, float(value), rank_zero_only=True)

    def share_ever_active(self) -> float:
        """Share of kernels active at any time so far (the in-time over-parameterisation)."""
        active = sum(int(mask.sum()) for mask in self.ever_active.values())
        return active / max(1, sum(mask.numel() for mask in self.ever_active.values()))

    def _remember_active(self, model: nn.Module) -> None:
        for name, layer in dsff.fusion_layers(model).items():
            mask = layer.kernel_mask.detach().cpu()
            self.ever_active[name] = self.ever_active[name] | mask if name in self.ever_active else mask.clone()

    def state_dict(self) -> dict[str, Any]:
        """Counters and ever-active masks; the masks themselves are buffers of the model."""
        return {
            "step": self.step,
            "num_updates": self.num_updates,
            "last_churn": self.last_churn,
            "ever_active": dict(self.ever_active),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self.step = state_dict["step"]
        self.num_updates = state_dict["num_updates"]
        self.last_churn = state_dict["last_churn"]
        self.ever_active = dict(state_dict["ever_active"])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the optimizer as it was."""
        self._unhook()

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


@torch.no_grad()
def hold_masks(model: nn.Module, optimizer: Optimizer) -> None:
    """Zero inactive weights, and every optimizer moment of kernels whose weights are all zero.

    The second set holds the inactive kernels and those just pruned and regrown, which start with zero moments
    too. Any state tensor shaped like the weight is a moment: SGD's momentum, AdamW's two averages.
    """
    dsff.apply_masks(model)
    for layer in dsff.fusion_layers(model).values():
        empty = dsff.kernel_scores(layer.weight) == 0
        for value in optimizer.state.get(layer.weight, {}).values():
            if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                zero_kernels(value, empty)


@torch.no_grad()
def zero_kernels(tensor: Tensor, kernels: Tensor) -> None:
    """Zero the chosen kernels (bool (dim0, dim1)) of a tensor (dim0, dim1, ...) in place, NaN included."""
    tensor.masked_fill_(dsff.expand_mask(kernels, tensor), 0.0)


def seeded_generator(seed: int, index: int) -> torch.Generator:
    """CPU generator of the mask drawing number `index`, 0 being the start."""
    # Seeds that differ by one give independent streams in the Mersenne twister; the factor keeps (seed,
    # index) pairs apart for any index below a million.
    return torch.Generator().manual_seed(seed * 1_000_003 + index)
