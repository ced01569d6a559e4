"""Further rules of an update: what is pruned, over which layers, how many stay, and what regrown kernels start with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from e2enet.common.errors import InputError
from e2enet.network import DSFF, dsff
from e2enet.network.dsff_schedule import UpdateSchedule
from e2enet.network.mask_update import Rule, replace_kernels
from tests.training.conftest import TinySparse


def layer_of(norms: list[list[float]], active: list[list[int]]) -> nn.Conv3d:
    """Return a convolution of kernels (1, 1, 2) whose L1 norms are given, masked."""
    values = torch.tensor(norms)
    conv = nn.Conv3d(values.shape[1], values.shape[0], (1, 1, 2), bias=False)
    dsff.register_fusion_layer(conv)
    with torch.no_grad():
        conv.weight.copy_((values / 2)[..., None, None, None].expand_as(conv.weight))
    conv.kernel_mask.copy_(torch.tensor(active, dtype=torch.bool))
    dsff.apply_masks(conv)
    return conv


def two_layers() -> dict[str, Any]:
    return {
        "small": layer_of([[1.0, 2.0], [3.0, 9.0]], [[1, 1], [1, 0]]),
        "large": layer_of([[5.0, 6.0], [7.0, 8.0]], [[1, 1], [1, 0]]),
    }


def test_over_the_network_the_weakest_kernels_of_all_layers_go() -> None:
    layers = two_layers()
    growth = {"small": torch.zeros(2, 2), "large": torch.tensor([[0.0, 0.0], [0.0, 1.0]])}
    updates = replace_kernels(layers, Rule(2 / 6, growth=growth, across=True))
    # 1 and 2 are the smallest of six. One of the two goes to the best score, the other to the first of equal ones.
    assert layers["large"].kernel_mask.tolist() == [[True, True], [True, True]]
    assert layers["small"].kernel_mask.tolist() == [[True, False], [True, False]]
    assert layers["small"].weight.flatten(2).abs().sum(2).tolist() == [[0.0, 0.0], [3.0, 0.0]]
    assert updates["large"].grown.tolist() == [[False, False], [False, True]]
    assert updates["small"].churn == 0.0 and updates["large"].churn == pytest.approx(1 / 3)


def test_over_the_network_a_layer_keeps_its_best_kernel() -> None:
    layers = two_layers()
    replace_kernels(layers, Rule(4 / 6, growth={name: torch.zeros(2, 2) for name in layers}, across=True))
    kept = layers["small"].weight.flatten(2).abs().sum(2)
    assert kept.tolist() == [[0.0, 0.0], [3.0, 0.0]]  # 1 and 2 of it go, then 5 and 6 of the other
    assert sum(int(layer.kernel_mask.sum()) for layer in layers.values()) == 6


@pytest.mark.parametrize("fraction", [0.98, 1.0])
def test_over_the_network_no_fraction_empties_a_layer(fraction: float) -> None:
    layers = two_layers()
    for _ in range(2):
        replace_kernels(layers, Rule(fraction, growth={name: torch.zeros(2, 2) for name in layers}, across=True))
        counts = {name: int(layer.kernel_mask.sum()) for name, layer in layers.items()}
        assert min(counts.values()) >= 1 and sum(counts.values()) == 6
    assert layers["small"].weight[1, 0].abs().sum() == 3 and layers["large"].weight[1, 0].abs().sum() == 7


@pytest.mark.parametrize("across", [False, True])
def test_more_kernels_than_before_are_none(across: bool) -> None:
    """In a prolonged run the density may be below the cosine: it waits, and the trained kernels stay."""
    layers = two_layers()
    before = {name: layer.kernel_mask.clone() for name, layer in layers.items()}
    replace_kernels(layers, Rule(0.0, counts={"small": 4, "large": 4}, across=across))
    for name, layer in layers.items():
        assert torch.equal(layer.kernel_mask, before[name])
        assert bool((layer.weight[before[name]] != 0).all())


def test_kernels_of_several_sizes_are_compared_by_a_weight() -> None:
    layers: dict[str, Any] = {"two": layer_of([[2.0, 4.0]], [[1, 1]]), "one": nn.Conv3d(2, 1, 1, bias=False)}
    dsff.register_fusion_layer(layers["one"])
    with torch.no_grad():
        layers["one"].weight.copy_(torch.tensor([1.5, 3.0]).view_as(layers["one"].weight))
    # By their sum, 1.5 would be the smallest; by a weight, 1.0 (of 2.0) is.
    updates = replace_kernels(
        layers, Rule(1 / 4, growth={"two": torch.zeros(1, 2), "one": torch.zeros(1, 2)}, across=True)
    )
    assert updates["two"].grown.tolist() == [[True, False]] and not updates["one"].grown.any()


def test_pruning_by_other_scores_than_the_norm() -> None:
    layer = layer_of([[1.0, 2.0], [3.0, 0.0]], [[1, 1], [1, 0]])
    scores = {"": torch.tensor([[9.0, 8.0], [0.5, 0.0]])}
    replace_kernels({"": layer}, Rule(1 / 3, pruning=scores, growth={"": torch.tensor([[0.0, 0.0], [0.0, 1.0]])}))
    assert layer.kernel_mask.tolist() == [[True, True], [False, True]]


def test_fewer_kernels_than_before() -> None:
    layer = layer_of([[1.0, 2.0], [3.0, 4.0]], [[1, 1], [1, 1]])
    growth = {"": torch.tensor([[1.0, 2.0], [0.0, 0.0]])}
    replace_kernels({"": layer}, Rule(0.5, counts={"": 2}, growth=growth))
    # Three go: two that are too many, and half of the remaining two. One comes back, that of the better score.
    assert layer.kernel_mask.tolist() == [[False, True], [False, True]]
    assert layer.weight.flatten(2).abs().sum(2).tolist() == [[0.0, 0.0], [0.0, 4.0]]


def test_drawn_weights_are_as_wide_as_the_layers_own() -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv3d(40, 40, (1, 3, 3), bias=False)
    dsff.register_fusion_layer(conv)
    dsff.init_masks(conv, 0.5, generator=generator)
    with torch.no_grad():
        conv.weight.mul_(7)
    update = replace_kernels({"": conv}, Rule(0.5), drawn=True, generator=generator)[""]
    weight = conv.weight.detach()
    drawn, kept = weight[update.grown], weight[conv.kernel_mask & ~update.grown]
    assert int(update.grown.sum()) == 400 and 0.95 < float(drawn.std() / kept.square().mean().sqrt()) < 1.05
    assert not weight[~conv.kernel_mask].any()


@pytest.mark.parametrize("rule", [Rule(0.5, across=True), Rule(0.5, counts={"": 4})])
def test_groups_keep_their_counts(rule: Rule) -> None:
    conv = nn.Conv3d(4, 4, 1)
    dsff.register_fusion_layer(conv)
    dsff.set_group_size(conv, 2)
    with pytest.raises(ValueError, match="single kernels only"):
        replace_kernels({"": conv}, rule)


# ------------------------------------------------------------------------------------------- in a training loop


def steps(masks: DSFF, model: TinySparse, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    for index, image in enumerate(images):
        optimizer.zero_grad()
        model.training_step([image], index).backward()
        optimizer.step()


def images(number: int) -> Tensor:
    return torch.randn(number, 2, 4, 2, 5, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("every", "unit", "total", "updates"),
    [(0.2, "run", 10, 4), (0.2, "run", 20, 4), (0.2, "auto", 20, 4), (2, "auto", 10, 4), (1, "auto", 10, 9)],
)
def test_a_period_in_steps_or_as_a_share_of_the_run(every: float, unit: str, total: int, updates: int) -> None:
    model = TinySparse(AdamW)
    optimizer = SGD(model.parameters(), lr=0.01)
    with DSFF(0.4, update_every=every, update_unit=unit).attach(model, optimizer, total_steps=total) as masks:
        steps(masks, model, optimizer, images(total))
    assert masks.num_updates == updates


def test_the_density_falls_to_its_end_with_the_last_update() -> None:
    model = TinySparse(AdamW)
    optimizer = SGD(model.parameters(), lr=0.01)
    seen = []
    with DSFF(0.2, density_initial=0.6, update_every=2, update_until=0.8).attach(
        model, optimizer, total_steps=10
    ) as masks:
        for image in images(10):
            steps(masks, model, optimizer, image[None])
            seen.append(dsff.density(model))
    expected = [0.2 + 0.4 * (1 + torch.cos(torch.tensor(torch.pi * k / 4)).item()) / 2 for k in range(5)]
    assert seen[0] == pytest.approx(0.6, abs=0.05) and seen[1::2][:4] == pytest.approx(expected[1:], abs=0.05)
    assert seen[7:] == [seen[7]] * 3 and seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("over", [None, "network"])
def test_a_prolonged_run_keeps_what_it_has_trained(over: str | None) -> None:
    """The cosine is stretched, so it is above the density that the run has; that one waits, and then falls on."""
    torch.manual_seed(0)
    model = TinySparse(AdamW)
    optimizer = SGD(model.parameters(), lr=0.01)

    def masks() -> DSFF:
        return DSFF(0.2, density_initial=0.6, update_every=2, fraction_initial=0.02, prune_over=over)

    with masks().attach(model, optimizer, total_steps=10) as first:
        steps(first, model, optimizer, images(9))
    state, trained = first.state_dict(), dsff.density(model)
    weights = {name: layer.weight.detach().clone() for name, layer in dsff.fusion_layers(model).items()}
    second = masks()
    second.load_state_dict(state)
    with second.attach(model, optimizer, total_steps=40):
        steps(second, model, optimizer, images(1))
        assert second.num_updates == first.num_updates + 1 and dsff.density(model) == trained
        for name, layer in dsff.fusion_layers(model).items():
            alive = weights[name].flatten(2).abs().sum(2) > 0
            kept = layer.weight.detach().flatten(2).abs().sum(2)[alive] > 0
            assert int((~kept).sum()) <= 1, name  # 2 % of it, rounded up
        steps(second, model, optimizer, images(29))
    assert dsff.density(model) == trained == pytest.approx(0.2, abs=0.05)


def test_a_share_of_steps_is_not_rounded_down_by_floating_point() -> None:
    assert [UpdateSchedule(100, 1, until).last for until in (0.29, 0.57, 0.285, 1.0)] == [29, 57, 28, 99]


def test_a_density_for_layers_that_are_not_there_is_told() -> None:
    model = TinySparse(AdamW)
    with pytest.warns(UserWarning, match=r"density_by_dim0\[48\] changes nothing: .* they have 5, 6"):
        DSFF(0.4, density_by_dim0={48: 0.2, 6: 0.5}).draw(model)
    assert model.first.kernel_mask.float().mean() == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density_initial": 0.5}, "density_initial=0.5: .* the first would follow step 1200, .* step 9 of 10"),
        ({"density_initial": 0.5, "updates": False}, "density_initial=0.5: .* updates is False"),
        ({"update_every": 4, "regrown_warmup": 5}, "regrown_warmup=5: expected at most 4"),
    ],
)
def test_settings_that_do_not_fit_the_run(settings: dict[str, Any], message: str) -> None:
    model = TinySparse(AdamW)
    with pytest.raises(InputError, match=message):
        DSFF(**settings).attach(model, SGD(model.parameters(), lr=0.01), total_steps=10)
    assert dsff.density(model) == 1 or not model.first.weight._backward_hooks


def test_regrown_kernels_start_slowly() -> None:
    """Step i of 4 after an update is i / 4 as long as without a warm-up; other kernels move as ever."""

    def moved(warmup: int | None) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        model = TinySparse(AdamW)
        optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
        masks = DSFF(0.4, update_every=3, regrown_warmup=warmup, fraction_initial=0.5, fraction_schedule="constant")
        with masks.attach(model, optimizer, total_steps=6):
            steps(masks, model, optimizer, images(4))
        (layer, *_) = dsff.fusion_layers(model).values()
        return layer.weight.detach().clone(), layer.kernel_mask.clone()

    plain, mask = moved(None)
    slow, same = moved(4)
    assert torch.equal(mask, same)
    ratio = (slow / plain)[dsff.expand_mask(mask, plain).expand_as(plain)]
    values = sorted({round(value, 3) for value in ratio[~ratio.isnan()].tolist()})  # 0 / 0: nothing reads its output
    assert values == [0.25, 1.0]


def test_drawn_kernels_start_without_moments() -> None:
    model = TinySparse(AdamW)
    optimizer = AdamW(model.parameters(), lr=0.1)
    masks = DSFF(
        0.4, update_every=3, regrown_weights="drawn", prune_by="sensitivity", prune_over="network", fraction_initial=0.5
    )
    with masks.attach(model, optimizer, total_steps=6):
        steps(masks, model, optimizer, images(2))
        before = {name: layer.weight.detach().clone() for name, layer in dsff.fusion_layers(model).items()}
        steps(masks, model, optimizer, images(1))
    fresh = 0
    for name, layer in dsff.fusion_layers(model).items():
        state = optimizer.state[layer.weight]["exp_avg_sq"].flatten(2).sum(2)
        new = layer.kernel_mask & (state == 0)
        assert bool((layer.weight.flatten(2).abs().sum(2)[new] > 0).all()) and bool(
            (state[~layer.kernel_mask] == 0).all()
        )
        fresh += int(new.sum())
        assert not torch.equal(before[name], layer.weight)
    assert fresh > 0


def test_a_run_goes_on_in_the_middle_of_a_warm_up() -> None:
    def make() -> tuple[TinySparse, torch.optim.Optimizer, DSFF]:
        torch.manual_seed(0)
        model = TinySparse(AdamW)
        masks = DSFF(0.4, update_every=4, regrown_warmup=4, density_initial=0.5, prune_by="sensitivity")
        return model, AdamW(model.parameters(), lr=0.1), masks

    model, optimizer, masks = make()
    with masks.attach(model, optimizer, total_steps=9):
        steps(masks, model, optimizer, images(8))
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    model, optimizer, masks = make()
    with masks.attach(model, optimizer, total_steps=9):
        steps(masks, model, optimizer, images(8)[:5])
    states = model.state_dict(), optimizer.state_dict(), masks.state_dict()
    model, optimizer, masks = make()
    for part, state in zip((model, optimizer, masks), states, strict=True):
        part.load_state_dict(state)
    with masks.attach(model, optimizer, total_steps=9):
        steps(masks, model, optimizer, images(8)[5:])
    assert all(torch.equal(whole[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.4, "density_initial": 0.2}, "density_initial=0.2: expected at least density=0.4"),
        ({"update_unit": "run", "update_every": 50}, r"expected a share in \(0, 1\]"),
        ({"update_every": 0.125}, 'expected a whole number >= 1, since update_unit is "steps"'),
        ({"update_every": 2.5}, 'expected a whole number >= 1, since update_unit is "steps"'),
        ({"update_every": 2.5, "update_unit": "auto"}, "expected a share below 1, or a whole number"),
        ({"prune_by": "weight"}, "prune_by='weight': expected magnitude or sensitivity, or None"),
        ({"regrown_warmup": 0}, "regrown_warmup=0: expected a whole number >= 1, or None"),
        ({"granularity": "group", "prune_over": "network"}, 'expected granularity="kernel"'),
        ({"granularity": "group", "density_initial": 0.5}, 'expected granularity="kernel"'),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DSFF(**settings)
