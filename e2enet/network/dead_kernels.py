"""Keep inactive kernels dead in training: their weights, optimizer moments and gradients stay zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Variable
from torch.optim import Optimizer

from e2enet.network import dsff
from e2enet.network.seen_mask import SeenMask
from e2enet.system.ranks import in_process_group

# By the bytes of a number: the integer of this width.
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def hold_masks(model: nn.Module, optimizer: Optimizer, regrown: Mapping[str, Tensor] | None = None) -> None:
    """Zero inactive weights, and every optimizer moment of kernels whose weights are all zero or that are `regrown`.

    These hold the inactive kernels and those just regrown, which start with zero moments too. An update of the masks
    needs this; between updates `DeadKernels.hold` does, with fewer kernels. regrown: bool (dim 0, dim 1) by layer, for
    kernels that grow with other weights than zero.
    """
    dsff.apply_masks(model)
    for name, layer in dsff.fusion_layers(model).items():
        empty = dsff.kernel_scores(layer.weight) == 0
        if regrown is not None:
            empty |= regrown[name]
        for moment in moments(layer, optimizer):
            zero_kernels(moment, empty)


def moments(layer: Any, optimizer: Optimizer) -> list[Tensor]:
    """Return the optimizer's moments of a layer's weight: SGD's momentum, AdamW's two averages.

    Any state tensor shaped like the weight is a moment.
    """
    state = optimizer.state.get(layer.weight, {}).values()
    return [value for value in state if isinstance(value, Tensor) and value.shape == layer.weight.shape]


@torch.no_grad()
def zero_kernels(tensor: Tensor, kernels: Tensor) -> None:
    """Zero the chosen kernels (bool (dim0, dim1)) of a tensor (dim0, dim1, ...) in place, NaN included."""
    tensor.masked_fill_(dsff.expand_mask(kernels, tensor), 0.0)


def scores_of(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each layer's `kernel_scores` of its gradient; a kernel whose gradient is NaN scores zero."""
    return {name: dsff.kernel_scores(gradient).nan_to_num(nan=0.0) for name, gradient in gradients.items()}


