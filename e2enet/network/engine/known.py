"""Check that an engine supports everything that a network computes; anything else must be refused.

An engine does not run a network's modules; it reads their values. A bias, a hook, an attribute or a module that it
does not read would be missing from its result. A network is therefore compared with what the engine was written for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from e2enet.common.errors import InputError
from e2enet.network.blocks import ConvBlock
from e2enet.network.e2enet import KERNEL_SIZES, E2ENet
from e2enet.network.layers import PlaneConv3d, StrideUp3d
from e2enet.network.norm import InstanceNormAct
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.recompute import recompute, run_once
from e2enet.network.tracing import CHILDREN

LARGEST_DEPTH_STRIDE = 4  # 16 lanes of 4 slices each fill the 64 bits of one integer
ONES, NO_PADDING = (1, 1, 1), (0, 0, 0)
# Attributes of every torch module: contents, which are checked separately, and hooks that only run for state dicts.
CONTENTS = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
OF_FILES = {name for name in vars(nn.Module()) if "state_dict" in name}
HOOKS = vars(nn.Module()).keys() - CONTENTS - OF_FILES
GLOBAL_HOOKS = "_global_forward", "_global_backward"
COMPILED = "_compiled_call_impl"  # set by torch's compiler, which runs the same operations
KEPT = frozenset({*HOOKS, *CONTENTS, *OF_FILES, COMPILED})


def unknown(network: nn.Module, *, on_cpu: bool = True) -> str | None:
    """Return the first thing of a network that an engine does not know, as the end of a sentence, or None.

    With None, the engine computes what the network does, up to rounding. on_cpu: it computes in float32 on a CPU, so
    the network must too.
    """
    if any(value for name, value in vars(torch_module).items() if name.startswith(GLOBAL_HOOKS)):
        return "a hook is registered for the modules of every network"
    if type(network) is not E2ENet:
        made = isinstance(network, E2ENet)
        return f"{type(network).__name__} is {'a class made of E2ENet, which may differ' if made else 'no E2ENet'}"
    kinds = dict.fromkeys((p.dtype, p.device) for p in network.parameters())
    if len(kinds) > 1 and not on_cpu:
        return f"its parameters are of several kinds: {', '.join(f'{dtype} on {device}' for dtype, device in kinds)}"
    for name, module in network.named_modules():
        problem = next(chain(_problems_of_any(module, on_cpu), PROBLEMS[type(module)](module)), None)
        if problem is not None:
            return f"{f'its {name}' if name else 'the network'} {problem}"
    return None


def unknown_in_training(network: nn.Module, *, on_cpu: bool = True) -> str | None:
    """Return the same for training, in which no weight may be shared: each layer would give its own gradient."""
    names: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(parameter), name)
        if other != name:
            return f"its {other} and {name} are one parameter"
    return unknown(network, on_cpu=on_cpu)


def settings(network: E2ENet) -> list[Any]:
    """Return what the engine's layers depend on besides weights and masks. Other settings make another network."""
    names = "stride", "kernel_size", "shift_size"
    return [
        network.gives_every_head,
        *((module, *(getattr(module, name, 0) for name in names)) for module in network.modules()),
    ]


def refuse(reason: str | None) -> None:
    """Raise InputError if there is a reason."""
    if reason is not None:
        raise InputError(f"the engine cannot run this network: {reason}; expected engine=dense")


def _problems_of_any(module: nn.Module, on_cpu: bool) -> Iterator[str]:
    """Yield what no module may have.

    These are other children, hooks, methods of its own, and tensors of another class or layout. With `on_cpu` they are
    also tensors elsewhere, and (masks apart) of another dtype than float32.
    """
    kind = type(module)
    for name, child in module._modules.items():
        if child is not None and type(child) not in CHILDREN[kind]:
            yield f"holds a module {type(child).__name__}, {name}"
    for name, value in vars(module).items():
        if name in KEPT:
            if value and name in HOOKS:
                yield f"has a hook ({name.strip('_')})"
        elif getattr(kind, name, value) is not value:
            yield f"has a {name} of its own"
    for name, tensor in chain(module._parameters.items(), module._buffers.items()):
        if tensor is None:
            continue
        wanted = torch.bool if name == "kernel_mask" else torch.float32 if on_cpu else tensor.dtype
        if type(tensor) not in (nn.Parameter, Tensor) or tensor.layout != torch.strided:
            yield f"has a {name} of type {type(tensor).__name__} and layout {tensor.layout}"
        if tensor.dtype != wanted:
            yield f"has a {name} of {tensor.dtype}, expected {wanted}"
        if on_cpu and tensor.device.type != "cpu":
            yield f"has a {name} on {tensor.device}"


