"""The engine's debug mode: nothing is found in correct passes, and injected faults are told before they do harm."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from e2enet.network.blocks import ConvBlock
from e2enet.network.engine import checks, gradient_loops, loops
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.checks import BoundsError
from e2enet.network.engine.dense import DenseConvolution
from e2enet.network.engine.gradients import Gradient
from e2enet.network.engine.inference import CompactNetwork
from e2enet.network.engine.lazy_volumes import LazyVolumes, empty_volume
from e2enet.network.engine.sparse_layers import Convolution, Expansion
from e2enet.network.engine.training import TrainedConvolution, TrainedExpansion, TrainedPooling, TrainingEngine
from e2enet.network.layers import StrideUp3d
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.shift import channel_shifts
from tests.network.engine.test_compact import make_model, outputs
from tests.network.engine.test_gradients import alone, masked
from tests.network.engine.test_sparse_layers import signal
from tests.network.engine.test_training import gradients as gradients_of
from tests.network.engine.test_training import sample

SIZE = (7, 9, 11)


@pytest.fixture(autouse=True)
def checks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests switch the checks on themselves, whatever the environment says."""
    monkeypatch.setattr(checks, "ON", False)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, checks_off: None) -> None:
    monkeypatch.setattr(checks, "ON", True)


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_equal_when_checked(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """Assert that the debug mode finds nothing and gives the same bits."""
    found = []
    for on in (False, True):
        monkeypatch.setattr(checks, "ON", on)
        found.append(run())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0, equal_nan=True)


# ------------------------------------------------------------------------------------------------ correct passes


def both_ways(layer: Any, sources: list[Tensor]) -> list[np.ndarray]:
    """Return the output of a layer, and the gradients of its sources, the second of which holds one already."""
    signals = [signal(source) for source in sources]
    layer.refresh()
    output = layer.forward(signals)
    into = [Gradient(one) for one in signals]
    for part in into[1:]:
        part.values[:] = 1
        part.written[:] = True
    given = Gradient(output)
    given.values[:] = np.random.default_rng(1).standard_normal(given.values.shape)
    given.written[:] = True
    found = layer.backward(signals, output, given, into)
    return [output.stacked(), output.affine, *found.values(), *(part.signal().stacked() for part in into)]


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "shift_size", "density", "threads"),
    [
        ((1, 3, 3), (1, 1, 1), (32, 17, 19), 3, 0.5, 1),  # whole vectors, streamed
        ((1, 3, 3), (1, 1, 1), (5, 9, 23), 5, 0.3, 2),  # strips of the plane side by side in the lanes
        ((1, 3, 3), (4, 2, 3), (20, 8, 18), 3, 1.0, 3),
        ((1, 3, 3), (2, 2, 2), (38, 6, 10), 3, 0.05, 2),
        ((3, 3, 3), (3, 1, 2), (9, 5, 8), 1, 0.5, 3),
        ((3, 1, 3), (1, 2, 1), (17, 8, 7), 1, 0.5, 1),
        ((3, 3, 1), (2, 1, 1), (16, 1, 9), 1, 0.5, 2),
        ((1, 1, 1), (1, 1, 1), (1, 1, 1), 1, 1.0, 2),
    ],
)
def test_convolutions_are_clean_and_equal(
    monkeypatch: pytest.MonkeyPatch, kernel: Any, stride: Any, size: Any, shift_size: int, density: float, threads: int
) -> None:
    torch.manual_seed(0)
    block = ConvBlock(7, 5, kernel_size=kernel, stride=stride, shift_size=shift_size)
    masked(block.conv, density, torch.Generator().manual_seed(0))
    sources = [torch.randn(count, *size) for count in (3, 4)]
    weights, shifts = block.conv.weight.detach().numpy(), np.array(channel_shifts(7, shift_size))

    def run() -> list[np.ndarray]:
        dense = [
            DenseConvolution(weights, shifts, stride, None, dtype)([signal(source) for source in sources]).stacked()
            for dtype in (torch.float32, torch.bfloat16)
        ]
        return [*both_ways(TrainedConvolution(alone(block)), sources), *dense]

    with on_threads(threads):
        assert_equal_when_checked(monkeypatch, run)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("stride", "size"),
    [((1, 2, 2), (16, 9, 7)), ((2, 2, 2), (5, 6, 9)), ((4, 1, 3), (33, 3, 4)), ((1, 3, 1), (1, 1, 2))],
)
def test_expansions_and_poolings_are_clean_and_equal(
    monkeypatch: pytest.MonkeyPatch, stride: Any, size: Any, threads: int
) -> None:
    torch.manual_seed(0)
    up = StrideUp3d(6, 4, stride)
    masked(up, 0.5, torch.Generator().manual_seed(0))
    coarse = torch.randn(6, *size)
    fine = torch.randn(6, *(edge * step for edge, step in zip(size, stride, strict=True)))

    def run() -> list[np.ndarray]:
        pooled = both_ways(TrainedPooling(alone(StrideMaxPool3d(stride))), [fine])
        return [*both_ways(TrainedExpansion(alone(up)), [coarse]), *pooled]

    with on_threads(threads):
        assert_equal_when_checked(monkeypatch, run)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"density": 0.02},
        {"kernel_size": (3, 3, 3), "inner_kernel_size": (1, 3, 3)},
        {"strides": [(2, 2, 2), (1, 2, 1), (2, 1, 2)]},
        {"fusion": "unet"},
    ],
    ids=str,
)
def test_networks_are_clean_and_equal(monkeypatch: pytest.MonkeyPatch, settings: Any, threads: int) -> None:
    def run() -> Any:
        model = make_model(**settings)
        predicted = outputs(model, CompactNetwork(model, choose=False), batch=1)[0]
        return predicted, gradients_of(TrainingEngine(model.train()), model, sample(3))

    with on_threads(threads):
        assert_equal_when_checked(monkeypatch, run)


