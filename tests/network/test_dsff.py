"""DSFF: constant counts, zero weights, and hand-worked pruning, growth, initial masks and densities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from e2enet.network import E2ENet, dsff
from e2enet.network.dsff import (
    erdos_renyi_kernel,
    fusion_layers,
    init_masks,
    prune_count,
    prune_fraction,
    prune_kernels,
    register_fusion_layer,
    regrow_kernels,
    update_masks,
)

STRIDES = [(1, 2, 2), (2, 2, 2)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> E2ENet:
    torch.manual_seed(0)
    return E2ENet(1, 2, STRIDES, base_features=6)


def test_prune_takes_the_smallest_active_kernels() -> None:
    weight = torch.tensor([[1.0, -5.0, 0.5], [2.0, 0.1, -3.0]]).view(2, 3, 1, 1, 1).expand(2, 3, 1, 3, 3)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    pruned = prune_kernels(weight, mask, 0.3)  # ceil(0.3 * 5) = 2: |0.5| and |1|; 0.1 is inactive already
    assert pruned.tolist() == [[False, True, False], [True, False, True]]
    assert mask.sum() == 5  # the argument is not changed


def test_ties_prune_exactly_as_many_as_asked() -> None:
    pruned = prune_kernels(torch.ones(4, 4, 1, 3, 3), torch.ones(4, 4, dtype=torch.bool), 0.25)
    assert int(pruned.sum()) == 12


def test_not_a_number_does_not_change_the_count() -> None:
    weight = torch.randn(4, 4, 1, 1, 1)
    weight[0, 0] = math.nan
    mask = torch.eye(4, dtype=torch.bool)
    assert int(prune_kernels(weight, mask, 0.5).sum()) == 2


def test_prune_count_is_the_ceiling_without_float_noise() -> None:
    assert [prune_count(100, f) for f in (0.0, 0.07, 0.071, 0.5, 1.0)] == [0, 7, 8, 50, 100]


def test_regrow_by_score_and_at_random() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    scores = torch.tensor([[9.0, 1.0], [3.0, 2.0]])
    assert regrow_kernels(mask, 2, scores=scores).tolist() == [[True, False], [True, True]]
    grown = [regrow_kernels(mask, 1, generator=seeded(s)) for s in range(20)]
    assert all(int(g.sum()) == 2 and g[0, 0] for g in grown)
    assert len({tuple(g.flatten().tolist()) for g in grown}) == 3  # every inactive kernel is drawn at some time
    with pytest.raises(ValueError, match="3 are inactive"):
        regrow_kernels(mask, 4)


def test_cosine_fraction_by_hand() -> None:
    assert prune_fraction(0, 100) == 0.5
    assert prune_fraction(50, 100) == pytest.approx(0.001 + 0.499 / 2)
    assert prune_fraction(100, 100) == pytest.approx(0.001)
    assert prune_fraction(500, 100) == pytest.approx(0.001)
    assert prune_fraction(50, 100, initial=0.3, final=0) == pytest.approx(0.15)


@pytest.mark.parametrize(("argument", "value"), [("fraction", 1.5), ("fraction", -0.1)])
def test_fractions_outside_the_range_are_refused(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        prune_kernels(torch.ones(2, 2, 1), torch.ones(2, 2, dtype=torch.bool), value)


def test_masks_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="bool mask"):
        prune_kernels(torch.ones(2, 2, 1), torch.ones(2, 2), 0.5)
    with pytest.raises(ValueError, match="bool mask"):
        prune_kernels(torch.ones(2, 2, 1), torch.ones(2, 3, dtype=torch.bool), 0.5)


@pytest.mark.parametrize("value", [0, -0.1, 1.1])
def test_densities_outside_the_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="density"):
        init_masks(network(), value)


def test_uniform_start_counts_each_layer() -> None:
    model = network()
    init_masks(model, 0.3, generator=seeded())
    for name, layer in fusion_layers(model).items():
        assert int(layer.kernel_mask.sum()) == round(0.3 * layer.kernel_mask.numel()), name
        assert layer.weight[~layer.kernel_mask].abs().max() == 0
        assert layer.weight[layer.kernel_mask].abs().min() > 0
    encoder = [p for name, p in model.named_parameters() if name.startswith("encoder") and p.ndim == 5]
    assert all((p != 0).all() for p in encoder)


def test_released_rule_by_dim0() -> None:
    model = E2ENet(1, 2, STRIDES, base_features=48, max_features=96)
    init_masks(model, 0.5, density_by_dim0={48: 0.2}, generator=seeded())
    for name, layer in fusion_layers(model).items():
        expected = 0.2 if layer.weight.shape[0] == 48 else 0.5
        assert int(layer.kernel_mask.sum()) == round(expected * layer.kernel_mask.numel()), name


def test_same_generator_same_masks() -> None:
    models = [network(), network(), network()]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        init_masks(model, 0.2, generator=seeded(seed))
    first, same, other = (torch.cat([m.kernel_mask.flatten() for m in fusion_layers(x).values()]) for x in models)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_erdos_renyi_keeps_the_total_and_favours_small_layers() -> None:
    shapes = {"small": (4, 4, 1, 3, 3), "middle": (16, 32, 1, 3, 3), "large": (64, 128, 1, 3, 3)}
    densities = erdos_renyi_kernel(shapes, 0.2)
    kernels = {name: shape[0] * shape[1] for name, shape in shapes.items()}
    total = sum(densities[name] * kernels[name] for name in shapes) / sum(kernels.values())
    assert total == pytest.approx(0.2)
    assert densities["small"] == 1.0 > densities["middle"] > densities["large"]
    # by hand: (16 + 32 + 7) / (512 * 9) against (64 + 128 + 7) / (8192 * 9)
    ratio = (55 / (512 * 9)) / (199 / (8192 * 9))
    assert densities["middle"] / densities["large"] == pytest.approx(ratio)
    model = network()
    init_masks(model, 0.2, start="erk", generator=seeded())
    assert dsff.density(model) == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ValueError, match='"uniform" or "erk"'):
        init_masks(model, 0.2, start="random")


@settings(max_examples=15, deadline=None)
@given(density=st.floats(0.02, 1.0), fraction=st.floats(0, 1), seed=st.integers(0, 99), gradient=st.booleans())
def test_counts_are_constant_and_dead_weights_zero(density, fraction, seed, gradient) -> None:
    model = network()
    init_masks(model, density, generator=seeded(seed))
    before = {name: int(layer.kernel_mask.sum()) for name, layer in fusion_layers(model).items()}
    scores = None
    if gradient:
        scores = {name: torch.rand(m.kernel_mask.shape) for name, m in fusion_layers(model).items()}
    churn = update_masks(model, fraction, scores=scores, generator=seeded(seed))
    for name, layer in fusion_layers(model).items():
        assert int(layer.kernel_mask.sum()) == before[name] >= 1
        assert (layer.weight[~layer.kernel_mask] == 0).all()
        assert 0 <= churn[name] <= 1


def test_an_update_by_hand() -> None:
    conv = nn.Conv3d(3, 1, 1, bias=False)
    register_fusion_layer(conv)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([0.2, 3.0, 0.0]).view(1, 3, 1, 1, 1))
    conv.kernel_mask.copy_(torch.tensor([[True, True, False]]))
    churn = update_masks(conv, 0.5, scores={"": torch.tensor([[0.0, 0.0, 1.0]])})
    assert conv.kernel_mask.tolist() == [[False, True, True]]
    assert conv.weight.flatten().tolist() == [0.0, 3.0, 0.0]  # regrown kernels start at zero
    assert churn == {"": 0.5}


def test_masks_travel_in_the_state_dict_and_may_be_written() -> None:
    model, other = network(), network()
    init_masks(model, 0.2, generator=seeded())
    other.load_state_dict(model.state_dict())
    assert dsff.density(other) == dsff.density(model)
    for layer in fusion_layers(other).values():
        layer.kernel_mask.fill_(True)
    assert dsff.density(other) == 1.0


def test_flow_shares_by_hand() -> None:
    conv = nn.Conv3d(4, 2, (1, 3, 3))
    register_fusion_layer(conv, flows={"forward": 1, "up": 2, "down": 1})
    conv.kernel_mask.copy_(torch.tensor([[True, True, False, False], [True, False, False, False]]))
    assert dsff.flow_shares(conv) == {"forward": 2 / 3, "up": 1 / 3, "down": 0.0}
    assert dsff.flow_densities(conv) == {"forward": 1.0, "up": 0.25, "down": 0.0}
    with pytest.raises(ValueError, match="must sum to"):
        register_fusion_layer(conv, flows={"forward": 1})


def test_a_network_without_fusion_layers() -> None:
    plain = nn.Conv3d(1, 1, 1)
    init_masks(plain, 0.2)
    assert fusion_layers(plain) == {} and dsff.density(plain) == 1.0 and dsff.flow_shares(plain) == {}


def test_dsff_works_in_another_network() -> None:
    other = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose3d(8, 4, 2, 2))
    for layer in (other[0], other[2]):
        register_fusion_layer(layer)
    init_masks(other, 0.25, generator=seeded())
    assert dsff.density(other) == 0.25
    before = other[0].kernel_mask.clone()
    update_masks(other, 0.5, generator=seeded(1))
    assert not torch.equal(before, other[0].kernel_mask) and dsff.density(other) == 0.25
