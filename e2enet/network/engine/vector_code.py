"""Vector code for this machine's processor, compiled by LLVM from a few lines of Python each: no toolchain is needed.

numba brings LLVM along (llvmlite). In numba's own loops the compiler decides which values stay in registers. The inner
loops of a sparse convolution must decide that themselves, so they are written as vector operations here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

INT, INT16, INT32, FLOAT = ir.IntType(64), ir.IntType(16), ir.IntType(32), ir.FloatType()
LANES = 16  # values of a vector: one AVX-512 register, two of AVX2, four of NEON
VECTOR = ir.VectorType(FLOAT, LANES)
BITS = ir.VectorType(ir.IntType(1), LANES)
FLOAT_BYTES = 4
VECTOR_BYTES = LANES * FLOAT_BYTES


class Writer:
    """Writes one function's vector operations; addresses are integers."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def integer(self, value: int) -> ir.Constant:
        return ir.Constant(INT, value)

    def offset(self, address: Any, number: int | Any, step: int | Any = 1) -> Any:
        """address + number * step."""
        if isinstance(number, int) and isinstance(step, int):
            return self.builder.add(address, self.integer(number * step))
        number, step = (self.integer(part) if isinstance(part, int) else part for part in (number, step))
        return self.builder.add(address, self.builder.mul(number, step))

    def load(self, address: Any, kind: Any, align: int = FLOAT_BYTES) -> Any:
        value = self.builder.load(self._pointer(address, kind), typ=kind)
        value.align = align
        return value

    def store(self, value: Any, address: Any, align: int = FLOAT_BYTES, *, stream: bool = False) -> None:
        """Store a value; `stream` bypasses the caches, for values that are not read soon."""
        store = self.builder.store(value, self._pointer(address, value.type))
        store.align = align
        if stream:
            store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(INT32, 1)]))

    def load_masked(self, address: Any, bits: Any) -> Any:
        """Load the lanes whose bit is set; the others are 0 and their memory is not touched."""
        pointer = self._pointer(address, VECTOR)
        load = self._intrinsic(f"llvm.masked.load.v{LANES}f32.p0", VECTOR, [pointer.type, INT32, BITS, VECTOR])
        return self.builder.call(load, [pointer, ir.Constant(INT32, FLOAT_BYTES), bits, self.vector(0.0)])

    def store_masked(self, value: Any, address: Any, bits: Any) -> None:
        pointer = self._pointer(address, VECTOR)
        store = self._intrinsic(f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), [VECTOR, pointer.type, INT32, BITS])
        self.builder.call(store, [value, pointer, ir.Constant(INT32, FLOAT_BYTES), bits])

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        return self.builder.call(self._intrinsic(f"llvm.fma.v{LANES}f32", VECTOR, [VECTOR] * 3), [a, b, c])

    def maximum(self, a: Any, b: Any) -> Any:
        """Return the larger of two vectors; `b` where either is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def sums_of_lanes(self, values: Sequence[Any]) -> Any:
        """Return a vector whose lane i is the sum of all lanes of `values[i]`, at most LANES of them.

        Each step adds the halves of two vectors into one, so few additions serve many sums.
        """
        parts, width = [*values, *[self.vector(0.0)] * (LANES - len(values))], LANES // 2
        while len(parts) > 1:
            low = [start + i for start in range(0, 2 * LANES, 2 * width) for i in range(width)]
            high = [number + width for number in low]
            parts = [
                self.builder.fadd(self.shuffle(a, b, low), self.shuffle(a, b, high))
                for a, b in zip(parts[::2], parts[1::2], strict=True)
            ]
            width //= 2
        return parts[0]

    def vector(self, value: float) -> ir.Constant:
        return ir.Constant(VECTOR, [value] * LANES)

    def spread(self, scalar: Any) -> Any:
        """Return a vector with the same value in every lane."""
        undefined = ir.Constant(VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))

    def choose(self, value: Any, other: Any, lanes: dict[int, int]) -> Any:
        """Return `value` with lane i replaced by lane `lanes[i]` of `other`."""
        return self.shuffle(value, other, [LANES + lanes[i] if i in lanes else i for i in range(LANES)])

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """Return a vector of these lanes of `a` (0 ..) and `b` (LANES ..)."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, LANES), list(lanes)))

    def bits(self, integer: Any) -> Any:
        """Return the lowest bits of an integer as one truth value per lane."""
        return self.builder.bitcast(self.builder.trunc(integer, INT16), BITS)

    def loop(self, count: Any, carried: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]) -> list[Any]:
        """Run `body(index, values)` for index 0 .. count - 1; it returns the values for the next iteration."""
        builder, before = self.builder, self.builder.block
        inside, after = builder.append_basic_block(), builder.append_basic_block()
        builder.cbranch(builder.icmp_signed(">", count, self.integer(0)), inside, after)
        builder.position_at_end(inside)
        index = builder.phi(INT)
        values = [builder.phi(value.type) for value in carried]
        results = list(body(index, list(values)))
        following, end = builder.add(index, self.integer(1)), builder.block
        for phi, first, later in zip([index, *values], [self.integer(0), *carried], [following, *results], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, end)
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        builder.position_at_end(after)
        left = [builder.phi(value.type) for value in carried]
        for phi, first, later in zip(left, carried, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, end)
        return left

    def _pointer(self, address: Any, kind: Any) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def _intrinsic(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        known = self.builder.module.globals.get(name)
        return known or ir.Function(self.builder.module, ir.FunctionType(result, arguments), name)


class CompiledFunction:
    """A compiled function of integers and addresses that returns nothing; `address` is its entry point."""

    def __init__(self, arguments: int, write: Callable[..., None]) -> None:
        module = ir.Module()
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT] * arguments), "function")
        builder = ir.IRBuilder(function.append_basic_block())
        write(Writer(builder), *function.args)
        builder.ret_void()
        self._engine = _compile(str(module))  # owns the code
        self.address = self._engine.get_function_address("function")


def compiled_once(make: Callable[..., CompiledFunction]) -> Callable[..., CompiledFunction]:
    """Cache what `make` compiles for its arguments; threads that ask at the same time get the same function.

    If two were compiled, one would be released with its code while a thread runs it.
    """
    kept, lock = cache(make), threading.Lock()

    @wraps(make)
    def function(*arguments: Any) -> CompiledFunction:
        with lock:
            return kept(*arguments)

    function.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
    return function


def processor() -> tuple[str, str]:
    """Return LLVM's name of this machine's processor, and its features."""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _compile(text: str) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = processor()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=3, jit=True)
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
