"""The budget of a training step, counted on torch's meta device, and what the counter counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu_count import Counter, count_step
from benchmarks.network import STRIDES
from e2enet.network import E2ENet
from e2enet.network.dsff import init_masks
from e2enet.network.fused import operations, operations_implicit
from e2enet.network.fused.network import FusedNetwork


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture(scope="module")
def network() -> E2ENet:
    network = E2ENet(1, 16, STRIDES)
    init_masks(network, 0.2, generator=torch.Generator().manual_seed(0))
    return network.to("meta").half().train()


def test_a_step_stays_within_its_budget(network: E2ENet) -> None:
    x = meta(2, 1, 128, 128, 128)
    forward, backward, saved = count_step(FusedNetwork(network), x)
    assert forward.kernels + backward.kernels <= 420
    assert forward.bytes <= 52e9 and backward.bytes <= 100e9
    assert saved <= 9e9
    assert forward.waits == backward.waits == 0
    plain_forward, plain_backward, plain_saved = count_step(network, x)
    assert forward.kernels + backward.kernels < 0.45 * (plain_forward.kernels + plain_backward.kernels)
    assert forward.bytes + backward.bytes < 0.7 * (plain_forward.bytes + plain_backward.bytes)
    assert saved < 0.45 * plain_saved


def test_an_implicit_step_moves_less(network: E2ENet) -> None:
    network.zero_grad()
    x = meta(2, 1, 128, 128, 128)
    forward, backward, saved = count_step(FusedNetwork(network, implicit=True), x)
    assert forward.bytes <= 24e9 and backward.bytes <= 76e9 and saved <= 9e9
    assert forward.kernels + backward.kernels <= 500 and forward.waits == backward.waits == 0


def test_every_operation_of_a_step_is_a_convolution_a_product_or_stated(network: E2ENet) -> None:
    stated = {operation._schema.name for operation in operations.TRAFFIC}
    small = {"aten::cat", "aten::sum", "aten::zeros_like"}  # of numbers per channel
    large = {"aten::conv2d", "aten::matmul", "aten::convolution_backward"}
    started: set[str] = set()
    for implicit in (False, True):
        network.zero_grad()
        forward, backward, _ = count_step(FusedNetwork(network, implicit=implicit), meta(2, 1, 16, 64, 64))
        names = {*forward.by_operation, *backward.by_operation}
        assert names <= stated | large | small
        assert implicit is not forward.by_operation.keys().isdisjoint({"e2enet::fused_convolve"})
        started |= names
    assert stated <= started


def test_the_bytes_of_a_convolution_that_prepares() -> None:
    sources, affine = [meta(2, 16, 4, 8, 8), meta(2, 4, 8, 8, 1, 1, 1, 8)], meta(2, 4, 16, dtype=torch.float32)
    norm = meta(32, dtype=torch.float32)
    with Counter() as counter:
        operations_implicit.CONVOLVE(
            sources, [affine, None], [0.01, 1.0], 3, meta(32, 9, 24), (3, 3), (2, 2, 2), (1, 1), norm, norm, 1e-5
        )
    read = 2 * 24 * 2 * 64 * 2 + 2 * 4 * 16 * 4 + 32 * 9 * 24 * 2 + 2 * 32 * 4  # half of the slices
    written = 2 * 32 * 2 * 16 * 2 + 2 * 4 * 32 * 4
    moments = 2 * 2 * 4 * 32 // 2  # two numbers for each channel of half a tile, written and read
    assert counter.count.bytes == read + written + moments
    assert counter.count.kernels == 3


def test_bytes_are_those_that_an_operation_reads_and_writes() -> None:
    with Counter() as counter:
        x = meta(4, 8)
        y = x + x.T.contiguous().T  # 64 read and 64 written by the copy, 128 and 64 by the sum
        x.copy_(y)  # 64 and 64
        x.add_(1)  # 64 and 64
        y[:2].expand(3, 2, 8).sum()  # 32 and 2
    assert counter.count.kernels == 5
    assert counter.count.bytes == 128 + 192 + 128 + 128 + 34


def test_what_is_held() -> None:
    with Counter() as counter:
        x = meta(16)
        kept = x * 2
        (x * 3).sum()
    assert counter.held() == 2 * 32 and counter.held(x) == 32 and counter.held(x, kept) == 0


def test_saved_is_what_autograd_keeps() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).to("meta")
    forward, backward, saved = count_step(layer, meta(4, 8, dtype=torch.float32))
    assert saved == 4 * 8 * 4  # what the ReLU wrote
    assert forward.kernels == 3 and backward.kernels > 3


def test_a_part_of_a_gradient_is_read_as_a_part() -> None:
    grad, source = meta(1, 30, 4, 4, 4), meta(1, 10, 4, 4, 4)
    affine = meta(1, 4, 10, dtype=torch.float32)
    with Counter() as counter:
        operations.GATHER_GRADIENT(source, affine, 0.01, [grad], [None], [10, 3, 1, 1, 1, 1])
        operations.BLOCK_GRADIENT(grad, [20, 3, 1, 1, 1, 1], [1, 2, 2, 2, 2, 2, 2, 10])
    volume = 10 * 64 * 2
    assert counter.count.kernels == 3
    assert counter.count.bytes == 3 * volume + 4 * 10 * 4 + 2 * 10 * 4 + 2 * volume
