"""Active kernels per layer and flow, with the target node in the grid."""

from __future__ import annotations

import torch
from torch import nn

from e2enet.network import E2ENet
from e2enet.network.connections import Connection, connections
from e2enet.network.dsff import density, fusion_layers, init_masks, register_fusion_layer

STRIDES = ((1, 2, 2), (2, 2, 2))


def tiny(**options) -> E2ENet:
    torch.manual_seed(0)
    return E2ENet(1, 3, STRIDES, base_features=2, max_features=8, **options)


def test_every_flow_of_every_node_has_its_place() -> None:
    found = {(c.column, c.level, c.flow): c.kernels for c in connections(tiny())}
    # Widths f: 2, 4, 8. A node at level i has f_i x (f_i forward, f_i up, f_(i-1) down) and f_(i+1) x f_i transposed.
    assert found == {
        (1, 0, "transposed"): 4 * 2,
        (1, 0, "forward"): 2 * 2,
        (1, 0, "up"): 2 * 2,
        (1, 1, "transposed"): 8 * 4,
        (1, 1, "forward"): 4 * 4,
        (1, 1, "up"): 4 * 4,
        (1, 1, "down"): 4 * 2,
        (1, 1, "inner"): 4 * 4,  # nodes of the last diagonal have two convolutions
        (2, 0, "transposed"): 4 * 2,
        (2, 0, "forward"): 2 * 2,
        (2, 0, "up"): 2 * 2,
        (2, 0, "inner"): 2 * 2,
    }


def test_active_kernels_are_those_of_the_masks() -> None:
    network = tiny()
    init_masks(network, 0.3, generator=torch.Generator().manual_seed(0))
    layer = network.decoder.columns[0][1].blocks[0].conv  # X[1, 1]: 4 x (4 forward, 4 up, 2 down)
    layer.kernel_mask.zero_()
    layer.kernel_mask[0, :3] = True
    layer.kernel_mask[1, 4] = True
    layer.kernel_mask[:, 8:] = True
    found = connections(network)
    active = {c.flow: c.active for c in found if (c.level, c.column) == (1, 1) and c.layer.endswith("blocks.0.conv")}
    assert active == {"forward": 3, "up": 1, "down": 8}
    assert {c.layer for c in found} == set(fusion_layers(network))
    assert sum(c.active for c in found) / sum(c.kernels for c in found) == density(network)


def test_networks_without_grid() -> None:
    assert connections(tiny(fusion="unet")) == []
    other = nn.Sequential(nn.Conv3d(2, 3, 1), nn.ConvTranspose3d(3, 2, 2))
    for layer in other:
        register_fusion_layer(layer)
    assert connections(other) == [
        Connection("0", None, None, "inner", 6, 6),
        Connection("1", None, None, "transposed", 6, 6),
    ]


def test_places_follow_from_what_an_operation_reads() -> None:
    """Nothing but the program tells them: not names, and not sizes, which two levels may share."""
    model = E2ENet(1, 3, ((1, 1, 1), (2, 2, 2), (1, 1, 1)), base_features=2)
    init_masks(model, 0.4, generator=torch.Generator().manual_seed(0))
    for network, prefix in ((model, ""), (nn.ModuleDict({"inside": model}), "inside.")):
        found = connections(network)
        assert {(c.level, c.column) for c in found} == {(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (0, 3)}
        for connection in found:
            node = f"{prefix}decoder.columns.{int(connection.column or 0) - 1}.{connection.level}."
            assert connection.layer.startswith(node)
    for _, layer in fusion_layers(model).items():
        layer.flows = None  # as if nobody had named them
    assert [c.flow for c in connections(nn.ModuleDict({"inside": model}))] == [c.flow for c in found]
    unet = tiny(fusion="unet")
    register_fusion_layer(unet.decoder.stages[1][0].conv)
    assert [(c.level, c.column, c.flow, c.kernels) for c in connections(unet)] == [
        (1, 1, "up", 4 * 4),
        (1, 1, "forward", 4 * 4),
    ]
