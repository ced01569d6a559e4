"""Layers of the engine against torch's, over shapes, kernels, strides, densities and shifts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from e2enet.network.compiled import in_piece, run_in_threads
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.dense import LARGEST_PART, DenseConvolution
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm
from e2enet.network.engine.sparse_layers import Convolution, Expansion, Pooling
from e2enet.network.engine.vector_code import CompiledFunction, compiled_once
from e2enet.network.shift import channel_shifts, shift_concat

KERNELS = [(1, 3, 3), (3, 1, 3), (3, 3, 1), (3, 3, 3), (1, 1, 1)]
SIZES = st.tuples(st.integers(1, 37), st.integers(1, 11), st.integers(1, 19))
few = settings(max_examples=60, deadline=None)


def signal(x: Tensor, affine: Tensor | None = None) -> LazyVolumes:
    """Return volumes (C, D, H, W) in the engine's form, a batch of one."""
    made = LazyVolumes.of(np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())[None])
    if affine is not None:
        made.affine[:] = affine.numpy()
    return made


def values(found: LazyVolumes) -> Tensor:
    """Return the first sample's values (C, D, H, W) that readers see: normalised and activated."""
    x = torch.from_numpy(found.stacked()[0]).permute(0, 3, 1, 2)
    scale, offset, slope = torch.from_numpy(found.affine[0]).T[:, :, None, None, None]
    x = x * scale + offset
    return torch.maximum(x, x * slope)


def convolution(
    weights: Tensor,
    active: Tensor,
    shifts: np.ndarray,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int] = (1, 1),
    norm: Norm | None = None,
) -> Convolution:
    depth, height, width = weights.shape[2:]
    kernels = ActiveKernels.of_convolution(active.numpy(), shifts, (depth, height, width))
    return Convolution(kernels, kernels.gather_weights(weights.numpy()), stride, padding, norm)


@few
@given(
    kernel=st.sampled_from(KERNELS),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3)),
    size=SIZES,
    channels=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    outputs=st.integers(1, 6),
    density=st.sampled_from([0.05, 0.3, 1.0]),
    shift_size=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize(("dense", "part"), [(False, 0), (True, 1), (True, LARGEST_PART)])
