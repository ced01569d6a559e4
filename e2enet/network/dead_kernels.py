"""Keep inactive kernels dead in training: their weights, optimizer moments and gradients stay zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from e2enet.network import dsff
from e2enet.system.ranks import in_process_group


@torch.no_grad()
def hold_masks(model: nn.Module, optimizer: Optimizer) -> None:
    """Zero inactive weights, and every optimizer moment of kernels whose weights are all zero.

    The second set holds the inactive kernels and those just regrown, which start with zero moments too. Any state
    tensor shaped like the weight is a moment: SGD's momentum, AdamW's two averages.
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


class DeadGradients:
    """Hooks on the fusion weights that zero the gradients of inactive kernels as soon as they are accumulated.

    Everything that reads `.grad` then finds zeros: clipping, a gradient scaler, the exchange between processes. In
    steps that grow by gradient, the full gradients of every backward pass are summed separately.

    Args:
        model: Its fusion layers' weights must require gradients.
        sums_wanted: Returns whether the current step grows by gradient.
    """

    def __init__(self, model: nn.Module, sums_wanted: Callable[[], bool]) -> None:
        self._layers = dsff.fusion_layers(model)
        self._sums_wanted = sums_wanted
        self._sums: dict[str, Tensor] = {}
        self._handles = []
        for name, layer in self._layers.items():
            self._handles.append(layer.weight.register_hook(partial(self._add, name)))
            # Data-parallel training reads gradients after this hook, so it exchanges zeros on every rank.
            self._handles.append(layer.weight.register_post_accumulate_grad_hook(partial(self._zero, layer)))

    def take_scores(self) -> dict[str, Tensor]:
        """Return each layer's `kernel_scores` of the summed gradients, and clear the sums.

        The sums run over all processes, which must call this together. A layer without a gradient scores zero, and so
        does a kernel whose gradient is NaN.
        """
        scores = {}
        for name, layer in self._layers.items():
            total = self._sums.pop(name, None)
            if total is None:
                total = torch.zeros_like(layer.weight)
            if in_process_group():
                distributed.all_reduce(total)  # a mean would give the same order
            scores[name] = dsff.kernel_scores(total).nan_to_num(nan=0.0)
        return scores

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _add(self, name: str, gradient: Tensor) -> None:
        # Called before `gradient` is added to `.grad`: a zero `.grad` means that this is a step's first backward pass.
        # Older sums may be left: a gradient scaler, say, may have skipped a step, whose gradients were then zeroed.
        if not self._sums_wanted():
            return
        earlier = self._layers[name].weight.grad
        if name in self._sums and earlier is not None and bool(earlier.any()):
            self._sums[name] += gradient.detach()
        else:
            self._sums[name] = gradient.detach().clone()  # `.grad` may become this very tensor, and `_zero` changes it

    @staticmethod
    def _zero(layer: Any, weight: Tensor) -> None:
        if weight.grad is not None:
            zero_kernels(weight.grad, ~layer.kernel_mask)
