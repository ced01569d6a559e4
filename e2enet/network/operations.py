"""Loops as operations of torch, so that torch's tools see one operation each and not what NumPy does inside.

Tools that run a network on other tensors than numbers (make_fx, FakeTensor, torch.jit.trace) record or size an
operation by what is registered here. A derivative of a derivative is taken by plain operations of torch
(`plain_gradients`). Transforms of torch.func and forward-mode derivatives of the operations themselves are refused by
torch; the layers take plain operations under them (`plain_operations`), as under torch's own compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("e2enet", "FRAGMENT")
ANY_DEVICE = "CompositeExplicitAutograd"


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    autograd: Callable[..., Any] | None = None,
    device: str = "CPU",
) -> Any:
    """Make `kernel` the operation `torch.ops.e2enet.<name>` of a schema "name(..) -> ..", and return that.

    Args:
        kernel: what it does, outside autograd; it neither changes its inputs nor returns views of them.
        fake: the same with empty outputs: their shapes, strides and dtypes.
        autograd: what torch calls instead, the apply of an autograd function whose forward calls `below_autograd`.
            None: the operation has no gradient, and who asks for one is told so.
        device: the dispatch key of the kernel.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    operation = getattr(torch.ops.e2enet, name)
    LIBRARY.impl(name, torch.compiler.disable(kernel), device)  # not for a compiler of Python to look into
    torch.library.register_fake(f"e2enet::{name}", fake, lib=LIBRARY)
    LIBRARY.impl(name, autograd or partial(_WithoutGradient.apply, operation), "Autograd")
    return operation


def below_autograd(operation: Any, *arguments: Any) -> Any:
    """Call an operation from its own gradient's forward pass."""
    with torch._C._AutoDispatchBelowAutograd():
        return operation(*arguments)


class _WithoutGradient(torch.autograd.Function):
    """Calls an operation; going backward or forward-mode derivatives are errors."""

    @staticmethod
    def forward(ctx: Any, operation: Any, *arguments: Any) -> Any:
        ctx.name = operation.__name__
        return below_autograd(operation, *arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"torch.ops.e2enet.{ctx.name} has no gradient: differentiate the layer that calls it")


def plain_operations() -> bool:
    """Whether layers take plain operations of torch: its compiler fuses and exports them by itself, and torch.func and
    forward-mode derivatives know what to make of them."""
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def refuse_tools(runs: str) -> None:
    """Raise where one of torch's tools looks on that would take numbers which loops read for constants.

    `runs`: what reads them, without an operation of its own.
    """
    modes = torch._C._TorchDispatchModeKey
    tools = {
        "torch.jit.trace": torch.jit.is_tracing(),
        "torch.export": torch.compiler.is_compiling(),
        "a transform of torch.func": torch._C._are_functorch_transforms_active(),
        "a forward-mode derivative": forward_ad._current_level >= 0,
        "make_fx": torch._C._get_dispatch_mode(modes.PROXY) is not None,
        "FakeTensorMode": torch._C._get_dispatch_mode(modes.FAKE) is not None,
    }
    for tool, looks_on in tools.items():
        if looks_on:
            raise RuntimeError(f"{tool} cannot look into {runs}; give it the network that this was made of")


def plain_gradients(plain: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `inputs` by a function of them in plain operations, which can be differentiated again.

    None for inputs that need none.
    """
    with torch.enable_grad():
        own = [value.view_as(value) for value in inputs]  # an input may depend on another
        wanted = [value for value in own if value.requires_grad]
        found = iter(torch.autograd.grad(plain(*own), wanted, grad, create_graph=True))
    return tuple(next(found) if value.requires_grad else None for value in own)


def empty_channels_last(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Uninitialised memory (B, C, D, H, W) of x's type, in the order of (B, D, H, W, C)."""
    batch, channels, *size = shape
    return x.new_empty((batch, *size, channels)).permute(0, 4, 1, 2, 3)
