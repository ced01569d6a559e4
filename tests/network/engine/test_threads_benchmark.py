"""The simulation of many cores in `benchmarks.engine_threads`."""

from __future__ import annotations

import pytest

from benchmarks.engine_threads import LayerTimes, cut_for, last_thread, simulated, timed_pass
from e2enet.network.compiled import run_in_threads
from e2enet.network.engine import hand_out
from e2enet.network.engine.inference import CompactNetwork
from tests.network.engine.test_compact import SIZE, make_model


@pytest.mark.parametrize(
    ("pieces", "threads", "seconds"),
    [([3, 1, 1, 1], 1, 6), ([3, 1, 1, 1], 2, 3), ([1, 1, 1, 3], 2, 4), ([1, 2], 8, 2), ([], 2, 0)],
)
def test_the_next_piece_goes_to_the_thread_that_is_done_first(
    pieces: list[float], threads: int, seconds: float
) -> None:
    assert last_thread(pieces, threads) == seconds


def test_a_simulated_pass_adds_serial_parts_waking_and_the_last_threads() -> None:
    layers = {"one": LayerTimes([5.0, 4.0], [3.0, 3.0], [2.0, 1.5], woken=3), "two": LayerTimes([1.0], [1.0], [0.5])}
    assert simulated(layers, 0.25) == 1.0 + 3 * 0.25 + 1.5 + 0.5


def test_layers_are_timed_as_they_are_cut_for_so_many_threads() -> None:
    network = CompactNetwork(make_model(0.3), choose=False)
    plain = [step.layer for step in network.steps]
    times = timed_pass(network, SIZE, 4, 4, runs=2)
    assert list(times) == ["", *(step.name for step in network.steps)]
    assert [step.layer for step in network.steps] == plain and hand_out.run_in_threads is run_in_threads
    for name, layer in times.items():
        assert len(layer.total) == len(layer.pieces) == len(layer.last) == 2
        assert all(
            0 <= last <= pieces <= total
            for total, pieces, last in zip(layer.total, layer.pieces, layer.last, strict=True)
        )
        assert bool(name) or layer.pieces == [0, 0]
    block = next(layer for name, layer in times.items() if name == "decoder.columns.0.0.blocks.0")
    assert block.woken == 3  # each of four threads takes a sample
    with cut_for(1):
        assert hand_out._threads() == 1
