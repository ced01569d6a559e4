"""The inner loops of gradients: of kernels' weights, and of the instance norm with leaky ReLU."""

from __future__ import annotations

from functools import reduce
from typing import Any

from e2enet.network.engine.inner_loops import COLUMNS
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

CHAINS = 8  # independent sums at least: an addition takes four cycles, and two begin in each cycle


def padded(taps: int) -> int:
    """Return how many sums a kernel of `taps` taps has room for: whole vectors."""
    return -(-taps // LANES) * LANES


@compiled_once
def correlation(kernel: tuple[int, int], stride: tuple[int, int]) -> CompiledFunction:
    """products[k, tap] += the sum over pixels and lanes of gradient * (tile + offsets[k]) at the pixel's tap.

    f(tile, offsets, count, row_bytes, gradient, gradient_row_bytes, rows, blocks, products) works on `rows` rows of
    `blocks` times COLUMNS pixels. `offsets` are int64 byte offsets of channels within the tile. `products` are floats
    (count, `padded` taps); the padding stays zero.
    """
    taps = [(y, x) for y in range(kernel[0]) for x in range(kernel[1])]
    chains = min(COLUMNS, -(-CHAINS // len(taps)))

    def write(
        at: Writer, tile: Any, offsets: Any, count: Any, row_bytes: Any, gradient: Any, step: Any, rows: Any,
        blocks: Any, products: Any,
    ) -> None:  # fmt: skip
        def add_kernel(index: Any, nothing: list[Any]) -> list[Any]:
            channel = at.builder.add(tile, at.load(at.offset(offsets, index, 8), INT, 8))

            def add_row(row: Any, values: list[Any]) -> list[Any]:
                wanted = at.offset(gradient, row, step)
                line = at.offset(channel, at.builder.mul(row, row_bytes), stride[0])

                def add_block(block: Any, values: list[Any]) -> list[Any]:
                    here = at.offset(wanted, block, COLUMNS * VECTOR_BYTES)
                    pixels = [at.load(at.offset(here, x, VECTOR_BYTES), VECTOR, VECTOR_BYTES) for x in range(COLUMNS)]
                    there = at.offset(line, block, COLUMNS * stride[1] * VECTOR_BYTES)
                    for y in range(kernel[0]):
                        for place in range((COLUMNS - 1) * stride[1] + kernel[1]):
                            value = None
                            for x in range(kernel[1]):
                                column, rest = divmod(place - x, stride[1])
                                if rest or not 0 <= column < COLUMNS:
                                    continue
                                if value is None:
                                    source = at.offset(at.offset(there, y, row_bytes), place, VECTOR_BYTES)
                                    value = at.load(source, VECTOR, VECTOR_BYTES)
                                chain = (y * kernel[1] + x) * chains + column % chains
                                values[chain] = at.multiply_add(value, pixels[column], values[chain])
                    return values

                return at.loop(blocks, values, add_block)

            sums = at.loop(rows, [at.vector(0.0)] * (len(taps) * chains), add_row)
            totals = [reduce(at.builder.fadd, sums[first : first + chains]) for first in range(0, len(sums), chains)]
            for part in range(0, len(taps), LANES):
                place = at.offset(at.offset(products, index, padded(len(taps)) * FLOAT_BYTES), part, FLOAT_BYTES)
                added = at.sums_of_lanes(totals[part : part + LANES])
                at.store(at.builder.fadd(at.load(place, VECTOR), added), place)
            return nothing

        at.loop(count, [], add_kernel)

    return CompiledFunction(9, write)


@compiled_once
def norm_sums() -> CompiledFunction:
    """Sum over voxels what the gradient of an instance norm with leaky ReLU needs.

    f(values, gradient, vectors, rest_bits, constants, totals) reads `vectors` vectors of LANES values, then the lanes
    of `rest_bits` behind them. constants: six floats (scale, offset, negative slope, mean, and two that are not used).
    totals (2, LANES) becomes the sums of g and of g * (value - mean), g being the gradient of the activation's input.
    """

    def write(at: Writer, values: Any, gradient: Any, vectors: Any, rest: Any, constants: Any, totals: Any) -> None:
        known = _constants(at, constants)

        def add(value: Any, grad: Any, sums: list[Any]) -> list[Any]:
            inner = _before_activation(at, value, grad, known)
            return [
                at.builder.fadd(sums[0], inner),
                at.multiply_add(inner, at.builder.fsub(value, known[3]), sums[1]),
            ]

        def each(index: Any, sums: list[Any]) -> list[Any]:
            place = at.builder.mul(index, at.integer(VECTOR_BYTES))
            value, grad = (at.load(at.builder.add(part, place), VECTOR) for part in (values, gradient))
            return add(value, grad, sums)

        sums = at.loop(vectors, [at.vector(0.0)] * 2, each)
        end, bits = at.builder.mul(vectors, at.integer(VECTOR_BYTES)), at.bits(rest)
        value, grad = (at.load_masked(at.builder.add(part, end), bits) for part in (values, gradient))
        for number, total in enumerate(add(value, grad, sums)):
            at.store(total, at.offset(totals, number, VECTOR_BYTES))

    return CompiledFunction(6, write)


@compiled_once
def norm_gradient() -> CompiledFunction:
    """gradient = scale * g + factor * (value - mean) + term, in place: see `norm_sums`.

    f(values, gradient, vectors, rest_bits, constants): constants are six floats (scale, offset, negative slope, mean,
    factor, term).
    """

    def write(at: Writer, values: Any, gradient: Any, vectors: Any, rest: Any, constants: Any) -> None:
        known = _constants(at, constants)

        def result(value: Any, grad: Any) -> Any:
            inner = at.multiply_add(_before_activation(at, value, grad, known), known[0], known[5])
            return at.multiply_add(at.builder.fsub(value, known[3]), known[4], inner)

        def each(index: Any, nothing: list[Any]) -> list[Any]:
            place = at.builder.mul(index, at.integer(VECTOR_BYTES))
            target = at.builder.add(gradient, place)
            at.store(result(at.load(at.builder.add(values, place), VECTOR), at.load(target, VECTOR)), target)
            return nothing

        at.loop(vectors, [], each)
        end, bits = at.builder.mul(vectors, at.integer(VECTOR_BYTES)), at.bits(rest)
        value, grad = (at.load_masked(at.builder.add(part, end), bits) for part in (values, gradient))
        at.store_masked(result(value, grad), at.builder.add(gradient, end), bits)

    return CompiledFunction(5, write)


def _constants(at: Writer, constants: Any) -> list[Any]:
    return [at.spread(at.load(at.offset(constants, number, FLOAT_BYTES), FLOAT)) for number in range(6)]


def _before_activation(at: Writer, value: Any, gradient: Any, known: list[Any]) -> Any:
    """Return the leaky ReLU's input gradient from its output gradient; its input is value * scale + offset."""
    risen = at.builder.fcmp_ordered(">", at.multiply_add(value, known[0], known[1]), at.vector(0.0))
    return at.builder.select(risen, gradient, at.builder.fmul(gradient, known[2]))