def test_a_convolution_is_torchs(
    dense: bool,
    part: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    size: tuple[int, int, int],
    channels: list[int],
    outputs: int,
    density: float,
    shift_size: int,
    seed: int,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    total = sum(channels)
    shift_size = shift_size if kernel[0] == 1 else 1  # as in the network
    weights, mask = torch.randn(outputs, total, *kernel, generator=draw), torch.rand(outputs, total, generator=draw)
    active = mask < density
    weights = weights * active[:, :, None, None, None]
    sources = [torch.randn(count, *size, generator=draw) for count in channels]
    affines = [torch.rand(count, 3, generator=draw) for count in channels]
    signals = [signal(*pair) for pair in zip(sources, affines, strict=True)]
    seen = [values(source)[None].contiguous() for source in signals]
    weight, bias = torch.randn(outputs, generator=draw), torch.randn(outputs, generator=draw)
    norm = np.stack([weight.numpy(), bias.numpy()]), 1e-5, 0.01
    shifts, padding = np.array(channel_shifts(total, shift_size)), [edge // 2 for edge in kernel]
    expected = F.conv3d(shift_concat(seen, shift_size), weights, None, stride, padding)
    layer = (
        DenseConvolution(weights.numpy(), shifts, stride, norm)
        if dense
        else convolution(weights, active, shifts, stride, (padding[1], padding[2]), norm)
    )
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)  # the engine ignores autocast
    with patch("e2enet.network.engine.dense.LARGEST_PART", part), autocast:
        found = layer(signals)
    plain = torch.from_numpy(found.stacked()[0]).permute(0, 3, 1, 2)
    torch.testing.assert_close(plain, expected[0], rtol=1e-5, atol=1e-5)
    variance, mean = torch.var_mean(expected[0].double(), dim=(1, 2, 3), correction=0)
    scale = weight / torch.sqrt(variance + 1e-5)
    wanted = torch.stack([scale, bias - mean * scale, torch.full_like(scale, 0.01)], dim=1)
    torch.testing.assert_close(torch.from_numpy(found.affine[0]).double(), wanted, rtol=1e-4, atol=1e-4)


@few
@given(
    kernel=st.sampled_from(KERNELS),
    size=SIZES,
    channels=st.lists(st.integers(2, 20), min_size=1, max_size=2),  # one channel of one voxel: torch itself is wrong
    outputs=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("part", [1, LARGEST_PART])
def test_a_convolution_in_bfloat16_rounds_its_input_and_its_output_once(
    part: int, kernel: tuple[int, int, int], size: tuple[int, int, int], channels: list[int], outputs: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(outputs, sum(channels), *kernel, generator=draw)
    sources = [torch.randn(count, *size, generator=draw) for count in channels]
    affine = torch.tensor([1.0, 0.0, 0.125])  # exact, so that both round the same numbers
    signals = [signal(source, affine.repeat(len(source), 1)) for source in sources]
    shift_size = 3 if kernel[0] == 1 else 1
    seen = shift_concat([values(source)[None].contiguous() for source in signals], shift_size)
    padding = [edge // 2 for edge in kernel]
    expected = F.conv3d(seen.bfloat16().double(), weights.bfloat16().double(), padding=padding)[0]
    layer = DenseConvolution(
        weights.numpy(), np.array(channel_shifts(sum(channels), shift_size)), (1, 1, 1), None, torch.bfloat16
    )
    with patch("e2enet.network.engine.dense.LARGEST_PART", part):
        found = values(layer(signals))
    assert torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("written", [[True, False, True, False], [False] * 4])
def test_channels_that_nobody_wrote_are_read_as_zeros(dense: bool, written: list[bool]) -> None:
    draw = torch.Generator().manual_seed(0)
    weights, shifts = torch.randn(3, 4, 1, 3, 3, generator=draw), np.array(channel_shifts(4, 3))
    held = torch.randn(sum(written), 7, 6, 5, generator=draw).numpy()
    source = LazyVolumes.of(held[None], np.array(written))
    source.affine[:] = torch.rand(4, 3, generator=draw).numpy()
    expected = F.conv3d(shift_concat([values(source)[None].contiguous()], 3), weights, None, padding=(0, 1, 1))
    active = torch.ones(3, 4, dtype=torch.bool)
    dense_layer = DenseConvolution(weights.numpy(), shifts, (1, 1, 1), None)
    found = (dense_layer if dense else convolution(weights, active, shifts))([source])
    torch.testing.assert_close(values(found), expected[0], rtol=1e-5, atol=1e-5)


@few
@given(
    up=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    size=SIZES,
    channels=st.integers(1, 6),
    outputs=st.integers(1, 5),
    density=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_an_expansion_is_torchs_transposed_convolution(
    up: tuple[int, int, int], size: tuple[int, int, int], channels: int, outputs: int, density: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(channels, outputs, generator=draw) < density
    weights = torch.randn(channels, outputs, *up, generator=draw) * mask[:, :, None, None, None]
    source = signal(torch.randn(channels, *size, generator=draw), torch.rand(channels, 3, generator=draw))
    expected = F.conv_transpose3d(values(source)[None], weights, None, up)
    kernels = ActiveKernels.of_expansion(mask.numpy(), up)
    found = Expansion(kernels, kernels.gather_weights(weights.numpy()), up)([source])
    torch.testing.assert_close(values(found), expected[0], rtol=1e-5, atol=1e-5)


@few
@given(
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(3, 20), st.integers(3, 9), st.integers(3, 9)),
    seed=st.integers(0, 2**16),
)
def test_pooling_is_torchs_whatever_the_sign_of_the_scale(
    stride: tuple[int, int, int], size: tuple[int, int, int], seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    affine = torch.randn(5, 3, generator=draw)
    affine[:, 2] = 0.01
    source = signal(torch.randn(5, *size, generator=draw), affine)
    found = values(Pooling(stride)([source]))
    torch.testing.assert_close(found, F.max_pool3d(values(source).contiguous(), stride), rtol=1e-6, atol=1e-6)


def test_channels_that_no_kernel_writes_share_one_volume() -> None:
    mask = torch.zeros(4, 2, dtype=torch.bool)
    mask[1, 0] = True
    layer = convolution(torch.ones(4, 2, 1, 3, 3), mask, np.zeros(2, np.int64))
    found = layer([signal(torch.ones(2, 4, 5, 6))])
    assert len(set(found.addresses[0].tolist())) == 2 and found.memory[0].shape == (1, 1, 5, 6, 4)
    assert not values(found)[[0, 2, 3]].any() and values(found)[1].max() == 9


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    weights, mask = torch.randn(8, 6, 1, 3, 3, generator=draw), torch.rand(8, 6, generator=draw) < 0.5
    norm = np.array([[1], [0]], np.float32).repeat(8, axis=1), 1e-5, 0.01
    one, other = (convolution(weights, mask, np.array(channel_shifts(6, 3)), norm=norm) for _ in range(2))
    source = signal(torch.randn(6, 32, 48, 48, generator=draw))  # 16 and 32 tiles would differ
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        expected = one([source])
        torch.set_num_threads(threads)
        found = other([source])  # which has made no tables yet
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found.stacked(), expected.stacked())
    assert np.array_equal(found.affine, expected.affine)
    assert found.moments is not None and expected.moments is not None
    assert np.array_equal(found.moments, expected.moments)  # float64: a sum in another order shows


def test_a_large_mean_costs_no_digits_that_matter() -> None:
    x = torch.randn(1, 32, 48, 48, generator=torch.Generator().manual_seed(0)) + 30
    norm = np.array([[1], [0]], np.float32).repeat(1, axis=1), 1e-5, 0.01
    active = torch.ones(1, 1, dtype=torch.bool)
    layer = convolution(torch.ones(1, 1, 1, 1, 1), active, np.zeros(1, np.int64), padding=(0, 0), norm=norm)
    expected = F.leaky_relu(F.instance_norm(x[None].double()), 0.01)[0].float()
    torch.testing.assert_close(values(layer([signal(x)])), expected, rtol=1e-4, atol=2e-4)


def test_threads_that_ask_for_code_at_the_same_time_get_the_same() -> None:
    made: list[CompiledFunction] = []
    together = threading.Barrier(4)

    @compiled_once
    def nothing(number: int) -> CompiledFunction:
        time.sleep(0.05)  # long enough for all threads to call
        made.append(CompiledFunction(number, lambda at, *_: None))
        return made[-1]

    def ask(_: int) -> CompiledFunction:
        together.wait()
        return nothing(2)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1 and len(made) == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_every_piece_is_worked_on_once_and_pieces_within_run_in_their_thread(threads: int) -> None:
    done, inner = list[int](), dict[int, set[int]]()
    before = torch.get_num_threads()

    def piece(number: int) -> None:
        done.append(number)
        inner[number] = set()
        run_in_threads(lambda _: inner[number].add(threading.get_ident()), [(i,) for i in range(5)])

    try:
        torch.set_num_threads(threads)
        run_in_threads(piece, [(number,) for number in range(20)])
        with pytest.raises(ZeroDivisionError):
            run_in_threads(lambda number: 1 // number, [(number,) for number in (1, 0, 1)])
    finally:
        torch.set_num_threads(before)
    assert sorted(done) == list(range(20)) and all(len(found) == 1 for found in inner.values())
    assert not in_piece()
