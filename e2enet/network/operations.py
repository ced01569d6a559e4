"""Register loops as operations of torch, so that torch's tools see one operation and not the NumPy code inside.

Tools that trace a network or run it without values (make_fx, FakeTensor, torch.jit.trace) record or size an operation
by its registration. Second derivatives use plain operations of torch (`plain_gradients`). torch refuses torch.func
transforms and forward-mode derivatives of the operations themselves. The layers use plain operations under them
(`plain_operations`), as they do under torch's compiler.
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
    """Register `kernel` as the operation `torch.ops.e2enet.<name>` of a schema "name(..) -> ..", and return it.

    Args:
        kernel: the computation, outside autograd; it neither changes its inputs nor returns views of them.
        fake: returns uninitialised outputs with the same shapes, strides and dtypes.
        autograd: what torch calls under autograd: the `apply` of an autograd function whose forward calls
            `below_autograd`. None: the operation has no gradient, and a backward pass raises NotImplementedError.
        device: the dispatch key of the kernel.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    operation = getattr(torch.ops.e2enet, name)
    LIBRARY.impl(name, torch.compiler.disable(kernel), device)  # torch's compiler must not trace it
    torch.library.register_fake(f"e2enet::{name}", fake, lib=LIBRARY)
    LIBRARY.impl(name, autograd or partial(_WithoutGradient.apply, operation), "Autograd")
    return operation


def below_autograd(operation: Any, *arguments: Any) -> Any:
    """Call an operation from its own gradient's forward pass."""
    with torch._C._AutoDispatchBelowAutograd():
        return operation(*arguments)


class _WithoutGradient(torch.autograd.Function):
    """Calls an operation; backward passes and forward-mode derivatives are errors."""

    @staticmethod
    def forward(ctx: Any, operation: Any, *arguments: Any) -> Any:
        ctx.name = operation.__name__
        return below_autograd(operation, *arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"torch.ops.e2enet.{ctx.name} has no gradient: differentiate the layer that calls it")


def plain_operations() -> bool:
    """Return whether layers must use plain operations of torch.

    torch's compiler fuses and exports these by itself; torch.func and forward-mode derivatives know no others.
    """
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def refuse_tools(runs: str) -> None:
    """Raise RuntimeError under a torch tool that would record the values that loops read as constants.

    `runs` names, for the message, what reads them without a registered operation.
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
    """Return the gradients of `inputs` through `plain`, whose plain operations can be differentiated again.

    None for inputs that need none.
    """
    with torch.enable_grad():
        own = [value.view_as(value) for value in inputs]  # an input may depend on another
        wanted = [value for value in own if value.requires_grad]
        found = iter(torch.autograd.grad(plain(*own), wanted, grad, create_graph=True))
    return tuple(next(found) if value.requires_grad else None for value in own)


def empty_channels_last(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return uninitialised memory (B, C, D, H, W) of x's dtype, stored in the order (B, D, H, W, C)."""
    batch, channels, *size = shape
    return x.new_empty((batch, *size, channels)).permute(0, 4, 1, 2, 3)
