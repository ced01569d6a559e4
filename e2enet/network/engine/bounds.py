"""What the debug mode checks before a loop runs: every place that its tiles read or write (see `checks`).

Each check takes the volumes that the loop reads and writes, the plane of its kernels and the loop's own arguments. It
follows the loop's arithmetic: with correct volumes, only indices need to be compared with sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from e2enet.network.engine import inner_loops
from e2enet.network.engine.checks import BoundsError, require_volumes
from e2enet.network.engine.gradient_inner_loops import padded
from e2enet.network.engine.inner_loops import COLUMNS, ROWS
from e2enet.network.engine.lazy_volumes import LazyVolumes
from e2enet.network.engine.vector_code import LANES, VECTOR_BYTES

Reads = Sequence[Sequence[LazyVolumes]]
Writes = Sequence[LazyVolumes]


def _require(condition: Any, problem: str) -> None:
    if not condition:
        raise BoundsError(problem)


def _convolve(
    reads: Reads, writes: Writes, plane: tuple[int, int], first: int, last: int, begin: int, end: int, codes: Any,
    tile: Any, sums: Any, lane_totals: Any, tiles: Any, source: Any, kernels: Any, targets: Any, size: Any, totals: Any,
) -> None:  # fmt: skip
    numbers = _jobs(tiles, first, last, begin, end, targets)
    _tiles(tiles, numbers, size)
    _buffer("the buffer of sums", sums, ROWS * COLUMNS * LANES)
    _buffer("the buffer of totals", lane_totals, 2 * LANES)
    _filled("source", tile, numbers, tiles, source, reads[0])
    _kernels(kernels, targets.shape[1], tile, tiles, source.stride[1:], plane, prod(plane))
    _targets(targets, codes, writes, size)
    _shape("the array of totals", totals, (len(targets), len(tiles.places), targets.shape[1], 2))
    if inner_loops.storing("stream").address in codes.store:  # whole vectors, at aligned addresses
        for number in numbers:
            for lane, _, start, count in _lane_runs(tiles, number):
                whole = lane == 0 and count == LANES and start % LANES == 0 and size[0] % LANES == 0
                _require(whole, f"{_name(tiles, number)} streams parts of vectors: {count} slices from lane {lane} on")
        _require(not (targets % VECTOR_BYTES).any(), "an output that is streamed to is not aligned to vectors")


def _expand(
    reads: Reads, writes: Writes, plane: tuple[int, int], first: int, last: int, begin: int, end: int, codes: Any,
    tile: Any, sums: Any, tiles: Any, source: Any, kernels: Any, up: Any, run: int, addresses: Any, targets: Any,
) -> None:  # fmt: skip
    numbers = _jobs(tiles, first, last, begin, end, targets)
    _tiles(tiles, numbers, source.size)
    _buffer("the buffer of sums", sums, prod(up) * run * LANES)
    _require(0 < run <= ROWS * COLUMNS, f"{run} pixels at a time, expected at most {ROWS * COLUMNS}")
    _filled("source", tile, numbers, tiles, source, reads[0])
    _kernels(kernels, targets.shape[1], tile, tiles, (1, 1), (1, 1), prod(up))
    _shape("the array of addresses", addresses, (up[1] * up[2],))
    _targets(targets, codes, writes, tuple(edge * step for edge, step in zip(source.size, up, strict=True)))


def _correlate(
    reads: Reads, writes: Writes, plane: tuple[int, int], sample: int, first: int, last: int, codes: Any, tile: Any,
    gradient_tile: Any, tiles: Any, source: Any, gradients: Any, kernels: Any,
) -> None:  # fmt: skip
    count = len(tiles.places)
    _require(0 <= first <= last <= count, f"tiles {first} .. {last - 1} of {count}")
    _require(0 <= sample < len(gradients.addresses), f"sample {sample} of {len(gradients.addresses)}")
    _tiles(tiles, range(first, last), gradients.size)
    _filled("source", tile, range(first, last), tiles, source, reads[0])
    _filled("gradient", gradient_tile, range(first, last), tiles, gradients, reads[1])
    _shape("the tile of gradients", gradient_tile, (len(gradient_tile), *tiles.size, LANES))
    _kernels(kernels, len(gradient_tile), tile, tiles, source.stride[1:], plane, padded(prod(plane)))


def _norm(
    reads: Reads, writes: Writes, plane: tuple[int, int], first: int, last: int, codes: Any, values: Any,
    gradients: Any, voxels: int, affine: Any, moments: Any, results: Any,
) -> None:  # fmt: skip
    for what, addresses, (volumes,) in zip(("value", "gradient"), (values, gradients), reads, strict=True):
        require_volumes(what, addresses, [volumes])
        _require(prod(volumes.size) == voxels, f"{voxels} voxels of {what} volumes of {volumes.size}")
    channels = len(values)
    _require(0 <= first <= last <= channels == len(gradients), f"channels {first} .. {last - 1} of {channels}")
    for what, array, columns in (("affine", affine, 3), ("moments", moments, 2), ("results", results, 2)):
        _shape(f"the array of {what}", array, (channels, columns))


def _pool(
    reads: Reads, writes: Writes, plane: Any, first: int, last: int, values: Any, places: Any, affine: Any,
    stride: Any, out: Any,
) -> None:  # fmt: skip
    _rows(first, last, len(out), values, places, affine)
    _windows("the pooled volume", out[0], stride, values[0, 0])


def _normalise(
    reads: Reads, writes: Writes, plane: Any, sample: int, begin: int, end: int, values: Any, totals: Any, few: bool,
    places: Any, norm: Any, eps: float, slope: float, affine: Any, moments: Any,
) -> None:  # fmt: skip
    (samples, outputs, _), channels = values.shape, norm.shape[1]
    _require(0 <= sample < samples, f"sample {sample} of {samples}")
    _require(0 <= begin <= end <= outputs, f"outputs {begin} .. {end - 1} of {outputs}")
    _shape("the array of totals", totals, (samples, totals.shape[1], outputs, 2))
    _shape("the outputs' channels", places, (outputs,))
    _require(((places >= 0) & (places < channels)).all(), f"an output is none of {channels} channels")
    _shape("the array of affine", affine, (samples, channels, 3))
    _shape("the array of moments", moments, (samples, channels, 2))


def _unpool(
    reads: Reads, writes: Writes, plane: Any, first: int, last: int, values: Any, places: Any, affine: Any,
    stride: Any, coarse: Any, written: Any, targets: Any,
) -> None:  # fmt: skip
    _rows(first, last, len(targets), values, places, affine)
    _shape("the array of written channels", written, (len(places),))
    _require(len(coarse) == len(targets), f"{len(coarse)} pooled volumes of {len(targets)}")
    _windows("the pooled volume", coarse[0], stride, values[0, 0])
    _windows("the pooled volume", coarse[0], stride, targets[0])


def _rows(first: int, last: int, rows: int, values: Any, places: Any, affine: Any) -> None:
    """Check that rows, one per sample and channel, have a volume in `values` (B, K, H, W, D)."""
    _require(0 <= first <= last <= rows, f"channels {first} .. {last - 1} of {rows}")
    _require(rows == len(values) * len(places), f"{rows} volumes for {len(values)} samples of {len(places)} channels")
    _shape("the array of affine", affine, (len(values), len(places), 3))
    held = (places >= -1).all() and (places < values.shape[1]).all()
    _require(held, f"a channel is none of the {values.shape[1]} volumes")


def _lay_out(
    reads: Reads, writes: Writes, plane: Any, columns: int, top: int, values: Any, places: Any, affine: Any,
    shifts: Any, start: int, out: Any, first: int, last: int,
) -> None:  # fmt: skip
    channels, (_, _, width, depth) = len(places), values.shape
    _require((places >= -1).all() and (places < len(values)).all(), f"a channel is none of the {len(values)} volumes")
    _shape("the array of affine", affine, (channels, 3))
    _shape("the array of shifts", shifts, (channels,))
    _shape("the planes for torch", out, (depth, out.shape[1], width, out.shape[3]))
    _require(out.flags.c_contiguous, "the planes for torch are not contiguous")
    _require(start >= 0 and start + channels <= out.shape[3], f"channels from {start} on of {out.shape[3]}")
    pieces = out.shape[1] * -(-width // columns)
    _require(0 <= first <= last <= pieces, f"pieces {first} .. {last - 1} of {pieces}")


def _take_over(
    reads: Reads, writes: Writes, plane: Any, convolved: Any, top: int, values: Any, totals: Any, first: int, last: int
) -> None:
    outputs, height, width, depth = values.shape
    _shape("what torch convolved", convolved, (depth, convolved.shape[1], width, outputs))
    _require(convolved.flags.c_contiguous, "what torch convolved is not contiguous")
    _shape("the array of totals", totals, (height, outputs, 2))
    rows = min(convolved.shape[1], height - top)
    _require(top >= 0 and 0 <= first <= last <= rows, f"rows {first} .. {last - 1} of {rows}, from row {top} on")


_ALL = _convolve, _expand, _correlate, _norm, _pool, _normalise, _unpool, _lay_out, _take_over
CHECKS: dict[str, Callable[..., None]] = {check.__name__[1:]: check for check in _ALL}


def _name(tiles: Any, number: int) -> str:
    vector, row, column = tiles.places[number].tolist()
    return f"tile {number} (vector {vector}, row {row}, column {column})"


def _lane_runs(tiles: Any, number: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield lane, strip, start and count of a tile's runs."""
    for lane, strip, start, count in tiles.lane_runs[tiles.places[number, 0]].tolist():
        if count:
            yield lane, strip, start, count


