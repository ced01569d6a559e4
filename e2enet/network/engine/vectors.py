"""Vectors of channels for numba's loops: values in memory are float32 or bfloat16, in registers they are float32.

numba has no bfloat16 and no vectors, and its compiler turns loops over neighbouring channels into scattered reads. So a
loop here says which LANES channels it takes at once. A value of type `Vector` is one AVX-512 register, two of AVX2 or
four of NEON. Memory is named by its address (int64). `kind` is any value of its type: float32, or uint16 for bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.extending import models, register_model

from e2enet.network.engine.vector_code import BITS, FLOAT, INT16, INT32, LANES, VECTOR, Writer

intrinsic: Any = extending.intrinsic  # numba takes its functions' first argument away, which type checkers cannot see
BYTE, DOUBLE = ir.IntType(8), ir.DoubleType()
NAMES = {FLOAT: "f32", INT16: "i16", BYTE: "i8"}


class VectorType(types.Type):
    """LANES float32 values in registers."""

    def __init__(self) -> None:
        super().__init__(name=f"Vector{LANES}")


Vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, own: Any) -> None:
        super().__init__(manager, own, VECTOR)


def _operation(write: Callable[..., Any], result: Any, *arguments: Any) -> Any:
    """Return what an intrinsic returns: its types, and the function that writes its instructions."""
    return result(*arguments), lambda context, builder, signature, values: write(builder, *values)


@intrinsic
def load(typing_context: Any, kind: Any, address: Any, count: Any) -> Any:
    """Return the values from an address on as a vector. Lanes from `count` on are 0, and their memory is not read."""

    def write(builder: ir.IRBuilder, _: Any, address: Any, count: Any) -> Any:
        return _widened(builder, _loaded(builder, _memory(kind), address, count))

    return _operation(write, Vector, kind, types.int64, types.int64)


@intrinsic
def store(typing_context: Any, kind: Any, address: Any, count: Any, value: Any) -> Any:
    """Write the first `count` lanes to an address on, rounded to the nearest bfloat16 (ties to even); NaN stays NaN."""

    def write(builder: ir.IRBuilder, _: Any, address: Any, count: Any, value: Any) -> Any:
        _stored(builder, _narrowed(builder, value, _memory(kind)), address, count)

    return _operation(write, types.void, kind, types.int64, types.int64, Vector)


@intrinsic
def spread(typing_context: Any, value: Any) -> Any:
    """Return a vector with the same value in every lane."""

    def write(builder: ir.IRBuilder, value: Any) -> Any:
        undefined = ir.Constant(VECTOR, ir.Undefined)
        first = builder.insert_element(undefined, value, ir.Constant(INT32, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))

    return _operation(write, Vector, types.float32)


@intrinsic
def plus(typing_context: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return _operation(lambda builder, a, b: builder.fadd(a, b), Vector, Vector, Vector)


@intrinsic
def minus(typing_context: Any, a: Any, b: Any) -> Any:
    """a - b."""
    return _operation(lambda builder, a, b: builder.fsub(a, b), Vector, Vector, Vector)


@intrinsic
def times(typing_context: Any, a: Any, b: Any) -> Any:
    """a * b."""
    return _operation(lambda builder, a, b: builder.fmul(a, b), Vector, Vector, Vector)


@intrinsic
def multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def write(builder: ir.IRBuilder, *values: Any) -> Any:
        return builder.call(_intrinsic(builder, f"llvm.fma.v{LANES}f32", VECTOR, [VECTOR] * 3), values)

    return _operation(write, Vector, Vector, Vector, Vector)


@intrinsic
def where_positive(typing_context: Any, sign: Any, a: Any, b: Any) -> Any:
    """Return `a` where `sign` > 0, else `b`, also where it is NaN."""

    def write(builder: ir.IRBuilder, sign: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", sign, ir.Constant(VECTOR, [0.0] * LANES)), a, b)

    return _operation(write, Vector, Vector, Vector, Vector)


@intrinsic
def where_equal(typing_context: Any, one: Any, other: Any, a: Any, b: Any) -> Any:
    """Return `a` where `one` == `other`, else `b`."""

    def write(builder: ir.IRBuilder, one: Any, other: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered("==", one, other), a, b)

    return _operation(write, Vector, Vector, Vector, Vector, Vector)


@intrinsic
def where_beaten(typing_context: Any, best: Any, value: Any, a: Any, b: Any) -> Any:
    """Return `a` where `value` > `best`, else `b`. NaN is the largest, and the first NaN stays the best."""

    def write(builder: ir.IRBuilder, best: Any, value: Any, a: Any, b: Any) -> Any:
        larger = builder.fcmp_unordered(">", value, best)  # true if one of them is NaN
        return builder.select(builder.and_(larger, builder.fcmp_ordered("ord", best, best)), a, b)

    return _operation(write, Vector, Vector, Vector, Vector, Vector)


@intrinsic
def add_to(typing_context: Any, address: Any, value: Any) -> Any:
    """Add a vector to LANES float64 in memory."""

    def write(builder: ir.IRBuilder, address: Any, value: Any) -> Any:
        kind = ir.VectorType(DOUBLE, LANES)
        pointer = builder.inttoptr(address, kind.as_pointer())
        before = builder.load(pointer, typ=kind)
        before.align = 8
        builder.store(builder.fadd(before, builder.fpext(value, kind)), pointer).align = 8

    return _operation(write, types.void, types.int64, Vector)


@intrinsic
def transpose(typing_context: Any, given: Any, step: Any, written: Any, written_step: Any) -> Any:
    """Write the LANES rows of LANES float32 at `given`, `step` bytes apart, as the columns of those at `written`."""

    def write(builder: ir.IRBuilder, given: Any, step: Any, written: Any, written_step: Any) -> Any:
        writer, width = Writer(builder), LANES // 2
        rows = [writer.load(writer.offset(given, number, step), VECTOR) for number in range(LANES)]
        while width:  # swap the blocks beside the diagonal, then those within each block
            low = [lane if not lane & width else LANES + lane - width for lane in range(LANES)]
            high = [lane + width if not lane & width else LANES + lane for lane in range(LANES)]
            for number in range(LANES):
                if not number & width:
                    a, b = rows[number], rows[number + width]
                    rows[number], rows[number + width] = writer.shuffle(a, b, low), writer.shuffle(a, b, high)
            width //= 2
        for number, row in enumerate(rows):
            writer.store(row, writer.offset(written, number, written_step))

    return _operation(write, types.void, types.int64, types.int64, types.int64, types.int64)


def _memory(kind: Any) -> Any:
    """Return LLVM's type of a value in memory."""
    return {types.float32: FLOAT, types.uint16: INT16, types.uint8: BYTE}[kind]


