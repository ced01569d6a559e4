"""A trained E2ENet as a program of engine layers, for inference on a CPU.

Each call of the traced network becomes a layer of the engine with active kernels only. Channels that no layer reads are
not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from e2enet.network.blocks import ConvBlock
from e2enet.network.e2enet import E2ENet, check_input
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.dense import DenseConvolution, bfloat16_is_native
from e2enet.network.engine.known import refuse, unknown
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm
from e2enet.network.engine.self_check import check_itself
from e2enet.network.engine.sparse_layers import Convolution, Expansion, Pooling
from e2enet.network.engine.timing_cache import TimingCache
from e2enet.network.engine.trace import Call, kernel_mask, trace
from e2enet.network.layers import StrideUp3d, Triple
from e2enet.network.operations import refuse_tools
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.shift import channel_shifts

Layer = Callable[[Sequence[LazyVolumes]], LazyVolumes]
SPARSE, DENSE, BFLOAT16 = "sparse", "dense", "bfloat16"


@dataclass
class PlannedOp:
    """One layer of the program: it computes `values[output]` from `values[inputs]`.

    No later layer reads the values of `done`. `others` are further ways to run the layer. Each is built when it is
    timed or chosen; `made` keeps the chosen ones.
    """

    name: str
    description: str
    layer: Layer
    others: dict[str, Callable[[], Layer]]
    inputs: tuple[int, ...]
    output: int
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
        self.steps, self.outputs = program(model)
        self.every_head = model.deep_supervision_in_eval
        self.ways: dict[tuple[str, Triple], str] = {}  # the chosen one by layer and input size
        self._choices: TimingCache | None = None
        self._bfloat16 = bfloat16 and bfloat16_is_native()
        self.eval()
        check_itself(model, self, training=False)
        self._choices = (choices or TimingCache()) if choose else None

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        refuse_tools("a compact network")
        check_input(x, self.in_channels, self.strides)
        samples = [self._one(sample) for sample in x.float()]
        logits = [torch.stack(head) for head in zip(*samples, strict=True)]
        return logits if self.every_head else logits[0]

    def _one(self, sample: Tensor) -> list[Tensor]:
        values = {0: LazyVolumes.of(np.ascontiguousarray(sample.permute(0, 2, 3, 1).numpy()))}
        for step in self.steps:
            sources = [values[number] for number in step.inputs]
            values[step.output] = self._layer(step, sources)(sources)
            for number in step.done:
                del values[number]
        return [torch.from_numpy(values[number].stacked()).permute(0, 3, 1, 2) for number in self.outputs]

    def _layer(self, step: PlannedOp, sources: Sequence[LazyVolumes]) -> Layer:
        """Return the step's layer for sources of this size."""
        if self._choices is None or not step.others:
            return step.layer
        size = sources[0].size
        if (step.name, size) not in self.ways:
            self.ways[step.name, size] = self._fastest(self._choices, step, sources)
        way = self.ways[step.name, size]
        if way == SPARSE:
            return step.layer
        if way not in step.made:
            step.made[way] = step.others[way]()
        return step.made[way]

    def _fastest(self, choices: TimingCache, step: PlannedOp, sources: Sequence[LazyVolumes]) -> str:
        makers = {SPARSE: lambda: step.layer} | {
            name: make for name, make in step.others.items() if name != BFLOAT16 or self._bfloat16
        }
        size = " x ".join(map(str, sources[0].size))
        ways = {name: partial(_run_of, make, sources) for name, make in makers.items()}
        return choices.fastest(f"{step.description} on {size}", ways)


def _run_of(make: Callable[[], Layer], sources: Sequence[LazyVolumes]) -> Callable[[], LazyVolumes]:
    """Build the layer now, and return a function that runs it once."""
    return partial(make(), sources)


