"""Read the program of an E2ENet: its forward pass is traced by torch.fx, which keeps every operation whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from e2enet.network.blocks import BlockStack, ConvBlock
from e2enet.network.decoders import FusionGrid, FusionNode, UNetDecoder
from e2enet.network.e2enet import E2ENet
from e2enet.network.layers import PlaneConv3d, StrideUp3d
from e2enet.network.norm import InstanceNormAct
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.program import KINDS, Operation, Program
from e2enet.network.recompute import run_once

# Which modules each module of an E2ENet may hold. A plain convolution is a head; one with a norm belongs to a block.
CHILDREN: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    E2ENet: (nn.ModuleList, FusionGrid, UNetDecoder),
    FusionGrid: (nn.ModuleList,),
    UNetDecoder: (nn.ModuleList,),
    FusionNode: (StrideUp3d, StrideMaxPool3d, BlockStack),
    nn.ModuleList: (nn.ModuleList, BlockStack, FusionNode, StrideUp3d, nn.Conv3d),
    BlockStack: (ConvBlock,),
    ConvBlock: (PlaneConv3d, InstanceNormAct),
    PlaneConv3d: (),
    InstanceNormAct: (),
    StrideUp3d: (),
    StrideMaxPool3d: (),
    nn.Conv3d: (),
}


def read_program(model: E2ENet, *, training: bool) -> Program:
    """Trace a network's forward pass in training or eval mode. The model is not changed."""
    modules = dict(model.named_modules())
    before = model.training, model.run_part
    model.training, model.run_part = training, run_once  # what runs parts twice has the same operations
    try:
        graph = _Tracer().trace(_Unchecked(model))
    finally:
        model.training, model.run_part = before
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    numbers = {node: number for number, node in enumerate(nodes, start=1)}
    operations = []
    for node in nodes:
        name = str(node.target).removeprefix("model.")
        inputs = tuple(numbers.get(skip_views(source), 0) for source in node.args)
        operations.append(Operation(name, modules[name], inputs, numbers[node]))
    (result,) = (node.args[0] for node in graph.nodes if node.op == "output")
    results = result if isinstance(result, list | tuple) else [result]
    return Program(tuple(operations), tuple(numbers[skip_views(node)] for node in results))


def find_program(network: nn.Module) -> Program | None:
    """Return the program of an E2ENet, with every head; None if the network computes, or holds, anything else.

    So a program that is found tells all that the network computes.
    """
    if not isinstance(network, E2ENet):
        return None
    kind = type(network)
    if kind.forward is not E2ENet.forward or kind._forward is not E2ENet._forward:
        return None
    known = CHILDREN | {kind: CHILDREN[E2ENet]}
    if any(type(child) not in known[type(module)] for module in network.modules() for child in module.children()):
        return None
    with _every_head(network):
        return read_program(network, training=False)


@contextmanager
def _every_head(network: E2ENet) -> Iterator[None]:
    before, network.deep_supervision_in_eval = network.deep_supervision_in_eval, True
    try:
        yield
    finally:
        network.deep_supervision_in_eval = before


class _Unchecked(nn.Module):
    """The network without its input checks, for tracing."""

    def __init__(self, model: E2ENet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model._forward(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, tuple(KINDS))


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
