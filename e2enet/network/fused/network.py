"""A fused pass of an E2ENet: its program's operations, forward and backward, as one operation of autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine.known import settings, unknown_in_training
from e2enet.network.fused import operations
from e2enet.network.fused.grouped import GroupedBlock
from e2enet.network.fused.implicit import IMPLICIT_LAYERS
from e2enet.network.fused.layers import LAYERS, FusedLayer, Pass, Readers
from e2enet.network.fused.volumes import Reader, Volumes
from e2enet.network.layers import checked_mask, to_channels_last
from e2enet.network.program import BLOCK, Operation, Program, implementation
from e2enet.network.tracing import read_program
from e2enet.network.whole_pass import check_backward, check_call

BACKEND = "the fused pass"


class FusedNetwork(nn.Module):
    """Runs an E2ENet so that few bytes are moved; logits and gradients are the network's up to rounding.

    Input: (B, C, D, H, W) on the network's device. Output: what the network returns in its mode, in the dtype
    that it computes in. Parameters stay the network's own. Weights and masks are read at every call, so
    they may change between calls, unless `fixed`. The input gets no gradient, and gradients cannot be differentiated
    again.

    Args:
        network: an E2ENet on any device; on CUDA the kernels need triton.
        groups: multiply active kernels only where masks have group granularity (`grouped`); inactive kernels of these
            layers get zero gradients.
        implicit: convolutions prepare what they read (`implicit`), which moves fewer bytes. On CUDA in float16,
            bfloat16 or float32; float32 factors are rounded to TF32 where torch's flags allow it. With
            `groups`, blocks that run by groups do not.
        dtype: to compute in; None: that of autocast, else of the parameters.
        fixed: without gradients, weights and masks are read at the first call in a dtype only, and kept in that dtype.

    Raises:
        InputError: something of the network has no fused form.
        ValueError: the input has the wrong shape or requires a gradient.
    """

    def __init__(
        self,
        network: E2ENet,
        *,
        groups: bool = False,
        implicit: bool = False,
        dtype: torch.dtype | None = None,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.groups, self.implicit, self.dtype, self.fixed = network, groups, implicit, dtype, fixed
        self._weights: dict[torch.dtype, dict[str, Tensor]] = {}
        self.training = network.training
        self._settings: list[Any] = []
        self._pass: tuple[Program, dict[int, FusedLayer]] | None = None
        self._read()

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        network = self.network
        check_call(BACKEND, network, x, trains=True)
        program, layers = self._read()
        parameters = program.parameters()
        trained = trained_values(program)
        kept = read_backward(program, trained) if torch.is_grad_enabled() else frozenset()
        dtype, fixed = self.dtype or _precision(network, x), self.fixed and not torch.is_grad_enabled()
        work = _Work(program, layers, dtype, trained, kept, self._fixed_weights(program, dtype) if fixed else None)
        logits = _FusedPass.apply(work, to_channels_last(x), *parameters)
        return list(logits) if network.gives_every_head else logits[0]

    def _read(self) -> tuple[Program, dict[int, FusedLayer]]:
        """Return the network's program and its layers; it is traced again when something other than values changed."""
        reason = unfusable(self.network, next(self.network.parameters()).device)
        if reason is not None:
            raise InputError(f"{BACKEND} cannot run this network: {reason}; expected engine=dense")
        current = settings(self.network)
        if self._pass is None or current != self._settings:
            program = read_program(self.network, training=self.network.training)
            layers = fused_layers(program, groups=self.groups, implicit=self.implicit)
            self._pass, self._settings = (program, layers), current
            self._weights.clear()
        return self._pass

    @torch.no_grad()
    def _fixed_weights(self, program: Program, dtype: torch.dtype) -> dict[str, Tensor]:
        if dtype not in self._weights:
            self._weights[dtype] = active_weights(program, dtype)
        return self._weights[dtype]


def unfusable(network: nn.Module, device: torch.device) -> str | None:
    """Return why the fused pass cannot run a network on a device, as the end of a sentence; None if it can."""
    reason = unknown_in_training(network, on_cpu=False)
    if reason is None and device.type == "cuda" and not has_triton():
        return "triton is not installed, in which its kernels for CUDA are written"
    return reason


@cache
def has_triton() -> bool:
    """Return whether triton is installed; torch's CUDA wheels bring it."""
    return find_spec("triton") is not None


class _Work(NamedTuple):
    """What a pass runs, and the numbers of the values that have a gradient and that its backward pass needs.

    weights: of `active_weights` if they are fixed, else None.
    """

    program: Program
    layers: Mapping[int, FusedLayer]
    dtype: torch.dtype
    trained: frozenset[int]
    kept: frozenset[int]
    weights: Mapping[str, Tensor] | None = None


