"""The loops for CPUs, and the Triton kernels, interpreted on the CPU, against the operations in plain torch in float64.

Shapes, shifts, strides, windows, dtypes, sources and readers vary. Sizes are odd too. Triton's interpreter rounds to
bfloat16 in another direction than a GPU, so values in it may differ by a unit of the last place.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from e2enet.network.fused import operations, operations_implicit, reference
from e2enet.network.fused.network import FusedNetwork
from e2enet.network.layers import to_channels_last
from tests.network.fused.test_fused_network import assert_same, image, in_groups, make
from tests.network.fused.test_operations import order, to_meta

few = settings(max_examples=25, deadline=None)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
UNIT = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 7))
STEPS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
SHIFTS = st.sampled_from([1, 3, 5])
AROUND = {  # the operations of a step around cuDNN's convolutions
    *("PREPARE", "STATISTICS", "POOL", "GATHER_GRADIENT", "NORM_GRADIENT", "BLOCK_GRADIENT"),
    *("ACTIVE_WEIGHTS", "WEIGHT_GRADIENTS"),
}


def volume(draw: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return to_channels_last(torch.randn(shape, generator=draw).to(dtype))


def table(draw: torch.Generator, dtype: torch.dtype, batch: int, channels: int) -> Tensor:
    return torch.randn(batch, 4, channels, generator=draw).to(torch.promote_types(dtype, torch.float32))


def in_double(operation: Any, *arguments: Any) -> Any:
    """Return what an operation of the reference makes of the same numbers in float64."""
    return operation(*map(widened, arguments))


def widened(given: Any) -> Any:
    if isinstance(given, list | tuple):
        return [widened(part) for part in given]
    if isinstance(given, torch.dtype):
        return torch.float64
    return given.double() if isinstance(given, Tensor) and given.is_floating_point() else given


def assert_close(found: Any, expected: Any, dtype: torch.dtype, scale: float = 4) -> None:
    """Compare values of a dtype with float64."""
    unit = UNIT[dtype]
    for own, wanted in zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]:
        assert own.dtype == dtype and wanted.dtype == torch.float64 and own.shape == wanted.shape
        torch.testing.assert_close(own.double(), wanted, rtol=unit, atol=scale * unit)


@few
@given(
    size=SIZES, steps=STEPS, batch=st.integers(1, 2), shift_size=SHIFTS, depth_stride=st.integers(1, 3), dtype=DTYPES,
    sources=st.lists(
        st.tuples(st.sampled_from([1, 3, 8, 16, 24]), st.booleans(), st.booleans()), min_size=1, max_size=3
    ),
    columns=st.none() | st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_prepare(
    kernels: Any, size: Any, steps: Any, batch: int, shift_size: int, depth_stride: int, dtype: torch.dtype,
    sources: Any, columns: int | None, seed: int,
) -> None:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    values: list[Tensor] = []
    affines: list[Tensor | None] = []
    for channels, blocks, normed in sources:
        whole = [edge * step for edge, step in zip(size, steps, strict=True)]
        values.append(
            torch.randn(batch, *size, *steps, channels, generator=draw).to(dtype)
            if blocks
            else volume(draw, dtype, batch, channels, *whole)
        )
        affines.append(table(draw, dtype, batch, channels) if normed and not blocks else None)
    total = sum(channels for channels, _, _ in sources)
    chosen = None if columns is None else torch.randint(total, (columns,), generator=draw)
    arguments = values, affines, [0.01] * len(values), shift_size, depth_stride, dtype, chosen
    found, expected = kernels.prepare(*arguments), in_double(reference.prepare, *arguments)
    assert order(found) == order(operations.PREPARE(*to_meta(arguments)))
    assert_close(found, expected, dtype)


@few
@given(
    size=SIZES,
    batch=st.integers(1, 2),
    channels=st.sampled_from([1, 5, 16, 48, 70]),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_statistics(kernels: Any, size: Any, batch: int, channels: int, dtype: torch.dtype, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = volume(draw, dtype, batch, channels, *(2 * edge for edge in size)) + 30  # a mean far from zero
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias = torch.randn(2, channels, generator=draw).to(wide)
    found = kernels.statistics(values, weight, bias, 1e-5)
    expected = reference.statistics(values.double(), weight, bias, 1e-5)
    assert found.dtype == wide
    relative, absolute = (1e-10, 1e-10) if dtype == torch.float64 else (1e-4, 1e-3)
    torch.testing.assert_close(found.double(), expected, rtol=relative, atol=absolute)


def test_statistics_of_many_voxels(interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of several blocks, the last ones partly filled."""
    monkeypatch.setattr(interpreted, "PROGRAMS", 4)
    values = volume(torch.Generator().manual_seed(0), torch.float32, 1, 16, 11, 23, 17) * 3 + 100
    weight, bias = torch.rand(16), torch.rand(16)
    assert interpreted._chunks(values)[2:] == (4, 9)
    found = interpreted.statistics(values, weight, bias, 1e-5)
    expected = reference.statistics(values.double(), weight, bias, 1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-4)


