"""Trace a network (torch.fx) down to what an engine runs: blocks, transposed convolutions, poolings, heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from e2enet.network.blocks import ConvBlock
from e2enet.network.e2enet import E2ENet
from e2enet.network.layers import StrideUp3d
from e2enet.network.pooling import StrideMaxPool3d

LEAVES = (ConvBlock, StrideUp3d, StrideMaxPool3d, nn.Conv3d)


@dataclass(frozen=True)
class Call:
    """One call of a module: value number `output` is its output for the values `inputs`, concatenated.

    Value 0 is the network's input.
    """

    name: str
    module: Any
    inputs: tuple[int, ...]
    output: int


def trace(model: E2ENet, *, training: bool) -> tuple[list[Call], tuple[int, ...]]:
    """Return the calls of a forward pass in their order, and the numbers of the values that hold its logits.

    With deep supervision in this mode these are the logits of every head, else of the first. The model is not changed.
    """
    modules = dict(model.named_modules())
    before, model.training = model.training, training
    try:
        graph = _Tracer().trace(_Unchecked(model))
    finally:
        model.training = before
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    numbers = {node: number for number, node in enumerate(nodes, start=1)}
    calls = []
    for node in nodes:
        name = str(node.target).removeprefix("model.")
        inputs = tuple(numbers.get(skip_views(source), 0) for source in node.args)
        calls.append(Call(name, modules[name], inputs, numbers[node]))
    (result,) = (node.args[0] for node in graph.nodes if node.op == "output")
    results = result if isinstance(result, list | tuple) else [result]
    return calls, tuple(numbers[skip_views(node)] for node in results)


def kernel_mask(module: nn.Module) -> Tensor:
    """Return the active kernels of a block, head or transposed convolution, bool (dim 0, dim 1) of its weight."""
    conv: Any = module.conv if isinstance(module, ConvBlock) else module
    mask: Tensor | None = conv._buffers.get("kernel_mask")
    return torch.ones(conv.weight.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()


class _Unchecked(nn.Module):
    """The network without its input checks, for tracing."""

    def __init__(self, model: E2ENet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model._forward(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES)


def skip_views(node: Any) -> Any:
    """Return the layer (or the input) that a value comes from; skip views and a pooling's first output."""
    while True:
        if node.op == "call_method":  # contiguous
            node = node.args[0]
        elif node.op == "call_function" and node.args[1] == 0:  # pooling returns its input beside its output
            node = node.args[0].args[0]
        elif node.op == "call_function":
            node = node.args[0]
        else:
            return node
