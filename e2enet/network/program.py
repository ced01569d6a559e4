"""A network's forward pass as a list of operations, which every backend walks.

The plain network is the source: its modules compute in torch, and `tracing` reads the list from its forward pass. A
backend is a table from `KINDS` to what computes an operation of this kind (`implementation`). So an operation
that a backend lacks is refused by its name before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.network.blocks import ConvBlock
from e2enet.network.layers import StrideUp3d, Triple
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.shift import channel_shifts

# block: concatenation with depth-shift, convolution, instance norm and activation. expansion: transposed convolution
# whose kernel is its stride. pooling: maxima of windows. head: convolution of 1 x 1 x 1 to logits.
BLOCK, EXPANSION, POOLING, HEAD = "block", "expansion", "pooling", "head"
KINDS: dict[type[nn.Module], str] = {
    ConvBlock: BLOCK,
    StrideUp3d: EXPANSION,
    StrideMaxPool3d: POOLING,
    nn.Conv3d: HEAD,
}
V = TypeVar("V")
G = TypeVar("G")
T = TypeVar("T")


@dataclass(frozen=True)
class Operation:
    """One call of a module: value number `output` is its output for the values `inputs`, concatenated.

    Value 0 is the network's input.
    """

    name: str
    module: Any
    inputs: tuple[int, ...]
    output: int

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return KINDS[type(self.module)]

    @property
    def conv(self) -> Any:
        """The module that holds weight, stride, padding and mask; a pooling has its stride alone."""
        return self.module.conv if self.kind == BLOCK else self.module

    @property
    def norm(self) -> Any:
        """The instance norm with activation that follows, or None."""
        return self.module.norm if self.kind == BLOCK else None

    @property
    def shift_size(self) -> int:
        """Number of channel groups of the depth-shift; 1 is no shift."""
        size: int = self.module.shift_size if self.kind == BLOCK else 1
        return size

    def mask(self) -> Tensor:
        """Return the active kernels, bool (dim 0, dim 1) of the weight, on the CPU. A pooling has none."""
        mask: Tensor | None = self.conv._buffers.get("kernel_mask")
        return torch.ones(self.conv.weight.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()

    def kernels(self) -> Tensor:
        """Return the active kernels as bool (outputs, inputs), on the CPU."""
        return self.mask().T if self.kind == EXPANSION else self.mask()

    def shifts(self) -> list[int]:
        """Return by how many slices each input channel of a block or head moves before the convolution."""
        return channel_shifts(self.conv.in_channels, self.shift_size)

    def output_channels(self, inputs: int) -> int:
        """Return the channels of the output for this number of input channels, which a pooling keeps."""
        channels: int = getattr(self.conv, "out_channels", inputs)
        return channels

    def output_size(self, size: Triple) -> Triple:
        """Return (D, H, W) of the output for inputs of a size."""
        return implementation("the program", SIZES, self, "an entry in SIZES")(self.conv, size)


@dataclass(frozen=True)
class Program:
    """The operations of a forward pass in their order, and the numbers of the values that hold its logits.

    With deep supervision in the traced mode these are the logits of every head, else of the first.
    """

    operations: tuple[Operation, ...]
    results: tuple[int, ...]

    def last_reads(self) -> dict[int, tuple[int, ...]]:
        """Return, by an operation's output, the values that no later operation reads; results are kept."""
        return last_reads([(operation.inputs, operation.output) for operation in self.operations], self.results)

    def walk(self, x: V, compute: Callable[[Operation, list[V]], V], kept: Container[int] = ()) -> dict[int, V]:
        """Compute every operation in its order, and return the results and the values of `kept` by their numbers.

        Any other value is released as soon as no later operation reads it.

        Args:
            x: the network's input.
            compute: returns the output of an operation from its inputs.
            kept: numbers of values.
        """
        values, done = {0: x}, self.last_reads()
        for operation in self.operations:
            values[operation.output] = compute(operation, [values[number] for number in operation.inputs])
            for number in done[operation.output]:
                if number not in kept:
                    del values[number]
        return values

    def walk_back(
        self, values: dict[int, V], gradients: dict[int, G], compute: Callable[[Operation, list[V], V, G], None]
    ) -> None:
        """Go through the operations backward, where gradients reach their outputs.

        Args:
            values: of the forward pass, by number. Each is released after its use.
            gradients: of the results, by number. `compute` adds those of other values.
            compute: takes an operation, its inputs, its output and the output's gradient.
        """
        for operation in reversed(self.operations):
            output, gradient = values.pop(operation.output, None), gradients.pop(operation.output, None)
            if gradient is not None:  # else no logits with a gradient depend on it
                assert output is not None
                compute(operation, [values[number] for number in operation.inputs], output, gradient)

    def implementations(self, backend: str, table: Mapping[str, T], expected: str = "engine=dense") -> dict[int, T]:
        """Return what a backend has for each operation, by the number of its output; see `implementation`."""
        return {operation.output: implementation(backend, table, operation, expected) for operation in self.operations}

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of every operation, each once, in the order of the operations."""
        return list(dict.fromkeys(p for operation in self.operations for p in operation.module.parameters()))


def last_reads(steps: Sequence[tuple[tuple[int, ...], int]], results: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return, by the output of each step (inputs, output), the inputs that no later step reads and no result is."""
    last = {number: output for inputs, output in steps for number in inputs if number not in results}
    return {
        output: tuple(number for number in dict.fromkeys(inputs) if last.get(number) == output)
        for inputs, output in steps
    }


def implementation(backend: str, table: Mapping[str, T], operation: Operation, expected: str = "engine=dense") -> T:
    """Return what a backend has for an operation.

    Args:
        backend: its name, for the message.
        table: what it has for each kind of operation.
        operation: one of a program.
        expected: what helps a user without it, for the message.

    Raises:
        InputError: the table has no entry for this kind.
    """
    return entry(backend, table, operation.kind, operation.name, expected)


def entry(backend: str, table: Mapping[str, T], kind: str, name: str, expected: str) -> T:
    """Return a backend's entry for a kind of operation; as `implementation`, for a module by its name."""
    if kind not in table:
        raise InputError(f"{name}: {backend} has no operation {kind!r}, only {', '.join(table)}; expected {expected}")
    return table[kind]


def _convolved(conv: Any, size: Triple) -> Triple:
    depth, height, width = (
        (edge + 2 * pad - taps) // step + 1
        for edge, pad, taps, step in zip(size, conv.padding, conv.kernel_size, conv.stride, strict=True)
    )
    return depth, height, width


def _expanded(conv: Any, size: Triple) -> Triple:
    depth, height, width = (edge * step for edge, step in zip(size, conv.stride, strict=True))
    return depth, height, width


def _pooled(pooling: Any, size: Triple) -> Triple:
    depth, height, width = (edge // step for edge, step in zip(size, pooling.stride, strict=True))
    return depth, height, width


# Each takes the module that holds the stride, and the size of its inputs.
SIZES: dict[str, Callable[[Any, Triple], Triple]] = {
    BLOCK: _convolved,
    EXPANSION: _expanded,
    POOLING: _pooled,
    HEAD: _convolved,
}