@torch.no_grad()
def sensitivities(layers: Mapping[str, Any], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum of |weight x gradient| of every kernel, (dim 0, dim 1) by layer: a first-order estimate of the
    loss without it (Molchanov et al. 2019). A kernel whose gradient is NaN scores zero.
    """
    return scores_of({name: layers[name].weight * gradient for name, gradient in gradients.items()})


class DeadKernels:
    """Keeps inactive kernels dead between updates of the masks: their gradients, weights and moments.

    Hooks on the fusion weights zero the gradients of inactive kernels at the end of every backward pass. Everything
    that reads `.grad` then finds zeros: clipping, a gradient scaler. In data-parallel training each gradient is zeroed
    before the processes exchange it. In steps that grow by gradient, the full gradients of every backward pass are
    summed separately.

    Args:
        model: Its fusion layers' weights must require gradients.
        sums_wanted: Returns whether the current step grows by gradient.
    """

    def __init__(self, model: nn.Module, sums_wanted: Callable[[], bool]) -> None:
        self._layers = dsff.fusion_layers(model)
        self._active = ActiveWeights(self._layers)
        self._sums_wanted = sums_wanted
        self._sums: dict[str, Tensor] = {}
        self._backward_pass = -1  # the number of the one that ends with `_zero_gradients`
        self._handles = []
        for name, layer in self._layers.items():
            self._handles.append(layer.weight.register_hook(partial(self._add, name)))
            self._handles.append(layer.weight.register_post_accumulate_grad_hook(partial(self._accumulated, name)))

    def hold(self, optimizer: Optimizer) -> None:
        """Zero inactive weights and their optimizer moments; call it after a step."""
        weights = [(name, layer.weight.detach()) for name, layer in self._layers.items()]
        state = [(name, moment) for name, layer in self._layers.items() for moment in moments(layer, optimizer)]
        self._active.zero_others([*weights, *state])

    def take_gradients(self) -> dict[str, Tensor]:
        """Return each layer's gradient, summed over the step's backward passes, and clear the sums.

        The sums run over all processes, which must call this together. A layer without a gradient has zeros.
        """
        found = {}
        for name, layer in self._layers.items():
            total = self._sums.pop(name, None)
            if total is None:
                total = torch.zeros_like(layer.weight)
            if in_process_group():
                distributed.all_reduce(total)  # a mean would give the same order
            found[name] = total
        return found

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _add(self, name: str, gradient: Tensor) -> None:
        # Called before `gradient` is added to `.grad`: a zero `.grad` means that this is a step's first backward pass.
        # Older sums may be left: a gradient scaler, say, may have skipped a step, whose gradients were then zeroed.
        if not self._sums_wanted():
            return
        earlier = self._layers[name].weight.grad
        if name in self._sums and earlier is not None:
            # Not an `if` on the value of `any`, which would wait for the device.
            self._sums[name] = torch.where(earlier.any(), self._sums[name], 0.0) + gradient
        else:
            self._sums[name] = gradient.detach().clone()  # `.grad` may become this very tensor, which is then zeroed

    def _accumulated(self, name: str, weight: Tensor) -> None:
        """Zero this weight's gradient now, or all gradients when the backward pass ends."""
        number = torch._C._current_graph_task_id()
        if in_process_group() or number == -1:
            # Data-parallel training reads the gradient right after this hook, and exchanges zeros.
            if weight.grad is not None:
                zero_kernels(weight.grad, ~self._layers[name].kernel_mask)
        elif number != self._backward_pass:
            self._backward_pass = number
            Variable._execution_engine.queue_callback(self._zero_gradients)

    def _zero_gradients(self) -> None:
        gradients = {name: layer.weight.grad for name, layer in self._layers.items()}
        self._active.zero_others([(name, grad) for name, grad in gradients.items() if grad is not None])


class ActiveWeights:
    """Multiplies by 1 where a weight is active and by 0 where it is not: all layers in one kernel on a GPU.

    The factors are integers as wide as the weights, and multiply the bits of a number. So NaN and infinity become zero,
    too, and active numbers keep their bits. They are kept from step to step, since a product with masks (dim 0, dim 1)
    would be a kernel per layer. They take as much memory as the fusion weights.
    """

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self._layers = layers
        self._kept: dict[str, tuple[SeenMask, Tensor]] = {}  # the mask that the factors were made of, and they

    @torch.no_grad()
    def zero_others(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Zero the inactive part of tensors in place, each given with the layer's name and shaped like its weight."""
        numbers, factors = [], []
        found = {name: self._factors(name) for name in self._layers}
        for name, tensor in tensors:
            integer, factor = INTEGERS.get(tensor.element_size()), found[name]
            if factor is not None and factor.dtype == integer and factor.device == tensor.device:
                numbers.append(tensor.view(integer))
                factors.append(factor)
            else:  # a moment in another precision, say
                zero_kernels(tensor, ~self._layers[name].kernel_mask.to(tensor.device))
        if numbers:
            torch._foreach_mul_(numbers, factors)

    @torch.inference_mode(False)  # training could not use what is made in inference mode
    def _factors(self, name: str) -> Tensor | None:
        """Return a layer's factors for its present mask; None if there is no integer as wide as its weight.

        A mask that a GPU writes through `.data` is noticed at the next update, see `SeenMask`.
        """
        layer = self._layers[name]
        mask, weight = layer.kernel_mask, layer.weight
        if name in self._kept:
            seen, factors = self._kept[name]
            if seen.is_current(mask):
                return factors
        integer = INTEGERS.get(weight.element_size())
        if integer is None:
            return None
        factors = torch.empty_like(weight, dtype=integer, requires_grad=False)
        factors.copy_(dsff.expand_mask(mask, weight))
        self._kept[name] = SeenMask(mask), factors
        return factors
