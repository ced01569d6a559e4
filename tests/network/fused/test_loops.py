"""What the loops for CPUs must do beside right values: rounding, sums in a fixed order, dtypes, no way around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from e2enet.network import compiled
from e2enet.network.fused import cpu, operations, reference
from e2enet.network.fused.network import FusedNetwork
from tests.network.fused.test_fused_network import image, make
from tests.network.fused.test_operations import calls_of
from tests.network.fused.test_values import table, volume

SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 1.17e-38, 3.4028235e38, torch.inf, -torch.inf, torch.nan]


def prepared(values: Tensor, dtype: torch.dtype) -> Tensor:
    return cpu.prepare([values], [None], [1.0], 1, 1, dtype, None)


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    ties = (torch.arange(2**16, dtype=torch.int64) * 2**16 + 2**15 - 2**31).to(torch.int32)
    values = torch.cat([bits.view(torch.float32), ties.view(torch.float32), torch.tensor(SPECIAL)])
    values = values.view(1, -1, 1, 1, 1)
    found, expected = prepared(values, torch.bfloat16), values.bfloat16()
    is_nan = expected.isnan()
    assert is_nan.any() and torch.equal(found.isnan(), is_nan)
    assert torch.equal(found.view(torch.int16)[~is_nan], expected.view(torch.int16)[~is_nan])


def test_values_that_are_read_as_they_are_keep_their_bits() -> None:
    every = (torch.arange(2**16, dtype=torch.int64) - 2**15).to(torch.int16).view(torch.bfloat16)
    every = every[~every.isnan()].view(1, -1, 1, 1, 1)
    assert torch.equal(prepared(every, torch.bfloat16).view(torch.int16), every.view(torch.int16))
    assert torch.equal(prepared(every, torch.float32), every.float())
    assert prepared(torch.full((1, 3, 1, 1, 1), torch.nan), torch.float32).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "VALUES_PER_PART", 2**10)  # many parts
    draw = torch.Generator().manual_seed(0)
    values, grad = (volume(draw, dtype, 2, 24, 5, 12, 11) for _ in range(2))
    affine, weight = table(draw, dtype, 2, 24), torch.rand(24, generator=draw)
    assert len(compiled.parts(5 * 12 * 11, 24)) > 10

    def results() -> list[Tensor]:
        gathered, sums = cpu.gather_gradient(values, affine, 0.01, [grad, grad], [None, None], [0, 3, 1, 1, 1, 1] * 2)
        pooled, largest = cpu.pool(values, affine, 0.01, (5, 2, 1))
        inputs = cpu.prepare([values, grad], [affine, None], [0.01, 1.0], 3, 1, dtype, None)
        products = cpu.block_gradient(grad, [0, 3, 1, 1, 1, 1], [2, 5, 6, 11, 1, 2, 1, 24])
        normed = cpu.norm_gradient(gathered, values, affine, sums)
        norm = cpu.statistics(values, weight, weight, 1e-5)
        return [gathered, sums, pooled, largest, inputs, products, normed, norm]

    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results())
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))
    exact = reference.gather_gradient(
        values.double(), affine.double(), 0.01, [grad.double()] * 2, [None] * 2, [0, 3, 1, 1, 1, 1] * 2
    )
    torch.testing.assert_close(found[0][1].double(), exact[1], rtol=1e-4, atol=1e-3)  # no part is missing
    norm = reference.statistics(values.double(), weight, weight, 1e-5)
    torch.testing.assert_close(found[0][-1].double(), norm, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_mean_and_many_voxels_cost_no_digits(dtype: torch.dtype) -> None:
    """In bfloat16 a mean of 100 leaves steps of 0.5; their statistics are exact."""
    values = volume(torch.Generator().manual_seed(0), dtype, 2, 20, 11, 23, 17) * 3 + 100
    weight, bias = torch.rand(20), torch.rand(20)
    found = cpu.statistics(values, weight, bias, 1e-5)
    expected = reference.statistics(values.double(), weight, bias, 1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-4)


def test_statistics_of_values_that_are_not_finite_are_not_either() -> None:
    values = torch.ones(1, 3, 2, 2, 2)
    values[0, 1, 0, 0, 0], values[0, 2, 1, 1, 1] = torch.nan, torch.inf
    found = cpu.statistics(values, torch.ones(3), torch.zeros(3), 1e-5)
    assert found[0, :, 0].isfinite().all() and not found[0, 0, 1:].isfinite().any()


def test_memory_in_another_order_is_read_rightly() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(2, 6, 4, 5, 3, generator=draw)
    turned = values.transpose(2, 4).contiguous().transpose(2, 4)
    for one in (values, turned, values.expand(2, 6, 4, 5, 3), torch.cat([values, values], 1)[:, 3:9]):
        arguments = [one], [table(draw, torch.float32, 2, 6)], [0.01], 3, 2, torch.float32, None
        torch.testing.assert_close(cpu.prepare(*arguments), reference.prepare(*arguments))


def test_windows_of_several_widths_are_read_by_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    values, affine = volume(draw, torch.float32, 1, 5, 2, 4, 6), table(draw, torch.float32, 1, 5)
    windows = (1, 2, 2), (2, 2, 3)
    pooled = [reference.pool(values, None, 1.0, window) for window in windows]
    places = [number for window in windows for number in (0, 1, 1, *window)]
    arguments = values, affine, 0.01, [one for one, _ in pooled], [largest for _, largest in pooled], places
    for found, expected in zip(cpu.gather_gradient(*arguments), reference.gather_gradient(*arguments), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_a_cpu_runs_by_loops_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("plain torch")

    names = [func._schema.name.removeprefix("e2enet::fused_") for func in operations.TRAFFIC]
    names = [name for name in names if hasattr(reference, name)]  # an implicit step is for GPUs
    for name in names:
        monkeypatch.setattr(reference, name, refuse)
    model = make(torch.float32)
    logits = FusedNetwork(model, dtype=dtype)(image(model))
    torch.autograd.backward(logits, [torch.ones_like(one) for one in logits])
    assert all(one.dtype == dtype for one in logits) and model.encoder[0][0].conv.weight.grad is not None
    with pytest.raises(AssertionError, match="plain torch"):
        calls_of(torch.float64)
