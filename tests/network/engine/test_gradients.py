"""Gradients of single layers against torch's, over shapes, kernels, strides, densities and shifts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from e2enet.network.blocks import ConvBlock
from e2enet.network.dsff import apply_masks, expand_mask, register_fusion_layer
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.gradients import Gradient, correlate
from e2enet.network.engine.training import TrainedConvolution, TrainedExpansion, TrainedPooling
from e2enet.network.layers import StrideUp3d
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.program import Operation
from tests.network.engine.test_sparse_layers import KERNELS, signal, values

few = settings(max_examples=60, deadline=None)
COARSE = st.tuples(st.integers(1, 19), st.integers(1, 7), st.integers(1, 11))


def assert_gradients(
    layer: Any, run: Any, module: nn.Module, sources: Sequence[Tensor], draw: torch.Generator, begun: Sequence[bool]
) -> None:
    """Compare gradients of sources (C, D, H, W) and of parameters; those of `begun` sources already hold values."""
    signals = [signal(source) for source in sources]
    layer.refresh()
    output = layer.forward(signals)
    into = [Gradient(source) for source in signals]
    before = [
        torch.randn(source.shape, generator=draw) if old else None for source, old in zip(sources, begun, strict=True)
    ]
    for part, old in zip(into, before, strict=True):
        if old is not None:
            part.values[0] = old.permute(0, 2, 3, 1).numpy()
            part.written[:] = True
    given_gradient = Gradient(output)
    weights = torch.randn(values(output).shape, generator=draw)
    given_gradient.values[0] = weights.permute(0, 2, 3, 1).numpy()
    given_gradient.written[:] = True
    found = layer.backward(signals, output, given_gradient, into)

    exact = copy.deepcopy(module).double()
    inputs = [source.double()[None].requires_grad_() for source in sources]
    expected = run(exact, inputs)
    torch.testing.assert_close(values(output)[None].double(), expected, rtol=0, atol=1e-4)
    expected.backward(weights.double()[None])
    for part, old, source in zip(into, before, inputs, strict=True):
        wanted = source.grad[0] if old is None else source.grad[0] + old
        own = torch.from_numpy(part.signal().stacked()[0]).permute(0, 3, 1, 2).double()
        torch.testing.assert_close(own, wanted, rtol=0, atol=2e-4 * (1 + float(wanted.abs().max())))
    for (name, own), other in zip(module.named_parameters(), exact.parameters(), strict=True):
        wanted = torch.zeros_like(other) if other.grad is None else other.grad
        mask = getattr(module.get_submodule(name.rpartition(".")[0]), "kernel_mask", None)
        if mask is not None and name.endswith("weight"):
            wanted = wanted * expand_mask(mask, wanted)
        gradient = torch.from_numpy(np.asarray(found[own])).view_as(own).double()
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=2e-4 * (1 + float(wanted.abs().max())), msg=name)


def masked(conv: Any, density: float, draw: torch.Generator) -> None:
    register_fusion_layer(conv)
    conv.kernel_mask.copy_(torch.rand(conv.kernel_mask.shape, generator=draw) < density)
    apply_masks(conv)


def alone(module: nn.Module) -> Operation:
    """Return the operation of a module in no network."""
    return Operation("alone", module, (0,), 1)


@few
@given(
    kernel=st.sampled_from(KERNELS),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    coarse=COARSE,
    channels=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=3),
    outputs=st.integers(1, 6),
    density=st.sampled_from([0.05, 0.3, 1.0]),
    shift_size=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 2**16),
)
def test_a_block_goes_backward_as_torch_does(
    kernel: Any, stride: Any, coarse: Any, channels: Any, outputs: int, density: float, shift_size: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    size = [edge * step for edge, step in zip(coarse, stride, strict=True)]
    if np.prod(coarse) < 8:
        coarse = size = [2 * step for step in stride]  # with fewer voxels the norm's gradient is only rounding
    torch.manual_seed(seed)
    block = ConvBlock(
        sum(count for count, _ in channels), outputs, kernel_size=kernel, stride=stride,
        shift_size=shift_size if kernel[0] == 1 else 1,
    )  # fmt: skip
    nn.init.normal_(block.norm.weight, 1, 0.3)
    nn.init.normal_(block.norm.bias, 0, 0.3)
    masked(block.conv, density, draw)
    sources = [torch.randn(count, *size, generator=draw) for count, _ in channels]
    begun = [old for _, old in channels]
    assert_gradients(TrainedConvolution(alone(block)), lambda own, x: own(*x), block, sources, draw, begun)


@few
@given(
    stride=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    coarse=COARSE,
    channels=st.integers(1, 6),
    outputs=st.integers(1, 5),
    density=st.sampled_from([0.1, 0.5, 1.0]),
    begun=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_an_expansion_goes_backward_as_torch_does(
    stride: Any, coarse: Any, channels: int, outputs: int, density: float, begun: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    up = StrideUp3d(channels, outputs, stride)
    masked(up, density, draw)
    sources = [torch.randn(channels, *coarse, generator=draw)]
    assert_gradients(TrainedExpansion(alone(up)), lambda own, x: own(*x), up, sources, draw, [begun])


@few
@given(
    stride=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    coarse=COARSE,
    begun=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_pooling_goes_backward_as_torch_does(stride: Any, coarse: Any, begun: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    size = [edge * step for edge, step in zip(coarse, stride, strict=True)]
    pool = StrideMaxPool3d(stride)
    sources = [torch.randn(3, *size, generator=draw)]
    assert_gradients(TrainedPooling(alone(pool)), lambda own, x: own(*x)[1], pool, sources, draw, [begun])


@pytest.mark.parametrize("threads", [1, 3])
def test_weight_gradients_are_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(8, 6, generator=draw) < 0.5
    kernels = ActiveKernels.of_convolution(mask.numpy(), np.zeros(6, np.int64), (1, 3, 3))
    source, gradient = (
        signal(torch.randn(6, 32, 40, 40, generator=draw)),
        signal(torch.randn(8, 32, 40, 40, generator=draw)),
    )
    before = torch.get_num_threads()
    try:
        found = []
        for count in (4, threads):
            torch.set_num_threads(count)
            found.append(correlate(kernels, [source], gradient, padding=(1, 1)))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
