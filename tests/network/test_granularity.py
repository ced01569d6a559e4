"""Kernels or groups as units: hand-worked pruning and growth, the old results for kernels, and shared inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from e2enet.network import E2ENet, dsff
from e2enet.network.cost import count_cost
from e2enet.network.dsff import (
    active_kernels,
    fusion_layers,
    init_masks,
    kernel_scores,
    prune_count,
    register_fusion_layer,
    set_group_size,
    update_masks,
)
from e2enet.network.granularity import chosen_group_size, shared_inputs, unit_mask, unit_shape


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(
    norms: list[list[float]], mask: list[list[int]], group_size: int, *, transposed: bool = False
) -> nn.Module:
    """Return a layer of 1 x 1 x 1 kernels. Rows are output channels, whichever dim of the weight these are."""
    weight, active = torch.tensor(norms), torch.tensor(mask, dtype=torch.bool)
    outputs, inputs = weight.shape
    if transposed:
        layer: nn.Module = nn.ConvTranspose3d(inputs, outputs, 1, bias=False)
        weight, active = weight.T, active.T
    else:
        layer = nn.Conv3d(inputs, outputs, 1, bias=False)
    register_fusion_layer(layer)
    layer.kernel_mask.copy_(active)
    set_group_size(layer, group_size)
    with torch.no_grad():
        layer.weight.copy_(weight[:, :, None, None, None])
    return layer


def by_output(tensor: Tensor, layer: nn.Module) -> list[list[float]]:
    matrix = tensor.detach().reshape(tensor.shape[:2])
    return (matrix.T if getattr(layer, "transposed", False) else matrix).tolist()


NORMS = [
    [2.5, -5.0, 3.75, 0.0],
    [2.5, 0.5, -0.75, 0.0],
    [0.0, 3.0, 3.0, 1.0],
]
MASK = [[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1]]  # groups of two: {0, 1} and a smaller one {2}
GROWTH = [[0.0, 0.0, 9.0, 5.0], [0.0, 0.0, 0.0, 5.0], [4.0, 9.0, 0.0, 0.0]]


@pytest.mark.parametrize("transposed", [False, True])
def test_an_update_of_groups_by_hand(transposed: bool) -> None:
    layer = layer_of(NORMS, MASK, 2, transposed=transposed)
    scores = torch.tensor(GROWTH)
    churn = update_masks(layer, 0.3, scores={"": scores.T if transposed else scores})
    # n = ceil(0.3 * 6) = 2 connections of the layer are pruned. Mean norms are 2.5, 2.75, 2.25 in the first group and
    # 3, 3, 1 in the second, so input 3 of the second and input 2 of the first are pruned. (In the first group, input 1
    # has the smallest single kernel, and input 0 the smallest maximum.) Growth scores of inactive inputs are then 4.5
    # (input 2) and 5 (input 3) in the first group, 4 (input 0) and 0 (input 3) in the second.
    assert by_output(layer.kernel_mask, layer) == [[1, 1, 0, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert by_output(layer.weight, layer) == [[2.5, -5, 0, 0], [2.5, 0.5, 0, 0], [0, 3, 3, 0]]
    assert churn == {"": 3 / 9}  # two kernels in the first group, one in the second


def test_a_connection_just_pruned_may_grow_again_from_zero() -> None:
    layer = layer_of([[1.0, 2.0], [1.0, 2.0]], [[1, 1], [1, 1]], 8)
    assert update_masks(layer, 0.5, generator=seeded()) == {"": 0.0}
    assert bool(layer.kernel_mask.all()) and by_output(layer.weight, layer) == [[0, 2], [0, 2]]


def test_ties_fall_to_the_lower_input() -> None:
    layer = layer_of([[1.0, 2.0, 2.0, 0.0], [2.0, 1.0, 1.0, 0.0]], [[1, 1, 1, 0]] * 2, 2)
    update_masks(layer, 0.5, scores={"": torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 2)})
    # All active inputs have equal norms: inputs 0 and 1 are pruned. Input 3 grows by its score, input 0 by its index.
    assert by_output(layer.kernel_mask, layer) == [[1, 0, 1, 1]] * 2
    assert by_output(layer.weight, layer) == [[0, 0, 2, 0], [0, 0, 1, 0]]


def test_the_weakest_of_the_layer_go_and_every_group_keeps_its_number() -> None:
    norms = [[1.0, 2.0, 3.0, 0.0, 0.0]] * 2 + [[4.0, 5.0, 6.0, 0.0, 0.0]] * 2
    layer = layer_of(norms, [[1, 1, 1, 0, 0]] * 4, 2)
    update_masks(layer, 0.3, scores={"": torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0]] * 4)})
    # ceil(0.3 * 6) = 2: inputs 0 and 1 of the first group are pruned. All kernels of the second group are stronger.
    assert by_output(layer.kernel_mask, layer) == [[0, 0, 1, 1, 1]] * 2 + [[1, 1, 1, 0, 0]] * 2


def test_random_growth_reaches_every_inactive_input_of_the_group() -> None:
    grown = set()
    for seed in range(30):
        layer = layer_of([[1.0, 2.0, 3.0, 0.0, 0.0]] * 4, [[1, 1, 1, 0, 0]] * 4, 2)
        update_masks(layer, 0.3, generator=seeded(seed))
        first, second = shared_inputs(layer).tolist()
        assert {1, 2} < set(first) and {1, 2} < set(second)
        grown.add((*(set(first) - {1, 2}), *(set(second) - {1, 2})))
    assert {pair[0] for pair in grown} == {pair[1] for pair in grown} == {0, 3, 4}
    assert any(one != other for one, other in grown)  # groups draw independently


def reference_update(layer: nn.Module, fraction: float, scores: Tensor | None, generator: torch.Generator) -> None:
    """Prune and regrow single kernels of the whole layer: the code from before groups existed."""
    mask, weight = layer.kernel_mask.flatten(), kernel_scores(layer.weight.detach()).flatten()
    active = torch.nonzero(mask).flatten()
    count = prune_count(len(active), fraction)
    mask = mask.clone()
    mask[active[torch.argsort(weight[active], stable=True)[:count]]] = False
    layer.weight.data[~mask.view_as(layer.kernel_mask)] = 0
    inactive = torch.nonzero(~mask).flatten()
    if scores is None:
        chosen = torch.randperm(len(inactive), generator=generator)[:count]
    else:
        chosen = torch.argsort(scores.flatten()[inactive], descending=True, stable=True)[:count]
    mask[inactive[chosen]] = True
    layer.kernel_mask.copy_(mask.view_as(layer.kernel_mask))


@pytest.mark.parametrize("gradient", [False, True])
def test_kernels_are_drawn_pruned_and_regrown_as_ever(gradient: bool) -> None:
    def fresh() -> nn.ModuleList:
        torch.manual_seed(0)
        layers = nn.ModuleList([nn.Conv3d(9, 7, (1, 3, 3)), nn.ConvTranspose3d(5, 8, 2, 2)])
        for layer in layers:
            register_fusion_layer(layer)
        return layers

    ours, reference = fresh(), fresh()
    init_masks(ours, 0.3, generator=seeded(4))
    generator = seeded(4)
    for layer in reference:
        mask = torch.zeros(layer.kernel_mask.numel(), dtype=torch.bool)
        mask[torch.randperm(mask.numel(), generator=generator)[: round(0.3 * mask.numel())]] = True
        layer.kernel_mask.copy_(mask.view_as(layer.kernel_mask))
        layer.weight.data[~layer.kernel_mask] = 0
    for step in range(3):
        scores = {name: torch.rand(layer.kernel_mask.shape) for name, layer in fusion_layers(ours).items()}
        update_masks(ours, 0.4, scores=scores if gradient else None, generator=seeded(step))
        generator = seeded(step)
        for name, layer in fusion_layers(reference).items():
            reference_update(layer, 0.4, scores[name] if gradient else None, generator)
        for name, value in reference.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name
        with torch.no_grad():
            for one, other in zip(ours.parameters(), reference.parameters(), strict=True):
                one.copy_(torch.randn(one.shape))
                other.copy_(one)
        dsff.apply_masks(ours)
        dsff.apply_masks(reference)


def test_tables_of_units() -> None:
    conv, up = nn.Conv3d(6, 20, 1), nn.ConvTranspose3d(6, 20, 1)
    for layer in (conv, up):
        register_fusion_layer(layer)
        shapes = []
        for group_size in (1, 8, 16, 32):
            set_group_size(layer, group_size)
            shapes.append(unit_shape(layer))
        assert shapes == [(1, 120), (3, 6), (2, 6), (1, 6)]
    set_group_size(up, 16)
    units = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]], dtype=torch.bool)
    mask = unit_mask(up, units)  # (inputs, outputs)
    assert mask.shape == (6, 20) and mask.sum(1).tolist() == [16, 4, 0, 16, 0, 0]
    assert mask[0, :16].all() and mask[1, 16:].all()


@pytest.mark.parametrize("transposed", [False, True])
def test_shared_inputs_are_read_from_the_mask(transposed: bool) -> None:
    mask = [[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    layer = layer_of(NORMS, mask, 2, transposed=transposed)
    table = shared_inputs(layer)
    assert table is not None and table.dtype == torch.int64 and table.tolist() == [[0, 2], [1, 3]]
    one = layer.kernel_mask.T if transposed else layer.kernel_mask
    one[2, 0] = True
    assert shared_inputs(layer) is None  # unequal numbers of inputs give no table
    one[2, 1] = False
    assert shared_inputs(layer).tolist() == [[0, 2], [0, 3]]  # the old mask is not cached
    one[1] = one[2]
    assert shared_inputs(layer) is None  # output channels 0 and 1 differ
    one.fill_(False)
    assert shared_inputs(layer).shape == (2, 0)
    set_group_size(layer, 1)
    one.fill_(True)
    assert shared_inputs(layer) is None  # single kernels share nothing


def test_what_cannot_be_grouped_is_refused() -> None:
    layer = layer_of(NORMS, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], 1)
    for size in (0, -1, 8.0, "16", None):
        with pytest.raises(ValueError, match="group_size must be a whole number >= 1"):
            set_group_size(layer, size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask is not shared by groups of 2 output channels"):
        set_group_size(nn.Sequential(layer), 2)
    depthwise = nn.Conv3d(4, 4, 1, groups=4)
    register_fusion_layer(depthwise)
    set_group_size(depthwise, 1)
    with pytest.raises(ValueError, match=r"0: output channels of a convolution with groups=4"):
        set_group_size(nn.Sequential(depthwise), 2)
    with pytest.raises(ValueError, match='"kernel" or "group"'):
        chosen_group_size("groups", 8)
    assert (chosen_group_size("kernel", 8), chosen_group_size("group", 8)) == (1, 8)


def test_a_mask_written_by_hand_is_not_taken_for_a_shared_one() -> None:
    layer = layer_of(NORMS, MASK, 2)
    layer.kernel_mask[0, 0] = False
    with pytest.raises(ValueError, match="not shared by groups of 2"):
        update_masks(layer, 0.5)
    with pytest.raises(ValueError, match=r"scores of shape \(3, 4\), got \(4, 3\)"):
        update_masks(layer_of(NORMS, MASK, 2), 0.5, scores={"": torch.ones(4, 3)})


def grid(group_size: int) -> E2ENet:
    torch.manual_seed(0)
    model = E2ENet(1, 2, [(1, 2, 2), (2, 2, 2)], base_features=12)
    set_group_size(model, group_size)
    return model


@pytest.mark.parametrize("group_size", [8, 16, 32])
def test_every_group_of_the_grid_starts_with_as_many_inputs(group_size: int) -> None:
    model = grid(group_size)
    init_masks(model, 0.3, generator=seeded())
    transposed = 0
    for name, layer in fusion_layers(model).items():
        outputs, inputs = layer.out_channels, layer.in_channels
        table = shared_inputs(layer)
        assert table is not None and table.shape == (-(-outputs // group_size), round(0.3 * inputs)), name
        assert int(layer.kernel_mask.sum()) == outputs * round(0.3 * inputs)
        transposed += isinstance(layer, nn.ConvTranspose3d)
    assert transposed == 3 and dsff.density(model) == pytest.approx(0.3, abs=0.02)


def test_starts_by_layer_size_and_by_dim0() -> None:
    model = grid(8)
    init_masks(model, 0.2, start="erk", density_by_dim0={12: 0.5}, generator=seeded())
    shapes = {name: tuple(layer.weight.shape) for name, layer in fusion_layers(model).items()}
    densities = dsff.erdos_renyi_kernel(shapes, 0.2)
    counts = active_kernels(model, 0.2, start="erk", density_by_dim0={12: 0.5})
    for name, layer in fusion_layers(model).items():
        share = 0.5 if shapes[name][0] == 12 else densities[name]
        kept = max(1, round(share * layer.in_channels))
        assert shared_inputs(layer).shape[1] == kept and counts[name] == kept * layer.out_channels
    assert {round(share, 3) for share in densities.values()} != {0.2}


def test_the_cost_counts_the_kernels_of_a_group() -> None:
    layer = nn.Conv3d(5, 20, (1, 3, 3), padding=(0, 1, 1))
    register_fusion_layer(layer)
    set_group_size(layer, 8)  # groups of 8, 8 and 4
    init_masks(layer, 0.4, generator=seeded())  # two inputs each
    cost = count_cost(layer, (4, 6, 8))
    assert cost.params == 2 * 20 * 9 + 20
    assert cost.flops == 2 * 2 * 20 * 9 * 4 * 6 * 8


def test_flows_of_groups_are_those_of_their_kernels() -> None:
    layer = nn.Conv3d(4, 3, 1)
    register_fusion_layer(layer, flows={"forward": 1, "up": 2, "down": 1})
    layer.kernel_mask.copy_(torch.tensor(MASK, dtype=torch.bool))
    set_group_size(layer, 2)
    assert dsff.flow_shares(layer) == {"forward": 2 / 9, "up": 6 / 9, "down": 1 / 9}
