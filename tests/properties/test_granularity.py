"""For any layers, groups, densities and fractions: groups share their inputs, and counts never change."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from e2enet.network.dsff import (
    active_kernels,
    fusion_layers,
    init_masks,
    prune_count,
    register_fusion_layer,
    set_group_size,
    update_masks,
)
from e2enet.network.granularity import active_units, shared_inputs, unit_mask

few = settings(max_examples=60, deadline=None, derandomize=True)
layers_of = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 40), st.booleans()), min_size=1, max_size=3)
sizes = st.sampled_from([2, 3, 8, 16, 32])


def network(shapes: list[tuple[int, int, bool]]) -> nn.ModuleList:
    """Return layers by their (inputs, outputs, transposed)."""
    torch.manual_seed(0)
    layers = [(nn.ConvTranspose3d if up else nn.Conv3d)(i, o, (1, 1, 2), bias=False) for i, o, up in shapes]
    for layer in layers:
        register_fusion_layer(layer)
    return nn.ModuleList(layers)


def groups(layer: nn.Module, tensor: Tensor, size: int) -> list[Tensor]:
    """Split a (dim 0, dim 1, ..) tensor into the parts (outputs, inputs, ..) of each group."""
    outputs_first = tensor.transpose(0, 1) if layer.transposed else tensor
    return [outputs_first[start : start + size] for start in range(0, layer.out_channels, size)]


def check(layer: nn.Module, size: int, kept: int) -> None:
    parts = groups(layer, layer.kernel_mask, size)
    for part in parts:
        assert torch.equal(part, part[:1].expand_as(part)), "output channels of a group differ"
        assert int(part[0].sum()) == kept
    table = shared_inputs(layer)
    assert table.tolist() == [torch.nonzero(part[0]).flatten().tolist() for part in parts]
    assert torch.count_nonzero(layer.weight[~layer.kernel_mask]) == 0
    assert torch.equal(unit_mask(layer, active_units(layer)), layer.kernel_mask)


@few
@given(
    shapes=layers_of,
    size=sizes,
    density=st.floats(0.01, 1),
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    gradient=st.booleans(),
    seed=st.integers(0, 99),
)
def test_groups_share_and_keep_their_number_of_inputs(
    shapes: list[tuple[int, int, bool]], size: int, density: float, fractions: list[float], gradient: bool, seed: int
) -> None:
    model = network(shapes)
    set_group_size(model, size)
    generator = torch.Generator().manual_seed(seed)
    init_masks(model, density, generator=generator)
    wanted = active_kernels(model, density)
    for fraction in [None, *fractions]:
        if fraction is not None:
            with torch.no_grad():
                for layer in model:
                    layer.weight[layer.kernel_mask] = 1 + torch.rand(int(layer.kernel_mask.sum()), 1, 1, 2)
            scores = {name: torch.rand(layer.kernel_mask.shape) for name, layer in fusion_layers(model).items()}
            churn = update_masks(model, fraction, scores=scores if gradient else None, generator=generator)
            assert all(0 <= share <= 1 for share in churn.values())
        for (name, layer), (inputs, outputs, _) in zip(fusion_layers(model).items(), shapes, strict=True):
            kept = max(1, round(density * inputs))  # the rule for a layer's kernels, applied to a group's inputs
            check(layer, size, kept)
            assert int(layer.kernel_mask.sum()) == wanted[name] == kept * outputs


@few
@given(shapes=layers_of, size=sizes, density=st.floats(0.2, 0.9), seed=st.integers(0, 99))
def test_what_stays_is_stronger_than_what_goes(
    shapes: list[tuple[int, int, bool]], size: int, density: float, seed: int
) -> None:
    model = network(shapes)
    set_group_size(model, size)
    init_masks(model, density, generator=torch.Generator().manual_seed(seed))
    before = {
        name: (layer.kernel_mask.clone(), layer.weight.detach().clone()) for name, layer in model.named_children()
    }
    update_masks(model, 0.4, generator=torch.Generator().manual_seed(seed + 1))
    for name, layer in model.named_children():
        mask, weight = before[name]
        parts = zip(*(groups(layer, tensor, size) for tensor in (mask, weight, layer.weight.detach())), strict=True)
        staying, going = list[Tensor](), list[Tensor]()  # mean norms of connections, over all groups of the layer
        for active, old, new in parts:
            stays = active[0] & (new.abs().sum((0, 2, 3, 4)) > 0)
            norms = old.abs().sum((0, 2, 3, 4)) / len(old)
            assert torch.equal(old[:, stays], new[:, stays])
            staying.append(norms[stays])
            going.append(norms[active[0] & ~stays])
        assert len(torch.cat(going)) == prune_count(len(torch.cat(staying)) + len(torch.cat(going)), 0.4)
        if len(torch.cat(staying)):
            assert torch.cat(staying).min() >= torch.cat(going).max() * (1 - 1e-6)  # tolerates rounding of means
