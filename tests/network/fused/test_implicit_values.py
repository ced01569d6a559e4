"""The Triton kernels of convolutions that prepare what they read, interpreted on the CPU, against float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from e2enet.network.fused import operations, operations_implicit, reference_implicit
from e2enet.network.fused.network import FusedNetwork
from e2enet.network.fused.volumes import convolved_size
from tests.network.fused.test_fused_network import image, make, step
from tests.network.fused.test_operations import order, to_meta
from tests.network.fused.test_values import start_kernels, table, volume

pytest.importorskip("triton", reason="needs triton, which torch's CUDA wheels bring")

few = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Sums of some hundred products in float32; what is written is rounded once.
UNIT = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = st.sampled_from(list(UNIT))
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))  # halves of height and width
SOURCES = st.lists(st.tuples(st.sampled_from([1, 3, 8, 16, 24]), st.booleans(), st.booleans()), min_size=1, max_size=3)
THREE = [(16, False, True), (3, True, False), (8, False, True)]
KERNELS = st.sampled_from([(3, 3), (1, 1), (1, 3), (3, 1), (5, 3)])
STRIDES = st.sampled_from([(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 2), (3, 1, 2)])
OUTPUTS = st.sampled_from([1, 5, 16, 20])
CASES = (
    {
        "size": (3, 2, 2), "batch": 2, "shift_size": 3, "kernel": (3, 3), "stride": (1, 1, 1), "sources": THREE,
        "outputs": 5, "dtype": torch.float32, "seed": 0,
    },
    {
        "size": (4, 2, 3), "batch": 1, "shift_size": 5, "kernel": (3, 3), "stride": (2, 2, 2), "sources": THREE[:1],
        "outputs": 20, "dtype": torch.float16, "seed": 1,
    },
)  # fmt: skip


def convolutions(test: Any) -> Any:
    """Run a test on the two cases, and on a few drawn convolutions."""
    test = given(
        size=SIZES, batch=st.integers(1, 2), shift_size=st.sampled_from([1, 3, 5]), kernel=KERNELS, stride=STRIDES,
        sources=SOURCES, outputs=OUTPUTS, dtype=DTYPES, seed=st.integers(0, 99),
    )(test)  # fmt: skip
    for case in CASES:
        test = example(**case)(test)
    return few(test)


def make_sources(draw: torch.Generator, sources: Any, batch: int, size: Any, dtype: torch.dtype) -> Any:
    """Return volumes, or the products of an expansion of planes by two, with or without a norm to apply."""
    depth, height, width = size
    values: list[Tensor] = []
    affines: list[Tensor | None] = []
    for channels, blocks, normed in sources:
        if blocks:
            values.append(torch.randn(batch, depth, height, width, 1, 2, 2, channels, generator=draw).to(dtype))
        else:
            values.append(volume(draw, dtype, batch, channels, depth, 2 * height, 2 * width))
        affines.append(table(draw, dtype, batch, channels) if normed and not blocks else None)
    return values, affines, [0.01] * len(values)


def as_float64(sources: Any, weight: Tensor) -> Any:
    """Return what is multiplied, as it is rounded before: sources as volumes without a norm, and the weight."""
    values, affines, slopes = sources
    prepared = reference_implicit.prepare(values, affines, slopes, 1, 1, weight.dtype, None)
    return [prepared.double()], [None], [1.0], weight.double()


def assert_near(found: Tensor, expected: Tensor, unit: float) -> None:
    """Compare with values in float64, of which the largest is some units."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.double(), expected, rtol=unit, atol=unit * scale)


