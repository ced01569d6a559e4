"""A network's forward pass as a list of operations, which every backend walks.

The plain network is the source: its modules compute in torch, and a trace of its forward pass (torch.fx) gives the
list. A backend is a table from `KINDS` to what computes an operation of this kind (`implementation`). So an operation
that a backend lacks is refused by its name before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from e2enet.common.errors import InputError
from e2enet.network.blocks import ConvBlock
from e2enet.network.e2enet import E2ENet
from e2enet.network.layers import StrideUp3d
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


def read_program(model: E2ENet, *, training: bool) -> Program:
    """Trace a network's forward pass in training or eval mode. The model is not changed."""
    modules = dict(model.named_modules())
    before, model.training = model.training, training
    try:
        graph = _Tracer().trace(_Unchecked(model))
    finally:
        model.training = before
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    numbers = {node: number for number, node in enumerate(nodes, start=1)}
    operations = []
    for node in nodes:
        name = str(node.target).removeprefix("model.")
        inputs = tuple(numbers.get(skip_views(source), 0) for source in node.args)
        operations.append(Operation(name, modules[name], inputs, numbers[node]))
    (result,) = (node.args[0] for node in graph.nodes if node.op == "output")
    results = result if isinstance(result, list | tuple) else [result]
    return Program(tuple(operations), tuple(numbers[skip_views(node)] for node in results))


def implementation(backend: str, table: Mapping[str, Callable[..., T]], operation: Operation) -> Callable[..., T]:
    """Return what computes an operation in a backend.

    Args:
        backend: its name, for the message.
        table: what computes each kind of operation.
        operation: one of a program.

    Raises:
        InputError: the table has no entry for this kind.
    """
    if operation.kind not in table:
        raise InputError(
            f"{operation.name}: {backend} has no operation {operation.kind!r}, only {', '.join(table)}; "
            "expected engine=dense"
        )
    return table[operation.kind]


class _Unchecked(nn.Module):
    """The network without its input checks, for tracing."""

    def __init__(self, model: E2ENet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model._forward(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, tuple(KINDS))


def skip_views(node: Any) -> Any:
    """Return the layer (or the input) that a value comes from; skip views and a pooling's first output."""
    while True:
        if node.op == "call_method":  # contiguous
            node = node.args[0]
        elif node.op == "call_function" and node.args[1] == 0:  # pooling returns its input beside its output
            node = node.args[0].args[0]
        elif node.op == "call_function":
            node = node.args[0]
        else:
            return node
