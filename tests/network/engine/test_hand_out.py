"""A layer's work is cut so that each voxel is computed once, whole samples go to threads, and no cut changes a bit."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2enet.network.dsff import update_masks
from e2enet.network.engine import dense, hand_out, inference, sparse_layers, tile_plan
from e2enet.network.engine.dense import DenseConvolution
from e2enet.network.engine.hand_out import SHORT, cut
from e2enet.network.engine.inference import CompactNetwork
from e2enet.network.engine.lazy_volumes import LazyVolumes, empty_volume
from e2enet.network.engine.tile_plan import MAX_PLANS
from e2enet.network.engine.training import TrainingEngine
from tests.network.engine.test_checks import convolution, expansion, on_threads
from tests.network.engine.test_compact import SIZE, make_model
from tests.network.engine.test_training import gradients, sample

LONG = 0.2 * SHORT, 50 * SHORT


@settings(max_examples=200, deadline=None)
@given(
    samples=st.integers(1, 9),
    tiles=st.integers(1, 20),
    outputs=st.integers(1, 40),
    fill=st.sampled_from([0.0, 1e-5, 1e-3, 0.1]),
    compute=st.sampled_from([0.0, 1e-5, 1e-3, 0.1]),
    threads=st.integers(1, 33),
)
def test_every_output_of_every_tile_is_in_one_piece(
    samples: int, tiles: int, outputs: int, fill: float, compute: float, threads: int
) -> None:
    done = np.zeros((samples * tiles, outputs), int)
    for first, last, begin, end in cut(samples, tiles, outputs, (fill, compute), threads):
        assert first < last and begin < end
        done[first:last, begin:end] += 1
    assert (done == 1).all()


def test_threads_take_whole_samples_where_there_are_enough() -> None:
    short = 0.3 * SHORT, 0.5 * SHORT
    assert list(cut(2, 10, 8, short, 2)) == [(0, 10, 0, 8), (10, 20, 0, 8)]
    assert list(cut(3, 10, 8, short, 2)) == [(0, 10, 0, 8), (10, 20, 0, 8), (20, 30, 0, 8)]
    assert len(cut(64, 10, 8, short, 2)) == 8  # a thread takes several of many samples at once
    pieces = cut(3, 10, 8, LONG, 2)  # the third is shared
    assert pieces[:2] == ((0, 10, 0, 8), (10, 20, 0, 8)) and len(pieces) > 4
    assert list(cut(3, 10, 8, short, 1)) == [(0, 30, 0, 8)]


def test_threads_share_the_tiles_and_the_outputs_of_a_single_sample() -> None:
    assert list(cut(1, 64, 8, LONG, 2)) == [(8 * part, 8 * part + 8, 0, 8) for part in range(8)]
    assert list(cut(1, 2, 32, LONG, 8)) == [
        (job, job + 1, 8 * part, 8 * part + 8) for job in range(2) for part in range(4)
    ]
    assert list(cut(1, 64, 8, (0.0, 0.1 * hand_out.SHORTEST_PIECE), 8)) == [(0, 64, 0, 8)]  # not worth waking a thread


def same_bits(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("density", [0.05, 0.3])
def test_a_batch_has_the_bits_of_one_sample_at_a_time_on_any_number_of_threads(threads: int, density: float) -> None:
    model = make_model(density)
    network, x = CompactNetwork(model, choose=False), sample(5)
    with on_threads(1):
        expected = torch.cat([network(one[None]) for one in x])
    with on_threads(threads):
        for batch in (5, 3, 1):
            same_bits(network(x[:batch]), expected[:batch])


def test_cuts_within_a_sample_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers count as long here, so their tiles and outputs are cut, as those of large volumes are."""
    monkeypatch.setattr(tile_plan, "OPERATIONS", 1e5)
    pieces: list[hand_out.Piece] = []

    def noted(*given: Any) -> tuple[hand_out.Piece, ...]:
        pieces.extend(found := cut(*given))
        return found

    monkeypatch.setattr(hand_out, "cut", noted)
    network, x = CompactNetwork(make_model(0.3), choose=False), sample(3, (16, 32, 40))
    with on_threads(1):
        expected = torch.cat([network(one[None]) for one in x])
    with on_threads(5):
        same_bits(network(x), expected)
    assert any(begin > 0 for _, _, begin, _ in pieces)
    assert any(begin == 0 and last - first > 1 for first, last, begin, _ in pieces)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_a_training_batch_has_the_bits_of_one_sample_at_a_time(threads: int) -> None:
    model, x = make_model(0.3, strides=[(1, 2, 2), (2, 2, 2), (1, 2, 1)]).train(), sample(5, (8, 16, 24))
    engine = TrainingEngine(model)

    def heads(inputs: torch.Tensor, first: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Return logits, and gradients of their products with numbers that depend on the sample."""
        model.zero_grad()
        logits = list(engine(inputs))
        assert len(logits) > 1
        draws = [torch.randn(5, *head.shape[1:], generator=torch.Generator().manual_seed(3)) for head in logits]
        torch.autograd.backward(logits, [draw[first : first + len(inputs)] for draw in draws])
        return [head.detach() for head in logits], {
            n: p.grad for n, p in model.named_parameters() if p.grad is not None
        }

    with on_threads(1):
        alone = [heads(x[i : i + 1], i) for i in range(5)]
    with on_threads(threads):
        logits, found = heads(x, 0)
    for level, head in enumerate(logits):
        same_bits(head, torch.cat([one[level] for one, _ in alone]))
    for name, gradient in found.items():
        total = alone[0][1][name]
        for _, other in alone[1:]:
            total = total + other[name]
        if ".norm." in name:  # summed in float64, and rounded once
            torch.testing.assert_close(gradient, total, rtol=1e-5, atol=1e-5)
        else:
            same_bits(gradient, total)


@pytest.mark.parametrize("part", [1, 10_000, 2**22])
def test_convolutions_by_torch_take_samples_together(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "LARGEST_PART", part)
    draw = np.random.default_rng(0)
    norm = np.array([[1], [0]], np.float32).repeat(3, axis=1), 1e-5, 0.01
    x = draw.standard_normal((5, 4, 9, 11, 7), dtype=np.float32)
    for kernel, stride in (((1, 3, 3), (2, 2, 1)), ((3, 3, 3), (1, 1, 2))):
        weights = draw.standard_normal((3, 4, *kernel), dtype=np.float32)
        layer = DenseConvolution(weights, np.array([0, 1, -1, 0]) * (kernel[0] == 1), stride, norm)
        for threads in (1, 3):
            with on_threads(threads):
                together, alone = layer([LazyVolumes.of(x)]), [layer([LazyVolumes.of(one[None])]) for one in x]
            expected = np.concatenate([one.stacked() for one in alone])
            np.testing.assert_allclose(together.stacked(), expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(together.affine, np.concatenate([one.affine for one in alone]), atol=1e-5)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of all plans that are made from here on."""
    plans: list[Any] = []
    init: Callable[..., None] = tile_plan.TilePlan.__init__

    def noted(self: Any, *given: Any) -> None:
        plans.append(self)
        init(self, *given)

    monkeypatch.setattr(tile_plan.TilePlan, "__init__", noted)
    return plans


def test_tables_are_made_once_for_a_size(made: list[Any]) -> None:
    network = CompactNetwork(make_model(0.3), choose=False)
    convolving = [step for step in network.steps if hasattr(step.layer, "kernels")]
    made.clear()  # the check of the network has made those of a small size
    for batch in (1, 2, 2):
        network(sample(batch))
    assert len(made) == len(convolving) > 10
    for width in (4, 8, 12, 24, 28):
        network(sample(1, (8, 16, width)))
    kept = [step.layer.kernels.plans for step in convolving]  # type: ignore[attr-defined]
    assert all(len(plans) == MAX_PLANS for plans in kept)
    made.clear()
    network(sample(1, (8, 16, 28)))
    assert not made
    network(sample(1, SIZE))  # the oldest were let go
    assert len(made) == len(convolving)


def test_training_makes_tables_anew_where_masks_have_changed(made: list[Any]) -> None:
    model = make_model(0.3).train()
    engine = TrainingEngine(model)
    gradients(engine, model, sample())
    count = len(made)
    assert count > 0
    made.clear()
    gradients(engine, model, sample())
    assert not made
    update_masks(model, 0.5, generator=torch.Generator().manual_seed(4))
    gradients(engine, model, sample())
    assert 0 < len(made) < count  # the encoder's masks have not changed


def test_copies_make_their_own_tables() -> None:
    for layer in (convolution(), expansion()):
        layer([LazyVolumes.of(np.ones((1, 4, 9, 11, 7), np.float32))])
        assert layer.kernels.plans
        for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert not other.kernels.plans
            assert np.array_equal(other.kernels.rows, layer.kernels.rows)


def test_a_network_wants_a_sample_for_each_thread_if_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    network = CompactNetwork(make_model(0.3), choose=False)
    one, free = network.sample_bytes(SIZE), 0
    monkeypatch.setattr(inference, "available_memory", lambda: free)
    for threads, samples_that_fit, expected in ((1, 100, 1), (3, 100, 3), (3, 1, 2), (3, 0, 1)):
        free = int(samples_that_fit * one / inference.SHARE_OF_MEMORY)
        with on_threads(threads):
            assert network.samples_at_once(SIZE) == expected


@pytest.mark.parametrize("settings", [{}, {"fusion": "unet"}, {"strides": [(1, 2, 2), (2, 2, 2), (1, 2, 1)]}], ids=str)
def test_the_memory_of_a_sample_is_that_of_its_volumes(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network, size = CompactNetwork(make_model(1.0, **settings), choose=False), (8, 16, 24)
    held, peaks = 0, [0]

    def counted(shape: tuple[int, ...]) -> np.ndarray:
        nonlocal held
        values = empty_volume(shape)
        held += values.size
        peaks.append(held)
        weakref.finalize(values.base, let_go, values.size)
        return values

    def let_go(count: int) -> None:
        nonlocal held
        held -= count

    monkeypatch.setattr(sparse_layers, "empty_volume", counted)
    with on_threads(1):
        network(sample(1, size))
    network.in_channels = 0  # the input is not counted here
    assert network.sample_bytes(size) == 4 * max(peaks)
