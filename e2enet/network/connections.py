"""Count a network's active kernels per fusion layer and flow, with their place in the fusion grid.

The paper's figure on learned connections draws these counts on the grid: levels down, columns across, and the flows
that meet in a node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from e2enet.network.dsff import fusion_layers
from e2enet.network.e2enet import E2ENet
from e2enet.network.program import BLOCK, EXPANSION, HEAD, POOLING, Program
from e2enet.network.tracing import find_program

# Besides the flows that meet in a node (forward, up, down): a node's transposed convolution, which brings the upward
# flow to the node's resolution, and its second convolution, which follows the concatenated flows.
TRANSPOSED, INNER = "transposed", "inner"
# What a flow is called by the operation that it comes from; nothing reads a head.
FLOWS: dict[str, str | None] = {BLOCK: "forward", EXPANSION: "up", POOLING: "down", HEAD: None}


@dataclass(frozen=True)
class Connection:
    """Kernels of one flow into one fusion layer.

    Attributes:
        layer: The layer's name in the network.
        level: i of the node X[i, j]; 0 is full resolution. None in other networks than E2ENet.
        column: j of the node X[i, j], from 1. None in other networks than E2ENet.
        flow: "forward" (from the node to the left), "up" (from the level below), "down" (from the level above),
            "transposed" (the node's transposed convolution) or "inner" (its second convolution).
        active: Active kernels.
        kernels: All kernels.
    """

    layer: str
    level: int | None
    column: int | None
    flow: str
    active: int
    kernels: int


def connections(network: nn.Module) -> list[Connection]:
    """Return the connections of every fusion layer in the network's order; empty without fusion layers.

    The flows of an E2ENet are what its operations read. A flow that a layer lacks (down at level 0) is left out. Layers
    that other networks register with `register_fusion_layer` have no place, and the flows that they were registered
    with, else "transposed" or "inner", by their kind.

    Raises:
        InputError: an E2ENet has an operation that is not in `FLOWS`.
    """
    nodes = {id(layer): node for module in network.modules() for layer, node in _nodes(module)}
    found = []
    for name, layer in fusion_layers(network).items():
        level, column, flows = nodes.get(id(layer)) or (None, None, layer.flows or _own_flow(layer))
        for flow, mask in zip(flows, layer.kernel_mask.split(list(flows.values()), dim=1), strict=True):
            if mask.numel():
                found.append(Connection(name, level, column, flow, int(mask.sum()), mask.numel()))
    return found


def _nodes(network: nn.Module) -> Iterator[tuple[Any, tuple[int, int, Mapping[str, int]]]]:
    """Yield each fusion layer of an E2ENet with its level, its column, and the channels that it reads of each flow."""
    program = find_program(network)
    if program is None:
        return
    assert isinstance(network, E2ENet)
    names = program.implementations("the report on connections", FLOWS, "an entry in FLOWS")
    every = range(len(program.operations) + 1)
    channels = program.walk(network.in_channels, lambda operation, read: operation.output_channels(sum(read)), every)
    columns = program.walk(0, lambda operation, read: max(read) + (operation.kind == EXPANSION), every)
    levels = _levels(program)
    for operation in program.operations:
        if "kernel_mask" in operation.conv._buffers:
            conv, inputs, output = operation.conv, operation.inputs, operation.output
            flows = {str(names[number]): channels[number] for number in inputs} if len(inputs) > 1 else _own_flow(conv)
            yield conv, (levels[output], columns[output], flows)


def _levels(program: Program) -> dict[int, int]:
    """Return the level of each value: going backward from the heads, an expansion reads what is one level deeper."""
    levels = {number: level for level, number in enumerate(program.results)}
    deeper = {EXPANSION: 1, POOLING: -1}
    for operation in reversed(program.operations):
        for number in operation.inputs:  # the decoder, which comes first here, reads what each encoder stage wrote
            levels.setdefault(number, levels[operation.output] + deeper.get(operation.kind, 0))
    return levels


def _own_flow(layer: Any) -> dict[str, int]:
    """Return the one flow of a layer that joins none."""
    return {TRANSPOSED if getattr(layer, "transposed", False) else INNER: layer.kernel_mask.shape[1]}
