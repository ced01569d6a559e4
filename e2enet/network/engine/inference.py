"""A trained E2ENet as a program of engine layers, for inference on a CPU.

Each operation of the network's program becomes a layer of the engine with active kernels only. Channels that no layer
reads are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from e2enet.network.e2enet import E2ENet
from e2enet.network.engine import checks
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.dense import DenseConvolution
from e2enet.network.engine.known import refuse, unknown
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm
from e2enet.network.engine.self_check import ENGINE_VOXELS, check_itself
from e2enet.network.engine.sparse_layers import Convolution, Expansion, Pooling
from e2enet.network.engine.timing_cache import TimingCache
from e2enet.network.engine.vector_code import FLOAT_BYTES
from e2enet.network.half_precision import bfloat16_is_native
from e2enet.network.layers import Triple
from e2enet.network.program import BLOCK, EXPANSION, HEAD, POOLING, Operation, Program, last_reads
from e2enet.network.tracing import read_program
from e2enet.network.whole_pass import check_call
from e2enet.system.memory import available_memory

Layer = Callable[[Sequence[LazyVolumes]], LazyVolumes]
SPARSE, DENSE, BFLOAT16 = "sparse", "dense", "bfloat16"
SHARE_OF_MEMORY = 1 / 8  # of what is free, for the samples of a batch beyond the first one


class SparseLayer(Protocol):
    """A layer with active kernels only."""

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes: ...

    def size(self, source: Triple) -> Triple:
        """Return the output's (D, H, W) for that of the sources."""


@dataclass
class PlannedOp:
    """One layer of the program: it computes `values[output]` from `values[inputs]`.

    No later layer reads the values of `done`. `channels` of the output are computed. `others` are further ways to run
    the layer. Each is built when it is timed or chosen; `made` keeps the chosen ones.
    """

    name: str
    description: str
    layer: SparseLayer
    others: dict[str, Callable[[], Layer]]
    inputs: tuple[int, ...]
    output: int
    channels: int
    done: tuple[int, ...] = ()
    made: dict[str, Layer] = field(default_factory=dict)