def _jobs(tiles: Any, first: int, last: int, begin: int, end: int, targets: Any) -> list[int]:
    """Check jobs and outputs of a piece, and return the numbers of its tiles; targets: (B, outputs)."""
    count, (samples, outputs) = len(tiles.places), targets.shape
    _require(0 <= first <= last <= samples * count, f"jobs {first} .. {last - 1} of {count} tiles of {samples} samples")
    _require(0 <= begin <= end <= outputs, f"outputs {begin} .. {end - 1} of {outputs}")
    return sorted({job % count for job in range(first, last)})


def _tiles(tiles: Any, numbers: Sequence[int], size: Any) -> None:
    """Check that tiles lie in the plane, and their lanes in the depth, of outputs (D, H, W): what they write."""
    depth, height, width = size
    _require(tiles.size[0] % ROWS == 0 and tiles.size[1] % COLUMNS == 0, f"tiles of {tiles.size} pixels")
    _require(0 < tiles.strip_width <= width, f"strips of {tiles.strip_width} columns of {width}")
    for number in numbers:
        vector, row, column = tiles.places[number].tolist()
        name = _name(tiles, number)
        _require(0 <= vector < len(tiles.lane_runs), f"{name} is of {len(tiles.lane_runs)} vectors of lanes")
        inside = 0 <= row < height and 0 <= column < tiles.strip_width
        _require(inside, f"{name} lies outside of the plane of {height} rows and strips of {tiles.strip_width} columns")
        for lane, strip, start, lanes in _lane_runs(tiles, number):
            held = lanes > 0 and lane >= 0 and lane + lanes <= LANES and strip >= 0
            _require(held, f"{name} has {lanes} slices from lane {lane} on in strip {strip}, of {LANES} lanes")
            _require(
                start >= 0 and start + lanes <= depth,
                f"{name} has slices {start} .. {start + lanes - 1} of volumes of {depth} slices",
            )