def _widened(builder: ir.IRBuilder, value: Any) -> Any:
    if value.type.element == FLOAT:
        return value
    wide = builder.zext(value, ir.VectorType(INT32, LANES))
    if value.type.element == BYTE:  # a number
        return builder.uitofp(wide, VECTOR)
    return builder.bitcast(builder.shl(wide, _integers(16)), VECTOR)


def _narrowed(builder: ir.IRBuilder, value: Any, memory: Any) -> Any:
    if memory == FLOAT:
        return value
    if memory == BYTE:
        return builder.fptoui(value, ir.VectorType(BYTE, LANES))
    bits = builder.bitcast(value, ir.VectorType(INT32, LANES))
    # Half a unit of the last kept place is added, less one bit if that place is even: ties go to even.
    odd = builder.and_(builder.lshr(bits, _integers(16)), _integers(1))
    rounded = builder.add(bits, builder.add(odd, _integers(0x7FFF)))
    # Adding may carry a NaN over into infinity.
    rounded = builder.select(builder.fcmp_unordered("uno", value, value), _integers(0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, _integers(16)), ir.VectorType(INT16, LANES))


def _loaded(builder: ir.IRBuilder, memory: Any, address: Any, count: Any) -> Any:
    kind = ir.VectorType(memory, LANES)
    pointer, zeros = builder.inttoptr(address, kind.as_pointer()), ir.Constant(kind, None)
    with builder.if_else(_is_whole(builder, count)) as (whole, part):
        with whole:  # processors without masks for this type take a branch for every lane of a masked load
            every = builder.load(pointer, typ=kind)
            every.align = _align(memory)
            end = builder.block
        with part:
            name = f"llvm.masked.load.v{LANES}{NAMES[memory]}.p0"
            masked = _intrinsic(builder, name, kind, [pointer.type, INT32, BITS, kind])
            some = builder.call(masked, [pointer, ir.Constant(INT32, _align(memory)), _first(builder, count), zeros])
            other_end = builder.block
    value = builder.phi(kind)
    value.add_incoming(every, end)
    value.add_incoming(some, other_end)
    return value


def _stored(builder: ir.IRBuilder, value: Any, address: Any, count: Any) -> None:
    kind = value.type
    pointer = builder.inttoptr(address, kind.as_pointer())
    with builder.if_else(_is_whole(builder, count)) as (whole, part):
        with whole:
            builder.store(value, pointer).align = _align(kind.element)
        with part:
            name = f"llvm.masked.store.v{LANES}{NAMES[kind.element]}.p0"
            masked = _intrinsic(builder, name, ir.VoidType(), [kind, pointer.type, INT32, BITS])
            builder.call(masked, [value, pointer, ir.Constant(INT32, _align(kind.element)), _first(builder, count)])


def _is_whole(builder: ir.IRBuilder, count: Any) -> Any:
    return builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))


def _first(builder: ir.IRBuilder, count: Any) -> Any:
    """Return one truth value per lane, True for the first `count`, 0 to LANES - 1 of them."""
    bits = builder.sub(builder.shl(ir.Constant(INT32, 1), builder.trunc(count, INT32)), ir.Constant(INT32, 1))
    return builder.bitcast(builder.trunc(bits, INT16), BITS)


def _align(memory: Any) -> int:
    return {FLOAT: 4, INT16: 2, BYTE: 1}[memory]


def _integers(value: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(INT32, LANES), [value] * LANES)


def _intrinsic(builder: ir.IRBuilder, name: str, result: Any, arguments: Any) -> Any:
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)
