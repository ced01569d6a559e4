"""Packed state dicts: the weights kept of fusion layers, and unpacking that restores every bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from e2enet.network.build import build_network
from e2enet.network.dsff import fusion_layers, init_masks, set_group_size
from e2enet.network.packed import MAX_VALUES, pack_kernels, packed_weights, packing_problems, unpack_kernels

STRIDES = ((1, 2, 2), (2, 2, 2))
E2ENET = {"name": "e2enet", "base_features": 4, "max_features": 12}
# Network settings, group size and density. With density None no masks are drawn, so every kernel is active.
VARIANTS: dict[str, tuple[dict[str, Any], int, float | None]] = {
    "grid": (E2ENET, 1, 0.2),
    "grid with all kernels": (E2ENET, 1, None),
    "grid of (3, 3, 3) kernels": (E2ENET | {"kernel_size": [3, 3, 3], "shift_size": 1}, 1, 0.2),
    "groups": (E2ENET | {"base_features": 8, "max_features": 24}, 8, 0.3),
    "U-Net": (E2ENET | {"fusion": "unet"}, 1, None),
    "dynunet": ({"name": "dynunet", "base_features": 4}, 1, None),
}


def network_of(variant: str) -> nn.Module:
    settings, group_size, density = VARIANTS[variant]
    torch.manual_seed(0)
    network = build_network(settings, in_channels=1, num_classes=3, strides=STRIDES)
    set_group_size(network, group_size)
    if density is not None:
        init_masks(network, density, generator=torch.Generator().manual_seed(1))
    return network


def values(state: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in state.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_unpacking_gives_back_every_bit(variant: str) -> None:
    network = network_of(variant)
    state = network.state_dict()
    packed = pack_kernels(state)
    expected = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    assert packing_problems(packed, expected) == []
    unpacked = unpack_kernels(packed, expected)
    assert list(unpacked) == list(packed) == list(state)
    for name, value in state.items():
        assert unpacked[name].dtype == value.dtype and torch.equal(unpacked[name], value), name
    layers = fusion_layers(network)
    assert set(packed_weights(packed, expected)) == {f"{name}.weight" for name in layers}
    pruned = sum(
        int((~layer.kernel_mask).sum()) * layer.weight.shape[2:].numel()  # values that packing removes
        for layer in layers.values()
    )
    assert values(packed) == values(state) - pruned
    assert (pruned > 0) == (VARIANTS[variant][2] is not None)


def test_kernels_are_in_the_order_of_the_mask() -> None:
    weight = torch.arange(2 * 3 * 4.0).view(2, 3, 1, 2, 2)
    mask = torch.tensor([[False, True, False], [True, False, True]])
    state = {"x.conv.weight": weight, "x.conv.kernel_mask": mask, "x.norm.weight": torch.ones(2)}
    packed = pack_kernels(state)
    assert torch.equal(packed["x.conv.weight"], torch.stack([weight[i, j] for i, j in mask.nonzero().tolist()]))
    assert packed["x.norm.weight"] is state["x.norm.weight"] and packed["x.conv.kernel_mask"] is mask
    # Inactive weights are zero after unpacking, whatever they were.
    unpacked = unpack_kernels(packed, state)["x.conv.weight"]
    assert torch.equal(unpacked, weight * mask.view(2, 3, 1, 1, 1))


def test_a_layer_without_a_kernel() -> None:
    state = {"x.weight": torch.ones(2, 3, 1, 2, 2), "x.kernel_mask": torch.zeros(2, 3, dtype=torch.bool)}
    packed = pack_kernels(state)
    assert packed["x.weight"].shape == (0, 1, 2, 2) and packing_problems(packed, state) == []
    assert torch.equal(unpack_kernels(packed, state)["x.weight"], torch.zeros(2, 3, 1, 2, 2))


def test_unpacked_weights_take_no_more_than_the_networks() -> None:
    state = {"x.weight": torch.ones(2, 3, 1, 2, 2), "x.kernel_mask": torch.ones(2, 3, dtype=torch.bool)}
    packed = pack_kernels(state)
    packed["x.weight"] = packed["x.weight"].double()
    assert unpack_kernels(packed, state)["x.weight"].dtype == torch.float32


def test_problems_name_the_layer() -> None:
    state = {"x.weight": torch.ones(2, 3, 1, 2, 2), "x.kernel_mask": torch.ones(2, 3, dtype=torch.bool)}
    packed = pack_kernels(state)
    assert packing_problems(packed | {"x.weight": packed["x.weight"][1:]}, state) == [
        "x.weight has shape (5, 1, 2, 2), the active kernels of its mask (6, 1, 2, 2)"
    ]
    assert packing_problems(packed | {"x.weight": torch.ones(6, 1, 3, 3)}, state) == [
        "x.weight has shape (6, 1, 3, 3), the active kernels of its mask (6, 1, 2, 2)"
    ]
    assert packing_problems(packed | {"x.kernel_mask": torch.ones(2, 3)}, state) == [
        "x.kernel_mask is of torch.float32, bool expected"
    ]
    # Reported elsewhere, where weights are compared with a network.
    assert packing_problems(packed | {"x.kernel_mask": torch.ones(2, 2, dtype=torch.bool)}, state) == []
    assert packing_problems({"x.weight": packed["x.weight"]}, state) == []


def test_kernels_that_a_small_file_could_claim_stay_whole() -> None:
    """Otherwise an empty mask without weights could claim a network of any size."""
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for depth in (MAX_VALUES, MAX_VALUES + 1):
        state = {"x.weight": torch.ones(2, 3, depth, 1, 1), "x.kernel_mask": mask}
        claimed = {"x.weight": torch.empty(0, depth, 1, 1), "x.kernel_mask": mask}
        packed = depth == MAX_VALUES
        assert bool(packed_weights(pack_kernels(state), state)) == packed
        assert (packing_problems(claimed, state) == []) == packed
