"""Count a network's active kernels per fusion layer and flow, with their place in the fusion grid.

The paper's figure on learned connections draws these counts on the grid: levels down, columns across, and the flows
that meet in a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from e2enet.network.decoders import FusionGrid
from e2enet.network.dsff import fusion_layers

# Besides the flows that a layer names (forward, up, down): a node's transposed convolution, which brings the upward
# flow to the node's resolution, and its second convolution, which follows the concatenated flows.
TRANSPOSED, INNER = "transposed", "inner"


@dataclass(frozen=True)
class Connection:
    """Kernels of one flow into one fusion layer.

    Attributes:
        layer: The layer's name in the network.
        level: i of the node X[i, j]; 0 is full resolution. None outside a grid.
        column: j of the node X[i, j], from 1. None outside a grid.
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

    A flow that a layer lacks (down at level 0) is left out. Layers that other networks register with
    `register_fusion_layer` have no place. A layer without named flows has the flow "transposed" or "inner", by its
    kind.
    """
    nodes = {name: place for grid, module in _grids(network) for name, place in _nodes(grid, module)}
    found = []
    for name, layer in fusion_layers(network).items():
        level, column = next((place for node, place in nodes.items() if name.startswith(node)), (None, None))
        for flow, mask in _flows(layer):
            found.append(Connection(name, level, column, flow, int(mask.sum()), mask.numel()))
    return found


def _grids(network: nn.Module) -> Iterator[tuple[str, FusionGrid]]:
    for name, module in network.named_modules():
        if isinstance(module, FusionGrid):
            yield f"{name}." if name else "", module


def _nodes(prefix: str, grid: FusionGrid) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (prefix of its layers' names, (level, column)) of every node."""
    for index, nodes in enumerate(grid.columns):
        assert isinstance(nodes, nn.ModuleList)
        for level in range(len(nodes)):
            # The dot keeps column 1 apart from column 10.
            yield f"{prefix}columns.{index}.{level}.", (level, index + 1)


def _flows(layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield (flow, its part of the mask); parts without kernels are left out."""
    flows = layer.flows
    if flows is None:
        flows = {TRANSPOSED if getattr(layer, "transposed", False) else INNER: layer.kernel_mask.shape[1]}
    for flow, part in zip(flows, layer.kernel_mask.split(list(flows.values()), dim=1), strict=True):
        if part.numel():
            yield flow, part