def _differences(module: Any, **expected: Any) -> Iterator[str]:
    """Yield attributes whose value is not the expected one."""
    for name, value in expected.items():
        found = getattr(module, name, None)
        if type(found) is not type(value) or found != value:
            yield f"has {name} {found!r}, not {value!r}"


def _shapes(module: nn.Module, **expected: tuple[int, ...] | None) -> Iterator[str]:
    """Yield parameters and masks of another shape than expected, missing ones and unexpected ones."""
    found = module._parameters | module._buffers
    for name in [*expected, *(name for name in found if name not in expected)]:
        tensor, shape = found.get(name), expected.get(name)
        if name == "kernel_mask" and tensor is None:
            continue
        if (None if tensor is None else tuple(tensor.shape)) != shape:
            have = "no" if tensor is None else f"a {tuple(tensor.shape)}"
            yield f"has {have} {name}, where {'none' if shape is None else shape} is expected"


def _of_convolution(conv: Any, *, bias: bool) -> Iterator[str]:
    channels = conv.in_channels, conv.out_channels
    first, second = channels if isinstance(conv, StrideUp3d) else channels[::-1]
    weight = (first, second, *conv.kernel_size)
    yield from _shapes(conv, weight=weight, bias=(conv.out_channels,) if bias else None, kernel_mask=weight[:2])
    yield from _differences(
        conv, dilation=ONES, groups=1, padding_mode="zeros", output_padding=NO_PADDING,
        transposed=isinstance(conv, StrideUp3d),
    )  # fmt: skip


def _of_stride(stride: Any) -> Iterator[str]:
    whole = (
        isinstance(stride, tuple) and len(stride) == 3 and all(isinstance(step, int) and step > 0 for step in stride)
    )
    if not whole:
        yield f"has stride {stride!r}, not three whole numbers"
    elif stride[0] > LARGEST_DEPTH_STRIDE:
        yield f"has stride {stride}, larger along the depth than {LARGEST_DEPTH_STRIDE}"


def _of_plane_conv(conv: Any) -> Iterator[str]:
    if conv.kernel_size not in KERNEL_SIZES:
        yield f"has kernel_size {conv.kernel_size}, none of {KERNEL_SIZES}"
    yield from _differences(conv, padding=tuple(size // 2 for size in conv.kernel_size), normalised=True)
    yield from _of_stride(conv.stride)
    yield from _of_convolution(conv, bias=True)


def _of_head(conv: Any) -> Iterator[str]:
    yield from _differences(conv, kernel_size=ONES, stride=ONES, padding=NO_PADDING)
    yield from _of_convolution(conv, bias=False)


def _of_up(conv: Any) -> Iterator[str]:
    yield from _differences(conv, kernel_size=conv.stride, padding=NO_PADDING)
    yield from _of_stride(conv.stride)
    yield from _of_convolution(conv, bias=False)


def _of_norm(norm: Any) -> Iterator[str]:
    channels = norm.weight.numel() if isinstance(norm.weight, Tensor) else 0
    yield from _shapes(norm, weight=(channels,), bias=(channels,))
    if not (isinstance(norm.eps, float) and 0 <= norm.eps < math.inf):
        yield f"has eps {norm.eps!r}, no float from 0 on"
    if not (isinstance(norm.slope, int | float) and 0 <= norm.slope <= 1):
        yield f"has slope {norm.slope!r}, none from 0 to 1"


def _of_block(block: Any) -> Iterator[str]:
    if list(block._modules) != ["conv", "norm"]:
        yield f"holds {list(block._modules)}, not conv and norm"
    elif not isinstance(block.norm.weight, Tensor) or block.norm.weight.shape != (block.conv.out_channels,):
        yield f"has no norm of {block.conv.out_channels} channels"
    elif block.shift_size != 1 and block.conv.kernel_size != (1, 3, 3):
        yield f"has shift_size {block.shift_size} with kernel_size {block.conv.kernel_size}"


def _of_network(network: Any) -> Iterator[str]:
    if network.run_part not in (run_once, recompute):
        yield f"has run_part {network.run_part!r}, not run_once or recompute"
    yield from _shapes(network)


PROBLEMS: dict[type, Callable[[Any], Iterator[str]]] = {
    **dict.fromkeys(CHILDREN, _shapes),
    E2ENet: _of_network,
    ConvBlock: _of_block,
    PlaneConv3d: _of_plane_conv,
    InstanceNormAct: _of_norm,
    StrideUp3d: _of_up,
    StrideMaxPool3d: lambda pooling: _of_stride(pooling.stride),
    nn.Conv3d: _of_head,
}