def _filled(what: str, tile: Any, numbers: Sequence[int], tiles: Any, source: Any, volumes: Writes) -> None:
    """Check that tiles are filled from within the channels' volumes. Rows and columns are clipped by the loop."""
    reads, rows, columns, _ = tile.shape
    _buffer(f"the tile of the {what}", tile, reads * rows * columns * LANES)
    for one in volumes:
        _require(one.size == tuple(source.size), f"{what} volumes of {one.size} are read as {source.size}")
    batch, channels = source.addresses.shape
    _shape(f"the {what} reads", source.reads, (reads, 2))
    _shape(f"the {what} affine", source.affine, (batch, channels, 3))
    _typed(f"the {what} addresses", source.addresses, np.int64)
    _typed(f"the {what} affine", source.affine, np.float32)
    _shape(f"the {what} slices", source.slices, (len(source.slices), *tiles.lane_runs.shape[:2], 2))
    for column, kept, name in ((0, channels, "channels"), (1, len(source.slices), "shifts")):
        chosen = source.reads[:, column]
        _require(((chosen >= 0) & (chosen < kept)).all(), f"a {what} read has none of the {kept} {name}")
    try:
        require_volumes(what, source.addresses, volumes)
    except BoundsError as error:
        raise BoundsError(f"{_name(tiles, numbers[0])}: {error}" if numbers else str(error)) from None
    for number in numbers:
        vector = int(tiles.places[number, 0])
        for index, (lane, _, start, count) in enumerate(tiles.lane_runs[vector].tolist()):
            for bits, shift in source.slices[:, vector, index].tolist() if count else ():
                _slices(f"{_name(tiles, number)}: {what}", bits, source.stride[0] * (start - lane) + shift, source)