def program(model: E2ENet) -> tuple[list[PlannedOp], tuple[int, ...]]:
    """Return the steps of a model's inference and the numbers of its logits' values; value 0 is the input."""
    calls, results = trace(model, training=False)
    live = _live_channels(calls, results, model.in_channels)
    steps = []
    for call in calls:
        if not live[call.output].any():
            continue
        inputs = tuple(number for number in call.inputs if live[number].any())
        kept = np.concatenate([live[number] for number in call.inputs])
        steps.append(PlannedOp(call.name, *_engine_layer(call.module, live[call.output], kept), inputs, call.output))
    last = {number: index for index, step in enumerate(steps) for number in step.inputs if number not in results}
    for index, step in enumerate(steps):
        step.done = tuple(number for number in dict.fromkeys(step.inputs) if last.get(number) == index)
    return steps, results


def _live_channels(calls: Sequence[Call], results: Sequence[int], in_channels: int) -> dict[int, np.ndarray]:
    """Return which channels of each value reach a result; all of the input and of the results do."""
    live = {0: np.ones(in_channels, bool)}
    for call in calls:
        count = len(live[call.inputs[0]]) if isinstance(call.module, StrideMaxPool3d) else len(_mask(call.module))
        live[call.output] = np.full(count, call.output in results)
    for call in reversed(calls):
        own = live[call.output]
        if isinstance(call.module, StrideMaxPool3d):
            read = own
        else:
            read = np.asarray(_mask(call.module)[own].any(axis=0))
            read[0] |= own.any() and not read.any()  # at least one, for the size
        ends = np.cumsum([len(live[number]) for number in call.inputs])
        for number, part in zip(call.inputs, np.split(read, ends[:-1]), strict=True):
            live[number] |= part
    return live


def _mask(module: nn.Module) -> np.ndarray:
    """Return the active kernels (outputs, inputs) of a block, a head or a transposed convolution."""
    active = kernel_mask(module).numpy()
    return active.T if isinstance(module, nn.ConvTranspose3d) else active


def _engine_layer(
    module: nn.Module, outputs: np.ndarray, inputs: np.ndarray
) -> tuple[str, Layer, dict[str, Callable[[], Layer]]]:
    """Return a module's description, its engine layer and other ways to run it, for the channels kept (bool)."""
    if isinstance(module, StrideMaxPool3d):
        return f"pooling by {module.stride}", Pooling(module.stride, np.flatnonzero(outputs[inputs])), {}
    mask = _mask(module)[outputs][:, inputs]
    if isinstance(module, StrideUp3d):
        weights = _array(module.weight)[inputs][:, outputs]
        stride: Any = module.stride
        up = ActiveKernels.of_expansion(mask.T, stride)
        return (
            f"transposed {weights.shape} with {mask.sum()} active",
            Expansion(up, up.gather_weights(weights), stride),
            {},
        )
    conv: Any = module.conv if isinstance(module, ConvBlock) else module
    norm: Norm | None = None
    shifts = np.zeros(len(inputs), np.int64)
    if isinstance(module, ConvBlock):
        shifts = np.array(channel_shifts(len(inputs), module.shift_size))
        scale, offset = _array(module.norm.weight)[outputs], _array(module.norm.bias)[outputs]
        norm = scale, offset, module.norm.eps, module.norm.slope
    weights, shifts = _array(conv.weight)[outputs][:, inputs], shifts[inputs]
    description = f"convolution {weights.shape} with {mask.sum()} active, stride {conv.stride}"
    kernels = ActiveKernels.of_convolution(mask, shifts, conv.kernel_size)
    padding = int(conv.padding[1]), int(conv.padding[2])
    layer = Convolution(kernels, kernels.gather_weights(weights), conv.stride, padding, norm)
    others: dict[str, Callable[[], Layer]] = {
        name: partial(_dense, layer, weights.shape, shifts, dtype)
        for name, dtype in ((DENSE, torch.float32), (BFLOAT16, torch.bfloat16))
    }
    return description, layer, others


def _dense(layer: Convolution, shape: tuple[int, ...], shifts: np.ndarray, dtype: torch.dtype) -> Layer:
    """Return the same convolution by torch, with its weight of `shape`."""
    return DenseConvolution(
        layer.kernels.scatter_weights(layer.weights, shape), shifts, layer.stride, layer.norm, dtype
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
