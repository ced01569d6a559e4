"""`compact(model)`: a trained E2ENet as a program of engine layers, for inference on a CPU.

The network's own code is traced (torch.fx) down to blocks, transposed convolutions, poolings and heads. Each becomes a
layer of the engine that holds active kernels only; channels that nobody reads are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from e2enet.engine.choice import Choices
from e2enet.engine.dense import DenseConvolution
from e2enet.engine.layers import Convolution, Expansion, Kernels, Pooling
from e2enet.engine.signals import Signal, Triple
from e2enet.network.blocks import ConvBlock
from e2enet.network.e2enet import E2ENet, check_input, half_precision_pays_on_cpu
from e2enet.network.layers import StrideUp3d
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.shift import group_shifts

LEAVES = (ConvBlock, StrideUp3d, StrideMaxPool3d, nn.Conv3d)
Layer = Callable[[Sequence[Signal]], Signal]
SPARSE, DENSE, BFLOAT16 = "sparse", "dense", "bfloat16"


@dataclass
class Step:
    """One layer of the program: `values[output]` is made of `values[inputs]`; those of `done` are read no more.

    `others` are further ways to run it, which are made where they are tried.
    """

    name: str
    description: str
    layer: Layer
    others: dict[str, Callable[[], Layer]]
    inputs: tuple[int, ...]
    output: int
    done: tuple[int, ...] = ()


class CompactNetwork(nn.Module):
    """The inference of a trained E2ENet: (B, C, D, H, W) on the CPU to float32 logits (B, num_classes, D, H, W).

    Args:
        model: in eval mode; its weights and masks are copied.
        choose: measure at the first input which way each layer runs fastest; else active kernels only, everywhere.
        bfloat16: try convolutions in bfloat16 too, where the processor multiplies matrices of them (AMX).
        choices: where to remember what was measured.

    Raises:
        ValueError: for an input of the wrong shape.
    """

    def __init__(
        self, model: E2ENet, *, choose: bool = True, bfloat16: bool = False, choices: Choices | None = None
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.strides = model.in_channels, model.num_classes, model.strides
        self.steps, self.output = program(model)
        self.ways = dict.fromkeys((step.name for step in self.steps), SPARSE)
        self._choices = (choices or Choices()) if choose else None
        if not choose:
            for step in self.steps:  # they hold every kernel
                step.others = {}
        self._bfloat16 = bfloat16 and half_precision_pays_on_cpu()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.in_channels, self.strides)
        return torch.stack([self._one(sample) for sample in x.float()])

    def _one(self, sample: Tensor) -> Tensor:
        values = {0: Signal.of(np.ascontiguousarray(sample.permute(0, 2, 3, 1).numpy()))}
        for step in self.steps:
            sources = [values[number] for number in step.inputs]
            if self._choices is not None and step.others:
                self._choose(step, sources)
            values[step.output] = step.layer(sources)
            for number in step.done:
                del values[number]
        self._choices = None
        return torch.from_numpy(values[self.output].stacked()).permute(0, 3, 1, 2)

    def _choose(self, step: Step, sources: Sequence[Signal]) -> None:
        assert self._choices is not None
        layers = {SPARSE: step.layer} | {
            name: make() for name, make in step.others.items() if name != BFLOAT16 or self._bfloat16
        }
        size = " x ".join(map(str, sources[0].size))
        ways = {name: partial(layer, sources) for name, layer in layers.items()}
        self.ways[step.name] = self._choices.fastest(f"{step.description} on {size}", ways)
        step.layer, step.others = layers[self.ways[step.name]], {}


def program(model: E2ENet) -> tuple[list[Step], int]:
    """The steps of a model's inference and the number of the value that holds the logits; value 0 is the input."""
    modules = dict(model.named_modules())
    graph = _Tracer().trace(_Inference(model))
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    layers = {node: modules[str(node.target).removeprefix("model.")] for node in nodes}
    (result,) = (_producer(node.args[0]) for node in graph.nodes if node.op == "output")
    inputs = {node: [_producer(source) for source in node.args] for node in nodes}
    channels = {node: _mask(layers[node]).shape[0] for node in nodes if not isinstance(layers[node], StrideMaxPool3d)}
    live = {node: np.zeros(_channels(node, channels, inputs), bool) for node in nodes}
    live[result][:] = True
    for node in reversed(nodes):
        for source, read in zip(inputs[node], _reads(node, layers, inputs, live), strict=True):
            if source in live:
                live[source] |= read
    numbers = {node: number for number, node in enumerate(nodes, start=1)}
    steps = []
    for node in nodes:
        kept = [live[source] for source in inputs[node] if source in live] or [np.ones(model.in_channels, bool)]
        if not live[node].any():
            continue
        step = Step(
            str(node.target).removeprefix("model."),
            *_engine_layer(layers[node], live[node], np.concatenate(kept)),
            inputs=tuple(numbers.get(source, 0) for source in inputs[node] if source not in live or live[source].any()),
            output=numbers[node],
        )
        steps.append(step)
    last = {number: index for index, step in enumerate(steps) for number in step.inputs}
    for index, step in enumerate(steps):
        step.done = tuple(number for number in dict.fromkeys(step.inputs) if last[number] == index)
    return steps, numbers[result]