class CompactNetwork(nn.Module):
    """The inference of a trained E2ENet: (B, C, D, H, W) on the CPU to float32 logits (B, num_classes, D, H, W).

    It returns what the model returns in eval mode: with `deep_supervision_in_eval`, a list of every head's logits.

    Args:
        model: its weights and masks are copied.
        choose: time the ways to run each layer at the first input of a size, and use the fastest. False: only active
            kernels, everywhere.
        bfloat16: try convolutions in bfloat16 too, if the processor has instructions for it.
        choices: where measured times are remembered.

    Raises:
        InputError: the engine does not know the model, or gives other logits than the model on a small input.
        ValueError: the input has the wrong shape.
    """

    def __init__(
        self, model: E2ENet, *, choose: bool = True, bfloat16: bool = False, choices: TimingCache | None = None
    ) -> None:
        super().__init__()
        refuse(unknown(model))
        self.in_channels, self.num_classes, self.strides = model.in_channels, model.num_classes, model.strides
        self.steps, self.outputs = plan_inference(model)
        self.every_head = model.deep_supervision_in_eval
        self.ways: dict[tuple[str, Triple, int], str] = {}  # the chosen one by layer, input size and samples
        self._choices: TimingCache | None = None
        self._bfloat16 = bfloat16 and bfloat16_is_native()
        self.eval()
        check_itself(model, self, training=False, fewest=ENGINE_VOXELS)
        self._choices = (choices or TimingCache()) if choose else None

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_call("a compact network", self, x, trains=False)
        values = {0: LazyVolumes.of(np.ascontiguousarray(x.float().permute(0, 1, 3, 4, 2).numpy()))}
        for step in self.steps:  # for all samples together, so that threads can share the samples
            sources = [values[number] for number in step.inputs]
            with checks.named(step.name):
                values[step.output] = self._layer(step, sources)(sources)
            for number in step.done:
                del values[number]
        logits = [
            torch.from_numpy(values[number].stacked()).permute(0, 1, 4, 2, 3).contiguous() for number in self.outputs
        ]
        return logits if self.every_head else logits[0]

    def samples_at_once(self, size: Triple) -> int:
        """Return how many inputs (D, H, W) to give at once: one for each of torch's threads, if memory is free.

        Threads then take whole samples, not slivers of one. What the samples beyond the first one take may be
        SHARE_OF_MEMORY of the free memory.
        """
        threads = torch.get_num_threads()
        if threads == 1:
            return 1
        return 1 + min(threads - 1, int(SHARE_OF_MEMORY * available_memory()) // self.sample_bytes(size))

    def sample_bytes(self, size: Triple) -> int:
        """Return the bytes of all volumes that a pass holds at the same time, at the most, for an input (D, H, W)."""
        sizes, held = {0: size}, {0: self.in_channels * prod(size)}
        most = 0
        for step in self.steps:
            sizes[step.output] = step.layer.size(sizes[step.inputs[0]])
            held[step.output] = step.channels * prod(sizes[step.output])
            most = max(most, sum(held.values()))
            for number in step.done:
                del held[number]
        return FLOAT_BYTES * max(most, 2 * sum(held.values()))  # logits are copied into torch's layout

    def _layer(self, step: PlannedOp, sources: Sequence[LazyVolumes]) -> Layer:
        """Return the step's layer for sources of this size."""
        if self._choices is None or not step.others:
            return step.layer
        place = (step.name, sources[0].size, len(sources[0].addresses))
        if place not in self.ways:
            self.ways[place] = self._fastest(self._choices, step, sources)
        way = self.ways[place]
        if way == SPARSE:
            return step.layer
        if way not in step.made:
            step.made[way] = step.others[way]()
        return step.made[way]

    def _fastest(self, choices: TimingCache, step: PlannedOp, sources: Sequence[LazyVolumes]) -> str:
        makers = {SPARSE: lambda: step.layer} | {
            name: make for name, make in step.others.items() if name != BFLOAT16 or self._bfloat16
        }
        size, batch = " x ".join(map(str, sources[0].size)), len(sources[0].addresses)
        described = f"{step.description} on {size}" + f", {batch} samples" * (batch > 1)
        ways = {name: partial(_run_of, make, sources) for name, make in makers.items()}
        return choices.fastest(described, ways)


def _run_of(make: Callable[[], Layer], sources: Sequence[LazyVolumes]) -> Callable[[], LazyVolumes]:
    """Build the layer now, and return a function that runs it once."""
    return partial(make(), sources)


def plan_inference(model: E2ENet) -> tuple[list[PlannedOp], tuple[int, ...]]:
    """Return the steps of a model's inference and the numbers of its logits' values; value 0 is the input."""
    program = read_program(model, training=False)
    plans = program.implementations("the engine in prediction", LAYERS)
    live = _live_channels(program, model.in_channels)
    steps = []
    for operation in program.operations:
        if not live[operation.output].any():
            continue
        inputs = tuple(number for number in operation.inputs if live[number].any())
        kept = np.concatenate([live[number] for number in operation.inputs])
        planned = plans[operation.output](operation, live[operation.output], kept)
        channels = int(live[operation.output].sum())
        steps.append(PlannedOp(operation.name, *planned, inputs, operation.output, channels))
    done = last_reads([(step.inputs, step.output) for step in steps], program.results)
    for step in steps:
        step.done = done[step.output]
    return steps, program.results


def _live_channels(program: Program, in_channels: int) -> dict[int, np.ndarray]:
    """Return which channels of each value reach a result; all of the input and of the results do."""
    live = {0: np.ones(in_channels, bool)}
    for operation in program.operations:
        pools = operation.kind == POOLING
        count = len(live[operation.inputs[0]]) if pools else len(operation.kernels())
        live[operation.output] = np.full(count, operation.output in program.results)
    for operation in reversed(program.operations):
        own = live[operation.output]
        if operation.kind == POOLING:
            read = own
        else:
            read = np.asarray(operation.kernels().numpy()[own].any(axis=0))
            read[0] |= own.any() and not read.any()  # at least one, for the size
        ends = np.cumsum([len(live[number]) for number in operation.inputs])
        for number, part in zip(operation.inputs, np.split(read, ends[:-1]), strict=True):
            live[number] |= part
    return live


# A layer's description, the layer and further ways to run it.
Plan = tuple[str, SparseLayer, dict[str, Callable[[], Layer]]]


def _pooling(operation: Operation, outputs: np.ndarray, inputs: np.ndarray) -> Plan:
    stride = operation.module.stride
    return f"pooling by {stride}", Pooling(stride, np.flatnonzero(outputs[inputs])), {}


def _expansion(operation: Operation, outputs: np.ndarray, inputs: np.ndarray) -> Plan:
    mask, stride = operation.mask().numpy()[inputs][:, outputs], operation.conv.stride
    weights = _array(operation.conv.weight)[inputs][:, outputs]
    up = ActiveKernels.of_expansion(mask, stride)
    described = f"transposed {weights.shape} with {mask.sum()} active"
    return described, Expansion(up, up.gather_weights(weights), stride), {}


def _convolution(operation: Operation, outputs: np.ndarray, inputs: np.ndarray) -> Plan:
    conv, norm = operation.conv, operation.norm
    mask = operation.mask().numpy()[outputs][:, inputs]
    pending: Norm | None = None
    if norm is not None:
        pending = np.stack([_array(norm.weight)[outputs], _array(norm.bias)[outputs]]), norm.eps, norm.slope
    weights, shifts = _array(conv.weight)[outputs][:, inputs], np.array(operation.shifts())[inputs]
    description = f"convolution {weights.shape} with {mask.sum()} active, stride {conv.stride}"
    kernels = ActiveKernels.of_convolution(mask, shifts, conv.kernel_size)
    padding = int(conv.padding[1]), int(conv.padding[2])
    layer = Convolution(kernels, kernels.gather_weights(weights), conv.stride, padding, pending)
    others: dict[str, Callable[[], Layer]] = {
        name: partial(_dense, layer, weights.shape, shifts, dtype)
        for name, dtype in ((DENSE, torch.float32), (BFLOAT16, torch.bfloat16))
    }
    return description, layer, others


# Each takes an operation and which of its output and input channels are kept (bool).
LAYERS: dict[str, Callable[[Operation, np.ndarray, np.ndarray], Plan]] = {
    BLOCK: _convolution,
    EXPANSION: _expansion,
    POOLING: _pooling,
    HEAD: _convolution,
}


def _dense(layer: Convolution, shape: tuple[int, ...], shifts: np.ndarray, dtype: torch.dtype) -> Layer:
    """Return the same convolution by torch, with its weight of `shape`."""
    return DenseConvolution(
        layer.kernels.scatter_weights(layer.weights, shape), shifts, layer.stride, layer.norm, dtype
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