def volumes(channels: int = 4, size: Any = SIZE) -> LazyVolumes:
    return signal(torch.randn(channels, *size, generator=torch.Generator().manual_seed(0)))


def convolution(outputs: int = 3, channels: int = 4) -> Convolution:
    kernels = ActiveKernels.of_convolution(
        np.ones((outputs, channels), bool), np.array(channel_shifts(channels, 3)), (1, 3, 3)
    )
    weights = np.ones((outputs, channels, 1, 3, 3), np.float32)
    return Convolution(kernels, kernels.gather_weights(weights), (1, 1, 1), (1, 1), None)


def expansion() -> Expansion:
    kernels = ActiveKernels.of_expansion(np.ones((4, 3), bool), (2, 2, 2))
    return Expansion(kernels, kernels.gather_weights(np.ones((4, 3, 2, 2, 2), np.float32)), (2, 2, 2))


def test_values_that_are_not_finite_are_no_fault(checked: None) -> None:
    layer, source = convolution(), volumes()
    source.memory[0][0, 0, 3, 4, 2] = np.nan
    source.memory[0][0, 1, 3, 4, 2] = np.inf
    assert np.isnan(layer([source]).stacked()).any()


# ------------------------------------------------------------------------------------------------ guard values


@pytest.mark.parametrize(("module", "name"), [(loops, "convolve"), (gradient_loops, "correlate")])
@pytest.mark.parametrize("place", [-1, 0])
def test_what_a_loop_writes_beside_its_memory_is_found(
    checked: None, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, place: int
) -> None:
    """`place` is counted from the end of the tile if it is not negative, else from its start."""
    loop = getattr(module, name)

    def faulty(*arguments: Any) -> None:
        loop(*arguments)
        tile = next(argument for argument in arguments if isinstance(argument, np.ndarray))
        address = tile.ctypes.data + 4 * (place if place < 0 else tile.size + place)
        ctypes.c_float.from_address(address).value = 1.0

    faulty.__name__ = name
    monkeypatch.setattr(module, name, faulty)
    found = r"-1 of memory of (\d+) values" if place < 0 else r"(\d+) of memory of \1 values"
    with pytest.raises(BoundsError, match=rf"{name}: it wrote value {found}"):
        both_ways(TrainedConvolution(alone(ConvBlock(4, 3))), [torch.randn(4, *SIZE)])


def test_what_a_loop_writes_behind_its_output_is_found(checked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    convolve = loops.convolve

    def faulty(*arguments: Any) -> None:
        convolve(*arguments)
        targets, (depth, height, width) = arguments[-3], arguments[-2]
        ctypes.c_float.from_address(int(targets[0, -1]) + 4 * depth * height * width).value = 1.0

    faulty.__name__ = "convolve"
    monkeypatch.setattr(loops, "convolve", faulty)
    with pytest.raises(BoundsError, match=r"convolve: it wrote value 2079 of memory of 2079 values, .* \(1, 3, 9"):
        convolution()([volumes()])


def test_an_error_names_the_operation_of_a_network(checked: None) -> None:
    model = make_model(0.5)
    network = CompactNetwork(model, choose=False)
    (step,) = (step for step in network.steps if step.name == "decoder.columns.0.0.blocks.0")
    layer: Any = step.layer
    layer.kernels.numbers[0] = 10_000
    layer.kernels.plans.clear()
    with pytest.raises(BoundsError, match=r"^decoder\.columns\.0\.0\.blocks\.0, convolve: kernel 0, of output 0"):
        outputs(model, network)
    engine = TrainingEngine(model.train())
    loss = sum(head.sum() for head in engine(sample()))
    trained: Any = next(layer for layer in engine.layers.values() if isinstance(layer, TrainedConvolution))
    trained.kernels.numbers[0] = 10_000
    trained.kernels.plans.clear()
    with pytest.raises(BoundsError, match=r"^encoder\.0\.0, backward, correlate: kernel 0, of output 0, reads"):
        loss.backward()


# ------------------------------------------------------------------------------------------------ the switch


def test_nothing_is_watched_when_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "require_volumes", None)  # a call would fail
    assert checks.watch(loops.convolve) is loops.convolve
    assert empty_volume((3, 5)).base.size == 3 * 5 + 16
    layer: nn.Module = ConvBlock(4, 3)
    assert np.isfinite(both_ways(TrainedConvolution(alone(layer)), [torch.randn(4, *SIZE)])[0]).all()


SWITCHED = """
import numpy as np
from e2enet.network.engine import checks, loops
from e2enet.network.engine.lazy_volumes import LazyVolumes
from e2enet.network.engine.sparse_layers import Pooling
source = LazyVolumes.of(np.arange(64, dtype=np.float32).reshape(1, 1, 4, 4, 4))
print(checks.ON, Pooling((2, 2, 2))([source]).stacked().ravel().tolist())
if checks.ON:
    try:
        given = source.memory[0], source.places(), source.affine, (2, 2, 2)
        loops.pool(0, 1, *given, np.zeros((1, 2, 3, 2), np.float32))
    except IndexError as error:
        print(error)
"""


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_environment_variable_switches_it_and_numbas_checks(value: str) -> None:
    environment = os.environ | {"E2ENET_ENGINE_CHECKS": value, "PYTHONPATH": str(Path(__file__).parents[3])}
    run = [sys.executable, "-c", SWITCHED]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert found[0] == f"{value == '1'} [21.0, 23.0, 29.0, 31.0, 53.0, 55.0, 61.0, 63.0]"
    assert found[1:] == (["index is out of bounds"] if value == "1" else [])
