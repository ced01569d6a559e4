"""The inner loops of the engine: products of packed kernels with a tile that fits the processor's registers and cache.

A tile is (channels, rows, columns, LANES) floats. The lanes are depth slices, so every tap of a kernel in the plane
reads whole aligned vectors. Neighbours in depth are other channels of the tile: a depth-shift is applied when the tile
is filled. ROWS x COLUMNS sums of one output channel stay in registers while all its active kernels are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from e2enet.network.engine.vector_code import (
    FLOAT,
    FLOAT_BYTES,
    INT,
    LANES,
    VECTOR,
    VECTOR_BYTES,
    CompiledFunction,
    Writer,
    compiled_once,
)

ROWS, COLUMNS = 4, 4  # pixels of an output channel held in registers: 16 sums in 32 registers


@compiled_once
def plane_convolution(kernel: tuple[int, int], stride: tuple[int, int]) -> CompiledFunction:
    """sums[row, column] = the sum over kernels k of weights[k] applied at tile + offsets[k].

    f(tile, offsets, weights, count, row_bytes, sums): `offsets` are int64 byte offsets of channels within the tile,
    `weights` floats (count, height, width), `row_bytes` the step of the tile's rows, `sums` (ROWS, COLUMNS, LANES).
    """
    height, width = kernel

    def write(at: Writer, tile: Any, offsets: Any, weights: Any, count: Any, row_bytes: Any, sums: Any) -> None:
        def add_kernel(source: Any, first: Any, values: list[Any]) -> list[Any]:
            taps = [at.spread(at.load(at.offset(first, tap, FLOAT_BYTES), FLOAT)) for tap in range(height * width)]
            for y in range((ROWS - 1) * stride[0] + height):
                line = at.offset(source, y, row_bytes)
                for x in range((COLUMNS - 1) * stride[1] + width):
                    wanted = _products(y, x, kernel, stride)
                    if wanted:
                        pixel = at.load(at.offset(line, x, VECTOR_BYTES), VECTOR, VECTOR_BYTES)
                    for place, tap in wanted:
                        values[place] = at.multiply_add(pixel, taps[tap], values[place])
            return values

        _add_kernels(at, tile, offsets, weights, count, sums, height * width, ROWS * COLUMNS, add_kernel)

    return CompiledFunction(6, write)


@compiled_once
def expansion(positions: int, columns: int) -> CompiledFunction:
    """sums[position, column] = the sum over kernels k of weights[k, position] * (tile + offsets[k])[column].

    f(tile, offsets, weights, count, sums): the products of a transposed convolution whose kernel equals its stride.
    """

    def write(at: Writer, tile: Any, offsets: Any, weights: Any, count: Any, sums: Any) -> None:
        def add_kernel(source: Any, first: Any, values: list[Any]) -> list[Any]:
            pixels = [at.load(at.offset(source, x, VECTOR_BYTES), VECTOR, VECTOR_BYTES) for x in range(columns)]
            for position in range(positions):
                tap = at.spread(at.load(at.offset(first, position, FLOAT_BYTES), FLOAT))
                for x, pixel in enumerate(pixels):
                    place = position * columns + x
                    values[place] = at.multiply_add(pixel, tap, values[place])
            return values

        _add_kernels(at, tile, offsets, weights, count, sums, positions, positions * columns, add_kernel)

    return CompiledFunction(5, write)


@compiled_once
def filling(depth_stride: int) -> CompiledFunction:
    """Write pixels into a tile: line[i] = activation(source[i] * scale + offset), lanes `depth_stride` slices apart.

    f(line, source, count, step, read_bits, write_bits, affine): `step` is the source's bytes from pixel to pixel,
    `affine` three floats (scale, offset, negative slope of the activation). Lanes of `write_bits` are written.
    `read_bits` has one bit per slice, depth_stride * LANES of them: slices without their bit are not read and become 0.
    """

    def write(at: Writer, line: Any, source: Any, count: Any, step: Any, read: Any, written: Any, affine: Any) -> None:
        scale, offset, slope = (at.spread(at.load(at.offset(affine, i, FLOAT_BYTES), FLOAT)) for i in range(3))
        parts = [at.bits(at.builder.lshr(read, at.integer(LANES * part))) for part in range(depth_stride)]
        kept, lanes = _every(at, parts, depth_stride), at.bits(written)

        def pixel(index: Any, values: list[Any]) -> list[Any]:
            here = at.offset(source, index, step)
            loaded = [at.load_masked(at.offset(here, part, VECTOR_BYTES), bits) for part, bits in enumerate(parts)]
            value = at.multiply_add(_every(at, loaded, depth_stride), scale, offset)
            value = at.maximum(value, at.builder.fmul(value, slope))
            value = at.builder.select(kept, value, at.vector(0.0))
            at.store_masked(value, at.offset(line, index, VECTOR_BYTES), lanes)
            return values

        at.loop(count, [], pixel)

    return CompiledFunction(7, write)


@compiled_once
def storing(how: str) -> CompiledFunction:
    """Write the sums (ROWS, COLUMNS, LANES) of one channel into a volume and add up their statistics.

    f(sums, target, rows, columns, row_step, column_step, write_bits, totals) writes only the first rows and columns and
    the lanes of `write_bits`. The sums and their squares are added to `totals` (2, LANES). how: "write"; "stream",
    which bypasses the caches, for whole vectors only; "add" to the volume's values.
    """

    def write(
        at: Writer, sums: Any, target: Any, rows: Any, columns: Any, row_step: Any, step: Any, bits: Any, totals: Any
    ) -> None:
        lanes, second = at.bits(bits), at.offset(totals, 1, VECTOR_BYTES)

        def line(row: Any, values: list[Any]) -> list[Any]:
            first, place = at.offset(sums, row, COLUMNS * VECTOR_BYTES), at.offset(target, row, row_step)

            def store(column: Any, added: list[Any]) -> list[Any]:
                value = at.load(at.offset(first, column, VECTOR_BYTES), VECTOR, VECTOR_BYTES)
                pixel = at.offset(place, column, step)
                if how == "stream":
                    at.store(value, pixel, VECTOR_BYTES, stream=True)
                else:
                    value = at.builder.select(lanes, value, at.vector(0.0))
                    before = at.load_masked(pixel, lanes) if how == "add" else None
                    at.store_masked(at.builder.fadd(value, before) if before else value, pixel, lanes)
                return [at.builder.fadd(added[0], value), at.multiply_add(value, value, added[1])]

            return at.loop(columns, values, store)

        before = [at.load(totals, VECTOR, VECTOR_BYTES), at.load(second, VECTOR, VECTOR_BYTES)]
        after = at.loop(rows, before, line)
        at.store(after[0], totals, VECTOR_BYTES)
        at.store(after[1], second, VECTOR_BYTES)

    return CompiledFunction(8, write)


@compiled_once
def interleaving(depth_stride: int, plane_positions: int, columns: int, how: str) -> CompiledFunction:
    """Lay out the sums of `expansion`: position (place in the plane, a), lane z goes to slice z * depth_stride + a.

    f(sums, targets, count, step, write_bits): `targets` holds an address per place in the plane, `step` is the bytes
    between the pixels of two columns there, `count` the columns to write. how: as for `storing`, "write" or "add".
    """

    def write(at: Writer, sums: Any, targets: Any, count: Any, step: Any, bits: Any) -> None:
        lanes = [at.bits(at.builder.lshr(bits, at.integer(LANES * part))) for part in range(depth_stride)]
        places = [at.load(at.offset(targets, place, 8), INT, 8) for place in range(plane_positions)]

        def pixel(column: Any, values: list[Any]) -> list[Any]:
            for place, start in enumerate(places):
                first = at.offset(at.offset(sums, place * depth_stride * columns, VECTOR_BYTES), column, VECTOR_BYTES)
                slices = [
                    at.load(at.offset(first, a * columns, VECTOR_BYTES), VECTOR, VECTOR_BYTES)
                    for a in range(depth_stride)
                ]
                target = at.offset(start, column, step)
                for part in range(depth_stride):
                    value = slices[0] if depth_stride == 1 else _mixed(at, slices, part)
                    here = at.offset(target, part, VECTOR_BYTES)
                    before = at.load_masked(here, lanes[part]) if how == "add" else None
                    at.store_masked(at.builder.fadd(value, before) if before else value, here, lanes[part])
            return values

        at.loop(count, [], pixel)

    return CompiledFunction(5, write)


def _add_kernels(
    at: Writer,
    tile: Any,
    offsets: Any,
    weights: Any,
    count: Any,
    sums: Any,
    taps: int,
    places: int,
    add: Callable[..., Any],
) -> None:
    """Store the sums of `places` vectors over kernels; `add(channel, weights, values)` adds one kernel's products."""

    def add_kernel(index: Any, values: list[Any]) -> Any:
        channel = at.builder.add(tile, at.load(at.offset(offsets, index, 8), INT, 8))
        return add(channel, at.offset(weights, index, taps * FLOAT_BYTES), values)

    totals = at.loop(count, [at.vector(0.0)] * places, add_kernel)
    for place, total in enumerate(totals):
        at.store(total, at.offset(sums, place, VECTOR_BYTES), VECTOR_BYTES)


def _every(at: Writer, parts: list[Any], stride: int) -> Any:
    """Return those at 0, stride, 2 stride .. of consecutive values, which are `stride` vectors."""
    if stride == 1:
        return parts[0]
    value = parts[0]
    for number, part in enumerate(parts):
        value = at.choose(value, part, {i: i * stride % LANES for i in range(LANES) if i * stride // LANES == number})
    return value


def _mixed(at: Writer, slices: list[Any], part: int) -> Any:
    """Return vector `part` of the values slices[0][0], slices[1][0], .., slices[0][1], .."""
    value, stride = slices[0], len(slices)
    for a, lane in enumerate(slices):
        numbers = {i: (LANES * part + i) // stride for i in range(LANES) if (LANES * part + i) % stride == a}
        value = at.choose(value, lane, numbers)
    return value


def _products(y: int, x: int, kernel: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the pairs (sum, tap) to which an input pixel contributes."""
    found = []
    for row in range(ROWS):
        for column in range(COLUMNS):
            tap_y, tap_x = y - row * stride[0], x - column * stride[1]
            if 0 <= tap_y < kernel[0] and 0 <= tap_x < kernel[1]:
                found.append((row * COLUMNS + column, tap_y * kernel[1] + tap_x))
    return found
