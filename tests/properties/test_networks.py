"""For any strides, channels and sizes: outputs have the expected grids, and masks keep their counts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from e2enet.network import E2ENet
from e2enet.network.dsff import active_kernels, fusion_layers, init_masks, register_fusion_layer, update_masks

few = settings(max_examples=12, deadline=None, derandomize=True)
strides_of = st.lists(st.tuples(*[st.integers(1, 2)] * 3), min_size=1, max_size=3)


def total(strides: list[tuple[int, int, int]]) -> list[int]:
    return [math.prod(stride[axis] for stride in strides) for axis in range(3)]


@few
@given(
    strides=strides_of,
    multiples=st.tuples(st.integers(1, 2), st.integers(1, 2), st.just(2)),
    channels=st.integers(1, 3),
    classes=st.integers(1, 4),
    base=st.integers(1, 3),
    shift_size=st.sampled_from([1, 3, 5]),
    fusion=st.sampled_from(["grid", "unet"]),
)
def test_every_head_lies_on_its_levels_grid(
    strides: list[tuple[int, int, int]],
    multiples: tuple[int, int, int],
    channels: int,
    classes: int,
    base: int,
    shift_size: int,
    fusion: str,
) -> None:
    size = [step * many for step, many in zip(total(strides), multiples, strict=True)]
    network = E2ENet(
        channels, classes, strides, base_features=base, max_features=4, shift_size=shift_size, fusion=fusion
    )
    image = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    heads = network(image)
    for level, logits in enumerate(heads):
        below = [edge // step for edge, step in zip(size, total([(1, 1, 1), *strides[:level]]), strict=True)]
        assert logits.shape == (2, classes, *below) and torch.isfinite(logits).all()
    assert network.eval()(image).shape == (2, classes, *size)


@few
@given(
    strides=strides_of.filter(lambda strides: max(total(strides)) > 1),
    extra=st.integers(1, 7),
    data=st.data(),
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(
    strides: list[tuple[int, int, int]], extra: int, data: st.DataObject
) -> None:
    steps = total(strides)
    axis = data.draw(st.sampled_from([axis for axis in range(3) if steps[axis] > 1]))
    size = [2 * step for step in steps]
    size[axis] += extra % steps[axis] or 1
    below, above = list(size), list(size)
    below[axis], above[axis] = 2 * steps[axis], 3 * steps[axis]
    with pytest.raises(ValueError, match="does not fit the strides") as caught:
        E2ENet(1, 2, strides, base_features=1, max_features=2)(torch.zeros(1, 1, *size))
    assert str(tuple(size)) in str(caught.value)
    assert str(tuple(below)) in str(caught.value) and str(tuple(above)) in str(caught.value)


@few
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    density=st.floats(0.01, 1),
    start=st.sampled_from(["uniform", "erk"]),
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_counts_of_masks_never_change(
    sizes: list[tuple[int, int]], density: float, start: str, fractions: list[float], seed: int
) -> None:
    layers = [nn.Conv3d(channels, features, 1, bias=False) for channels, features in sizes]
    for layer in layers:
        register_fusion_layer(layer)
    model = nn.ModuleList(layers)
    generator = torch.Generator().manual_seed(seed)
    wanted = active_kernels(model, density, start=start)
    init_masks(model, density, generator=generator, start=start)
    for fraction in fractions:
        update_masks(model, fraction, generator=generator)
        for name, layer in fusion_layers(model).items():
            assert 1 <= int(layer.kernel_mask.sum()) == wanted[name] <= layer.kernel_mask.numel()
            assert torch.count_nonzero(layer.weight[~layer.kernel_mask]) == 0
