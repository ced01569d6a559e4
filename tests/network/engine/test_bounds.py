"""The engine's debug mode: a fault in what a loop is given is told before the call, by operation, tile and place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from e2enet.network.engine import checks, dense_loops, gradients, loops, sparse_layers, tile_plan
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.checks import BoundsError
from e2enet.network.engine.dense import DenseConvolution
from e2enet.network.engine.gradients import Gradient, correlate, norm_gradient
from e2enet.network.engine.lazy_volumes import LazyVolumes, empty_volume
from e2enet.network.engine.sparse_layers import Pooling
from e2enet.network.engine.tiling import LaneRun, Tiling
from tests.network.engine.test_checks import SIZE, convolution, expansion, volumes


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ON", True)


def moved_source(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    source.addresses[0, 2] += 4 * 4 * int(np.prod(SIZE))  # four volumes further, where two are left


def moved_source_a_little(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    source.addresses[0, 2] += 4


def wrong_size(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    source.size = (7, 9, 12)


def tile_beyond(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    tiles = Tiling.tiles
    patch.setattr(Tiling, "tiles", lambda tiling: np.concatenate([tiles(tiling), [[0, 12, 0]]]))


def tile_before(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    tiles = Tiling.tiles
    patch.setattr(Tiling, "tiles", lambda tiling: np.subtract(tiles(tiling), [0, 4, 0]))


def tile_beside(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    tiles = Tiling.tiles
    patch.setattr(Tiling, "tiles", lambda tiling: np.concatenate([tiles(tiling), [[0, 0, 12]]]))


def vector_beyond(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    tiles = Tiling.tiles
    patch.setattr(Tiling, "tiles", lambda tiling: np.add(tiles(tiling), [9, 0, 0]))


def missing_tile(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    tiles = Tiling.tiles
    patch.setattr(Tiling, "tiles", lambda tiling: tiles(tiling)[:-1])


def slices_beyond(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    table = tile_plan.lane_run_table
    patch.setattr(tile_plan, "lane_run_table", lambda vectors: np.add(table(vectors), [0, 0, 1, 0]))


def kernel_beyond(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    layer.kernels.numbers[5] = len(layer.kernels.reads)


def kernel_before(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    layer.kernels.numbers[5] = -1


def kernels_start_beyond(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    layer.kernels.starts[-1] += 1


def kernels_of_32_bits(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    offsets = ActiveKernels.tile_offsets
    patch.setattr(ActiveKernels, "tile_offsets", lambda *given: (offsets(*given) // 1).astype(np.int32))


def few_weights(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
    layer.weights = layer.weights[:-1]


def small_buffer(of: str, cut: Callable[[np.ndarray], np.ndarray]) -> Callable[..., None]:
    def inject(source: LazyVolumes, layer: Any, patch: pytest.MonkeyPatch) -> None:
        buffer = tile_plan.thread_buffer
        patch.setattr(
            sparse_layers, "thread_buffer", lambda use, *shape: (cut if use == of else np.asarray)(buffer(use, *shape))
        )

    return inject


def a_row_less(tile: np.ndarray) -> np.ndarray:
    return empty_volume(tile[:, :-1].shape)


def a_column_less(tile: np.ndarray) -> np.ndarray:
    return empty_volume(tile[:, :, :-1].shape)


def not_aligned(tile: np.ndarray) -> np.ndarray:
    return empty_volume((tile.size + 1,))[1:].reshape(tile.shape)


FAULTS: dict[str, tuple[Any, str]] = {
    "a source's address": (moved_source, r"tile 0 \(vector 0, row 0, column 0\): source channel 2 lies outside"),
    "a source's address by a value": (
        moved_source_a_little,
        "tile 0 .*: source channel 2 .*, 4 bytes from the nearest",
    ),
    "a source's size": (wrong_size, "tile 0 .*: source channel 0 .* has no volumes of this size"),
    "a tile beyond the volume": (tile_beyond, r"tile \d \(vector 0, row 12, column 0\) lies outside of the plane of 9"),
    "a tile before the volume": (tile_before, r"tile 0 \(vector 0, row -4, column 0\) lies outside of the plane of 9"),
    "a tile beside its strip": (tile_beside, r"tile \d \(vector 0, row 0, column 12\) lies outside of the plane"),
    "a vector beyond the volume": (vector_beyond, r"tile 0 \(vector 9, .*\) is of \d vectors"),
    "a missing tile": (missing_tile, r"nobody wrote \d+ voxels of output channel 0"),
    "slices beyond the volume": (slices_beyond, r"tile 0 .* has slices 1 \.\. 7 of volumes of 7 slices"),
    "a kernel beyond the tile": (kernel_beyond, "kernel 5, of output 1, reads channel 4 to row"),
    "a kernel before the tile": (kernel_before, "kernel 5, of output 1, reads channel -1"),
    "kernels beyond the list": (kernels_start_beyond, "the kernels of output 3 start at 13 in a list of 12"),
    "narrow offsets": (kernels_of_32_bits, "the offsets of kernels: int32"),
    "few weights": (few_weights, r"the weights of kernels: \(11, \d\), expected \(12, \d\)"),
    "a small tile": (small_buffer("tile", a_row_less), "kernel 0, of output 0, reads channel 0 to row"),
    "a narrow tile": (small_buffer("tile", a_column_less), "kernel 0, of output 0, reads channel 0 to row"),
    "a tile between vectors": (small_buffer("tile", not_aligned), "the tile of the source is not aligned to vectors"),
    "a tile with gaps": (small_buffer("tile", lambda tile: tile[:, :-1]), "the tile of the source: float32, strides"),
    "a small buffer": (small_buffer("sums", lambda sums: sums[:1]), "the buffer of sums holds 64 .*, expected 256"),
}


@pytest.mark.parametrize(("inject", "problem"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_what_a_convolution_is_given(monkeypatch: pytest.MonkeyPatch, inject: Any, problem: str) -> None:
    source, layer = volumes(), convolution()
    layer([source])
    layer.kernels.plans.clear()  # the tables are made again, of what is faulty now
    inject(source, layer, monkeypatch)
    with pytest.raises(BoundsError, match=rf"^the node(, convolve)?: {problem}"), checks.named("the node"):
        layer([source])


@pytest.mark.parametrize(("unmasked", "slices"), [(1, "1 .. 7"), (-1, "-1 .. 5")])
def test_slices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, unmasked: int, slices: str) -> None:
    """One of the shifts reads all lanes, whether their slices exist or not."""
    masked = tile_plan.slice_bits

    def bits(lane_run: LaneRun, shift: int, *sizes: int) -> int:
        every = ((1 << lane_run.count) - 1) << lane_run.lane
        return every if shift == unmasked else masked(lane_run, shift, *sizes)

    monkeypatch.setattr(tile_plan, "slice_bits", bits)
    with pytest.raises(BoundsError, match=rf"^an operation, convolve: tile 0 .*: source slices {slices} of volumes of"):
        convolution(channels=6)([volumes(6)])


EXPANSION_FAULTS = {
    "a source's address": (moved_source, "source channel 2 lies outside of its memory"),
    "a tile beyond the volume": (tile_beyond, "row 12, column 0.* lies outside of the plane of 9 rows"),
    "slices beyond the volume": (slices_beyond, r"has slices 1 \.\. 7 of volumes of 7 slices"),
    "a kernel beyond the tile": (kernel_beyond, "kernel 5, of output 1, reads channel 4"),
    "a small tile": (small_buffer("tile", a_row_less), "kernel 0, of output 0, reads channel 0 to row"),
    "a small buffer": (small_buffer("sums", lambda sums: sums[:4]), "the buffer of sums holds 128 .*, expected 256"),
}


@pytest.mark.parametrize(("inject", "problem"), EXPANSION_FAULTS.values(), ids=EXPANSION_FAULTS)
def test_a_fault_in_what_an_expansion_is_given(monkeypatch: pytest.MonkeyPatch, inject: Any, problem: str) -> None:
    source, layer = volumes(), expansion()
    layer([source])
    layer.kernels.plans.clear()
    inject(source, layer, monkeypatch)
    with pytest.raises(BoundsError, match=rf"expand: .*{problem}"):
        layer([source])


def test_outputs_that_lie_elsewhere() -> None:
    layer, out = convolution(), LazyVolumes.of(empty_volume((1, 3, 9, 11, 7)))

    def convolve() -> None:
        sparse_layers.convolve(layer.kernels, layer.weights, [volumes()], out, (1, 1, 1), (1, 1))

    convolve()
    out.addresses[0, 1] = out.addresses[0, 0]
    with pytest.raises(BoundsError, match="two outputs have the same volume"):
        convolve()
    out.addresses[0, 1] = volumes().addresses[0, 0]
    with pytest.raises(BoundsError, match="output channel 1 lies outside of its memory"):
        convolve()


def test_streams_need_whole_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    table = tile_plan.lane_run_table
    monkeypatch.setattr(tile_plan, "lane_run_table", lambda vectors: np.subtract(table(vectors), [0, 0, 0, 1]))
    with pytest.raises(BoundsError, match=r"tile 0 .* streams parts of vectors: 15 slices from lane 0 on"):
        convolution()([volumes(size=(16, 8, 8))])


def test_streams_need_aligned_outputs() -> None:
    layer, size = convolution(), (16, 8, 8)
    memory = empty_volume((3 * 8 * 8 * 16 + 1,))[1:].reshape(1, 3, 8, 8, 16)
    with pytest.raises(BoundsError, match="an output that is streamed to is not aligned to vectors"):
        out = LazyVolumes.of(memory)
        sparse_layers.convolve(layer.kernels, layer.weights, [volumes(size=size)], out, (1, 1, 1), (1, 1))


def test_a_fault_in_what_gradients_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, source, gradient = convolution(), volumes(), volumes(3)
    correlate(layer.kernels, [source], gradient, padding=(1, 1))
    gradient.addresses[0, 1] -= 4
    with pytest.raises(BoundsError, match=r"correlate: .*gradient channel 1 lies outside of its memory, -4 bytes"):
        correlate(layer.kernels, [source], gradient, padding=(1, 1))
    gradient = volumes(3)
    monkeypatch.setattr(gradients.gradient_inner_loops, "padded", lambda taps: taps)  # sums without room for a vector
    with pytest.raises(BoundsError, match=r"correlate: the weights of kernels: \(12, 9\), expected \(12, 16\)"):
        correlate(layer.kernels, [source], gradient, padding=(1, 1))


def test_a_fault_in_what_a_norm_is_given() -> None:
    norm = np.array([[1], [0]], np.float32).repeat(3, axis=1), 1e-5, 0.01
    layer = convolution()
    layer.norm = norm
    value = layer([volumes()])
    norm_gradient(value, volumes(3))
    with pytest.raises(BoundsError, match=r"norm: gradient channel 0 .*|norm: 693 voxels of gradient"):
        norm_gradient(value, volumes(3, size=(7, 9, 10)))
    with pytest.raises(BoundsError, match=r"norm: channels 0 \.\. 2 of 3"):
        norm_gradient(value, volumes(2))


def test_faults_of_pooling_and_of_convolutions_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    source = volumes(2, size=(4, 6, 8))
    coarse = np.zeros((1, 2, 3, 5, 2), np.float32)
    with pytest.raises(BoundsError, match=r"unpool: windows of .* \(6, 10, 4\) of a volume of \(6, 8, 4\)"):
        gradients.add_unpooled(source, coarse, (2, 2, 2), Gradient(source))
    pool = checks.watch(loops.pool)
    with pytest.raises(BoundsError, match=r"pool: windows of .* \(6, 8, 6\) of a volume of \(6, 8, 4\)"):
        pool(0, 2, source.memory[0], source.places(), source.affine, (2, 2, 2), np.zeros((2, 3, 4, 3), np.float32))
    dense = DenseConvolution(np.ones((3, 2, 1, 3, 3), np.float32), np.zeros(2, np.int64), (1, 1, 1), None)
    dense([source])
    source.addresses[0, 1] += 4
    for reader in (dense, Pooling((2, 2, 2))):
        with pytest.raises(BoundsError, match="source channel 1 lies outside of its memory, 4 bytes"):
            reader([source])
    monkeypatch.setattr(LazyVolumes, "places", lambda _: np.array([0, 2]))
    with pytest.raises(BoundsError, match="lay_out: a channel is none of the 2 volumes"):
        dense([source])
    take_over = checks.watch(dense_loops.take_over)
    with pytest.raises(BoundsError, match=r"take_over: rows 0 \.\. 3 of 2, from row 4 on"):
        convolved, values = np.zeros((4, 4, 8, 3), np.float32), empty_volume((3, 6, 8, 4))
        take_over(convolved, 4, values, np.zeros((6, 3, 2)), 0, 4)
    with pytest.raises(BoundsError, match="take_over: what torch convolved is not contiguous"):
        take_over(np.asfortranarray(convolved), 0, values, np.zeros((6, 3, 2)), 0, 2)