@convolutions
def test_convolution(
    implicit: Any, size: Any, batch: int, shift_size: int, kernel: Any, stride: Any, sources: Any, outputs: int,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    given_sources, total = make_sources(draw, sources, batch, size, dtype), sum(one[0] for one in sources)
    weight = torch.randn(outputs, kernel[0] * kernel[1], total, generator=draw).to(dtype)
    padding = kernel[0] // 2, kernel[1] // 2
    norm = torch.rand(outputs, generator=draw) + 0.5, torch.randn(outputs, generator=draw)
    arguments = *given_sources, shift_size, weight, kernel, stride, padding, *norm, 1e-5
    values, found = implicit.convolve(*arguments)
    *plain, wide = as_float64(given_sources, weight)
    expected, _ = reference_implicit.convolve(*plain, shift_size, wide, kernel, stride, padding, *norm, 1e-5)
    assert values.dtype == dtype and order(values) == order(operations_implicit.CONVOLVE(*to_meta(arguments))[0])
    assert_near(values, expected, UNIT[dtype])
    # The statistics are those of what was written.
    own = operations.STATISTICS(values.double(), *norm, 1e-5)
    assert found.dtype == torch.float32 and found.shape == own.shape
    torch.testing.assert_close(found.double(), own, rtol=2e-4, atol=1e-3)


def test_statistics_of_many_tiles_far_from_zero(implicit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of different sizes, merged by two kernels; the mean is 1000 times the standard deviation."""
    monkeypatch.setattr(implicit, "CHUNKS", 2)
    monkeypatch.setattr(implicit, "MERGED", 5)
    draw = torch.Generator().manual_seed(0)
    values = volume(draw, torch.float32, 2, 4, 5, 9, 19) * 0.1 + 100
    weight = torch.eye(4).unsqueeze(1).contiguous()
    one, zero = torch.ones(4), torch.zeros(4)
    out, found = implicit.convolve([values], [None], [1.0], 1, weight, (1, 1), (1, 1, 1), (0, 0), one, zero, 1e-5)
    assert torch.equal(out, values)
    expected = operations.STATISTICS(values.double(), one, zero, 1e-5)
    torch.testing.assert_close(found.double()[:, 2:], expected[:, 2:], rtol=1e-5, atol=0)


@few
@given(size=SIZES, batch=st.integers(1, 2), sources=SOURCES, outputs=OUTPUTS, dtype=DTYPES, turned=st.booleans())
def test_product(
    implicit: Any, size: Any, batch: int, sources: Any, outputs: int, dtype: torch.dtype, turned: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    given_sources, total = make_sources(draw, sources, batch, size, dtype), sum(one[0] for one in sources)
    weight = torch.randn(total, outputs, generator=draw).to(dtype)
    weight = weight.T.contiguous().T if turned else weight  # of a head, or of an expansion
    found = implicit.product(*given_sources, weight)
    expected = reference_implicit.product(*as_float64(given_sources, weight))
    assert found.dtype == dtype and order(found) == order(
        operations_implicit.PRODUCT(*to_meta((*given_sources, weight)))
    )
    assert_near(found, expected, UNIT[dtype])


@convolutions
def test_gradient_of_a_weight(
    implicit: Any, size: Any, batch: int, shift_size: int, kernel: Any, stride: Any, sources: Any, outputs: int,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    given_sources, total = make_sources(draw, sources, batch, size, dtype), sum(one[0] for one in sources)
    padding, whole = (kernel[0] // 2, kernel[1] // 2), (size[0], 2 * size[1], 2 * size[2])
    grad = volume(draw, dtype, batch, outputs, *convolved_size(whole, kernel, stride, padding))
    arguments = *given_sources, shift_size, grad, kernel, stride, padding
    found = implicit.correlate(*arguments)
    *plain, wide = as_float64(given_sources, grad)
    expected = reference_implicit.correlate(*plain, shift_size, wide, kernel, stride, padding)
    assert found.dtype == dtype and found.shape == (outputs, kernel[0] * kernel[1], total) and found.is_contiguous()
    assert_near(found, expected, UNIT[dtype])


def test_gradient_of_a_weight_from_many_chunks(implicit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of several tiles; one holds the end of one sample and the beginning of the next."""
    monkeypatch.setattr(implicit, "PROGRAMS", 1)
    draw = torch.Generator().manual_seed(0)
    x, grad = (volume(draw, torch.float32, 2, channels, 3, 7, 9) for channels in (6, 5))
    arguments = [x], [None], [1.0], 3, grad, (3, 3), (1, 1, 1), (1, 1)
    expected = reference_implicit.correlate([x.double()], [None], [1.0], 3, grad.double(), *arguments[5:])
    assert_near(implicit.correlate(*arguments), expected, UNIT[torch.float32])


def test_float64_and_large_samples_are_refused(implicit: Any) -> None:
    x, weight = torch.ones(1, 2, 1, 1, 1, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"compute in torch\.float16, .*, not in torch\.float64"):
        implicit.product([x], [None], [1.0], weight)
    huge = torch.empty(1, 64, 512, 512, 512, device="meta", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"8589934592 values in a sample, more than 2147483647"):
        implicit.product([huge], [None], [1.0], torch.empty(64, 8, device="meta", dtype=torch.float16))


def test_tiles() -> None:
    launch = pytest.importorskip("e2enet.network.fused.launch_implicit")
    assert launch.choose_tile((128, 128, 128), 2, 128) == (1, 8, 16)
    assert launch.choose_tile((8, 4, 4), 1000, 128) == (8, 4, 4)
    assert launch.choose_tile((8, 4, 4), 2, 128) == (1, 4, 4)  # few programs: smaller ones
    assert launch.choose_tile((1, 5, 3), 1, 128) == (1, 4, 4)
    assert launch.Tile(1, 8, 16).count((2, 9, 33)) == 2 * 2 * 3
    assert launch.block_of_runs([48, 48], 32) == 16  # runs of 32, 16, 16 and 32
    assert launch.block_of_runs([320, 320, 320], 320) == launch.block_of_runs([192, 320, 320], 278) == 32


def test_float32_factors_are_rounded_only_where_torch_may(implicit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert implicit.precision_of(torch.float32, allow_tf32=True) == "tf32"
    assert implicit.precision_of(torch.float32, allow_tf32=False) == "ieee"
    told: list[bool] = []
    own = implicit.precision_of
    monkeypatch.setattr(
        implicit, "precision_of", lambda dtype, *, allow_tf32: told.append(allow_tf32) or own(dtype, allow_tf32=False)
    )
    x, weight = torch.ones(1, 2, 1, 1, 1), torch.ones(3, 1, 2)
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=not allowed))
        implicit.convolve([x], [None], [1.0], 1, weight, (1, 1), (1, 1, 1), (0, 0), torch.ones(3), torch.ones(3), 1.0)
        implicit.product([x], [None], [1.0], weight[:, 0].T)
    assert told == [True, False, False, True]


def test_a_whole_step_by_the_kernels(interpreted: Any, implicit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(torch.float32, strides=[(1, 2, 2), (2, 2, 2)], base_features=4)
    x, wide = image(model, 1, (2, 4, 8)), copy.deepcopy(model).double()
    logits, truth = step(wide, wide, x.double())
    used = start_kernels(monkeypatch, implicit, interpreted)
    found, grads = step(model, FusedNetwork(model, implicit=True), x)
    assert used >= {"CONVOLVE", "PRODUCT", "CORRELATE"} and used.isdisjoint({"PREPARE", "STATISTICS"})
    for own, expected in zip(found, logits, strict=True):
        assert_near(own, expected, 2e-5)
    for name, grad in truth.items():
        if grad is not None and ".conv.bias" not in name:
            assert_near(grads[name], grad, 1e-4)  # type: ignore[arg-type]