@few
@given(
    coarse=SIZES, window=STEPS, batch=st.integers(1, 2), channels=st.sampled_from([1, 6, 16, 40]), normed=st.booleans(),
    dtype=DTYPES, seed=st.integers(0, 99),
)  # fmt: skip
def test_pool(
    kernels: Any, coarse: Any, window: Any, batch: int, channels: int, normed: bool, dtype: torch.dtype, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    size = [edge * step for edge, step in zip(coarse, window, strict=True)]
    values = volume(draw, dtype, batch, channels, *size)
    arguments = values, table(draw, dtype, batch, channels) if normed else None, 0.01, window
    (pooled, largest), (expected, chosen) = kernels.pool(*arguments), in_double(reference.pool, *arguments)
    assert_close(pooled, expected, dtype)
    if dtype == torch.float64 or not normed:  # rounding of the norm may make another voxel the largest
        assert torch.equal(largest, chosen)
    assert largest.dtype == torch.uint8 and int(largest.max()) < window[0] * window[1] * window[2]


def test_pooling_of_equal_infinite_and_missing_values(kernels: Any) -> None:
    windows = torch.tensor(
        [[1.0, 1, 0, 1], [-torch.inf] * 4, [0, torch.nan, 5, torch.nan], [torch.inf, 2, torch.inf, 0]]
    )
    values = to_channels_last(windows.view(1, 4, 1, 2, 2).contiguous())
    for pool in (kernels.pool, reference.pool):
        pooled, largest = pool(values, None, 1.0, (1, 2, 2))
        torch.testing.assert_close(
            pooled.flatten(), torch.tensor([1, -torch.inf, torch.nan, torch.inf]), equal_nan=True
        )
        assert largest.flatten().tolist() == [0, 0, 1, 0]


@few
@given(
    coarse=SIZES, window=STEPS, batch=st.integers(1, 2), channels=st.sampled_from([1, 6, 16, 24]), dtype=DTYPES,
    readers=st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 2), SHIFTS, st.integers(1, 3)),
        min_size=1, max_size=4,
    ),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_gradients_of_readers_and_norm(
    kernels: Any, coarse: Any, window: Any, batch: int, channels: int, dtype: torch.dtype, readers: Any, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    size = [edge * step for edge, step in zip(coarse, window, strict=True)]
    values, affine = volume(draw, dtype, batch, channels, *size), table(draw, dtype, batch, channels)
    grads, largest, places = [], [], []
    for pooled, before, after, shift_size, depth_stride in readers:
        depth, *plane = coarse if pooled else size
        grads.append(volume(draw, dtype, batch, before * 8 + channels + after, -(-depth // depth_stride), *plane))
        largest.append(reference.pool(values, None, 1.0, window)[1] if pooled else None)
        places += [before * 8, shift_size, depth_stride, *(window if pooled else (1, 1, 1))]
    arguments = values, affine, 0.01, grads, largest, places
    found, sums = kernels.gather_gradient(*arguments)
    expected, wanted = in_double(reference.gather_gradient, *arguments)
    assert_close(found, expected, dtype, 16)
    torch.testing.assert_close(sums.double(), wanted, rtol=1e-4, atol=1e-10 if dtype == torch.float64 else 2e-2)
    norm = expected.to(dtype), values, affine, wanted.to(sums.dtype)
    assert_close(kernels.norm_gradient(*norm), in_double(reference.norm_gradient, *norm), dtype, 32)


@few
@given(
    coarse=SIZES, steps=STEPS, batch=st.integers(1, 2), channels=st.sampled_from([1, 6, 16]), shift_size=SHIFTS,
    before=st.integers(0, 2), dtype=DTYPES, seed=st.integers(0, 99),
)  # fmt: skip
def test_gradients_of_an_expansion(
    kernels: Any, coarse: Any, steps: Any, batch: int, channels: int, shift_size: int, before: int,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    size = [edge * step for edge, step in zip(coarse, steps, strict=True)]
    grad = volume(torch.Generator().manual_seed(seed), dtype, batch, 8 * before + channels + 3, *size)
    arguments = grad, [8 * before, shift_size, 1, 1, 1, 1], [batch, *coarse, *steps, channels]
    assert torch.equal(kernels.block_gradient(*arguments), reference.block_gradient(*arguments))


@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_weights_and_their_gradients(kernels: Any, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(5, 4, 1, 3, 3), (7, 3, 2, 2, 2), (3, 8, 1, 1, 1), (40, 33, 1, 3, 3)]
    own = torch.float64 if dtype == torch.float64 else torch.float32
    weights = [torch.randn(shape, generator=draw).to(own) for shape in shapes]
    masks = [torch.rand(5, 4, generator=draw) > 0.5, None, None, torch.rand(40, 33, generator=draw) > 0.8]
    weights[0][~masks[0]] = torch.nan  # type: ignore[operator]
    arguments = weights, masks, dtype
    found, expected = kernels.active_weights(*arguments), in_double(reference.active_weights, *arguments)
    assert all(one.is_contiguous() and one.data_ptr() % 16 == 0 for one in found)
    assert_close(found, expected, dtype)
    last = torch.randn(40, 33, 3, 3, generator=draw).to(dtype).contiguous(memory_format=torch.channels_last)
    grads = [*(torch.randn(one.shape, generator=draw).to(dtype) for one in found[:3]), last.flatten(2).transpose(1, 2)]
    back, wanted = kernels.weight_gradients(grads, weights), reference.weight_gradients(grads, weights)
    assert all(torch.equal(one, two) and one.is_contiguous() for one, two in zip(back, wanted, strict=True))
    assert all(one.stride() == two.stride() == w.stride() for one, two, w in zip(back, wanted, weights, strict=True))
    turned = [weights[0].transpose(0, 1), weights[2].transpose(0, 1)], [masks[0].T, None], dtype  # type: ignore[union-attr]
    assert_close(kernels.active_weights(*turned), in_double(reference.active_weights, *turned), dtype)


def test_channels_are_read_together_only_where_they_move_together(
    interpreted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint to the compiler, which the interpreter does not read."""
    told: list[int] = []
    vector = interpreted.vector_of
    monkeypatch.setattr(interpreted, "vector_of", lambda *numbers: told.append(vector(*numbers)) or told[-1])
    draw = torch.Generator().manual_seed(0)
    for counts, shift_size, expected in (
        ([48, 48], 3, 8), ([24], 3, 8), ([48, 40], 3, 1), ([24, 4], 1, 1), ([12, 36], 3, 1), ([40], 5, 8),
    ):  # fmt: skip
        sources = [volume(draw, torch.float32, 1, channels, 2, 2, 2) for channels in counts]
        interpreted.prepare(sources, [None] * len(counts), [1.0] * len(counts), shift_size, 1, torch.float32, None)
        start, total = sum(counts[:-1]), sum(counts)
        grad, place = volume(draw, torch.float32, 1, total, 2, 2, 2), [start, shift_size, 1, 1, 1, 1]
        affine = table(draw, torch.float32, 1, counts[-1])
        interpreted.gather_gradient(sources[-1], affine, 0.01, [grad], [None], place)
        interpreted.block_gradient(grad, place, [1, 1, 1, 1, 2, 2, 2, counts[-1]])
        assert told == [expected] * 3, counts
        told.clear()


def test_too_many_voxels_for_32_bits_are_refused(interpreted: Any) -> None:
    huge = torch.empty(1, 64, 512, 512, 512, device="meta", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"8589934592 values in a sample, more than 2147483647"):
        interpreted.prepare([huge], [None], [1.0], 3, 1, torch.float16, None)
    large = torch.empty(1, 48, 256, 256, 256, device="meta", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"2415919104 values in a sample"):  # of the joined input, not of its parts
        interpreted.prepare([large] * 3, [None] * 3, [1.0] * 3, 3, 1, torch.float16, None)
    with pytest.raises(ValueError, match=r"3355443200 values in a sample"):
        columns = torch.empty(200, device="meta", dtype=torch.int64)
        interpreted.prepare([large], [None], [1.0], 3, 1, torch.float16, columns)


def start_kernels(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> set[str]:
    """Let the modules run operations of their names, and return a set that gets the names of those that ran."""
    used: set[str] = set()

    def through(name: str, start: Any) -> Any:
        return lambda *given: used.add(name) or start(*given)

    for module in (operations, operations_implicit):
        for key, func in list(vars(module).items()):
            if key.isupper() and hasattr(func, "default"):
                name = func.default._schema.name.removeprefix("e2enet::fused_")
                start = next((getattr(one, name) for one in modules if hasattr(one, name)), func)
                monkeypatch.setattr(module, key, through(key, start))
    return used


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"kernel_size": (3, 3, 3), "base_features": 8}])
def test_a_whole_step_by_the_kernels(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], groups: bool
) -> None:
    used = start_kernels(monkeypatch, kernels)
    model = make(**arguments)
    if groups:
        in_groups(model)
    assert_same(model, image(model, 2, (4, 8, 8)), run=FusedNetwork(model, groups=groups), active_only=groups)
    assert used == AROUND
