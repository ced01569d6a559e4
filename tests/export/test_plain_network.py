"""Exported networks: the same function in torch's own layers, with masks in the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from e2enet.data.planning.plan import Plan
from e2enet.export.plain_network import PlainNormAct, dynamic_dims, example_input, plain_network, size_steps
from e2enet.network import E2ENet
from e2enet.network.dsff import fusion_layers, init_masks
from e2enet.network.norm import InstanceNormAct

STRIDES = ((1, 2, 2), (2, 2, 2), (2, 1, 2))
VARIANTS: dict[str, dict[str, Any]] = {
    "grid": {},
    "released": {"shift_size": 5, "shift_input": True},
    "kernel_333": {"kernel_size": (3, 3, 3), "inner_kernel_size": (1, 3, 3)},
    "kernel_313": {"kernel_size": (3, 1, 3)},
    "unet": {"fusion": "unet"},
}


def make_network(variant: str = "grid") -> E2ENet:
    torch.manual_seed(1)
    network = E2ENet(2, 3, STRIDES, base_features=4, max_features=12, **VARIANTS[variant]).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.3)
    init_masks(network, 0.3, generator=torch.Generator().manual_seed(1))
    return network


def plan(patch: tuple[int, int, int]) -> Plan:
    return Plan(2, (3.0, 1.0, 1.0), patch, STRIDES, 2, ({"scheme": "none"},), patch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_plain_network_is_the_same_function(variant: str) -> None:
    network = make_network(variant).double()  # so that rounding hides nothing
    plain = plain_network(network)
    x = torch.randn(2, 2, 8, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), network(x), atol=1e-9, rtol=0)
    kinds = {type(module).__module__ for module in plain.modules() if next(module.parameters(False), None) is not None}
    assert kinds == {"torch.nn.modules.conv", PlainNormAct.__module__}


def test_masks_are_in_the_weights_and_the_model_is_left_as_it_was() -> None:
    network = make_network()
    with torch.no_grad():
        for layer in fusion_layers(network).values():
            layer.weight[~layer.kernel_mask] = 7  # a mask hides any value
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = plain_network(network)
    assert fusion_layers(plain) == {} and len(fusion_layers(network)) > 5
    masks = {name: layer.kernel_mask for name, layer in fusion_layers(network).items()}
    for name, mask in masks.items():
        kernels = plain.get_submodule(name).weight.flatten(2).abs().sum(2) > 0
        assert torch.equal(kernels, mask)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_norm_against_torch() -> None:
    norm = InstanceNormAct(3)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64) * 3 + 7
    norm.double()
    expected = nn.functional.leaky_relu(nn.functional.instance_norm(x, None, None, norm.weight, norm.bias), 0.01)
    torch.testing.assert_close(PlainNormAct(norm)(x), expected)


def test_sizes_vary_in_steps_of_the_strides() -> None:
    assert size_steps(plan((8, 16, 24))) == (4, 4, 8)
    assert example_input(plan((8, 16, 24)), 2).shape == (2, 2, 8, 8, 16)
    assert sorted(dynamic_dims(plan((8, 16, 24)))) == [0, 2, 3, 4]
    # A patch whose depth is a single step: no other depth is offered.
    assert example_input(plan((4, 16, 24)), 1).shape == (2, 1, 4, 8, 16)
    assert sorted(dynamic_dims(plan((4, 16, 24)))) == [0, 3, 4]
