"""DSFF in any training loop: when masks are drawn, held and updated (the mechanism itself is network.dsff)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from e2enet.common.errors import InputError, raise_problems
from e2enet.network import dsff, dsff_settings
from e2enet.network.dead_kernels import DeadKernels, hold_masks, scores_of, sensitivities
from e2enet.network.dsff_schedule import UpdateSchedule
from e2enet.network.granularity import chosen_group_size
from e2enet.network.mask_agreement import require_equal_masks
from e2enet.network.mask_update import Rule, replace_kernels, seeded_generator
from e2enet.network.regrown import RegrownWarmup
from e2enet.network.step_count import StepCount


class DSFF:
    """Draws kernel masks, holds them through every optimizer step and updates them periodically.

    `attach` draws the masks and hooks into parameters and optimizer; the training loop stays as it is:

        with DSFF(density=0.2).attach(model, optimizer, total_steps=1000) as masks:
            ...

    Invariants after every optimizer step: inactive weights and their optimizer moments are exactly zero, and
    each layer's (each group's) active count is the one drawn at the start. Gradients of inactive kernels are zero after
    every backward pass, so clipping does not count them. Steps that a gradient scaler skips are not counted. The loop
    may accumulate backward passes. In data-parallel training all processes have the same masks; this is checked at the
    start and at every update.

    Args:
        density: active kernels / all kernels per layer, at the start unless `density_initial` is given.
        start: "uniform" (the same density everywhere) or "erk" (Erdos-Renyi-kernel).
        density_by_dim0: densities of layers whose weight has this first dimension, e.g. {48: 0.2} (released
            code).
        granularity: "kernel" (every kernel by itself) or "group" (groups of output channels share their inputs).
        group_size: output channels of a group.
        updates: False keeps the first masks for ever (static).
        update_every: period of prune and regrow, in `update_unit`.
        update_unit: "steps" (optimizer steps), "epochs" (4.8 epochs of 250 steps = 1200 steps) or "run" (share of the
            run's steps: 0.05 is at most 19 updates, whatever the run's length). "auto" is "run" for a period below 1,
            else "steps".
        update_until: share of the run's optimizer steps after which masks stay as they are.
        growth: "random" or "gradient" (largest gradient magnitude).
        fraction_schedule: "cosine" (from `fraction_initial` to `fraction_final` at `update_until`) or
            "constant".
        fraction_initial: share of active kernels pruned at the first update.
        fraction_final: share at the end of the updates.
        density_initial: density at the start, from which it falls to `density` by a cosine; None: it is `density` from
            the start. It never rises: in a prolonged run, or with masks of a checkpoint, it waits for the cosine.
        prune_by: "magnitude" (smallest L1 norm; None means it too) or "sensitivity" (smallest sum of |weight x
            gradient|, Molchanov et al. 2019, with the gradients of the update's step).
        prune_over: "layer" (each keeps its count; None means it too) or "network" (kernels of all layers compete by
            their mean score per weight; only the sum is kept).
        regrown_weights: "zero" (None means it too) or "drawn" (normal, as wide as the layer's active weights).
        regrown_warmup: optimizer steps over which the learning rate of regrown kernels rises from 0; None: no such.
        seed: random draws depend only on it and the update's number, so all ranks draw the same.

    Attributes:
        num_updates: Updates of the masks so far.
        last_churn: Share of active kernels that the last update brought in, a mean over layers; None before it.
        ever_active: By layer, bool (dim0, dim1): the kernels active at any time so far.
        schedule: The steps of the run's updates, once attached.

    Raises:
        InputError: a setting has another value than these.
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
        density_initial: float | None = None,
        prune_by: str | None = None,
        prune_over: str | None = None,
        regrown_weights: str | None = None,
        regrown_warmup: int | None = None,
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
        self.density_initial = density_initial
        self.prune_by = prune_by
        self.prune_over = prune_over
        self.regrown_weights = regrown_weights
        self.regrown_warmup = regrown_warmup
        self.seed = seed
        raise_problems(dsff_settings.wrong_settings(vars(self)), "DSFF:")
        self._steps = StepCount()
        self.num_updates = 0
        self.last_churn: float | None = None
        self.ever_active: dict[str, Tensor] = {}
        self._warmup = RegrownWarmup(regrown_warmup or 0)
        self.schedule = UpdateSchedule(total=1, period=1, updates=False)
        self._dead: DeadKernels | None = None
        self._step_hooks: list[RemovableHandle] = []

    def draw(self, model: nn.Module) -> None:
        """Draw the masks, unless the model already has masks from a checkpoint. `attach` calls this.

        Raises:
            InputError: the model has no fusion layers.
            ValueError: it has masks of another granularity.
        """
        layers = dsff.fusion_layers(model)
        if not layers:
            raise InputError(
                "DSFF: the network has no fusion layers to mask: register_fusion_layer marks one; or train without "
                "masks (dsff=dense)"
            )
        dsff.set_group_size(model, self.group_size)
        for remark in dsff_settings.unused_densities(vars(self), model):
            warnings.warn(remark, stacklevel=2)
        if all(bool(layer.kernel_mask.all()) for layer in layers.values()):
            dsff.init_masks(
                model,
                self.density_initial or self.density,
                generator=seeded_generator(self.seed, 0),
                start=self.start,
                density_by_dim0=self.density_by_dim0,
            )

    def attach(self, model: nn.Module, optimizer: Optimizer, *, total_steps: int, epochs: float | None = None) -> DSFF:
        """Draw the masks if there are none, and hook into the fusion layers' weights and the optimizer.

        To resume from a checkpoint, load model, optimizer and this object first. Returns the object itself, a context
        manager that calls `remove` at its end.

        Args:
            model: The network itself, not a wrapper (DistributedDataParallel): saved states use its layer names.
            optimizer: Holds the weights of all fusion layers.
            total_steps: Optimizer steps of the whole run, those before a checkpoint included.
            epochs: Epochs of the whole run, which `update_unit="epochs"` needs.

        Raises:
            InputError: it is attached already, or an argument is not as described above.
        """
        if self._step_hooks:
            raise InputError("DSFF is attached already; expected remove() before another attach()")
        self.draw(model)
        problems = dsff_settings.untrained_layers(model, optimizer)
        raise_problems(problems + dsff_settings.wrong_length(vars(self), total_steps, epochs), "DSFF:")
        self.schedule = UpdateSchedule.of(self, total_steps, epochs)
        raise_problems(dsff_settings.wrong_schedule(vars(self), self.schedule), "DSFF:")
        self._remember_active(model)
        require_equal_masks(model, "when training starts")
        layers = dsff.fusion_layers(model)
        self._dead = dead = DeadKernels(model, lambda: self._by_gradient and self._next_is_due())
        dead.hold(optimizer)
        # These fire once per real step, neither on accumulated batches nor on steps that the gradient scaler skips.
        self._step_hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._warmup.before(layers)),
            optimizer.register_step_post_hook(lambda opt, args, kwargs: self._after_step(model, opt, dead)),
        ]
        return self

    def remove(self) -> None:
        """Remove the hooks from model and optimizer. Masks and counters stay as they are."""
        if self._dead is not None:
            self._dead.remove()
        for hook in self._step_hooks:
            hook.remove()
        self._dead, self._step_hooks = None, []

    def __enter__(self) -> DSFF:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def step(self) -> int:
        """Optimizer steps so far, without those that a gradient scaler skipped."""
        return self._steps.read()

    @property
    def wants_dense_gradients(self) -> bool:
        """Whether the current step grows by gradient: backward passes must then reach inactive kernels too.

        Only a loop that may leave these out (an engine that runs active kernels only) needs to check it.
        """
        return self.growth == "gradient" and self._next_is_due()

    @property
    def _by_gradient(self) -> bool:
        """Whether an update reads gradients."""
        return self.growth == "gradient" or self.prune_by == "sensitivity"

    def _next_is_due(self) -> bool:
        """Return whether masks are updated after the next step; the count is read only if it matters."""
        return any(self.schedule.due(step + 1) for step in self._steps.possible()) and self.schedule.due(self.step + 1)

    def fraction(self, step: int) -> float:
        """Share of each layer's active kernels that an update at this optimizer step prunes."""
        if self.fraction_schedule == "constant":
            return self.fraction_initial
        return self.schedule.fraction(step, self.fraction_initial, self.fraction_final)

    def share_ever_active(self) -> float:
        """Share of kernels active at any time so far (the in-time over-parameterisation)."""
        active = sum(int(mask.sum()) for mask in self.ever_active.values())
        return active / max(1, sum(mask.numel() for mask in self.ever_active.values()))

    def state_dict(self) -> dict[str, Any]:
        """Counters and ever-active masks; the masks themselves are buffers of the model."""
        return {
            "step": self.step,
            "num_updates": self.num_updates,
            "last_churn": self.last_churn,
            "ever_active": dict(self.ever_active),
            "warmup": self._warmup.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._steps.set(state_dict["step"])
        self.num_updates = state_dict["num_updates"]
        self.last_churn = state_dict["last_churn"]
        self.ever_active = dict(state_dict["ever_active"])
        if "warmup" in state_dict:  # runs of earlier versions had none
            self._warmup.load_state_dict(state_dict["warmup"])

    def _after_step(self, model: nn.Module, optimizer: Optimizer, dead: DeadKernels) -> None:
        self._steps.add(optimizer)
        if not self._warmup.active and not any(map(self.schedule.due, self._steps.possible())):
            dead.hold(optimizer)  # changes nothing after a skipped step
            return
        if not self._steps.took_last():
            return
        self._warmup.after(dsff.fusion_layers(model))
        if self.schedule.due(self.step):
            self._update(model, optimizer, dead)
        else:
            dead.hold(optimizer)

    def _update(self, model: nn.Module, optimizer: Optimizer, dead: DeadKernels) -> None:
        self.num_updates += 1
        gradients = dead.take_gradients() if self._by_gradient else {}
        layers, counts = dsff.fusion_layers(model), None
        if self.density_initial is not None:
            density = self.schedule.density(self.step, self.density_initial, self.density)
            counts = dsff.active_kernels(model, density, start=self.start, density_by_dim0=self.density_by_dim0)
        rule = Rule(
            self.fraction(self.step),
            counts=counts,
            pruning=sensitivities(layers, gradients) if self.prune_by == "sensitivity" else None,
            growth=scores_of(gradients) if self.growth == "gradient" else None,
            across=self.prune_over == "network",
        )
        drawn, generator = self.regrown_weights == "drawn", seeded_generator(self.seed, self.num_updates)
        done = replace_kernels(layers, rule, drawn=drawn, generator=generator)
        self.last_churn = sum(update.churn for update in done.values()) / len(done)
        self._remember_active(model)
        require_equal_masks(model, f"after update {self.num_updates} at step {self.step}")
        grown = {name: update.grown for name, update in done.items()}
        hold_masks(model, optimizer, grown)
        self._warmup.begin(grown)

    def _remember_active(self, model: nn.Module) -> None:
        masks = {name: layer.kernel_mask.detach().cpu() for name, layer in dsff.fusion_layers(model).items()}
        others = [
            name for name, mask in self.ever_active.items() if name not in masks or mask.shape != masks[name].shape
        ]
        if others:
            raise InputError(
                f"DSFF: its state is of another network, with layers {', '.join(others)}; expected {', '.join(masks)}"
            )
        for name, mask in masks.items():
            self.ever_active[name] = self.ever_active[name] | mask if name in self.ever_active else mask.clone()
