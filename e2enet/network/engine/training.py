"""Training with active kernels only: forward and backward pass of an E2ENet on a CPU, as a program of engine layers.

The gradients equal the masked network's up to rounding. Inactive kernels get zero, as DSFF sets their gradients too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from e2enet.network.e2enet import E2ENet
from e2enet.network.engine import checks
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.gradients import (
    Gradient,
    add_convolution,
    add_expansion,
    add_unpooled,
    correlate,
    norm_gradient,
)
from e2enet.network.engine.known import refuse, settings, unknown_in_training
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm
from e2enet.network.engine.self_check import ENGINE_VOXELS, check_gradients, check_itself
from e2enet.network.engine.sparse_layers import Convolution, Expansion, Pooling
from e2enet.network.layers import Triple
from e2enet.network.program import BLOCK, EXPANSION, HEAD, POOLING, Operation
from e2enet.network.tracing import read_program
from e2enet.network.whole_pass import check_backward, check_call

BACKEND = "a training engine"
WeightGradients = dict[Tensor, np.ndarray]


class TrainedLayer(Protocol):
    """A layer that can go backward."""

    def refresh(self) -> None:
        """Take the module's weights and mask as they are now."""

    def forward(self, sources: Sequence[LazyVolumes]) -> LazyVolumes: ...

    def backward(
        self, sources: Sequence[LazyVolumes], output: LazyVolumes, gradient: Gradient, into: Sequence[Gradient]
    ) -> WeightGradients:
        """Add the sources' gradients to `into`, which is empty if none are needed; return those of the parameters."""


Layers = Mapping[int, TrainedLayer]  # by the number of each layer's output value
Values = dict[int, LazyVolumes]


class TrainingEngine:
    """Runs an E2ENet in training mode: (B, C, D, H, W) float32 on the CPU to the logits of its heads, with gradients.

    Parameters stay the network's own; weights and masks are read again at every call. A backward pass uses the masks of
    its own forward pass. If the input or weights were changed in place since then, torch raises its error. The input
    gets no gradient.

    Raises:
        InputError: the engine does not know the network, also if changed later, or its logits or gradients differ on a
            small input.
        ValueError: the input has the wrong shape or requires a gradient.
    """

    def __init__(self, model: E2ENet) -> None:
        refuse(unknown_in_training(model))
        self.model = model
        self.program = read_program(model, training=model.training)
        makers = self.program.implementations("the engine in training", LAYERS)
        self.layers: Layers = {
            operation.output: makers[operation.output](operation) for operation in self.program.operations
        }
        self.settings = settings(model)
        check_itself(model, self, training=model.training, fewest=ENGINE_VOXELS)
        check_gradients(model, self)

    @torch.compiler.disable
    def __call__(self, x: Tensor) -> Tensor | list[Tensor]:
        check_call(BACKEND, self.model, x, trains=True)
        changed = settings(self.model) != self.settings
        refuse("it has changed since the engine was made for it" if changed else unknown_in_training(self.model))
        logits = _Pass.apply(self, x, *self.program.parameters())
        return list(logits) if len(self.program.results) > 1 else logits[0]

    def refreshed(self) -> Layers:
        """Return new layers with the current weights and masks; later calls and other threads do not change them."""
        layers = {number: copy(layer) for number, layer in self.layers.items()}
        for layer in layers.values():
            layer.refresh()
        self.layers = layers
        return layers

    def forward(self, layers: Layers, x: Tensor) -> Values:
        """Return all values of the forward pass of a batch (B, C, D, H, W)."""
        volumes = LazyVolumes.of(np.ascontiguousarray(x.permute(0, 1, 3, 4, 2).numpy()))

        def compute(operation: Operation, sources: list[LazyVolumes]) -> LazyVolumes:
            with checks.named(operation.name):
                return layers[operation.output].forward(sources)

        return self.program.walk(volumes, compute, kept=range(len(layers) + 1))

    def backward(self, layers: Layers, values: Values, logits: Sequence[Tensor | None]) -> WeightGradients:
        """Return the parameters' gradients, summed over the samples, from those of the logits (B, C, D, H, W).

        Each of `values` is released after its use.
        """
        found: WeightGradients = {}
        gradients: dict[int, Gradient] = {}
        for number, given in zip(self.program.results, logits, strict=True):
            if given is not None:
                gradients[number] = own = Gradient(values[number])
                own.values[:] = given.permute(0, 1, 3, 4, 2).numpy()
                own.written[:] = True

        def compute(operation: Operation, sources: list[LazyVolumes], output: LazyVolumes, gradient: Gradient) -> None:
            wanted = [number for number in operation.inputs if number != 0]  # the input gets none
            for number in wanted:
                if number not in gradients:
                    gradients[number] = Gradient(values[number])
            into = [gradients[number] for number in wanted]
            with checks.named(f"{operation.name}, backward"):
                found.update(layers[operation.output].backward(sources, output, gradient, into))

        self.program.walk_back(values, gradients, compute)
        return found