def _slices(name: str, bits: int, place: int, source: Any) -> None:
    """Check the slices that a run reads: `place` and the number of a set bit, together, are a slice."""
    bits &= (1 << source.stride[0] * LANES) - 1
    if bits == 0:
        return
    lowest, highest = place + (bits & -bits).bit_length() - 1, place + bits.bit_length() - 1
    depth = source.size[0]
    _require(lowest >= 0 and highest < depth, f"{name} slices {lowest} .. {highest} of volumes of {depth} slices")


def _kernels(kernels: Any, outputs: int, tile: Any, tiles: Any, stride: Any, plane: tuple[int, int], taps: int) -> None:
    """Check that the kernels of every output lie in their list, and what they read in the tile."""
    count, starts = len(kernels.offsets), kernels.starts
    _typed("the starts of kernels", starts, np.int64)
    _typed("the offsets of kernels", kernels.offsets, np.int64)
    _typed("the weights of kernels", kernels.weights, np.float32)
    _shape("the starts of kernels", starts, (outputs + 1,))
    _shape("the weights of kernels", kernels.weights, (count, taps))
    if not (starts[0] == 0 and starts[-1] == count and (np.diff(starts) >= 0).all()):
        wrong = np.flatnonzero((starts < 0) | (starts > count) | (np.diff(starts, append=count) < 0))
        output = int(wrong[0]) if len(wrong) else 0
        raise BoundsError(f"the kernels of output {output} start at {starts[output]} in a list of {count}")
    channels, rows, columns, _ = tile.shape
    pixels, rest = np.divmod(kernels.offsets, VECTOR_BYTES)
    channel, pixel = np.divmod(pixels, rows * columns)
    y, x = np.divmod(pixel, columns)
    last_y, last_x = (
        first + (edge - 1) * step + reach - 1
        for first, edge, step, reach in zip((y, x), tiles.size, stride, plane, strict=True)
    )
    outside = (channel < 0) | (channel >= channels) | (last_y >= rows) | (last_x >= columns)
    for kernel in np.flatnonzero(outside | (rest != 0))[:1].tolist():
        output = int(np.searchsorted(starts, kernel, side="right")) - 1
        raise BoundsError(
            f"kernel {kernel}, of output {output}, reads channel {channel[kernel]} to row {last_y[kernel]} and column "
            f"{last_x[kernel]} of a tile of {channels} channels, {rows} rows and {columns} columns"
        )


def _targets(targets: Any, codes: Any, writes: Writes, size: Any) -> None:
    """Check that each output has a volume of its own, and code that stores it."""
    _typed("the addresses of outputs", targets, np.int64)
    for one in writes:
        _require(one.size == tuple(size), f"output volumes of {one.size} are written as {size}")
    require_volumes("output", targets, writes)
    _require(len(np.unique(targets)) == targets.size, "two outputs have the same volume")
    _shape("the codes that store outputs", codes.store, (targets.shape[1],))


def _windows(what: str, coarse: Any, stride: Any, fine: Any) -> None:
    """Check that windows of (depth, row, column) cover at most the fine volume, both (H, W, D)."""
    depth, height, width = stride
    covered = tuple(edge * step for edge, step in zip(coarse.shape, (height, width, depth), strict=True))
    fits = all(a <= b for a, b in zip(covered, fine.shape, strict=True))
    _require(fits, f"windows of {what} cover (H, W, D) = {covered} of a volume of {fine.shape}")


def _buffer(what: str, buffer: Any, values: int) -> None:
    _typed(what, buffer, np.float32)
    _require(buffer.size >= values, f"{what} holds {buffer.size} values, expected {values}")
    aligned = buffer.size == 0 or buffer.ctypes.data % VECTOR_BYTES == 0  # NumPy has no address for an empty one
    _require(aligned, f"{what} is not aligned to vectors of {VECTOR_BYTES} bytes")


def _typed(what: str, array: Any, dtype: Any) -> None:
    whole = array.dtype == dtype and array.flags.c_contiguous
    _require(whole, f"{what}: {array.dtype}, strides {array.strides}; expected {np.dtype(dtype)} without gaps")


def _shape(what: str, array: Any, shape: tuple[int, ...]) -> None:
    _require(array.shape == shape, f"{what}: {array.shape}, expected {shape}")