def _precision(network: E2ENet, x: Tensor) -> torch.dtype:
    """Return the dtype that torch would compute in here."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return next(network.parameters()).dtype


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A pass chooses its precision itself."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class _FusedPass(torch.autograd.Function):
    """All operations of a program. Kept for the backward pass: what convolutions and expansions wrote."""

    @staticmethod
    def forward(ctx: Any, work: _Work, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd(), _without_autocast(x.device):
            run = Pass(work.dtype, work.weights or active_weights(work.program, work.dtype))
            values = run_forward(work, run, Volumes(x))
        ctx.save_for_backward(x, *parameters)  # torch checks that weights stay unchanged
        ctx.set_materialize_grads(False)  # logits without a gradient have None, as the network's
        ctx.work, ctx.run, ctx.values = work, run, values
        logits = {number: _as_own(values[number].values) for number in work.program.results}
        ctx.mark_non_differentiable(*(logits[number] for number in logits.keys() - work.trained))
        return tuple(logits.values())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        check_backward(BACKEND, ctx.values)
        x, *parameters = ctx.saved_tensors  # raises if one was changed
        values, run, ctx.values, ctx.run = ctx.values, ctx.run, None, None  # a loss that is kept holds neither
        with torch._C._AutoDispatchBelowAutograd(), _without_autocast(x.device):
            run_backward(ctx.work, run, values, grads)
            found = parameter_gradients(ctx.work.program, run)
        return None, None, *(found.get(id(parameter)) for parameter in parameters)


def _as_own(logits: Tensor) -> Tensor:
    """Return a tensor of the same memory that is no view.

    Torch lets nobody change a view among several outputs in place. And the backward pass keeps the given tensor: as an
    output it would hold that pass, and so itself, for ever.
    """
    return logits.new_empty(0).set_(logits.untyped_storage(), logits.storage_offset(), logits.shape, logits.stride())


def read_backward(program: Program, trained: frozenset[int]) -> frozenset[int]:
    """Return the numbers of the values that a backward pass reads: what trained operations read and wrote.

    Operations before the first trained one, such as those of a frozen encoder, go backward not at all.
    """
    return frozenset(
        number
        for operation in program.operations
        if operation.output in trained
        for number in (*operation.inputs, operation.output)
    )


def trained_values(program: Program) -> frozenset[int]:
    """Return the numbers of the values that have a gradient: a parameter that they depend on requires one."""
    trained: set[int] = set()
    for operation in program.operations:
        own = any(parameter.requires_grad for parameter in operation.module.parameters())
        if own or not trained.isdisjoint(operation.inputs):
            trained.add(operation.output)
    return frozenset(trained)


def fused_layers(program: Program, *, groups: bool, implicit: bool) -> dict[int, FusedLayer]:
    """Return what runs each operation, by the number of its output."""
    layers, every = {}, LAYERS | (IMPLICIT_LAYERS if implicit else {})
    for operation in program.operations:
        by_groups = groups and operation.kind == BLOCK and getattr(operation.conv, "group_size", 1) > 1
        table: Mapping[str, Any] = every | {BLOCK: GroupedBlock} if by_groups else every
        layers[operation.output] = implementation(BACKEND, table, operation)(operation)
    return layers


def active_weights(program: Program, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of every operation by its name, (dim 0, taps, dim 1), with zeros for inactive kernels."""
    owners = _owners(program)
    weights, masks = [conv.weight for conv in owners.values()], [checked_mask(conv) for conv in owners.values()]
    return dict(zip(owners, operations.ACTIVE_WEIGHTS(weights, masks, dtype), strict=True))


def run_forward(work: _Work, run: Pass, x: Volumes) -> dict[int, Volumes]:
    """Return the values of a forward pass by number: its results, and those kept for the backward pass."""

    def compute(operation: Operation, sources: list[Volumes]) -> Volumes:
        return work.layers[operation.output].forward(run, sources)

    return work.program.walk(x, compute, work.kept)


def run_backward(work: _Work, run: Pass, values: dict[int, Volumes], grads: Sequence[Tensor | None]) -> None:
    """Fill `run` with the gradients of the parameters. Each of `values` is released after its use."""
    program, trained = work.program, work.trained
    readers = {
        number: [Reader(grad, 0)] for number, grad in zip(program.results, grads, strict=True) if grad is not None
    }

    def compute(operation: Operation, sources: list[Volumes], output: Volumes, own: list[Reader]) -> None:
        into: Readers = [readers.setdefault(number, []) if number in trained else None for number in operation.inputs]
        work.layers[operation.output].backward(run, sources, output, own, into)

    program.walk_back(values, readers, compute)


def parameter_gradients(program: Program, run: Pass) -> dict[int, Tensor]:
    """Return the gradients that a backward pass found, by the parameter's id."""
    owners, names = _owners(program), list(run.weight_gradients)
    weights = [owners[name].weight for name in names]
    grads = operations.WEIGHT_GRADIENTS([run.weight_gradients[name] for name in names], weights)
    found = {id(weight): grad for weight, grad in zip(weights, grads, strict=True)}
    blocks = [one for one in program.operations if one.name in run.sums]
    if blocks:
        sums = torch.cat([run.sums[one.name] for one in blocks], dim=2).sum(0).to(blocks[0].norm.weight.dtype)
        zeros = torch.zeros_like(sums[0])
        start = 0
        for one in blocks:
            norm, stop = one.norm, start + one.conv.out_channels
            found[id(norm.bias)], found[id(norm.weight)] = sums[0, start:stop], sums[1, start:stop]
            found[id(one.conv.bias)] = zeros[start:stop]  # the norm subtracts it again
            start = stop
    return found


def _owners(program: Program) -> dict[str, Any]:
    """Return the modules with a weight, by their operation's name."""
    return {one.name: one.conv for one in program.operations if getattr(one.conv, "weight", None) is not None}
