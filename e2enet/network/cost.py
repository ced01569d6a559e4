"""Count a network's parameters and FLOPs: active kernels only, without allocating its tensors.

An E2ENet's program tells what is multiplied. The forward pass of another network runs on torch's `meta` device, where
tensors have shapes and no memory. FLOPs are 2 x multiply-adds of convolutions and, in other networks, further matrix
products (linear layers, attention). Norms and activations are not counted. The two
conventions differ in transposed convolutions: `exact` counts each input voxel times the kernel; `paper` counts each
output voxel times the kernel, as the published columns do (8 times as much for 2 x 2 x 2). Spec section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from e2enet.network.e2enet import E2ENet, check_input
from e2enet.network.layers import Triple
from e2enet.network.program import BLOCK, EXPANSION, HEAD, POOLING, Operation, Program, implementation
from e2enet.network.tracing import find_program

CONVENTIONS = ("exact", "paper")
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Cost:
    """A network's cost: `params` counts values that training can make non-zero, `flops` one sample's forward pass."""

    params: int
    flops: int


def count_cost(model: nn.Module, input_size: Sequence[int], convention: str = "exact") -> Cost:
    """Count active parameters and FLOPs of one forward pass of one sample.

    Args:
        model: any network with convolutions that takes one (1, C, D, H, W) tensor; C is read from its `in_channels` or
            its first convolution. Layers with a `kernel_mask` count active kernels only. Every deep-supervision
            head is counted in either mode: attributes named `deep_supervision*` are True during the count.
        input_size: (D, H, W) in voxels.
        convention: "exact" or "paper" (see above).

    Raises:
        InputError: an E2ENet has an operation that is not in `COUNTED`.
        ValueError: the convention is another one, or the size does not fit the network.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {CONVENTIONS}, got {convention!r}")
    layers: dict[Any, int] = {
        module: _active_kernels(module) for module in model.modules() if isinstance(module, CONVOLUTIONS + TRANSPOSED)
    }
    program = find_program(model)
    if program is not None:
        assert isinstance(model, E2ENet)
        products, others = _of_program(model, program, input_size), 0
    else:
        products, others = _of_modules(model, layers, input_size)
    inactive = sum(
        (math.prod(layer.weight.shape[:2]) - active) * math.prod(layer.weight.shape[2:])
        for layer, active in layers.items()
    )
    return Cost(
        params=sum(p.numel() for p in model.parameters()) - inactive,
        flops=sum(_flops(product, layers[product.layer], convention) for product in products) + others,
    )


@dataclass(frozen=True)
class Product:
    """One run of a convolution.

    layer: the module that holds its weight. before, after: voxels of its input and output. transposed: it multiplies
    each voxel of its input by every value of a kernel, not each of its output.
    """

    layer: Any
    before: int
    after: int
    transposed: bool


def _flops(product: Product, kernels: int, convention: str) -> int:
    """Return 2 x multiply-adds of a convolution with this number of active kernels."""
    voxels = product.before if product.transposed and convention == "exact" else product.after
    return 2 * kernels * math.prod(product.layer.weight.shape[2:]) * voxels


# What an operation multiplies, given its module and the voxels before and after it; None: nothing.
COUNTED: dict[str, Callable[[Any, int, int], Product | None]] = {
    BLOCK: partial(Product, transposed=False),
    EXPANSION: partial(Product, transposed=True),
    POOLING: lambda *_: None,
    HEAD: partial(Product, transposed=False),
}


def _of_program(model: E2ENet, program: Program, input_size: Sequence[int]) -> list[Product]:
    """Return the convolutions of an E2ENet; sizes follow from its operations."""
    check_input(torch.empty(1, model.in_channels, *input_size, device="meta"), model.in_channels, model.strides)
    products: list[Product | None] = []

    def compute(operation: Operation, sizes: list[Triple]) -> Triple:
        multiplied = implementation("the cost counter", COUNTED, operation, "an entry in COUNTED")
        size = operation.output_size(sizes[0])
        products.append(multiplied(operation.conv, math.prod(sizes[0]), math.prod(size)))
        return size

    depth, height, width = input_size
    program.walk((depth, height, width), compute)
    return [product for product in products if product is not None]


def _of_modules(model: nn.Module, layers: Any, input_size: Sequence[int]) -> tuple[list[Product], int]:
    """Return the convolutions that a network's forward pass runs, and the FLOPs of its other products."""
    inside = 0
    products: list[Product] = []

    def enter(module: Any, inputs: tuple[Tensor, ...]) -> None:
        nonlocal inside
        inside -= counter.get_total_flops()

    def leave(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal inside
        inside += counter.get_total_flops()
        before, after = (math.prod(tensor.shape[2:]) for tensor in (inputs[0], output))
        products.append(Product(module, before, after, isinstance(module, TRANSPOSED)))

    with ExitStack() as stack, torch.no_grad():
        # For a network that is to be compiled: torch's compiler would give up, for good, on the code that runs here.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_every_head(model))
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(enter).remove)
            stack.callback(layer.register_forward_hook(leave).remove)
        on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in _tensors(model).items()}
        sample = torch.empty((1, _in_channels(model), *input_size), device="meta", dtype=_dtype(model))
        # Counts every product and knows no masks: only products outside the convolutions are taken from it.
        counter = stack.enter_context(FlopCounterMode(display=False))
        functional_call(model, on_meta, (sample,), tie_weights=False)
        return products, counter.get_total_flops() - inside


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, under one name of the module that holds it.

    Networks of other packages register a module twice. If both names were replaced, `functional_call` would not restore
    the tensor.
    """
    return {
        ".".join(part for part in (prefix, name) if part): tensor.detach()
        for prefix, module in model.named_modules()
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
    }


def _active_kernels(module: Any) -> int:
    """Return how many kernels may be non-zero. Dim 1 of a grouped convolution's weight is already per group."""
    mask = module._buffers.get("kernel_mask")
    return math.prod(module.weight.shape[:2]) if mask is None else int(mask.sum())


@contextmanager
def _every_head(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode with every deep-supervision head; restore modes and attributes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if name.startswith("deep_supervision") and isinstance(value, bool)
    ]
    try:
        model.eval()
        for module, name, _ in flags:
            setattr(module, name, True)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, value in flags:
            setattr(module, name, value)


def _in_channels(model: nn.Module) -> int:
    own = getattr(model, "in_channels", None)
    if isinstance(own, int):
        return own
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            return module.in_channels
    raise ValueError("the network has no convolution to read the number of input channels from")


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)