class _Inference(nn.Module):
    """What is traced: the network without the checks of its input."""

    def __init__(self, model: E2ENet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model._forward(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES)


def _producer(node: Any) -> Any:
    """The layer (or the input) that a value comes from, past views of it and a pooling's first output."""
    while True:
        if node.op == "call_method":  # contiguous
            node = node.args[0]
        elif node.op == "call_function" and node.args[1] == 0:  # pooling hands on its input beside its output
            node = node.args[0].args[0]
        elif node.op == "call_function":
            node = node.args[0]
        else:
            return node


def _channels(node: Any, channels: dict[Any, int], inputs: dict[Any, list[Any]]) -> int:
    return channels[node] if node in channels else _channels(inputs[node][0], channels, inputs)


def _reads(node: Any, layers: dict[Any, Any], inputs: dict[Any, list[Any]], live: dict[Any, Any]) -> list[np.ndarray]:
    """Which channels of each of its sources a layer reads for the outputs that are read themselves."""
    if isinstance(layers[node], StrideMaxPool3d):
        return [live[node]]
    read = _mask(layers[node])[live[node]].any(axis=0)
    read[0] |= live[node].any() and not read.any()  # one at least, which tells the size
    sizes = [len(live[source]) if source in live else len(read) for source in inputs[node]]
    return np.split(read, np.cumsum(sizes)[:-1])


def _mask(module: nn.Module) -> np.ndarray:
    """Active kernels (outputs, inputs) of a block, a head or a transposed convolution."""
    conv: Any = module.conv if isinstance(module, ConvBlock) else module
    mask = conv._buffers.get("kernel_mask")
    active = torch.ones(conv.weight.shape[:2], dtype=torch.bool) if mask is None else mask
    return (active.T if isinstance(conv, nn.ConvTranspose3d) else active).cpu().numpy()


def _engine_layer(
    module: nn.Module, outputs: np.ndarray, inputs: np.ndarray
) -> tuple[str, Layer, dict[str, Callable[[], Layer]]]:
    """What a module is, the engine's layer of it and other ways to run it, for the channels that are kept (bool)."""
    if isinstance(module, StrideMaxPool3d):
        return f"pooling by {module.stride}", Pooling(module.stride, np.flatnonzero(outputs[inputs])), {}
    mask = _mask(module)[outputs][:, inputs]
    if isinstance(module, StrideUp3d):
        weights = _array(module.weight.transpose(0, 1))[outputs][:, inputs]
        return f"transposed {weights.shape} with {mask.sum()} active", Expansion(weights, mask), {}
    conv: Any = module.conv if isinstance(module, ConvBlock) else module
    shifts = np.zeros(len(inputs), np.int64)
    norm = None
    if isinstance(module, ConvBlock):
        if module.shift_size > 1:
            for start, stop, shift in group_shifts(len(inputs), module.shift_size):
                shifts[start:stop] = shift
        norm = (
            _array(module.norm.weight)[outputs],
            _array(module.norm.bias)[outputs],
            module.norm.eps,
            module.norm.slope,
        )
    weights, shifts = _array(conv.weight)[outputs][:, inputs], shifts[inputs]
    stride: Triple = conv.stride
    description = f"convolution {weights.shape} with {mask.sum()} active, stride {stride}"
    others: dict[str, Callable[[], Layer]] = {
        name: partial(DenseConvolution, weights, shifts, stride, norm, dtype)
        for name, dtype in ((DENSE, torch.float32), (BFLOAT16, torch.bfloat16))
    }
    padding = int(conv.padding[1]), int(conv.padding[2])
    return description, Convolution(Kernels(weights, mask, shifts), stride, padding, norm), others


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