class _Pass(torch.autograd.Function):
    """A forward pass of the engine as one autograd operation of the input and all parameters."""

    @staticmethod
    def forward(ctx: Any, engine: TrainingEngine, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.engine, ctx.layers, ctx.parameters = engine, engine.refreshed(), parameters
        ctx.save_for_backward(x, *parameters)  # the layers read their memory: torch checks that it stays unchanged
        ctx.values = engine.forward(ctx.layers, x.float())
        return tuple(
            torch.from_numpy(ctx.values[number].stacked()).permute(0, 1, 4, 2, 3).contiguous()
            for number in engine.program.results
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        check_backward(BACKEND, ctx.values)
        _ = ctx.saved_tensors  # raises if one was changed
        values, ctx.values = ctx.values, None
        sums: WeightGradients = ctx.engine.backward(ctx.layers, values, grads)
        if not sums.keys() <= set(ctx.parameters):
            raise RuntimeError("the network's parameters were replaced by others since the forward pass")
        found = (
            torch.from_numpy(sums[parameter]).to(parameter) if parameter in sums else torch.zeros_like(parameter)
            for parameter in ctx.parameters
        )
        return None, None, *found


class TrainedConvolution:
    """A block, or a head: depth-shift, convolution of concatenated sources, instance norm with activation."""

    def __init__(self, operation: Operation) -> None:
        self.operation, self.conv, self.norm = operation, operation.conv, operation.norm
        self.stride: Triple = self.conv.stride
        self.padding: tuple[int, int] = self.conv.padding[1:]
        self.mask: Tensor | None = None

    def refresh(self) -> None:
        mask = self.operation.mask()
        if self.mask is None or not torch.equal(mask, self.mask):
            self.mask = mask.clone()
            described = mask.numpy(), np.array(self.operation.shifts()), self.conv.kernel_size
            self.kernels = ActiveKernels.of_convolution(*described)
            self.opposite = (
                ActiveKernels.of_strided_gradient(*described, self.stride, self.padding)
                if max(self.stride) > 1
                else self.kernels.transposed(mask.shape[1])
            )
        self.weight = _array(self.conv.weight)
        norm: Norm | None = None
        if self.norm is not None:
            norm = np.stack([_array(self.norm.weight), _array(self.norm.bias)]), self.norm.eps, self.norm.slope
        weights = self.kernels.gather_weights(self.weight)
        self.layer = Convolution(self.kernels, weights, self.stride, self.padding, norm)

    def forward(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        return self.layer(sources)

    def backward(
        self, sources: Sequence[LazyVolumes], output: LazyVolumes, gradient: Gradient, into: Sequence[Gradient]
    ) -> WeightGradients:
        found, signal = {}, gradient.signal()
        if self.norm is not None:
            found[self.norm.weight], found[self.norm.bias] = norm_gradient(output, signal)
            found[self.conv.bias] = np.zeros(len(self.weight), np.float32)  # the norm subtracts it again
        products = correlate(self.kernels, sources, signal, stride=self.stride, padding=self.padding)
        found[self.conv.weight] = self.kernels.scatter_weights(products, self.weight.shape)
        if into and max(self.stride) > 1:
            add_expansion(self.opposite, self.opposite.gather_weights(self.weight), signal, into, self.stride)
        elif into:
            height, width = self.kernels.plane
            padding = height - 1 - self.padding[0], width - 1 - self.padding[1]
            add_convolution(self.opposite, self.opposite.gather_weights(self.weight), signal, into, padding=padding)
        return found


class TrainedExpansion:
    """A transposed convolution whose kernel equals its stride."""

    def __init__(self, operation: Operation) -> None:
        self.operation, self.conv = operation, operation.conv
        self.stride: Triple = self.conv.stride
        self.mask: Tensor | None = None

    def refresh(self) -> None:
        mask = self.operation.mask()
        if self.mask is None or not torch.equal(mask, self.mask):
            self.mask = mask.clone()
            self.kernels = ActiveKernels.of_expansion(mask.numpy(), self.stride)
            self.opposite = ActiveKernels.of_expansion_gradient(mask.numpy(), self.stride)
        self.weight = _array(self.conv.weight)
        self.layer = Expansion(self.kernels, self.kernels.gather_weights(self.weight), self.stride)

    def forward(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        return self.layer(sources)

    def backward(
        self, sources: Sequence[LazyVolumes], output: LazyVolumes, gradient: Gradient, into: Sequence[Gradient]
    ) -> WeightGradients:
        # Its gradient is a convolution, which reads the output's gradient and writes the source's gradient.
        signal, (source,) = gradient.signal(), sources
        products = correlate(self.opposite, [signal], source, stride=self.stride)
        if into:
            add_convolution(self.opposite, self.opposite.gather_weights(self.weight), signal, into, stride=self.stride)
        return {self.conv.weight: self.opposite.scatter_weights(products, self.weight.shape)}


class TrainedPooling:
    """Max pooling with kernel = stride."""

    def __init__(self, operation: Operation) -> None:
        self.stride: Triple = operation.module.stride
        self.layer = Pooling(self.stride)

    def refresh(self) -> None:
        pass

    def forward(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        return self.layer(sources)

    def backward(
        self, sources: Sequence[LazyVolumes], output: LazyVolumes, gradient: Gradient, into: Sequence[Gradient]
    ) -> WeightGradients:
        for source, part in zip(sources, into, strict=False):
            add_unpooled(source, gradient.signal().stacked(), self.stride, part)
        return {}


LAYERS: dict[str, Callable[[Operation], TrainedLayer]] = {
    BLOCK: TrainedConvolution,
    EXPANSION: TrainedExpansion,
    POOLING: TrainedPooling,
    HEAD: TrainedConvolution,
}


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())
