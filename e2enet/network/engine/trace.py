"""A network's code traced (torch.fx) down to what an engine runs: blocks, transposed convolutions, poolings, heads."""

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
    """The network calls a module: value number `output` is what it makes of the values `inputs`, concatenated.

    Value 0 is the network's input.
    """

    name: str
    module: Any
    inputs: tuple[int, ...]
    output: int


def trace(model: E2ENet, *, training: bool) -> tuple[list[Call], tuple[int, ...]]:
    """The calls of a forward pass in their order, and the numbers of the values that hold its logits.

    In training mode with deep supervision these are those of every head, else of the first. The model is not changed.
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
    """Active kernels of a block, a head or a transposed convolution, as its weight has them: bool (dim 0, dim 1)."""
    conv: Any = module.conv if isinstance(module, ConvBlock) else module
    mask: Tensor | None = conv._buffers.get("kernel_mask")
    return torch.ones(conv.weight.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()


class _Unchecked(nn.Module):
    """What is traced: the network without the checks of its input."""

    def __init__(self, model: E2ENet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model._forward(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES)


def skip_views(node: Any) -> Any:
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
